"""Settings of the service: environment variables with the prefix DRAWBRIDGE_."""

import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.data_files import default_directory

PREFIX = "DRAWBRIDGE_"
KEY_VARIABLE = "DRAWBRIDGE_KEY"
"""The variable with a client's API key."""
OTHER_VARIABLES = ("DRAWBRIDGE_DATA", "DRAWBRIDGE_SCREENSHOTS", KEY_VARIABLE)
"""Variables that other parts read: where training and tests find data, where tests write screenshots, and the key."""
RENAMED = {
    "open": "allow_anonymous",
    "operations_port": "admin_port",
    "seats": "max_batch_size",
    "drain_seconds": "drain_timeout",
    "stall_seconds": "watchdog_timeout",
    "head_seconds": "header_timeout",
    "body_seconds": "body_timeout",
    "read_seconds": "write_timeout",
    "keep_alive_seconds": "keep_alive_timeout",
    "watch_seconds": "weights_poll_interval",
}
"""Names of version 0.1, which work with a warning until 0.3."""
KUBERNETES_LINK = re.compile(r"(.+_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""Variables that Kubernetes adds to every container of a namespace with a Service called drawbridge or drawbridge-*:
DRAWBRIDGE_SERVICE_HOST, DRAWBRIDGE_PORT_8000_TCP_ADDR, DRAWBRIDGE_WEB_PORT, ..."""


ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


class Settings(BaseSettings):
    """All settings, read once at the start."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free port.")
    root_path: str = Field(
        "", description="Path at which a reverse proxy serves this service, as /digits; the proxy removes it."
    )
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Separate port for /livez, /readyz and /metrics. They are then not on the main port.",
    )
    keys: Path | None = Field(
        None, description="File of API keys; clients must send one of them. `drawbridge key` writes it."
    )
    allow_anonymous: bool = Field(
        False, description="Accept requests without a key on addresses that other machines can reach."
    )
    weights: Path = Field(default_directory("weights"), description="Directory of the weights to serve.")
    lab: Path = Field(default_directory("lab"), description="Directory of the lab page, served at /lab.")
    unconditional_model: str = Field("dcgan", description="Model of requests that name no model and no label.")
    conditional_model: str = Field("cgan", description="Model of requests that name a label but no model.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Device that models run on; `auto` takes a CUDA GPU if there is one, else the CPU."
    )
    workers: int | None = Field(
        None, ge=1, description="Worker processes. Default: one per GPU, or one per CPU core up to 8."
    )
    http_processes: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes for HTTP beside one engine process per device; 0: each worker has an engine. Default:"
        " on a GPU half of the CPU cores, at most 8; on a CPU 0.",
    )
    threads: int = Field(1, ge=1, description="CPU threads per device step.")
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows per device step, a power of two. Default: on a CPU 32 for one-step models and 16 for "
        "others, on a CUDA GPU 512.",
    )
    max_loaded_models: int | None = Field(
        None,
        ge=1,
        description="Models that a worker keeps in memory; others are loaded when they are requested. Default: all.",
    )
    max_images: int = Field(1024, ge=1, description="Images per request.")
    queue_images: int = Field(8192, ge=1, description="Images queued or in progress in all workers together.")
    max_body_bytes: int = Field(
        16 * 2**20, ge=1024, description="Bytes of a request's body; at most 4 MiB if it is not a form with uploads."
    )
    max_uploads: int = Field(64, ge=2, description="Uploaded files per request.")
    max_pixels: int = Field(24 * 2**20, ge=784, description="Pixels of all pictures in a request.")
    drain_timeout: float = Field(20.0, ge=0, description="Seconds that accepted requests have to finish at shutdown.")
    watchdog_timeout: float = Field(
        60.0, ge=1, description="Seconds after which a worker that makes no progress is replaced."
    )
    header_timeout: float = Field(10.0, gt=0, description="Seconds that a client has to send a request's headers.")
    body_timeout: float = Field(30.0, gt=0, description="Seconds that a client has to send a request's body.")
    write_timeout: float = Field(
        60.0, gt=0, description="Seconds after which a client that does not read its response is disconnected."
    )
    keep_alive_timeout: int = Field(30, ge=0, description="Seconds that an idle connection stays open.")
    weights_poll_interval: float = Field(
        0.0, ge=0, description="Seconds between checks for new weights; 0 reloads on SIGHUP only."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Format of log lines; `auto` is text on a terminal and JSON otherwise."
    )
    tracing: bool = Field(
        False, description="Export OpenTelemetry spans to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra `tracing`."
    )

    @field_validator("device", "log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, choice: object) -> object:
        return choice.lower() if isinstance(choice, str) else choice

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @field_validator("root_path")
    @classmethod
    def _path(cls, path: str) -> str:
        if not ROOT_PATH.fullmatch(path):
            raise ValueError(f"{path!r} is not a path such as /digits, of letters, digits and . _ ~ -")
        return path.rstrip("/")

    @field_validator("weights")
    @classmethod
    def _exists(cls, weights: Path) -> Path:
        if not weights.is_dir():
            raise ValueError(f"{weights} is not a directory")
        return weights

    @field_validator("max_batch_size")
    @classmethod
    def _power_of_two(cls, size: int | None) -> int | None:
        if size is not None and size & (size - 1):
            raise ValueError(f"{size} is not a power of two; {1 << size.bit_length() - 1} is")
        return size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.keys is None and not self.allow_anonymous and not _is_loopback(self.host):
            raise ValueError(
                f"DRAWBRIDGE_HOST is {self.host}, which other machines can reach: set DRAWBRIDGE_KEYS to a file of "
                "keys (`drawbridge key NAME` creates one), or DRAWBRIDGE_ALLOW_ANONYMOUS=true"
            )
        if self.keys is not None and self.allow_anonymous:
            raise ValueError("DRAWBRIDGE_KEYS and DRAWBRIDGE_ALLOW_ANONYMOUS contradict each other; set one of them")
        if self.workers is not None and self.http_processes:
            raise ValueError(
                "DRAWBRIDGE_WORKERS and DRAWBRIDGE_HTTP_PROCESSES contradict each other (workers have an engine each, "
                "HTTP processes share one); set one of them"
            )
        if self.max_images > self.queue_images:
            raise ValueError(
                f"DRAWBRIDGE_MAX_IMAGES is {self.max_images}, more than DRAWBRIDGE_QUEUE_IMAGES, {self.queue_images}"
            )
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(f"DRAWBRIDGE_PORT and DRAWBRIDGE_ADMIN_PORT are both {self.port}")
        return self


def read_settings(defaults: Mapping[str, str] = MappingProxyType({})) -> Settings:
    """The settings in this process's environment, where renamed variables get their new names.

    `defaults` are the texts of settings that the environment lacks; they are added to it. An empty variable is not
    set. Variables of Kubernetes' service links are removed. Raises ValueError for a variable that is not a setting.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    set_here = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in variables.items()
        if value and not _is_service_link(name, value)
    }
    current = {**defaults, **with_current_names(set_here)}
    for name in variables:
        del os.environ[name]
    os.environ |= {PREFIX + name.upper(): value for name, value in current.items()}  # workers inherit them
    known = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in known and variable not in OTHER_VARIABLES:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"{variable} is not a setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    return Settings()


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the names of version 0.1 replaced, each with a warning on stderr.

    Raises ValueError where a setting has both names.
    """
    current = dict(settings)
    for old in RENAMED.keys() & settings.keys():
        new = RENAMED[old]
        if new in settings:
            raise ValueError(f"{PREFIX}{old.upper()} is the old name of {PREFIX}{new.upper()}; set the new one only")
        print(f"warning: the setting {old} is now called {new}; version 0.3 drops the old name", file=sys.stderr)
        current[new] = current.pop(old)
    return current


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable; DRAWBRIDGE_PORT=8000 is a setting, DRAWBRIDGE_PORT=tcp://... is not."""
    if name.endswith("PORT") and value.startswith(("tcp://", "udp://", "sctp://")):
        return True
    return KUBERNETES_LINK.fullmatch(name.removeprefix(PREFIX)) is not None


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
