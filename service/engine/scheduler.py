"""Who rides the next device step. Policy only: no tensors, no clock, no threads.

Three times a step somebody is chosen, each time fairly:

- **A priority**, by device time over its weight: `interactive` work gets eight times what `bulk` gets while both wait,
  and all of it otherwise.
- **A model** of that priority, by device time, so a GAN's single step slips in between two of a diffusion model.
- **Rows** of that model, a seat at a time in turn: first between owners, then between an owner's requests. A small
  request beside a large one rides every step, and since seats are given anew for each step, a short chain never waits
  for a long one to end. Seats that are left go to the model's rows of the other priority.

Who was idle has saved nothing up (start-time fair queuing, Goyal et al. 1996).
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
Priority = Literal["interactive", "bulk"]
WEIGHTS: Mapping[Priority, float] = {"interactive": 8.0, "bulk": 1.0}


@dataclass
class FairShare:
    """What somebody had of the device, as his share is counted."""

    used_seconds: float = 0.0

    def wake(self, now: float) -> None:
        """He was idle until `now`."""
        self.used_seconds = max(self.used_seconds, now)


@dataclass
class Lane(FairShare, Generic[Key]):
    """One model's requests of one priority, by owner; who waited longest for a seat first, rows in order."""

    model: str = ""
    max_batch_size: int = 1
    priority: Priority = "interactive"
    owners: "OrderedDict[str, OrderedDict[Key, dict[int, None]]]" = field(default_factory=OrderedDict)

    def allocate(self, seats: int) -> list[tuple[Key, int]]:
        """The rows that get one of `seats`."""
        riders: list[tuple[Key, int]] = []
        wanted = [sum(map(len, requests.values())) for requests in self.owners.values()]
        for owner, portion in zip(list(self.owners), fair_split(wanted, seats), strict=False):
            requests = self.owners[owner]
            portions = fair_split([len(rows) for rows in requests.values()], portion)
            for request, count in zip(list(requests), portions, strict=False):
                # The first of a request's rows ride until they are done, so that few are ever half drawn.
                riders += [(request, row) for row, _ in zip(requests[request], range(count), strict=False)]
                requests.move_to_end(request)
            self.owners.move_to_end(owner)
        return riders


class Scheduler(Generic[Key]):
    """Requests are added with their number of rows; `pick` says which rows ride; `finish` and `remove` let them go.

    `seats` are those of a step, by model.
    """

    def __init__(self, seats: Mapping[str, int]) -> None:
        self.priorities = {priority: FairShare() for priority in WEIGHTS}
        self.lanes: dict[Priority, dict[str, Lane[Key]]] = {priority: {} for priority in WEIGHTS}
        self.active_lanes: dict[Priority, dict[str, Lane[Key]]] = {priority: {} for priority in WEIGHTS}
        """Those of the lanes that somebody waits in."""
        self.lane_of: dict[Key, tuple[Lane[Key], str]] = {}
        """The lane and owner of every request that is here."""
        self.model_virtual_time = dict.fromkeys(WEIGHTS, 0.0)
        """Where the fair share of models stands, a priority each."""
        self.virtual_time = 0.0
        self.last_scheduled: tuple[Priority, str] | None = None
        for model, count in seats.items():
            self.add_model(model, count)

    def add_model(self, model: str, seats: int) -> None:
        """Let requests to `model` come."""
        for priority in WEIGHTS:
            self.lanes[priority][model] = Lane(model=model, max_batch_size=seats, priority=priority)

    def remove_model(self, model: str) -> None:
        """None will come any more, and nobody waits."""
        for priority in WEIGHTS:
            del self.lanes[priority][model]

    def add(self, model: str, request: Key, rows: int, priority: Priority = "interactive", owner: str = "") -> None:
        """Let rows 0..rows-1 of `request` wait for seats of `model`."""
        lane = self.lanes[priority][model]
        if not self.active_lanes[priority]:
            self.priorities[priority].wake(self.virtual_time)
        if not lane.owners:
            lane.wake(self.model_virtual_time[priority])
            self.active_lanes[priority][model] = lane
        lane.owners.setdefault(owner, OrderedDict())[request] = dict.fromkeys(range(rows))
        self.lane_of[request] = lane, owner

    def schedule(self) -> tuple[str, list[tuple[Key, int]]] | None:
        """The model whose turn it is and the rows that ride, at most its seats; None where nobody waits."""
        due = [
            (self.priorities[priority].used_seconds, priority) for priority in WEIGHTS if self.active_lanes[priority]
        ]
        if not due:
            return None
        self.virtual_time, priority = min(due, key=lambda pair: pair[0])
        self.model_virtual_time[priority], model = min(
            (lane.used_seconds, model) for model, lane in self.active_lanes[priority].items()
        )
        self.last_scheduled = priority, model
        seats = self.active_lanes[priority][model].max_batch_size
        riders = self.active_lanes[priority][model].allocate(seats)
        for other in WEIGHTS:
            if other != priority and len(riders) < seats:
                riders += self.lanes[other][model].allocate(seats - len(riders))
        return model, riders

    def charge(self, seconds: float) -> None:
        """Whoever was picked last had the device for `seconds`."""
        if self.last_scheduled is not None:
            priority, model = self.last_scheduled
            self.priorities[priority].used_seconds += seconds / WEIGHTS[priority]
            self.lanes[priority][model].used_seconds += seconds

    def finish(self, request: Key, row: int) -> None:
        """`row` has its image."""
        lane, owner = self.lane_of[request]
        rows = lane.owners[owner][request]
        del rows[row]
        if not rows:
            self.remove(request)

    def remove(self, request: Key) -> None:
        """All rows of `request` leave; without effect where they have left."""
        if request in self.lane_of:
            lane, owner = self.lane_of.pop(request)
            del lane.owners[owner][request]
            if not lane.owners[owner]:
                del lane.owners[owner]
            if not lane.owners:
                del self.active_lanes[lane.priority][lane.model]


def fair_split(wanted: list[int], seats: int) -> list[int]:
    """Deal `seats` one at a time in turn to those that still want one; a list as long as the part that gets any.

    >>> share([1, 1000, 2], 10)
    [1, 7, 2]
    """
    given = [0] * min(len(wanted), seats)
    seats = min(seats, sum(wanted[: len(given)]))
    while seats:
        hungry = [i for i in range(len(given)) if given[i] < wanted[i]]
        portion = max(1, seats // len(hungry))
        for i in hungry:
            bite = min(portion, wanted[i] - given[i], seats)
            given[i] += bite
            seats -= bite
    return given
