"""The engine: accepts requests, runs one device step at a time and delivers images."""

import heapq
import itertools
import logging
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from service.engine.scheduler import Flow, Scheduler
from service.engine.slot_runner import Launch, SlotRunner
from service.engine.watchdog import exit_if_device_is_lost

log = logging.getLogger(__name__)

DECAY = 0.99
"""The weight that a measurement of `StepRate` keeps at each later one."""


class StepRate:
    """The recent rate of steps: row steps and device seconds, as exponentially decaying sums."""

    def __init__(self) -> None:
        self.steps = self.seconds = 0.0

    def add(self, steps: int, seconds: float) -> None:
        """Add a batch that advanced `steps` rows by one step in `seconds`."""
        self.steps = DECAY * self.steps + steps
        self.seconds = DECAY * self.seconds + seconds

    def seconds_for(self, steps: int) -> float:
        """The seconds that `steps` row steps take at this rate; 0 before the first measurement."""
        return steps * self.seconds / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """A step on a GPU whose results the engine has not read."""

    model: str
    rows: list[tuple[Ticket, int]]
    launch: Launch
    flow: Flow | None
    """What is charged for its time."""
    started_at: float


class EngineObserver:
    """Receives the engine's events, on the engine's thread. This base class ignores them."""

    def on_batch(self, model: str, rows: int, size: int, seconds: float) -> None:
        """A batch of `rows` rows, padded to `size`, advanced by one step in `seconds`."""

    def on_step(self, accepted: int, ended: list[Ticket], outstanding: int) -> None:
        """An engine step is complete.

        `accepted` requests were accepted since the last step, the requests of `ended` have ended, and `outstanding`
        images are queued or in progress.
        """

    def on_recovery(self) -> None:
        """A step failed unexpectedly, and the engine starts again with an empty queue."""


class Engine:
    """Runs requests on `runners`, by model name.

    `submit` and `cancel` may be called from any thread, `step` from one thread only: that of the engine loop. At most
    `queue_images` images are queued or in progress. `clock` returns seconds.
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
        self.observer = observer or EngineObserver()
        self.scheduler: Scheduler[Ticket] = Scheduler(self._batch_sizes())
        self.rows: dict[Ticket, list[Row]] = {}
        self.inbox: queue.SimpleQueue[tuple[Ticket, bool]] = queue.SimpleQueue()
        """Submitted tickets, and cancelled ones (True)."""
        self.updated: dict[Ticket, None] = {}
        """Tickets whose `on_update` is due at the end of the step."""
        self.wake: Callable[[], None] = lambda: None
        self.notify: Callable[[list[Ticket]], None] = notify
        """Calls `on_update` of each ticket, on the thread of its client."""
        self.on_schedule: Callable[[list[tuple[Ticket, int]]], None] = lambda _: None
        """Called with the rows of a step before it runs, and with those of the steps that a GPU still runs."""
        self.lock = threading.Lock()
        self.outstanding = 0
        """Images of requests that are accepted and have not ended."""
        self.remaining_steps = 0
        """Row steps that these requests still need."""
        self.requests_by_model: Counter[str] = Counter()
        """The number of these requests, by model."""
        self.unloading: set[str] = set()
        """Models that accept no more requests; each is removed when its last request has ended."""
        self.step_started_at: float | None = None
        """When the running device step started; None between steps."""
        self.launched: list[LaunchedBatch] = []
        """The batches of the last step on a GPU; their results are read after the next one is launched."""
        self.collected_at = 0.0
        """When the results of the last such batch were there."""
        self.ended: Counter[str] = Counter()
        """The number of requests by outcome, and of all under `accepted`."""
        self.accepted_since_step = 0
        """Requests accepted since the end of the last step."""
        self.deadlines: list[tuple[float, int, Ticket]] = []
        """A heap of tickets with a deadline; the number breaks ties."""
        self.numbers = itertools.count()
        self.rate = StepRate()
        self.rates = {model: StepRate() for model in self.runners}
        self.stopping = False

    # -- called from any thread ----------------------------------------------------------------------------------------

    def submit(
        self, request: Request, on_update: Callable[[], None] = noop, owner: str = "", *, again: bool = False
    ) -> Ticket:
        """Accept `request` of `owner` and return its ticket.

        Raises QueueFull, DeadlineUnattainable, ModelUnloaded or ShuttingDown; if it is sent `again`, because an
        engine that died had accepted it, only the last two.
        """
        model, count = request.model, len(request.samples)
        steps = count * request.steps_per_row
        runner = self.runners.get(model)
        if runner is None:
            raise ModelUnloaded
        if request.timeout is not None and not again:
            seconds = self.rates.get(model, self.rate).seconds_for(steps)
            if seconds > request.timeout:
                raise DeadlineUnattainable(seconds, request.timeout)
        with self.lock:
            if self.stopping:
                raise ShuttingDown
            if model in self.unloading or model not in self.runners:
                raise ModelUnloaded
            if not again and self.outstanding + count > self.queue_images:
                raise QueueFull(max(1, math.ceil(self.seconds_behind())))
            images_ahead = self.outstanding
            self.outstanding += count
            self.remaining_steps += steps
            self.requests_by_model[model] += 1
            self.ended["accepted"] += 1
            self.accepted_since_step += 1
        now = self.clock()
        ticket = Ticket(
            request,
            owner,
            images=[None] * count,
            labels=runner.labels(request),
            remaining_images=count,
            remaining_steps=steps,
            images_ahead=images_ahead,
            on_update=on_update,
            deadline=math.inf if request.timeout is None else now + request.timeout,
            accepted_at=now,
        )
        self._enqueue(ticket, cancelled=False)
        return ticket

    def seconds_behind(self) -> float:
        """The seconds until all accepted requests should be finished, at the recent rate."""
        return self.rate.seconds_for(self.remaining_steps)

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request: its rows leave the batch before the next step. No effect if it has ended."""
        self._enqueue(ticket, cancelled=True)

    def confirm(self, ticket: Ticket) -> None:
        """Nothing: `submit` has accepted the request."""

    def add(self, model: str, runner: Runner) -> None:
        """Accept requests to `model` from now on."""
        with self.lock:
            self.unloading.discard(model)
            self.rates.setdefault(model, StepRate())
            if model not in self.runners:
                self.scheduler.add_model(model, runner.max_batch_size)
            self.runners = {**self.runners, model: runner}

    def unload(self, model: str) -> None:
        """Accept no more requests to `model`, and remove it when its last request has ended."""
        with self.lock:
            self.unloading.add(model)
        self.wake()

    def stop(self) -> None:
        """Refuse new requests. Accepted ones still run."""
        with self.lock:
            self.stopping = True

    def abandon(self) -> None:
        """End all requests with ShuttingDown. Only for use after the last step."""
        self.stop()
        self._end_all("stopped", ShuttingDown("the service shut down before this request was finished; send it again"))

    def recover(self, error: Exception) -> None:
        """End all requests after a step that raised `error`, and start again with an empty queue."""
        self._exit_if_device_is_lost(error)
        log.error("an engine step failed; all its requests end", exc_info=error)
        self.step_started_at = None
        self.observer.on_recovery()
        self.scheduler, self.launched = Scheduler(self._batch_sizes()), []
        self._end_all("failed", EngineError(f"the engine failed and was restarted ({error!r}); send the request again"))

    # -- called by the engine loop -------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read the inbox, run the next batch for one step and deliver its results. Returns False if there was none.

        On a GPU, launch the next batch and then deliver the results of the one before, so that the GPU does not wait.
        """
        self._read_inbox()
        self._expire()
        batch = self.scheduler.schedule()
        earlier, self.launched = self.launched, []
        if batch is not None:
            model, rows = batch
            self.on_schedule([*rows, *(row for launched in earlier for row in launched.rows)])
            runner = self.runners[model]
            started_at = self.step_started_at = self.clock()
            if isinstance(runner, SlotRunner):
                self._launch_batch(model, runner, rows)
            else:
                steps, size = self._run_batch(runner, rows)
                self._charge(model, steps, size, self.clock() - started_at)
        for launched in earlier:
            self._collect(launched)
        self.step_started_at = None
        if self.unloading:
            self._remove_unloaded()
        self._notify()
        return batch is not None or bool(earlier)

    def _charge(self, model: str, steps: int, size: int, seconds: float, flow: Flow | None = None) -> None:
        """Account for a batch of `flow`, by default the last, that advanced `steps` rows by one step in `seconds`."""
        self.scheduler.charge(seconds, flow)
        for rate in (self.rate, self.rates[model]):
            rate.add(steps, seconds)
        self.observer.on_batch(model, steps, size, seconds)

    def _launch_batch(self, model: str, runner: SlotRunner, batch: list[tuple[Ticket, int]]) -> None:
        """Let a GPU advance a batch by one step. A batch that fails is split as in `_run_batch`."""
        batch = [(ticket, i) for ticket, i in batch if ticket in self.rows]
        if not batch:
            return
        rows = [self.rows[ticket][i] for ticket, i in batch]
        launch: Launch | None = None
        started_at = self.clock()
        try:
            launch = runner.launch(rows)
        except Exception as error:  # the retry is below: the error holds the failed batch in memory
            if len(batch) == 1:
                self._fail(*batch[0], error)
                return
        if launch is None:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self._launch_batch(model, runner, half)
            return
        self._count_steps(batch)
        for (ticket, i), row in zip(batch, rows, strict=True):
            if row.step >= row.total_steps:
                self.scheduler.finish(ticket, i)
        flow = self.scheduler.last_scheduled
        self.launched.append(LaunchedBatch(model, batch, launch, flow, started_at))

    def _collect(self, launched: LaunchedBatch) -> None:
        """Wait for a launched batch and deliver its results. Only rows without a result fail."""
        self.step_started_at = self.clock()
        results, previews = launched.launch.collect()
        now = self.clock()
        seconds, self.collected_at = now - max(launched.started_at, self.collected_at), now
        for (ticket, i), result in zip(launched.rows, results, strict=True):
            if ticket not in self.rows:
                continue
            if isinstance(result, FloatingPointError):
                self._fail(ticket, i, result)
            elif result is not None:
                self._deliver(ticket, i, result)
        for position, image in previews.items():
            ticket, i = launched.rows[position]
            if ticket in self.rows:
                self._update_preview(ticket, i, image)
        self._charge(launched.model, len(launched.rows), launched.launch.size, seconds, launched.flow)

    def _run_batch(self, runner: Runner, batch: list[tuple[Ticket, int]]) -> tuple[int, int]:
        """Advance a batch by one step and deliver finished images.

        Returns the number of rows that advanced, and the padded size of their batch.

        A batch that fails is split into halves until the faulty row is alone; only the request of that row fails.
        """
        batch = [(ticket, i) for ticket, i in batch if ticket in self.rows]
        if not batch:
            return 0, 0
        images: list[NDArray[Any] | None] | None = None
        try:
            images = runner.advance([self.rows[ticket][i] for ticket, i in batch])
        except Exception as error:  # the retry is below: the error holds the failed batch in memory
            if len(batch) == 1:
                self._fail(*batch[0], error)
                return 0, 0
        if images is None:
            middle = len(batch) // 2
            halves = [self._run_batch(runner, half) for half in (batch[:middle], batch[middle:])]
            return sum(rows for rows, _ in halves), sum(size for _, size in halves)
        self._count_steps(batch)
        previewed = []
        for (ticket, i), image in zip(batch, images, strict=True):
            if image is not None:
                self.scheduler.finish(ticket, i)
                self._deliver(ticket, i, image)
            elif ticket.request.previews:
                previewed.append((ticket, i))
        if previewed:
            self._update_previews(runner, previewed)
        return len(batch), runner.size(len(batch))

    def _count_steps(self, batch: list[tuple[Ticket, int]]) -> None:
        """Count one step of each row of a batch."""
        with self.lock:
            self.remaining_steps -= len(batch)
        for ticket, _ in batch:
            if ticket.started_at is None:
                ticket.started_at = self.step_started_at
            ticket.remaining_steps -= 1
            ticket.max_batch_seen = max(ticket.max_batch_seen, len(batch))

    def _fail(self, ticket: Ticket, i: int, error: Exception) -> None:
        """End the request of a row that failed."""
        self._exit_if_device_is_lost(error)
        log.error("row %d of a request to %s failed: %r", i, ticket.request.model, error)
        self._end(ticket, "failed", EngineError(f"image {i} could not be generated: {error}"))

    def _exit_if_device_is_lost(self, error: Exception) -> None:
        for runner in [*self.runners.values()][:1]:  # all models are on one device
            exit_if_device_is_lost(error, runner.device)

    def _update_previews(self, runner: Runner, batch: list[tuple[Ticket, int]]) -> None:
        """Update the previews of unfinished images. A failure is logged; the request continues without a preview."""
        try:
            previews = runner.preview([self.rows[ticket][i] for ticket, i in batch])
        except Exception as error:
            log.error("previews failed: %r", error)
            return
        for (ticket, i), image in zip(batch, previews, strict=True):
            self._update_preview(ticket, i, image)

    def _update_preview(self, ticket: Ticket, i: int, image: NDArray[Any]) -> None:
        guess = self.rows[ticket][i].guess
        if guess is not None:
            ticket.guesses[i] = guess
        ticket.previews[i] = image
        self.updated[ticket] = None

    def _deliver(self, ticket: Ticket, i: int, image: NDArray[Any]) -> None:
        ticket.images[i] = image
        ticket.previews.pop(i, None)
        ticket.guesses.pop(i, None)
        ticket.remaining_images -= 1
        self.updated[ticket] = None
        if ticket.remaining_images == 0:
            self._end(ticket, "delivered")

    def _enqueue(self, ticket: Ticket, *, cancelled: bool) -> None:
        self.inbox.put((ticket, cancelled))
        self.wake()

    def _read_inbox(self) -> None:
        while not self.inbox.empty():
            ticket, cancelled = self.inbox.get()
            if not cancelled:
                self._admit(ticket)
            elif ticket in self.rows:
                self._end(ticket, "cancelled")

    def _expire(self) -> None:
        """End the requests whose deadline has passed."""
        while self.deadlines and (self.deadlines[0][2] not in self.rows or self.deadlines[0][0] <= self.clock()):
            _, _, ticket = heapq.heappop(self.deadlines)
            if ticket in self.rows:
                error = DeadlineExceeded(f"the request was not finished within {ticket.request.timeout:g} s")
                self._end(ticket, "late", error)

    def _admit(self, ticket: Ticket) -> None:
        request = ticket.request
        self.rows[ticket] = []
        try:
            self.rows[ticket] = self.runners[request.model].rows(request)
        except Exception as error:
            log.error("a request to %s has no schedule: %r", request.model, error)
            self._end(ticket, "failed", EngineError(f"the request has no schedule: {error!r}"))
        else:
            self.scheduler.add(request.model, ticket, ticket.remaining_images, request.priority, ticket.owner)
            if request.timeout is not None:
                heapq.heappush(self.deadlines, (ticket.deadline, next(self.numbers), ticket))

    def _end(self, ticket: Ticket, outcome: str, error: EngineError | None = None) -> None:
        """End an accepted request; every request ends here."""
        self.scheduler.remove(ticket)
        del self.rows[ticket]
        with self.lock:
            self.outstanding -= len(ticket.request.samples)
            self.remaining_steps -= ticket.remaining_steps
            self.requests_by_model[ticket.request.model] -= 1
            self.ended[outcome] += 1
        ticket.error = error  # before the outcome: another thread may read the error as soon as there is an outcome
        ticket.outcome = outcome
        self.updated[ticket] = None

    def _batch_sizes(self) -> dict[str, int]:
        return {model: runner.max_batch_size for model, runner in self.runners.items()}

    def _remove_unloaded(self) -> None:
        """Remove the unloading models that have no requests left."""
        running = {batch.model for batch in self.launched}
        with self.lock:
            for model in [model for model in self.unloading - running if not self.requests_by_model[model]]:
                self.runners = {name: runner for name, runner in self.runners.items() if name != model}
                self.scheduler.remove_model(model)
                self.unloading.remove(model)
                del self.rates[model], self.requests_by_model[model]

    def _end_all(self, outcome: str, error: EngineError) -> None:
        self._read_inbox()
        for ticket in list(self.rows):
            self._end(ticket, outcome, error)
        self._notify()

    def _notify(self) -> None:
        updated, self.updated = self.updated, {}
        ended = [ticket for ticket in updated if ticket.outcome]
        now = self.clock()
        for ticket in ended:
            ticket.finished_at = now
        with self.lock:
            accepted, self.accepted_since_step = self.accepted_since_step, 0
        try:
            self.observer.on_step(accepted, ended, self.outstanding)
        finally:  # clients are notified even if the observer fails
            if updated:
                self.notify(list(updated))


def notify(tickets: list[Ticket]) -> None:
    """Call `on_update` of each ticket. An exception of one does not affect the others."""
    for ticket in tickets:
        try:
            ticket.on_update()
        except Exception:
            log.exception("a ticket's on_update failed")
