"""What the application needs of an engine and of what loads its models.

`Engine` and `ModelLoader` offer it in this process, `RemoteEngine` and `RemoteLoader` for an engine in another process.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from service.engine.catalog import Catalog, Model
from service.engine.request import ModelUnloaded, Request, ShuttingDown, Ticket, noop

State = Literal["loaded", "loading", "on demand"]
"""Of a model: in memory; to be loaded soon; loaded once a request needs it."""


class RequestEngine(Protocol):
    """Accepts requests and delivers their images."""

    queue_images: int
    """The most images that are queued or in progress."""
    step_started_at: float | None
    """When the device step that runs in this process started; None between steps."""

    @property
    def outstanding(self) -> int:
        """Images of requests that are accepted and have not ended."""

    def submit(self, request: Request, on_update: Callable[[], None] = noop, owner: str = "") -> Ticket:
        """Accept `request` of `owner`, or refuse it: by an EngineError, or by a ticket that soon ends with one."""

    def confirm(self, ticket: Ticket) -> None:
        """Call `on_update` as soon as it is known whether the request is accepted."""

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request. No effect if it has ended."""

    def seconds_behind(self) -> float:
        """The seconds until all accepted requests should be finished."""

    def stop(self) -> None:
        """Refuse new requests. Accepted ones still run."""


class Loader(Protocol):
    """The models that are served, and their way into memory."""

    catalog: Catalog
    closed: bool
    """Whether it loads nothing any more."""
    started: asyncio.Event
    """Set when the models that are loaded at the start have all been loaded, or are broken."""

    async def start(self, first: Iterable[str]) -> None:
        """Find the models and begin to load them: those named `first`, then the others by name."""

    async def close(self) -> None:
        """Stop loading. Waiting requests end with ShuttingDown."""

    def shutdown(self) -> None:
        """Wait for what still runs on a thread."""

    async def reload(self) -> None:
        """Load new weights beside those in memory, which are served until then."""

    def state(self, model: Model) -> State:
        """Whether a model is in memory."""

    def request(self, name: str) -> asyncio.Event:
        """Load the model `name` before those that no request waits for. The event is set at the end."""

    async def use(self, model: Model) -> Model:
        """Wait until `model` is in memory, and keep it there until `release`. Raises ModelUnloaded or ShuttingDown."""

    def release(self, model: Model) -> None:
        """A request no longer uses `model`."""

    def touch(self, model: Model) -> None:
        """A request uses `model` now."""


async def wait_until_loaded(loader: Loader, model: Model) -> Model:
    """Wait until `model` is in memory.

    Raises ModelUnloaded if these weights are no longer served, or cannot be loaded; ShuttingDown.
    """
    while (current := loader.catalog.versions.get(model.key)) is not None and current.runner is None:
        if loader.closed:
            raise ShuttingDown
        await loader.request(model.name).wait()
    if current is None:
        raise ModelUnloaded
    return current
