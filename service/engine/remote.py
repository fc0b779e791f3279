"""The HTTP side of engine processes: what looks like an engine and its loader, without weights or a device.

Each engine process (`host.py`) has a link. A request goes to the engine with the fewest row steps of those that have
its model. If an engine dies, its requests go to another one, or wait for its successor, with the images that are not
there yet: samples are functions of seeds, so the client cannot tell. A request that was in the running step of two
dying engines ends with PoisonRequest.
"""

import asyncio
import itertools
import logging
import math
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import store
from models.base import Family
from service.engine.catalog import Catalog, Model, Outline, RemoteRunner
from service.engine.engine import notify
from service.engine.host import ModelFacts, Snapshot
from service.engine.interface import State, wait_until_loaded
from service.engine.request import (
    DeadlineExceeded,
    EngineError,
    ModelUnloaded,
    PoisonRequest,
    QueueFull,
    Request,
    ShuttingDown,
    Ticket,
    noop,
)
from service.engine.running import RunningRequests
from service.engine.wire import BUILD, FrameReader, Message, Plain, pack_request, unpack_error

log = logging.getLogger(__name__)

MAX_CRASHES = 2
"""A request that was in the running step of so many dying engines is not sent again."""
MAX_DEATHS = 5
"""Nor is one that so many dying engines had, in whatever state."""
RESTART_SECONDS = 5
"""When clients should try again while there is no engine and no room for more requests."""
FAMILIES: dict[str, Family] = {}
"""Families without values in their tensors, by the part of a manifest that determines them."""


@dataclass(eq=False, slots=True)
class Sent:
    """A request that has not ended."""

    ticket: Ticket
    number: int
    shape: tuple[int, ...]
    """Of one result: an image, or a code."""
    kind: type[np.generic]
    image_shape: tuple[int, ...]
    """Of a preview."""
    missing: list[int]
    """Positions of the images that are not there yet."""
    positions: list[int]
    """The same when it was last sent: the engine counts from 0."""
    confirm: bool = False
    """Whether its sender waits until it is accepted."""
    waited: bool = False
    """Whether a part of its timeout has passed without an engine, or with one that died."""
    deaths: int = 0
    """Engines that died while they had it."""
    crashes: int = 0
    """Those of them that died in a step with it."""


class Link(FrameReader):
    """The connection to an engine process."""

    def __init__(self, engine: "RemoteEngine", running: RunningRequests) -> None:
        super().__init__()
        self.engine, self.running, self.matches = engine, running, False
        self.requests: dict[int, Sent] = {}
        self.outbox: list[Message] = []
        """Messages of this pass of the event loop."""
        self.models: dict[str, Model] = {}
        """The engine's models by key."""
        self.snapshot: Snapshot | None = None
        """None until the engine has sent its first."""
        self.outstanding = self.remaining_steps = 0
        self.seconds = 0.0
        """The engine's load when it last sent it."""
        self.reloads: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(BUILD)

    def post(self, *message: Plain) -> None:
        """Send a message soon, with all others of this pass of the event loop."""
        if not self.outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self.outbox.append(message)

    def _flush(self) -> None:
        messages, self.outbox = self.outbox, []
        self.send(messages)

    def has(self, model: Model) -> bool:
        """Whether the engine has the model in memory, and generates the same bytes."""
        known = self.models.get(model.key)
        return (
            known is not None
            and known.runner is not None
            and (model.runner is None or known.fingerprint == model.fingerprint)
        )

    def submit(self, sent: Sent) -> None:
        """Send a request, or what is missing of it."""
        ticket, request = sent.ticket, sent.ticket.request
        sent.positions = list(sent.missing)
        if len(sent.positions) < len(request.samples):
            request = request._replace(samples=tuple(request.samples[i] for i in sent.positions))
        if request.timeout is not None and sent.waited:
            request = request._replace(timeout=max(0.0, ticket.deadline - self.engine.clock()))
        self.requests[sent.number] = sent
        self.remaining_steps += ticket.remaining_steps
        self.post("submit", sent.number, ticket.owner, sent.deaths > 0, sent.crashes > 0, pack_request(request))
        if sent.confirm:
            self.post("confirm", sent.number)

    def cancel(self, sent: Sent) -> None:
        """Let the engine forget a request."""
        self.requests.pop(sent.number, None)
        self.post("cancel", sent.number)

    def on_frame(self, head: Plain, body: memoryview) -> None:
        """The first frame is the other end's build, which it checks too."""
        if not self.matches:
            if head != BUILD:
                log.critical("this process and its engine process run different code; restart the service")
                os._exit(1)
            self.matches = True
        elif head[0] == "updates":
            self.outstanding, self.remaining_steps, self.seconds = head[1]
            self._on_updates(head[2], body)
        elif head[0] == "catalog":
            self._on_snapshot(pickle.loads(head[1]))
        else:
            for reload in self.reloads:
                reload.set_result(None)
            self.reloads.clear()

    def on_lost(self) -> None:
        for reload in self.reloads:  # the engine's successor loads the new weights
            reload.set_result(None)
        self.engine.on_lost(self)
        self.running.close()

    def _on_updates(self, updates: list[Plain], body: memoryview) -> None:
        tickets, offset = [], 0
        for number, accepted, times, outcome, error, finished, previews, size in updates:
            images, offset = body[offset : offset + size], offset + size
            sent = self.requests.pop(number, None) if outcome else self.requests.get(number)
            if sent is None or sent.ticket not in self.engine.requests:  # it has ended here meanwhile
                continue
            _update(sent, accepted, times, finished, previews, _Images(images))
            if outcome == "late":
                self.engine.end_late(sent)
            elif outcome:
                self.engine.end(sent, outcome, None if error is None else unpack_error(error))
            tickets.append(sent.ticket)
        notify(tickets)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        models = {key: _model(facts) for key, facts in snapshot.new.items()}
        known = self.models | models
        self.models = {key: known[key] for key in (*snapshot.previous, *snapshot.models)}
        self.snapshot = snapshot
        self.engine.on_snapshot(self)


class RemoteEngine:
    """Sends requests to engine processes. `queue_images` is the engines' bound.

    `index` numbers the HTTP processes. `clock` returns seconds; all processes of a machine share it. To be used on one
    event loop.
    """

    step_started_at: float | None = None
    """Steps run in other processes."""

    def __init__(self, queue_images: int, index: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.queue_images, self.clock = queue_images, clock
        self.numbers = itertools.count((index << 40) + 1)
        self.links: dict[Link, None] = {}
        """Those with a snapshot."""
        self.requests: dict[Ticket, tuple[Sent, Link | None]] = {}
        """All requests that have not ended, with the engine that has each; None: it waits for one."""
        self.connected = asyncio.Event()
        """Set once there was an engine."""
        self.images = 0
        """Images of these requests."""
        self.stopping = False
        self.replayed: Callable[[int], None] = lambda _: None
        """Called with the number of requests that are sent again after an engine died."""
        self.loader = RemoteLoader(self)

    # -- requests ------------------------------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Images of requests that are accepted and have not ended, of all HTTP processes."""
        return sum(link.outstanding for link in self.links) if self.links else self.images

    def submit(self, request: Request, on_update: Callable[[], None] = noop, owner: str = "") -> Ticket:
        """Send `request` of `owner` and return its ticket, which ends as `refused` if the engine refuses it.

        Raises ModelUnloaded, ShuttingDown, and QueueFull if this process alone has as much as the engine may have.
        """
        model, count = self.loader.catalog.versions.get(request.model), len(request.samples)
        if self.stopping:
            raise ShuttingDown
        if model is None:
            raise ModelUnloaded
        if self.images + count > self.queue_images:
            raise QueueFull(max(1, math.ceil(self.seconds_behind())) if self.links else RESTART_SECONDS)
        self.images += count
        ticket = Ticket(
            request,
            owner,
            images=[None] * count,
            labels=np.full(count, -1),
            remaining_images=count,
            remaining_steps=count * request.steps_per_row,
            on_update=on_update,
            deadline=math.inf if request.timeout is None else self.clock() + request.timeout,
        )
        shape, kind = (model.code_shape, np.float32) if request.codes_only else (model.image_shape, np.uint8)
        missing = list(range(count))
        self._send(Sent(ticket, next(self.numbers), shape, kind, model.image_shape, missing, missing), model)
        return ticket

    def confirm(self, ticket: Ticket) -> None:
        """Let the engine say as soon as it is known whether it accepts the request."""
        sent, link = self.requests.get(ticket, (None, None))
        if sent is not None:
            sent.confirm = True
            if link is not None:
                link.post("confirm", sent.number)

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request. No effect if it has ended."""
        sent, link = self.requests.get(ticket, (None, None))
        if sent is not None:
            self.end(sent, "cancelled", None)
            if link is not None:
                link.cancel(sent)

    def seconds_behind(self) -> float:
        """The seconds until the engine with the least work should have finished all accepted requests."""
        return min((link.seconds for link in self.links), default=0.0)

    def stop(self) -> None:
        """Refuse new requests. Accepted ones still run."""
        self.stopping = True

    def end(self, sent: Sent, outcome: str, error: EngineError | None) -> None:
        """End a request; every request ends here."""
        del self.requests[sent.ticket]
        self.images -= len(sent.ticket.images)
        sent.ticket.error, sent.ticket.outcome = error, outcome

    def end_late(self, sent: Sent) -> None:
        """End a request whose deadline has passed."""
        timeout = sent.ticket.request.timeout
        self.end(sent, "late", DeadlineExceeded(f"the request was not finished within {timeout:g} s"))

    def _send(self, sent: Sent, model: Model | None) -> None:
        """Send a request to the engine with the least work of those that have its model; without one it waits."""
        links = [link for link in self.links if model is not None and link.has(model)] or list(self.links)
        link = min(links, key=lambda link: link.remaining_steps, default=None)
        self.requests[sent.ticket] = sent, link
        if link is not None:
            link.submit(sent)
        else:
            sent.waited = True
        if sent.ticket.request.timeout is not None and (link is None or sent.crashes):
            delay = max(0.0, sent.ticket.deadline - self.clock())
            asyncio.get_running_loop().call_later(delay, self._expire, sent)

    def _expire(self, sent: Sent) -> None:
        """End a request whose deadline has passed while it waited for an engine, or as a suspect for others."""
        known, link = self.requests.get(sent.ticket, (None, None))
        if known is None or (link is not None and not sent.crashes):
            return
        self.end_late(sent)
        if link is not None:
            link.cancel(sent)
        notify([sent.ticket])

    # -- engines -------------------------------------------------------------------------------------------------------

    async def connect(self, connection: socket.socket, running: RunningRequests) -> None:
        """Use the engine process at the other end of `connection`, which notes in `running` what it runs."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: Link(self, running), sock=connection)

    def on_snapshot(self, link: Link) -> None:
        """An engine has sent its catalog; at its first, the requests that wait go to it."""
        new = link not in self.links
        self.links[link] = None
        self.loader.update()
        self.connected.set()
        if new:
            for sent, other in list(self.requests.values()):
                if other is None:
                    self._send(sent, self.loader.catalog.versions.get(sent.ticket.request.model))

    def on_lost(self, link: Link) -> None:
        """An engine has died: send its requests again, but for those that may be why."""
        self.links.pop(link, None)
        self.loader.update()
        running, ended, again = link.running.read(), list[Ticket](), 0
        for sent in link.requests.values():
            if sent.ticket not in self.requests:
                continue
            sent.waited = True
            sent.deaths += 1
            sent.crashes += sent.number in running
            if sent.crashes >= MAX_CRASHES or sent.deaths >= MAX_DEATHS:
                self.end(sent, "failed", PoisonRequest())
                ended.append(sent.ticket)
            else:
                self._send(sent, self.loader.catalog.versions.get(sent.ticket.request.model))
                again += 1
        if again and not self.stopping:
            log.warning("an engine process is gone; requests sent again: %d", again)
        self.replayed(again)
        notify(ended)


class RemoteLoop:
    """The loop of a remote engine, which runs in another process."""

    def __init__(self, engine: RemoteEngine) -> None:
        self.engine = engine

    async def start(self) -> None:
        """Wait for an engine."""
        await self.engine.connected.wait()

    async def stop(self, grace: float) -> None:
        """Wait up to `grace` seconds for the accepted requests, then end the others and close the connections."""
        engine = self.engine
        engine.stop()
        deadline = time.monotonic() + grace
        while engine.requests and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        left = [sent for sent, _ in engine.requests.values()]
        for sent in left:
            reason = "the service shut down before this request was finished; send it again"
            engine.end(sent, "stopped", ShuttingDown(reason))
        notify([sent.ticket for sent in left])
        for link in engine.links:
            if link.transport is not None:
                link.transport.close()


class RemoteLoader:
    """The catalog of engine processes, and commands to their loaders."""

    def __init__(self, engine: RemoteEngine) -> None:
        self.engine, self.catalog, self.closed = engine, Catalog(), False
        self.serve: Callable[[Catalog], None] = lambda _: None
        """Receives each new catalog."""
        self.scope = ""
        """What a seed's bytes depend on besides weights and parameters."""
        self.started = asyncio.Event()
        """Set while there are engines, and all have loaded the models of the start, or found them broken."""
        self.loading: set[str] = set()
        self.done: dict[str, asyncio.Event] = {}
        """For each model that requests wait for, set when it is loaded, or broken."""

    async def start(self, first: Iterable[str]) -> None:
        """Serve the engines' catalog. They decide what they load first: their settings are the same."""
        self.update()

    async def close(self) -> None:
        """Let waiting requests end with ShuttingDown."""
        self.closed = True
        self._set_events(list(self.done))

    def shutdown(self) -> None:
        """Nothing runs on a thread."""

    async def reload(self) -> None:
        """Let all engines reload their weights, and wait for the end."""
        reloads = []
        for link in self.engine.links:
            reloads.append(asyncio.get_running_loop().create_future())
            link.reloads.append(reloads[-1])
            link.post("reload")
        await asyncio.gather(*reloads)

    def state(self, model: Model) -> State:
        """Whether a model is in memory."""
        if not self.engine.links or model.name in self.loading:
            return "loading"
        return "on demand" if model.runner is None else "loaded"

    def request(self, name: str) -> asyncio.Event:
        """Let an engine load the model `name` next. The event is set at the end, or if it has to be asked again."""
        if name not in self.done:
            self.done[name] = asyncio.Event()
            for link in self.engine.links:
                link.post("load", name)
        return self.done[name]

    async def use(self, model: Model) -> Model:
        """Wait until `model` is in memory. The engine keeps it there while it has a request for it.

        Raises ModelUnloaded if these weights are no longer served, or cannot be loaded; ShuttingDown.
        """
        return await wait_until_loaded(self, model)

    def release(self, model: Model) -> None:
        """Nothing: the engine counts its own requests."""

    def touch(self, model: Model) -> None:
        """Nothing: the engine sees the request itself."""

    def update(self) -> None:
        """Serve the catalog that the engines have now; without any, the last one."""
        links = list(self.engine.links)
        snapshots = [link.snapshot for link in links if link.snapshot is not None]
        if not snapshots:
            self.started.clear()
            return
        first = snapshots[0]
        self.scope, self.loading = first.scope, set.intersection(*(set(one.loading) for one in snapshots))
        models, previous = (_best(links, keys) for keys in (first.models, first.previous))
        self.catalog = Catalog(models, first.broken, previous)
        self.serve(self.catalog)
        if all(one.started for one in snapshots):
            self.started.set()
        else:
            self.started.clear()
        self._set_events([name for name in self.done if name not in self.loading])

    def _set_events(self, names: list[str]) -> None:
        for name in names:
            self.done.pop(name).set()


class _Images:
    """Reads images, one behind the other."""

    def __init__(self, body: memoryview) -> None:
        self.body, self.offset = body, 0

    def read(self, kind: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        image = np.frombuffer(self.body, kind, math.prod(shape), self.offset).reshape(shape)
        self.offset += image.nbytes
        return image


def _update(sent: Sent, accepted: Plain, times: Plain, finished: list[int], previews: Plain, images: _Images) -> None:
    """Put what is new into a ticket."""
    ticket, positions = sent.ticket, sent.positions
    if accepted is not None:
        accepted_at, ahead, labels = accepted
        ticket.accepted_at = ticket.accepted_at or accepted_at
        ticket.images_ahead = ahead
        ticket.labels[positions] = np.frombuffer(labels, np.int64)
    if times is not None:
        started_at, ticket.finished_at, batch, remaining = times
        ticket.started_at = started_at if ticket.started_at is None else ticket.started_at
        ticket.max_batch_seen = max(ticket.max_batch_seen, batch)
        ticket.remaining_steps = min(ticket.remaining_steps, remaining)  # an engine that begins again has more
    for i in finished:
        ticket.images[positions[i]] = images.read(sent.kind, sent.shape)
        ticket.previews.pop(positions[i], None)
        ticket.guesses.pop(positions[i], None)
    if finished:
        arrived = {positions[i] for i in finished}
        sent.missing = [i for i in sent.missing if i not in arrived]
        ticket.remaining_images = len(sent.missing)
    for i, has_guess in previews:
        ticket.previews[positions[i]] = images.read(np.uint8, sent.image_shape)
        if has_guess:
            ticket.guesses[positions[i]] = images.read(np.uint8, sent.image_shape)


def _model(facts: ModelFacts) -> Model:
    """A model of an engine, whose family is built without values in its tensors if the engine has it in memory."""
    if facts.loaded is None:
        return Model(facts.name, facts.manifest)
    fingerprint, code_shape, inversion_steps = facts.loaded
    identity = facts.manifest.identity()
    if identity not in FAMILIES:
        FAMILIES[identity] = store.build(facts.manifest).to("meta")
    outline = Outline(FAMILIES[identity], code_shape, inversion_steps)
    return Model(facts.name, facts.manifest, RemoteRunner(outline, fingerprint))


def _best(links: list[Link], keys: list[str]) -> dict[str, Model]:
    """The models with these keys by name, each from the first engine that has it in memory if one has."""
    models = {}
    for key in keys:
        known = [link.models[key] for link in links if key in link.models]
        model = next((model for model in known if model.runner is not None), known[0])
        models[model.name] = model
    return models
