"""The engine: requests in, one device step a turn, images out."""

import heapq
import itertools
import logging
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from service.engine.request import (
    DeadlineExceeded,
    DeadlineUnattainable,
    EngineError,
    ModelUnloaded,
    QueueFull,
    Request,
    ShuttingDown,
    Ticket,
    noop,
)
from service.engine.runner import Row, Runner
from service.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

DECAY = 0.99
"""What a measured rate keeps of its past at each turn."""


class StepRate:
    """Links gone and device seconds spent of late, older ones counting less."""

    def __init__(self) -> None:
        self.steps = self.seconds = 0.0

    def add(self, links: int, seconds: float) -> None:
        """A step took so many rows a link further."""
        self.steps = DECAY * self.steps + links
        self.seconds = DECAY * self.seconds + seconds

    def seconds_for(self, links: int) -> float:
        """Seconds that `links` take at this rate; 0 before anything was measured."""
        return links * self.seconds / self.steps if self.steps else 0.0


class EngineObserver:
    """Is told what the engine does, from its thread, and does nothing about it; others do more."""

    def on_batch(self, model: str, rows: int, places: int, seconds: float) -> None:
        """`rows` rows, in a batch of so many `places`, went a link further."""

    def on_step(self, came: int, ended: list[Ticket], outstanding: int) -> None:
        """A turn is over. So many requests were accepted since the last one, these have ended, as they say, and so many
        images go on.
        """

    def on_recovery(self) -> None:
        """A turn broke, and the engine starts anew."""


class Engine:
    """Runs `runners` by name. `submit` may be called from any thread, `turn` from one: the driver's.

    At most `queue_images` images wait or are being drawn; `clock` gives seconds.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        *,
        queue_images: int,
        clock: Callable[[], float],
        observer: EngineObserver | None = None,
    ) -> None:
        self.runners, self.clock, self.queue_images = dict(runners), clock, queue_images
        self.watcher = observer or EngineObserver()
        self.scheduler: Scheduler[Ticket] = Scheduler(self._batch_sizes())
        self.rows: dict[Ticket, list[Row]] = {}
        self.inbox: queue.SimpleQueue[tuple[Ticket, bool]] = queue.SimpleQueue()
        """Tickets that come, and (True) those that leave."""
        self.updated: dict[Ticket, None] = {}
        """Tickets that have something to be told."""
        self.wake: Callable[[], None] = lambda: None
        self.notify: Callable[[list[Ticket]], None] = notify
        """Calls each ticket's `told`, where its caller is."""
        self.lock = threading.Lock()
        self.outstanding = 0
        """Images accepted and not ended."""
        self.remaining_steps = 0
        """Links of their chains that are still to go."""
        self.requests_by_model: Counter[str] = Counter()
        """Requests accepted and not ended, by model."""
        self.unloading: set[str] = set()
        """Models that take no more requests, and go with the last that they have."""
        self.step_started_at: float | None = None
        """Since when the device has been at a step."""
        self.ended: Counter[str] = Counter()
        """Requests by how they ended, and all of them under `accepted`."""
        self.accepted_since_step = 0
        """Requests accepted since the last turn's end."""
        self.deadlines: list[tuple[float, int, Ticket]] = []
        """A heap of the tickets that have one, with a number that settles ties."""
        self.numbers = itertools.count()
        self.rate = StepRate()
        self.rates = {model: StepRate() for model in self.runners}
        self.stopping = False

    # -- the callers' side ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, on_update: Callable[[], None] = noop, owner: str = "") -> Ticket:
        """Accept `request` of `owner`, whose ticket will end. Raises QueueFull, Hopeless, Retired or Stopping."""
        model, count = request.model, len(request.samples)
        links = count * request.steps_per_row
        runner = self.runners.get(model)
        if runner is None:
            raise ModelUnloaded
        if request.timeout is not None:
            alone = self.rates.get(model, self.rate).seconds_for(links)
            if alone > request.timeout:
                raise DeadlineUnattainable(alone, request.timeout)
        labels = runner.labels(request)
        with self.lock:
            if self.stopping:
                raise ShuttingDown("the service is shutting down; try another instance, or again in a moment")
            if model in self.unloading or model not in self.runners:
                raise ModelUnloaded
            if self.outstanding + count > self.queue_images:
                raise QueueFull(max(1, math.ceil(self.seconds_behind())))
            ahead = self.outstanding
            self.outstanding += count
            self.remaining_steps += links
            self.requests_by_model[model] += 1
            self.ended["accepted"] += 1
            self.accepted_since_step += 1
        now = self.clock()
        deadline = math.inf if request.timeout is None else now + request.timeout
        ticket = Ticket(
            request, owner, [None] * count, labels, count, links, ahead, on_update, deadline=deadline, accepted_at=now
        )
        self._enqueue(ticket, leaving=False)
        return ticket

    def seconds_behind(self) -> float:
        """Seconds after which all that is accepted should be drawn, at the rate of late."""
        return self.rate.seconds_for(self.remaining_steps)

    def cancel(self, ticket: Ticket) -> None:
        """Give `ticket` up: its rows leave before the next step. Without effect where it has ended."""
        self._enqueue(ticket, leaving=True)

    def add(self, model: str, runner: Runner) -> None:
        """Take requests to `model` from now on."""
        with self.lock:
            self.unloading.discard(model)
            self.rates.setdefault(model, StepRate())
            if model not in self.runners:
                self.scheduler.add_model(model, runner.max_batch_size)
            self.runners = {**self.runners, model: runner}

    def unload(self, model: str) -> None:
        """Take no more requests to `model`, and let go of it once those that it has are over."""
        with self.lock:
            self.unloading.add(model)
        self.wake()

    def stop(self) -> None:
        """Refuse what comes from now on; what was accepted is still drawn."""
        with self.lock:
            self.stopping = True

    def abandon(self) -> None:
        """End what is still there with Stopping. Called where no turn will follow."""
        self.stop()
        self._end_all("stopped", ShuttingDown("the service shut down before this was drawn; ask again"))

    def recover(self, error: Exception) -> None:
        """End what is still there, after a turn that raised `error`: whatever it left behind, nobody waits for it."""
        log.error("a turn broke; all that waited goes", exc_info=error)
        self.step_started_at = None
        self.watcher.on_recovery()
        self.scheduler = Scheduler(self._batch_sizes())
        self._end_all("failed", EngineError(f"the engine broke and was started anew ({error!r}); ask again"))

    # -- the driver's side ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read the mail, take one device step for whoever it is due to, deliver. False where nobody waits."""
        self._read_inbox()
        self._expire()
        choice = self.scheduler.schedule()
        if choice is not None:
            model, riders = choice
            before = self.step_started_at = self.clock()
            gone, places = self._run_batch(self.runners[model], riders)
            seconds = self.clock() - before
            self.step_started_at = None
            self.scheduler.charge(seconds)
            for rate in (self.rate, self.rates[model]):
                rate.add(gone, seconds)
            self.watcher.on_batch(model, gone, places, seconds)
        if self.unloading:
            self._remove_unloaded()
        self._notify()
        return choice is not None

    def _run_batch(self, runner: Runner, riders: list[tuple[Ticket, int]]) -> tuple[int, int]:
        """One step for `riders`, and images to those that are done.

        Returns how many went a link further, and the places that there were for them.

        A batch that fails is halved until the guilty row stands alone, and only its request fails.
        """
        riders = [(ticket, i) for ticket, i in riders if ticket in self.rows]
        if not riders:
            return 0, 0
        images: list[NDArray[Any] | None] | None = None
        try:
            images = runner.advance([self.rows[ticket][i] for ticket, i in riders])
        except Exception as error:  # which holds the batch, so that nothing is tried again in here
            if len(riders) == 1:
                ticket, i = riders[0]
                log.error("row %d of a request to %s failed: %r", i, ticket.request.model, error)
                self._end(ticket, "failed", EngineError(f"image {i} could not be drawn: {error}"))
                return 0, 0
        if images is None:
            middle = len(riders) // 2
            halves = [self._run_batch(runner, half) for half in (riders[:middle], riders[middle:])]
            return sum(gone for gone, _ in halves), sum(places for _, places in halves)
        with self.lock:
            self.remaining_steps -= len(riders)
        watched = []
        for (ticket, i), image in zip(riders, images, strict=True):
            if ticket.started_at is None:
                ticket.started_at = self.step_started_at
            ticket.remaining_steps -= 1
            ticket.max_batch_seen = max(ticket.max_batch_seen, len(riders))
            if image is not None:
                self._deliver(ticket, i, image)
            elif ticket.request.previews:
                watched.append((ticket, i))
        if watched:
            self._update_previews(runner, watched)
        return len(riders), runner.size(len(riders))

    def _update_previews(self, runner: Runner, watched: list[tuple[Ticket, int]]) -> None:
        """Let the callers see where these stand. If that fails they see nothing, and are drawn all the same."""
        try:
            looks = runner.preview([self.rows[ticket][i] for ticket, i in watched])
        except Exception as error:
            log.error("images under way could not be shown: %r", error)
            return
        for (ticket, i), image in zip(watched, looks, strict=True):
            ticket.previews[i] = image
            self.updated[ticket] = None

    def _deliver(self, ticket: Ticket, i: int, image: NDArray[Any]) -> None:
        ticket.images[i] = image
        ticket.previews.pop(i, None)
        ticket.remaining_images -= 1
        self.scheduler.finish(ticket, i)
        self.updated[ticket] = None
        if ticket.remaining_images == 0:
            self._end(ticket, "delivered")

    def _enqueue(self, ticket: Ticket, *, leaving: bool) -> None:
        self.inbox.put((ticket, leaving))
        self.wake()

    def _read_inbox(self) -> None:
        while not self.inbox.empty():
            ticket, leaving = self.inbox.get()
            if not leaving:
                self._admit(ticket)
            elif ticket in self.rows:
                self._end(ticket, "cancelled")

    def _expire(self) -> None:
        """Let those go whose time is up."""
        while self.deadlines and (self.deadlines[0][2] not in self.rows or self.deadlines[0][0] <= self.clock()):
            _, _, ticket = heapq.heappop(self.deadlines)
            if ticket in self.rows:
                self._end(ticket, "late", DeadlineExceeded(f"it was not drawn within {ticket.request.timeout:g} s"))

    def _admit(self, ticket: Ticket) -> None:
        self.rows[ticket] = []
        try:
            self.rows[ticket] = self.runners[ticket.request.model].rows(ticket.request)
        except Exception as error:
            log.error("a request to %s cannot be planned: %r", ticket.request.model, error)
            self._end(ticket, "failed", EngineError(f"it cannot be planned: {error!r}"))
        else:
            request = ticket.request
            self.scheduler.add(request.model, ticket, ticket.remaining_images, request.priority, ticket.owner)
            if request.timeout is not None:
                heapq.heappush(self.deadlines, (ticket.deadline, next(self.numbers), ticket))

    def _end(self, ticket: Ticket, how: str, error: EngineError | None = None) -> None:
        """The one place where an accepted request ends."""
        self.scheduler.remove(ticket)
        del self.rows[ticket]
        with self.lock:
            self.outstanding -= len(ticket.request.samples)
            self.remaining_steps -= ticket.remaining_steps
            self.requests_by_model[ticket.request.model] -= 1
            self.ended[how] += 1
        ticket.error = error  # first: a caller on another thread reads it once the ticket has ended
        ticket.outcome = how
        self.updated[ticket] = None

    def _batch_sizes(self) -> dict[str, int]:
        return {model: runner.max_batch_size for model, runner in self.runners.items()}

    def _remove_unloaded(self) -> None:
        """Forget the retired models that nobody waits for."""
        with self.lock:
            for model in [model for model in self.unloading if not self.requests_by_model[model]]:
                self.runners = {name: runner for name, runner in self.runners.items() if name != model}
                self.scheduler.remove_model(model)
                self.unloading.remove(model)
                del self.rates[model], self.requests_by_model[model]

    def _end_all(self, how: str, error: EngineError) -> None:
        self._read_inbox()
        for ticket in list(self.rows):
            self._end(ticket, how, error)
        self._notify()

    def _notify(self) -> None:
        news, self.updated = self.updated, {}
        ended = [ticket for ticket in news if ticket.outcome]
        now = self.clock()
        for ticket in ended:
            ticket.finished_at = now
        with self.lock:
            came, self.accepted_since_step = self.accepted_since_step, 0
        try:
            self.watcher.on_step(came, ended, self.outstanding)
        finally:  # whatever becomes of a count, nobody waits for ever
            if news:
                self.notify(list(news))


def notify(tickets: list[Ticket]) -> None:
    """Call each one's `told`. One that raises is its caller's trouble alone."""
    for ticket in tickets:
        try:
            ticket.on_update()
        except Exception:
            log.exception("a caller could not be told")
