"""What `draw` and `dataset` share: the flags for a model and its sampling, and a client of a service that has it."""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from drawbridge.client import DEFAULT_TIMEOUT, AsyncClient
from drawbridge.commands.parsing import UsageError, requires_extra

KEY_VARIABLE = "DRAWBRIDGE_KEY"


def add_arguments(parser: argparse.ArgumentParser, *, model_required: bool = True, several: bool = False) -> None:
    """The model, the service, or `several` services as a list, and the sampling parameters."""
    parser.add_argument("model", nargs=None if model_required else "?", help="name of a model, such as cgan")
    parser.add_argument(
        "--url",
        action="append" if several else "store",
        help=f"address of a running service{'; may repeat, they share the work' if several else ''}. Its API key, if "
        f"it needs one, is read from {KEY_VARIABLE} (default: load the weights in this process)",
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's, likewise below)")
    parser.add_argument("--sampler", help="how a diffusion or flow model takes its steps")
    parser.add_argument("--prior", help="the distribution of an autoencoder's latent codes")
    parser.add_argument("--guidance", type=float, help="guidance scale")


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that were given."""
    names = ("steps", "sampler", "prior", "guidance")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


@asynccontextmanager
async def connect(
    url: str | None, model: str, command: str, timeout: float = DEFAULT_TIMEOUT
) -> AsyncIterator[AsyncClient]:
    """A client of the service at `url`; without one, of a service in this process with just the requested model."""
    if url:
        try:
            client = AsyncClient(url, key=os.environ.get(KEY_VARIABLE), timeout=timeout)
        except httpx.InvalidURL as error:
            raise UsageError(f"--url {url}: {error}") from None
        async with client:
            yield client
        return
    with requires_extra("serve", command, "; or name a running service with --url"):
        from drawbridge.commands.settings import make_settings
        from models import store
        from service.app import create_app
    settings = make_settings(log_level="warning")
    names = store.list_weights(settings.weights)
    if model not in names:
        raise UsageError(f"no model {model!r}; available models: {', '.join(names) or 'none'}")
    app = create_app(settings, only=model)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient("http://in-process", transport=transport) as client:
            yield client
