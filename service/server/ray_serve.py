"""The application as replicas of Ray Serve, on as many machines as there are: `serve run deploy/ray.yaml`.

Ray places replicas, restarts them, scales them, and routes to them; each is the application with an engine of its own,
which batches. There is no second batcher: a replica is given more requests at once than it has seats, and its next step
takes whoever is there. Needs `pip install .[cluster]`, on every machine, with the same weights.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application as Deployed
from ray.serve.config import AutoscalingContext

from models import store
from service.app import Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.settings import Settings
from service.telemetry import log

WAITING = "queued_images"
"""What a replica tells the autoscaler: images accepted and not ended."""
SECONDS_BEHIND = "seconds_behind"
"""Likewise: seconds after which these should be drawn, at the rate of late."""


class Arguments(BaseModel):
    """The `args` of an application in Ray Serve's config file."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field({}, description="Settings without their prefix, in lower case, as in `Settings`.")
    model: str | None = Field(None, description="Serve this one alone, as one application a model does.")


@serve.deployment
@serve.ingress()
class Replica:
    """One application, with its engine on the replica's own event loop, or on its GPU's thread."""

    def __init__(self, settings: dict[str, Any], model: str | None) -> None:
        self.settings = Settings(**settings)
        log.configure(self.settings)
        gate = None
        if self.settings.keys is not None:
            gate = Authenticator(keys.read(self.settings.keys), Path(tempfile.mkdtemp(prefix="drawbridge-")), 0, 1)
        self.application = create_app(self.settings, authenticator=gate, only=model)
        self.weights: Any = None

    def __serve_build_asgi_app__(self) -> Application:
        return self.application

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take up the weights that lie there now, where `weights` in the config's `user_config` has changed.

        Ray calls this in a replica after the other; what is under way ends on the weights that it began with.
        """
        if self.weights is not None and config.get("weights") != self.weights:
            await self.application.reload()
        self.weights = config.get("weights")

    async def check_health(self) -> None:
        """Raises RuntimeError where a step on the device does not end; where the event loop is held up, Ray sees it."""
        began = self.application.state.service.engine.stepping
        if began is not None and time.perf_counter() - began > self.settings.watchdog_timeout:
            raise RuntimeError(f"a step on the device has taken {self.settings.watchdog_timeout:g} s and goes on")
        self.application.metrics.sample_memory(self.application.device)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scale` decides by."""
        engine = self.application.state.service.engine
        return {WAITING: engine.outstanding, SECONDS_BEHIND: engine.expect()}


def scale(context: AutoscalingContext, seconds: float = 1.0) -> tuple[int, dict[str, Any]]:
    """As many replicas as draw in `seconds` all that waits; Ray holds them between the config's limits."""
    behind = [value for value in context.aggregated_metrics.get(SECONDS_BEHIND, {}).values() if value is not None]
    return max(1, math.ceil(sum(behind) / seconds)), {}


def build(arguments: dict[str, Any]) -> Deployed:
    """The application for Ray Serve, from the `args` of its config file.

    An application of one model draws from it where a request names none. Raises ValueError for settings that there are
    not, and for a model that there is not. Ray's proxies listen where its own config says, which replicas
    cannot see, so it has to be said whether everybody may draw: `allow_anonymous`, or a file of `keys` that every machine has.
    """
    try:
        asked = Arguments(**arguments)
        settings = Settings(**asked.settings)
    except ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
    if not settings.allow_anonymous and settings.keys is None:
        raise ValueError("settings: set `allow_anonymous: true`, or `keys` to a file of keys")
    names = store.list_weights(settings.weights)
    if asked.model is not None and asked.model not in names:
        raise ValueError(f"model: no {asked.model!r} in {settings.weights}; there are: {', '.join(names) or 'none'}")
    drawn = {} if asked.model is None else dict.fromkeys(("unconditional_model", "conditional_model"), asked.model)
    return Replica.bind(  # type: ignore[attr-defined]
        drawn | asked.settings, asked.model
    )
