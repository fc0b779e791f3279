"""What an operator may set: environment variables with the prefix DRAWBRIDGE_."""

import difflib
import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.data_files import default_directory

ROOT = Path(__file__).parent.parent
PREFIX = "DRAWBRIDGE_"
KEY_VARIABLE = "DRAWBRIDGE_KEY"
"""The variable with a caller's key."""
OTHER_VARIABLES = ("DRAWBRIDGE_DATA", "DRAWBRIDGE_SCREENSHOTS", KEY_VARIABLE)
"""Variables that are read elsewhere; the first two say where training and tests find data, and put pictures."""


class Settings(BaseSettings):
    """Read once, at the start, and passed to whoever needs them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of its own for /livez, /readyz and /metrics, then nowhere else.",
    )
    keys: Path | None = Field(
        None, description="File of the keys that callers must show one of; `python -m service key` writes it."
    )
    allow_anonymous: bool = Field(
        False, description="Let whoever reaches an address that is not this machine's own draw."
    )
    weights: Path = Field(default_directory("weights"), description="Directory of the weights to serve.")
    lab: Path = Field(default_directory("lab"), description="Directory of the lab's page, which is served at /lab.")
    unconditional_model: str = Field("dcgan", description="Draws for requests that name no model and no digit.")
    conditional_model: str = Field("cgan", description="Draws for requests that name no model, but a digit.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto: the GPU if there is one."
    )
    workers: int | None = Field(
        None, ge=1, description="Processes that draw; else one for each GPU, or for each core of a CPU, at most 8."
    )
    threads: int = Field(1, ge=1, description="CPU threads of one device step.")
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows of a step at most, a power of two; else 32 of a model of one step, 16 of others; GPU: 128.",
    )
    max_images: int = Field(1024, ge=1, description="Images that one request may ask for.")
    queue_images: int = Field(8192, ge=1, description="Images that may wait or be in drawing, in all workers together.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Bytes of a request's body.")
    max_uploads: int = Field(64, ge=2, description="Files that one request may upload.")
    max_pixels: int = Field(4 * 2**20, ge=784, description="Pixels of an uploaded file.")
    drain_timeout: float = Field(20.0, ge=0, description="Time that accepted requests get to end at shutdown.")
    watchdog_timeout: float = Field(
        60.0,
        ge=1,
        description="A worker that is held up for longer, by a step or anything else, is replaced.",
    )
    header_timeout: float = Field(10.0, gt=0, description="Time that a caller gets to send a request's headers.")
    body_timeout: float = Field(30.0, gt=0, description="Time that a caller gets to send a request's body.")
    write_timeout: float = Field(60.0, gt=0, description="Time that a caller may not read while an answer waits.")
    keep_alive_timeout: int = Field(30, ge=0, description="Time that a connection is kept without a request.")
    weights_poll_interval: float = Field(
        0.0, ge=0, description="How often to look for new weights; 0: when SIGHUP says that there are some."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How log lines are written; auto: text on a terminal, else JSON."
    )
    tracing: bool = Field(
        False, description="Send a span of each request to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs OpenTelemetry."
    )

    @field_validator("weights")
    @classmethod
    def _there(cls, weights: Path) -> Path:
        if not weights.is_dir():
            raise ValueError(
                f"{weights} is not a directory; set DRAWBRIDGE_WEIGHTS to a directory of exported weights, "
                "as `weights/` in a checkout of Drawbridge is"
            )
        return weights

    @field_validator("max_batch_size")
    @classmethod
    def _power_of_two(cls, size: int | None) -> int | None:
        if size is not None and size & (size - 1):
            raise ValueError(f"{size} is not a power of two; {1 << size.bit_length() - 1} is")
        return size

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.keys is None and not self.allow_anonymous and not _is_loopback(self.host):
            raise ValueError(
                f"DRAWBRIDGE_HOST is {self.host}, where others may call: name a file of keys with DRAWBRIDGE_KEYS "
                "(`python -m service key NAME` makes one), or say DRAWBRIDGE_ALLOW_ANONYMOUS=true"
            )
        if self.keys is not None and self.allow_anonymous:
            raise ValueError("DRAWBRIDGE_KEYS and DRAWBRIDGE_ALLOW_ANONYMOUS are both set; keep one of them")
        if self.max_images > self.queue_images:
            raise ValueError(
                f"DRAWBRIDGE_MAX_IMAGES is {self.max_images}, more than DRAWBRIDGE_QUEUE_IMAGES, {self.queue_images}"
            )
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(f"DRAWBRIDGE_PORT and DRAWBRIDGE_ADMIN_PORT are both {self.port}")
        return self


def read_settings() -> Settings:
    """The settings of this process's environment. Raises ValueError where it holds one that there is not."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and name not in OTHER_VARIABLES:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    return Settings()


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
