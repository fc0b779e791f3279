"""What an operator may set: environment variables with the prefix DRAWBRIDGE_."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).parent.parent


class Settings(BaseSettings):
    """Read once, at the start, and passed to whoever needs them."""

    model_config = SettingsConfigDict(env_prefix="DRAWBRIDGE_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    weights: Path = Field(ROOT / "weights", description="Directory of the weights to serve.")
    lab: Path = Field(ROOT / "docs" / "lab", description="Directory of the lab's page, which is served at /lab.")
    unconditional_model: str = Field("dcgan", description="Draws for requests that name no model and no digit.")
    conditional_model: str = Field("cgan", description="Draws for requests that name no model, but a digit.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto: the GPU if there is one."
    )
    workers: int | None = Field(
        None, ge=1, description="Processes that draw; else one for each GPU, or for each core of a CPU, at most 8."
    )
    threads: int = Field(1, ge=1, description="CPU threads of one device step.")
    seats: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows that one device step takes at most, a power of two; else 16, on a GPU 128.",
    )
    max_images: int = Field(1024, ge=1, description="Images that one request may ask for.")
    queue_images: int = Field(8192, ge=1, description="Images that may wait or be in drawing, in all workers together.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Bytes of a request's body.")
    max_uploads: int = Field(64, ge=2, description="Files that one request may upload.")
    max_pixels: int = Field(4 * 2**20, ge=784, description="Pixels of an uploaded file.")
    drain_seconds: float = Field(20.0, ge=0, description="Time that accepted requests get to end at shutdown.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written."
    )

    @field_validator("seats")
    @classmethod
    def _power_of_two(cls, seats: int | None) -> int | None:
        if seats is not None and seats & (seats - 1):
            raise ValueError(f"{seats} is no power of two; {1 << seats.bit_length() - 1} is")
        return seats
