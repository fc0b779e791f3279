"""Loading models while others serve: those that requests wait for first, and no more than fit into memory.

A start is a reload from an empty catalog. One task makes all changes of the catalog, one model at a time. A thread
reads, packs and proves the weights, so that the models in memory go on meanwhile.
"""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from models.store import WeightsError
from service.engine.catalog import Catalog, Model, RemoteRunner
from service.engine.engine import Engine
from service.engine.interface import State, wait_until_loaded
from service.engine.request import noop

log = logging.getLogger(__name__)

UNLOAD_POLL = 0.005
"""Seconds between checks whether the last request of a model that is being unloaded has ended."""

A = TypeVar("A")
R = TypeVar("R")


class ModelLoader:
    """Loads the models of a catalog into an engine, and unloads the least recently used ones where room is needed.

    `scan` returns the catalog of the weights directories now, from the present one, and the names with new weights;
    `load` loads the weights of a name or raises WeightsError. Both run on a thread, with `threads` threads per
    operation. `serve` receives each new catalog. At most `max_loaded` models are in memory, and one more while a reload
    replaces a model; None means all. To be used on one event loop.
    """

    def __init__(
        self,
        engine: Engine,
        scan: Callable[[Catalog], tuple[Catalog, list[str]]],
        load: Callable[[str], Model],
        serve: Callable[[Catalog], None],
        *,
        threads: int = 1,
        max_loaded: int | None = None,
    ) -> None:
        self.engine, self.scan, self.load, self.serve, self.max_loaded = engine, scan, load, serve, max_loaded
        self.catalog = Catalog()
        self.on_state: Callable[[], None] = noop
        """Called when `state` has changed for a model, or `started` is set, but the catalog has not."""
        self.thread = ThreadPoolExecutor(1, "loader", torch.set_num_threads, (threads,))
        """One thread for all weights, so that memory it frees is used again."""
        self.done: dict[str, asyncio.Event] = {}
        """For each model that is to be loaded, set when it is loaded or broken."""
        self.requested: dict[str, None] = {}
        """Names of those that requests wait for, in the order of their first request."""
        self.queued: dict[str, None] = {}
        """Names of those that are loaded without a request, in order."""
        self.started = asyncio.Event()
        """Set when the models that are loaded at the start have all been loaded, or are broken."""
        self.wake = asyncio.Event()
        self.changing = asyncio.Lock()
        """Held during a change of the catalog."""
        self.users: Counter[str] = Counter()
        """Requests that use a model, by its key: it stays in memory until they end."""
        self.last_used: dict[str, int] = {}
        """For each key a number that is larger the later a request used it."""
        self.numbers = itertools.count(1)
        self.closed = False

    async def start(self, first: Iterable[str]) -> None:
        """Find the models and begin to load them: those named `first`, then the others by name."""
        names = await self._scan()
        self._enqueue([*(name for name in dict.fromkeys(first) if name in names), *names])
        self.task = asyncio.create_task(self._run(), name="loader")

    async def close(self) -> None:
        """Stop loading. Waiting requests end with ShuttingDown."""
        self.closed = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for event in self.done.values():
            event.set()

    def shutdown(self) -> None:
        """Wait for what still runs on the thread."""
        self.thread.shutdown()

    async def reload(self) -> None:
        """Load new weights beside those in memory, which are served until then.

        Weights that do not load change nothing.
        """
        events = self._enqueue(await self._scan())
        await asyncio.gather(*(event.wait() for event in events))

    def state(self, model: Model) -> State:
        """Whether a model is in memory."""
        if model.runner is not None:
            return "loaded"
        return "loading" if model.name in self.done else "on demand"

    def request(self, name: str) -> asyncio.Event:
        """Load the model `name` before those that no request waits for. The event is set at the end."""
        event = self.done.setdefault(name, asyncio.Event())
        self.requested[name] = None
        self.wake.set()
        self.on_state()
        return event

    async def use(self, model: Model) -> Model:
        """Wait until `model` is in memory, and keep it there until `release`.

        Raises ModelUnloaded if these weights are no longer served, or cannot be loaded; ShuttingDown.
        """
        current = await wait_until_loaded(self, model)
        self.users[model.key] += 1
        self.touch(model)
        return current

    def release(self, model: Model) -> None:
        """A request no longer uses `model`."""
        self.users[model.key] -= 1
        if not self.users[model.key]:
            del self.users[model.key]

    def touch(self, model: Model) -> None:
        """A request uses `model` now."""
        self.last_used[model.key] = next(self.numbers)

    # -- the task ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if not self.queued and not self.started.is_set():
                self.started.set()
                self.on_state()
            name = next(iter(self.requested or self.queued), None)
            if name is None:
                self.wake.clear()
                await self.wake.wait()
                continue
            async with self.changing:
                await self._load(name)
            self.requested.pop(name, None)
            self.queued.pop(name, None)
            self.done.pop(name).set()
            self.on_state()
            await asyncio.sleep(0)  # waiting requests take the model before another one may need its room

    async def _scan(self) -> list[str]:
        """Look for changed weights. Returns the names of those to load."""
        async with self.changing:
            catalog, names = await self._on_thread(self.scan, self.catalog)
            self._replace(catalog)
        return names

    def _enqueue(self, names: Iterable[str]) -> list[asyncio.Event]:
        """Load the models `names` without a request: new weights of models in memory, and others while there is room.

        Returns an event for each, which is set at the end.
        """
        events = []
        for name in dict.fromkeys(names):
            full = self.max_loaded is not None and len(self.catalog.loaded) + len(self.queued) >= self.max_loaded
            if not self.closed and not (full and self.catalog.models[name].runner is None):
                self.queued[name] = None
                events.append(self.done.setdefault(name, asyncio.Event()))
        self.wake.set()
        self.on_state()
        return events

    async def _load(self, name: str) -> None:
        """Load the model `name` and serve it, or note why it is broken."""
        old = self.catalog.models.get(name)
        if old is None or (old.runner is not None and name not in self.queued):
            return  # its directory is gone, or another request had it loaded
        if self.max_loaded is not None:
            if old.runner is None and name not in self.requested and len(self.catalog.loaded) >= self.max_loaded:
                return  # requests for other models took its room
            await self._shrink(self.max_loaded - 1, keep=old)
        try:
            model = await self._on_thread(self.load, name)
        except Exception as error:
            reason = str(error) if isinstance(error, WeightsError) else f"{name} cannot be loaded: {error!r}"
            log.error("weights %s are not served: %s", name, reason)
            self._replace(self.catalog.with_broken(name, reason))
            return
        if old.runner is None or old.digest != model.digest:
            self._replace(self.catalog.with_loaded(model))
        if self.max_loaded is not None:
            await self._shrink(self.max_loaded, keep=model)

    async def _shrink(self, size: int, keep: Model) -> None:
        """Unload models until `size` are in memory: first those without requests, the least recently used first."""
        while len(self.catalog.loaded) > size:
            others = [model for model in self.catalog.loaded.values() if model is not keep]
            if not others:
                return
            await self._unload(min(others, key=self._usage))

    def _usage(self, model: Model) -> tuple[int, int]:
        requests = self.users[model.key] + self.engine.requests_by_model[model.key]
        return requests, self.last_used.get(model.key, 0)

    async def _unload(self, model: Model) -> None:
        """Let new requests for `model` wait until it is loaded again, and unload it when its last request has ended."""
        self.catalog = self.catalog.with_unloaded(model)
        self.serve(self.catalog)
        while model.key in self.users:
            await asyncio.sleep(UNLOAD_POLL)
        self.engine.unload(model.key)
        while model.key in self.engine.runners:
            await asyncio.sleep(UNLOAD_POLL)
        log.info("%s is unloaded", model.key)

    def _replace(self, catalog: Catalog) -> None:
        """Serve another catalog."""
        old, new = self.catalog.loaded, catalog.loaded
        for key, model in new.items():
            if key not in old and model.runner is not None:
                assert not isinstance(model.runner, RemoteRunner)
                self.engine.add(key, model.runner)
        self.catalog = catalog
        self.serve(catalog)
        for key in old.keys() - new.keys():
            self.engine.unload(key)
        self.last_used = {key: number for key, number in self.last_used.items() if key in catalog.versions}

    async def _on_thread(self, function: Callable[[A], R], argument: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, argument)
