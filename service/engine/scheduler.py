"""The scheduler: which rows are in the next device step. Policy only: no tensors, no clock, no threads.

Each step is the result of three fair choices:

- **Priority**, by device time over its weight: while both wait, `interactive` requests get eight times the device time
  of `bulk` requests. A priority that waits alone gets all of it.
- **Model** of that priority, by device time, so a GAN's single step runs between two steps of a diffusion model.
- **Rows** of that model, by batch slots dealt in turn, first between owners and then between an owner's requests. A
  small request beside a large one is in every step, and because slots are dealt again for each step, a short chain
  never waits for a long one to end. Remaining slots go to the model's rows of the other priority.

An idle flow accrues no credit (start-time fair queuing, Goyal et al. 1996).
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
Priority = Literal["interactive", "bulk"]
Flow = tuple[Priority, str]
"""A priority and a model, which share the time of the device."""
WEIGHTS: Mapping[Priority, float] = {"interactive": 8.0, "bulk": 1.0}


@dataclass
class FairShare:
    """A flow's use of the device, in its own virtual time."""

    used_seconds: float = 0.0

    def wake(self, virtual_time: float) -> None:
        """Become active after an idle period: unused time before `virtual_time` is forfeited."""
        self.used_seconds = max(self.used_seconds, virtual_time)


@dataclass
class Lane(FairShare, Generic[Key]):
    """The waiting rows of one model and priority, by owner and request.

    Owners and requests are ordered by the time since their last batch slot, longest first; rows are in order.
    """

    model: str = ""
    max_batch_size: int = 1
    priority: Priority = "interactive"
    owners: "OrderedDict[str, OrderedDict[Key, dict[int, None]]]" = field(default_factory=OrderedDict)

    def allocate(self, slots: int) -> list[tuple[Key, int]]:
        """Choose at most `slots` rows."""
        batch: list[tuple[Key, int]] = []
        wanted = [sum(map(len, requests.values())) for requests in self.owners.values()]
        for owner, portion in zip(list(self.owners), fair_split(wanted, slots), strict=False):
            requests = self.owners[owner]
            portions = fair_split([len(rows) for rows in requests.values()], portion)
            for request, count in zip(list(requests), portions, strict=False):
                # The first rows of a request run to their end before later ones start, so few are ever in progress.
                batch += [(request, row) for row, _ in zip(requests[request], range(count), strict=False)]
                requests.move_to_end(request)
            self.owners.move_to_end(owner)
        return batch


class Scheduler(Generic[Key]):
    """Chooses the rows of each step.

    `add` queues the rows of a request, `schedule` chooses the rows of the next step, and `finish` and `remove` take
    rows out. `max_batch_sizes` has the largest batch of each model.
    """

    def __init__(self, max_batch_sizes: Mapping[str, int]) -> None:
        self.priorities = {priority: FairShare() for priority in WEIGHTS}
        self.lanes: dict[Priority, dict[str, Lane[Key]]] = {priority: {} for priority in WEIGHTS}
        self.active_lanes: dict[Priority, dict[str, Lane[Key]]] = {priority: {} for priority in WEIGHTS}
        """The lanes with waiting rows."""
        self.lane_of: dict[Key, tuple[Lane[Key], str]] = {}
        """The lane and owner of each request."""
        self.model_virtual_time = dict.fromkeys(WEIGHTS, 0.0)
        """The virtual time of the fair share between models, for each priority."""
        self.virtual_time = 0.0
        """The virtual time of the fair share between priorities."""
        self.last_scheduled: Flow | None = None
        for model, size in max_batch_sizes.items():
            self.add_model(model, size)

    def add_model(self, model: str, max_batch_size: int) -> None:
        """Add empty lanes for `model`."""
        for priority in WEIGHTS:
            self.lanes[priority][model] = Lane(model=model, max_batch_size=max_batch_size, priority=priority)

    def remove_model(self, model: str) -> None:
        """Remove the lanes of `model`, which must be empty."""
        for priority in WEIGHTS:
            del self.lanes[priority][model]

    def add(self, model: str, request: Key, rows: int, priority: Priority = "interactive", owner: str = "") -> None:
        """Queue rows 0..rows-1 of `request`."""
        lane = self.lanes[priority][model]
        if not self.active_lanes[priority]:
            self.priorities[priority].wake(self.virtual_time)
        if not lane.owners:
            lane.wake(self.model_virtual_time[priority])
            self.active_lanes[priority][model] = lane
        lane.owners.setdefault(owner, OrderedDict())[request] = dict.fromkeys(range(rows))
        self.lane_of[request] = lane, owner

    def schedule(self) -> tuple[str, list[tuple[Key, int]]] | None:
        """The model of the next step and its rows, at most `max_batch_size`; None if no row waits."""
        shares = [
            (self.priorities[priority].used_seconds, priority) for priority in WEIGHTS if self.active_lanes[priority]
        ]
        if not shares:
            return None
        self.virtual_time, priority = min(shares, key=lambda pair: pair[0])
        self.model_virtual_time[priority], model = min(
            (lane.used_seconds, model) for model, lane in self.active_lanes[priority].items()
        )
        self.last_scheduled = priority, model
        slots = self.active_lanes[priority][model].max_batch_size
        batch = self.active_lanes[priority][model].allocate(slots)
        for other in WEIGHTS:
            if other != priority and len(batch) < slots:
                batch += self.lanes[other][model].allocate(slots - len(batch))
        return model, batch

    def charge(self, seconds: float, flow: Flow | None = None) -> None:
        """Charge `flow`, or the priority and the model of the last step, for `seconds` of device time."""
        flow = flow or self.last_scheduled
        if flow is not None:
            priority, model = flow
            self.priorities[priority].used_seconds += seconds / WEIGHTS[priority]
            self.lanes[priority][model].used_seconds += seconds

    def finish(self, request: Key, row: int) -> None:
        """Remove a finished row, and its request after its last row."""
        lane, owner = self.lane_of[request]
        rows = lane.owners[owner][request]
        del rows[row]
        if not rows:
            self.remove(request)

    def remove(self, request: Key) -> None:
        """Remove all rows of `request`. No effect if it was removed before."""
        if request in self.lane_of:
            lane, owner = self.lane_of.pop(request)
            del lane.owners[owner][request]
            if not lane.owners[owner]:
                del lane.owners[owner]
            if not lane.owners:
                del self.active_lanes[lane.priority][lane.model]


def fair_split(wanted: list[int], slots: int) -> list[int]:
    """Deal `slots` one at a time in turn, to at most the number that each wants.

    The result ends at the last element that gets any.

    >>> fair_split([1, 1000, 2], 10)
    [1, 7, 2]
    """
    given = [0] * min(len(wanted), slots)
    slots = min(slots, sum(wanted[: len(given)]))
    while slots:
        unsatisfied = [i for i in range(len(given)) if given[i] < wanted[i]]
        portion = max(1, slots // len(unsatisfied))
        for i in unsatisfied:
            extra = min(portion, wanted[i] - given[i], slots)
            given[i] += extra
            slots -= extra
    return given
