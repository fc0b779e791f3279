"""The application as replicas of Ray Serve, on any number of machines: `serve run deploy/ray.yaml`.

Ray places, restarts and scales replicas, and routes requests to them. Each replica is the application with an engine of
its own, which batches; Ray does not batch. A replica gets more requests at once than fit into a device step, so that
the next step's batch is already waiting. Every machine needs the extra `cluster` and the same weights.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application as RayApplication
from ray.serve.config import AutoscalingContext

from models import store
from service.app import Application, create_app
from service.auth.authenticator import create_authenticator
from service.errors import describe
from service.settings import Settings, with_current_names
from service.telemetry import log

QUEUED_IMAGES = "queued_images"
"""Metric for the autoscaler: images queued or in progress."""
SECONDS_BEHIND = "seconds_behind"
"""Metric for the autoscaler: seconds until these are finished, at the recent rate."""


class Arguments(BaseModel):
    """The `args` of an application in Ray Serve's config file."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field({}, description="Settings in lower case without their prefix, as in `Settings`.")
    model: str | None = Field(None, description="Serve only this model.")


@serve.deployment
@serve.ingress()
class Replica:
    """One application, with its engine on the replica's event loop, or on a thread for a GPU."""

    def __init__(self, settings: dict[str, Any], model: str | None) -> None:
        self.settings = Settings(**settings)
        log.configure(self.settings)
        authenticator = create_authenticator(self.settings, Path(tempfile.mkdtemp(prefix="drawbridge-")))
        self.application = create_app(self.settings, authenticator=authenticator, only=model)
        self.weights: Any = None

    def __serve_build_asgi_app__(self) -> Application:
        return self.application

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Reload the weights if `weights` in the config's `user_config` has changed.

        Ray calls this in one replica after the other. Requests in progress finish with the weights they started with.
        """
        if self.weights is not None and config.get("weights") != self.weights:
            await self.application.reload()
        self.weights = config.get("weights")

    async def check_health(self) -> None:
        """Raises RuntimeError if a device step does not end. Ray itself notices a blocked event loop."""
        started_at = self.application.state.service.engine.step_started_at
        timeout = self.settings.watchdog_timeout
        if started_at is not None and time.perf_counter() - started_at > timeout:
            raise RuntimeError(f"a device step has run for more than {timeout:g} s")
        self.application.metrics.sample_memory(self.application.device)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The metrics for `scale`."""
        engine = self.application.state.service.engine
        return {QUEUED_IMAGES: engine.outstanding, SECONDS_BEHIND: engine.seconds_behind()}


def scale(context: AutoscalingContext, seconds: float = 1.0) -> tuple[int, dict[str, Any]]:
    """The number of replicas that finish all waiting work in `seconds`; Ray applies the config's limits."""
    behind = [value for value in context.aggregated_metrics.get(SECONDS_BEHIND, {}).values() if value is not None]
    return max(1, math.ceil(sum(behind) / seconds)), {}


def build(arguments: dict[str, Any]) -> RayApplication:
    """The Ray Serve application, from the `args` of its config file.

    An application of one model uses it for requests that name none. Replicas cannot see where Ray's proxies listen, so
    the settings must say whether requests need a key: `allow_anonymous`, or a file of `keys` that every machine has.
    Raises ValueError for unknown settings and models.
    """
    try:
        parsed = Arguments(**arguments)
        named = with_current_names(parsed.settings)
        settings = Settings(**named)
    except ValidationError as error:
        raise ValueError(describe(error)) from None
    if not settings.allow_anonymous and settings.keys is None:
        raise ValueError("settings: set `allow_anonymous: true`, or `keys` to a file of keys")
    names = store.list_weights(settings.weights)
    if parsed.model is not None and parsed.model not in names:
        raise ValueError(
            f"model: no {parsed.model!r} in {settings.weights}; choose one of: {', '.join(names) or 'none'}"
        )
    defaults = ("unconditional_model", "conditional_model")
    models = {} if parsed.model is None else dict.fromkeys(defaults, parsed.model)
    return Replica.bind(  # type: ignore[attr-defined]
        models | named, parsed.model
    )
