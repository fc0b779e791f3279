"""The engine's side of an engine process: it runs the requests of HTTP processes (`remote.py`) in one engine.

All HTTP processes share the engine's batches, queue bound, fairness and deadlines. After each step every HTTP process
gets one frame with all that is new for it. Requests that were in a step in which an engine died are `suspects`: they
run one after the other, so that one that kills again is known.
"""

import asyncio
import logging
import pickle
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.store import Manifest
from service.engine.catalog import Catalog, Model
from service.engine.engine import Engine
from service.engine.loader import ModelLoader
from service.engine.request import DeadlineExceeded, EngineError, ModelUnloaded, Request, Ticket, noop
from service.engine.running import RunningRequests
from service.engine.wire import BUILD, FrameReader, Plain, pack_error, unpack_request

log = logging.getLogger(__name__)

STATUS_INTERVAL = 0.25
"""Seconds after which an HTTP process gets the engine's load if no images came with it."""


class ModelFacts(NamedTuple):
    """What an HTTP process learns of a model."""

    name: str
    manifest: Manifest
    loaded: tuple[str, tuple[int, ...], int] | None
    """Of a model in memory: fingerprint, code shape and inversion steps."""


class Snapshot(NamedTuple):
    """What an HTTP process learns of the catalog whenever that changes."""

    scope: str
    models: list[str]
    """Keys."""
    previous: list[str]
    broken: dict[str, str]
    loading: list[str]
    """Names of the models that are to be loaded soon."""
    started: bool
    new: dict[str, ModelFacts]
    """The models that are new or changed, by key."""


@dataclass(eq=False, slots=True)
class Hosted:
    """A request of an HTTP process, until it has ended."""

    client: "Client"
    number: int
    request: Request
    owner: str
    ticket: Ticket | None = None
    """None until the engine has accepted it."""
    refusal: EngineError | None = None
    """Why it is not accepted."""
    unsent: list[int] = field(default_factory=list)
    """Positions of the images that the HTTP process does not have."""
    again: bool = False
    """Whether an engine that died had accepted it."""
    confirm: bool = False
    """Whether the HTTP process waits until it is accepted."""
    acceptance_sent: bool = False


class Client(FrameReader):
    """The connection of an HTTP process."""

    def __init__(self, host: "EngineHost") -> None:
        super().__init__()
        self.host, self.matches = host, False
        self.requests: dict[int, Hosted] = {}
        self.updated: dict[Hosted, None] = {}
        """Requests with updates for the HTTP process."""
        self.models: dict[str, Model] = {}
        """The models that it knows, by key."""
        self.status: Plain = None
        """The status that it knows."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(BUILD)

    def on_frame(self, head: Plain, body: memoryview) -> None:
        """The first frame is the other end's build, which it checks too; each later one has messages."""
        if self.transport is None:
            return
        if not self.matches:
            if head != BUILD:
                self.transport.close()
                return
            self.matches = True
            self.host.clients[self] = None
            self.send_catalog()
            return
        for kind, *values in head:
            getattr(self, f"on_{kind}")(*values)

    def on_submit(self, number: int, owner: str, again: bool, suspect: bool, packed: Plain) -> None:
        """Accept a request; a suspect only when the ones before it have ended."""
        request = unpack_request(packed)
        unsent = [*range(len(request.samples))]
        hosted = self.requests[number] = Hosted(self, number, request, owner, unsent=unsent, again=again)
        if suspect:
            self.host.suspects.append(hosted)
            self.host.run_next_suspect()
        else:
            self.host.accept(hosted)

    def on_cancel(self, number: int) -> None:
        """Cancel a request, which gets no more updates."""
        hosted = self.requests.pop(number, None)
        if hosted is not None:
            self.updated.pop(hosted, None)
            self.host.cancel(hosted)

    def on_confirm(self, number: int) -> None:
        """Say that a request is accepted, at once or when it is."""
        hosted = self.requests.get(number)
        if hosted is not None:
            hosted.confirm = True
            if hosted.ticket is not None:
                self.send_confirmation(hosted)

    def on_load(self, name: str) -> None:
        """Load a model next."""
        self.host.loader.request(name)

    def on_reload(self) -> None:
        """Reload the weights."""
        self.host.reload(self)

    def on_lost(self) -> None:
        """The HTTP process has closed the connection, or is dead: nothing waits for its requests."""
        self.host.clients.pop(self, None)
        for number in list(self.requests):
            self.on_cancel(number)

    def mark_updated(self, hosted: Hosted) -> None:
        """Send what is new of a request soon, with everything else of this step."""
        if not self.updated:
            asyncio.get_running_loop().call_soon(self.send_updates)
        self.updated[hosted] = None

    def send_confirmation(self, hosted: Hosted) -> None:
        """Say now, before the next step, that a request is accepted."""
        self.updated[hosted] = None
        self.send_updates()

    def send_updates(self) -> None:
        """Send what is new of requests, and the engine's load; nothing if neither has changed."""
        if not self.updated and self.status == self.host.status():
            return
        updated, self.updated = self.updated, {}
        arrays: list[NDArray[Any]] = []
        packed = [_pack_update(hosted, arrays) for hosted in updated]
        self.status = self.host.status()
        self.send(("updates", self.status, packed), arrays)
        for hosted in updated:
            if hosted.number not in self.requests:
                self.host.forget(hosted)

    def send_catalog(self) -> None:
        """Send the catalog, with models only if they have changed. They are objects of this service, so pickled."""
        host, catalog = self.host, self.host.catalog
        models = catalog.versions
        new = {key: _facts(model) for key, model in models.items() if self.models.get(key) is not model}
        self.models = models
        current, previous = ([model.key for model in part.values()] for part in (catalog.models, catalog.previous))
        loading, started = list(host.loader.done), host.loader.started.is_set()
        snapshot = Snapshot(host.scope, current, previous, catalog.broken, loading, started, new)
        self.send(("catalog", pickle.dumps(snapshot)))


class EngineHost:
    """Runs the requests of HTTP processes in `engine`, whose models `loader` loads. `scope` is that of its bytes."""

    def __init__(self, engine: Engine, loader: ModelLoader, scope: str, running: RunningRequests) -> None:
        self.engine, self.loader, self.scope, self.running = engine, loader, scope, running
        self.catalog, self.catalog_changed = Catalog(), False
        self.clients: dict[Client, None] = {}
        self.numbers: dict[Ticket, int] = {}
        """The numbers of the requests that the engine has accepted."""
        self.suspects: deque[Hosted] = deque()
        """Suspects that wait."""
        self.suspect: Hosted | None = None
        """The one that runs."""
        self.reloading: asyncio.Task[None] | None = None
        self.reload_clients: list[Client] = []
        """HTTP processes whose command to reload was not begun."""
        self.tasks: set[asyncio.Task[None]] = set()
        engine.on_schedule = self._on_schedule
        loader.on_state = self._on_catalog

    def serve(self, catalog: Catalog) -> None:
        """Serve the weights of `catalog` from now on."""
        self.catalog = catalog
        self._on_catalog()

    def status(self) -> Plain:
        """The engine's load: images, row steps, and the seconds that these take."""
        return self.engine.outstanding, self.engine.remaining_steps, self.engine.seconds_behind()

    async def send_statuses(self) -> None:
        """Send the engine's load every STATUS_INTERVAL."""
        while True:
            await asyncio.sleep(STATUS_INTERVAL)
            for client in self.clients:
                client.send_updates()

    def accept(self, hosted: Hosted) -> None:
        """Submit a request to the engine, once its model is in memory."""
        model = self.catalog.versions.get(hosted.request.model)
        if model is None:
            self._refuse(hosted, ModelUnloaded())
        elif model.runner is None:
            self._run(self._load_and_submit(hosted, model))
        else:
            self._submit(hosted, model)

    def cancel(self, hosted: Hosted) -> None:
        """Nothing waits for a request any more."""
        if hosted.ticket is not None:
            hosted.ticket.on_update = noop
            self.engine.cancel(hosted.ticket)
        elif hosted in self.suspects:
            self.suspects.remove(hosted)
        self.forget(hosted)

    def forget(self, hosted: Hosted) -> None:
        """A request has ended, and nothing of it is left to send."""
        if hosted.ticket is not None:
            self.numbers.pop(hosted.ticket, None)
        if self.suspect is hosted:
            # The next suspect may end this process, and uvloop writes the result at the end of this pass of the loop.
            asyncio.get_running_loop().call_soon(self._replace_suspect, hosted)

    def _replace_suspect(self, hosted: Hosted) -> None:
        if self.suspect is hosted:
            self.suspect = None
            self.run_next_suspect()

    def run_next_suspect(self) -> None:
        """Let the next suspect run if none does."""
        if self.suspect is None and self.suspects:
            self.suspect = self.suspects.popleft()
            self.accept(self.suspect)

    def reload(self, client: Client) -> None:
        """Reload the weights, once for all HTTP processes that ask before it begins."""
        self.reload_clients.append(client)
        if self.reloading is None or self.reloading.done():
            self.reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self.reload_clients:
            clients, self.reload_clients = self.reload_clients, []
            try:
                await self.loader.reload()
            except Exception:
                log.exception("the weights cannot be reloaded")
            for client in clients:
                client.send_catalog()
                client.send(("reloaded", None))

    async def _load_and_submit(self, hosted: Hosted, model: Model) -> None:
        """Submit a request with what is left of its timeout after its model was loaded."""
        clock, timeout = self.engine.clock, hosted.request.timeout
        asked_at = clock()
        try:
            async with asyncio.timeout(timeout):
                model = await self.loader.use(model)
        except TimeoutError:
            self._refuse(hosted, DeadlineExceeded(f"{model.name} was not loaded within {timeout:g} s"))
            return
        except EngineError as error:
            self._refuse(hosted, error)
            return
        try:
            if timeout is not None:
                hosted.request = hosted.request._replace(timeout=max(0.0, timeout - (clock() - asked_at)))
            if hosted.number in hosted.client.requests:
                self._submit(hosted, model)
        finally:
            self.loader.release(model)

    def _submit(self, hosted: Hosted, model: Model) -> None:
        self.loader.touch(model)
        self.running.set_submitted(hosted.number)
        try:
            on_update = partial(self._on_update, hosted)
            hosted.ticket = self.engine.submit(hosted.request, on_update, hosted.owner, again=hosted.again)
        except EngineError as error:
            self._refuse(hosted, error)
        except Exception as error:
            log.exception("a request to %s cannot be submitted", hosted.request.model)
            self._refuse(hosted, EngineError(f"the request cannot be submitted: {error!r}"))
        else:
            self.numbers[hosted.ticket] = hosted.number
            if hosted.confirm:
                hosted.client.send_confirmation(hosted)
        self.running.set_submitted(0)

    def _refuse(self, hosted: Hosted, error: EngineError) -> None:
        hosted.refusal = error
        if hosted.number in hosted.client.requests:
            hosted.client.mark_updated(hosted)
        else:
            self.forget(hosted)

    def _on_update(self, hosted: Hosted) -> None:
        hosted.client.mark_updated(hosted)

    def _on_schedule(self, rows: list[tuple[Ticket, int]]) -> None:
        """On the engine's thread: note which requests are in the next step."""
        self.running.set_running({self.numbers.get(ticket, 0) for ticket, _ in rows})

    def _on_catalog(self) -> None:
        """Send the catalog soon, with all changes until then."""
        if not self.catalog_changed:
            self.catalog_changed = True
            asyncio.get_running_loop().call_soon(self._send_catalog)

    def _send_catalog(self) -> None:
        self.catalog_changed = False
        for client in self.clients:
            client.send_catalog()

    def _run(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def _facts(model: Model) -> ModelFacts:
    if model.runner is None:
        return ModelFacts(model.name, model.manifest, None)
    return ModelFacts(model.name, model.manifest, (model.fingerprint, model.code_shape, model.inversion_steps))


def _pack_update(hosted: Hosted, arrays: list[NDArray[Any]]) -> Plain:
    """What is new of a request, and its images into `arrays`: finished ones, then previews, each with its guess."""
    ticket = hosted.ticket
    if ticket is None:
        assert hosted.refusal is not None
        del hosted.client.requests[hosted.number]
        return hosted.number, None, None, "refused", pack_error(hosted.refusal), [], [], 0
    outcome = ticket.outcome  # first: an engine on another thread may go on meanwhile
    accepted, first = None, len(arrays)
    if not hosted.acceptance_sent:
        hosted.acceptance_sent = True
        accepted = (ticket.accepted_at, ticket.images_ahead, ticket.labels.tobytes())
    finished = [i for i in hosted.unsent if ticket.images[i] is not None]
    if finished:
        arrays += [np.ascontiguousarray(ticket.images[i]) for i in finished]
        sent = set(finished)
        hosted.unsent = [i for i in hosted.unsent if i not in sent]
        for i in finished:
            ticket.images[i] = None
    previews = []
    for i in sorted(ticket.previews):
        preview, guess = ticket.previews.pop(i, None), ticket.guesses.pop(i, None)
        if preview is not None:
            previews.append((i, guess is not None))
            arrays += [np.ascontiguousarray(image) for image in (preview, guess) if image is not None]
    times = (ticket.started_at, ticket.finished_at, ticket.max_batch_seen, ticket.remaining_steps)
    if outcome:
        ticket.on_update = noop  # it refers to `hosted`, which refers to the ticket
        del hosted.client.requests[hosted.number]
    error = None if ticket.error is None or not outcome else pack_error(ticket.error)
    size = sum(values.nbytes for values in arrays[first:])
    return hosted.number, accepted, times, outcome, error, finished, previews, size
