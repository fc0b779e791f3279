"""Who rides the next device step. Policy only: no tensors, no clock, no threads.

Models share the device by time: the one that has used least of it goes next (start-time fair queuing, Goyal et al.
1996), so a GAN's single step slips in between two steps of a diffusion model. Within a model, requests share the seats
of a step round robin, a row at a time: a small request beside a large one rides every step, and since seats are given
anew for each step, a short chain never waits for a long one to end.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Lane(Generic[Key]):
    """One model's requests, the one that waited longest for a seat first, each with its unfinished rows in order."""

    used: float = 0.0
    """Device seconds, as this model's share is counted."""
    requests: "OrderedDict[Key, dict[int, None]]" = field(default_factory=OrderedDict)


class Scheduler(Generic[Key]):
    """Requests are added with their number of rows; `pick` says which rows ride; `finish` and `remove` let them go."""

    def __init__(self, models: Iterable[str], seats: int) -> None:
        self.seats = seats
        self.lanes: dict[str, Lane[Key]] = {model: Lane() for model in models}
        self.now = 0.0

    def add(self, model: str, request: Key, rows: int) -> None:
        """Let rows 0..rows-1 of `request` wait for seats of `model`."""
        lane = self.lanes[model]
        if not lane.requests:
            # A model that was idle has saved nothing up.
            lane.used = max(lane.used, self.now)
        lane.requests[request] = dict.fromkeys(range(rows))

    def pick(self) -> tuple[str, list[tuple[Key, int]]] | None:
        """The model whose turn it is and the rows that ride, at most `seats`; None where nobody waits."""
        waiting = [(lane.used, model) for model, lane in self.lanes.items() if lane.requests]
        if not waiting:
            return None
        self.now, model = min(waiting)
        lane = self.lanes[model]
        shares = share([len(rows) for rows in lane.requests.values()], self.seats)
        riders: list[tuple[Key, int]] = []
        for request, count in zip(list(lane.requests), shares, strict=False):
            # The first of a request's rows ride until they are done, so that few are ever half drawn.
            riders += [(request, row) for row, _ in zip(lane.requests[request], range(count), strict=False)]
            lane.requests.move_to_end(request)
        return model, riders

    def charge(self, model: str, seconds: float) -> None:
        """`model` had the device for `seconds`."""
        self.lanes[model].used += seconds

    def finish(self, model: str, request: Key, row: int) -> None:
        """`row` has its image."""
        rows = self.lanes[model].requests[request]
        del rows[row]
        if not rows:
            self.remove(model, request)

    def remove(self, model: str, request: Key) -> None:
        """All rows of `request` leave; without effect where they have left."""
        self.lanes[model].requests.pop(request, None)


def share(wanted: list[int], seats: int) -> list[int]:
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
