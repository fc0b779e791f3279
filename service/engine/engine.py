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

from service.engine.request import EngineError, Hopeless, Late, QueueFull, Request, Retired, Stopping, Ticket, nobody
from service.engine.runner import Row, Runner
from service.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

MEMORY = 0.99
"""What a measured rate keeps of its past at each turn."""


class Rate:
    """Links gone and device seconds spent of late, older ones counting less."""

    def __init__(self) -> None:
        self.links = self.seconds = 0.0

    def add(self, links: int, seconds: float) -> None:
        """A step took so many rows a link further."""
        self.links = MEMORY * self.links + links
        self.seconds = MEMORY * self.seconds + seconds

    def expect(self, links: int) -> float:
        """Seconds that `links` take at this rate; 0 before anything was measured."""
        return links * self.seconds / self.links if self.links else 0.0


class Watcher:
    """Is told what the engine does, from its thread, and does nothing about it; others do more."""

    def stepped(self, model: str, rows: int, places: int, seconds: float) -> None:
        """`rows` rows, in a batch of so many `places`, went a link further."""

    def turned(self, came: int, ended: list[Ticket], outstanding: int) -> None:
        """A turn is over. So many requests were accepted since the last one, these have ended, as they say, and so many
        images go on.
        """

    def recovered(self) -> None:
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
        watcher: Watcher | None = None,
    ) -> None:
        self.runners, self.clock, self.queue_images = dict(runners), clock, queue_images
        self.watcher = watcher or Watcher()
        self.scheduler: Scheduler[Ticket] = Scheduler(self._seats())
        self.rows: dict[Ticket, list[Row]] = {}
        self.mail: queue.SimpleQueue[tuple[Ticket, bool]] = queue.SimpleQueue()
        """Tickets that come, and (True) those that leave."""
        self.news: dict[Ticket, None] = {}
        """Tickets that have something to be told."""
        self.wake: Callable[[], None] = lambda: None
        self.tell: Callable[[list[Ticket]], None] = tell
        """Calls each ticket's `told`, where its caller is."""
        self.lock = threading.Lock()
        self.outstanding = 0
        """Images accepted and not ended."""
        self.links = 0
        """Links of their chains that are still to go."""
        self.held: Counter[str] = Counter()
        """Requests accepted and not ended, by model."""
        self.retired: set[str] = set()
        """Models that take no more requests, and go with the last that they have."""
        self.stepping: float | None = None
        """Since when the device has been at a step."""
        self.ended: Counter[str] = Counter()
        """Requests by how they ended, and all of them under `accepted`."""
        self.came = 0
        """Requests accepted since the last turn's end."""
        self.deadlines: list[tuple[float, int, Ticket]] = []
        """A heap of the tickets that have one, with a number that settles ties."""
        self.numbers = itertools.count()
        self.rate = Rate()
        self.rates = {model: Rate() for model in self.runners}
        self.stopping = False

    # -- the callers' side ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, told: Callable[[], None] = nobody, owner: str = "") -> Ticket:
        """Accept `request` of `owner`, whose ticket will end. Raises QueueFull, Hopeless, Retired or Stopping."""
        model, count = request.model, len(request.samples)
        links = count * request.links
        runner = self.runners.get(model)
        if runner is None:
            raise Retired
        if request.timeout is not None:
            alone = self.rates.get(model, self.rate).expect(links)
            if alone > request.timeout:
                raise Hopeless(alone, request.timeout)
        labels = runner.labels(request)
        with self.lock:
            if self.stopping:
                raise Stopping("the service is shutting down; try another instance, or again in a moment")
            if model in self.retired or model not in self.runners:
                raise Retired
            if self.outstanding + count > self.queue_images:
                raise QueueFull(max(1, math.ceil(self.expect())))
            ahead = self.outstanding
            self.outstanding += count
            self.links += links
            self.held[model] += 1
            self.ended["accepted"] += 1
            self.came += 1
        now = self.clock()
        deadline = math.inf if request.timeout is None else now + request.timeout
        ticket = Ticket(
            request, owner, [None] * count, labels, count, links, ahead, told, deadline=deadline, accepted=now
        )
        self._post(ticket, leaving=False)
        return ticket

    def expect(self) -> float:
        """Seconds after which all that is accepted should be drawn, at the rate of late."""
        return self.rate.expect(self.links)

    def cancel(self, ticket: Ticket) -> None:
        """Give `ticket` up: its rows leave before the next step. Without effect where it has ended."""
        self._post(ticket, leaving=True)

    def add(self, model: str, runner: Runner) -> None:
        """Take requests to `model` from now on."""
        with self.lock:
            self.retired.discard(model)
            self.rates.setdefault(model, Rate())
            if model not in self.runners:
                self.scheduler.open(model, runner.seats)
            self.runners = {**self.runners, model: runner}

    def retire(self, model: str) -> None:
        """Take no more requests to `model`, and let go of it once those that it has are over."""
        with self.lock:
            self.retired.add(model)
        self.wake()

    def stop(self) -> None:
        """Refuse what comes from now on; what was accepted is still drawn."""
        with self.lock:
            self.stopping = True

    def abandon(self) -> None:
        """End what is still there with Stopping. Called where no turn will follow."""
        self.stop()
        self._end_all("stopped", Stopping("the service shut down before this was drawn; ask again"))

    def recover(self, error: Exception) -> None:
        """End what is still there, after a turn that raised `error`: whatever it left behind, nobody waits for it."""
        log.error("a turn broke; all that waited goes", exc_info=error)
        self.stepping = None
        self.watcher.recovered()
        self.scheduler = Scheduler(self._seats())
        self._end_all("failed", EngineError(f"the engine broke and was started anew ({error!r}); ask again"))

    # -- the driver's side ---------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Read the mail, take one device step for whoever it is due to, deliver. False where nobody waits."""
        self._read_mail()
        self._end_late()
        choice = self.scheduler.pick()
        if choice is not None:
            model, riders = choice
            before = self.stepping = self.clock()
            gone, places = self._advance(self.runners[model], riders)
            seconds = self.clock() - before
            self.stepping = None
            self.scheduler.charge(seconds)
            for rate in (self.rate, self.rates[model]):
                rate.add(gone, seconds)
            self.watcher.stepped(model, gone, places, seconds)
        if self.retired:
            self._let_go()
        self._tell()
        return choice is not None

    def _advance(self, runner: Runner, riders: list[tuple[Ticket, int]]) -> tuple[int, int]:
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
            halves = [self._advance(runner, half) for half in (riders[:middle], riders[middle:])]
            return sum(gone for gone, _ in halves), sum(places for _, places in halves)
        with self.lock:
            self.links -= len(riders)
        watched = []
        for (ticket, i), image in zip(riders, images, strict=True):
            if ticket.began is None:
                ticket.began = self.stepping
            ticket.links -= 1
            ticket.companions = max(ticket.companions, len(riders))
            if image is not None:
                self._deliver(ticket, i, image)
            elif ticket.request.previews:
                watched.append((ticket, i))
        if watched:
            self._show(runner, watched)
        return len(riders), runner.size(len(riders))

    def _show(self, runner: Runner, watched: list[tuple[Ticket, int]]) -> None:
        """Let the callers see where these stand. If that fails they see nothing, and are drawn all the same."""
        try:
            looks = runner.look([self.rows[ticket][i] for ticket, i in watched])
        except Exception as error:
            log.error("images under way could not be shown: %r", error)
            return
        for (ticket, i), image in zip(watched, looks, strict=True):
            ticket.previews[i] = image
            self.news[ticket] = None

    def _deliver(self, ticket: Ticket, i: int, image: NDArray[Any]) -> None:
        ticket.images[i] = image
        ticket.previews.pop(i, None)
        ticket.missing -= 1
        self.scheduler.finish(ticket, i)
        self.news[ticket] = None
        if ticket.missing == 0:
            self._end(ticket, "delivered")

    def _post(self, ticket: Ticket, *, leaving: bool) -> None:
        self.mail.put((ticket, leaving))
        self.wake()

    def _read_mail(self) -> None:
        while not self.mail.empty():
            ticket, leaving = self.mail.get()
            if not leaving:
                self._admit(ticket)
            elif ticket in self.rows:
                self._end(ticket, "cancelled")

    def _end_late(self) -> None:
        """Let those go whose time is up."""
        while self.deadlines and (self.deadlines[0][2] not in self.rows or self.deadlines[0][0] <= self.clock()):
            _, _, ticket = heapq.heappop(self.deadlines)
            if ticket in self.rows:
                self._end(ticket, "late", Late(f"it was not drawn within {ticket.request.timeout:g} s"))

    def _admit(self, ticket: Ticket) -> None:
        self.rows[ticket] = []
        try:
            self.rows[ticket] = self.runners[ticket.request.model].rows(ticket.request)
        except Exception as error:
            log.error("a request to %s cannot be planned: %r", ticket.request.model, error)
            self._end(ticket, "failed", EngineError(f"it cannot be planned: {error!r}"))
        else:
            request = ticket.request
            self.scheduler.add(request.model, ticket, ticket.missing, request.priority, ticket.owner)
            if request.timeout is not None:
                heapq.heappush(self.deadlines, (ticket.deadline, next(self.numbers), ticket))

    def _end(self, ticket: Ticket, how: str, error: EngineError | None = None) -> None:
        """The one place where an accepted request ends."""
        self.scheduler.remove(ticket)
        del self.rows[ticket]
        with self.lock:
            self.outstanding -= len(ticket.request.samples)
            self.links -= ticket.links
            self.held[ticket.request.model] -= 1
            self.ended[how] += 1
        ticket.error = error  # first: a caller on another thread reads it once the ticket has ended
        ticket.ended = how
        self.news[ticket] = None

    def _seats(self) -> dict[str, int]:
        return {model: runner.seats for model, runner in self.runners.items()}

    def _let_go(self) -> None:
        """Forget the retired models that nobody waits for."""
        with self.lock:
            for model in [model for model in self.retired if not self.held[model]]:
                self.runners = {name: runner for name, runner in self.runners.items() if name != model}
                self.scheduler.close(model)
                self.retired.remove(model)
                del self.rates[model], self.held[model]

    def _end_all(self, how: str, error: EngineError) -> None:
        self._read_mail()
        for ticket in list(self.rows):
            self._end(ticket, how, error)
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, {}
        ended = [ticket for ticket in news if ticket.ended]
        now = self.clock()
        for ticket in ended:
            ticket.over = now
        with self.lock:
            came, self.came = self.came, 0
        try:
            self.watcher.turned(came, ended, self.outstanding)
        finally:  # whatever becomes of a count, nobody waits for ever
            if news:
                self.tell(list(news))


def tell(tickets: list[Ticket]) -> None:
    """Call each one's `told`. One that raises is its caller's trouble alone."""
    for ticket in tickets:
        try:
            ticket.told()
        except Exception:
            log.exception("a caller could not be told")
