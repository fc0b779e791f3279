"""Draws the parts of a data set from one or several services at once."""

import asyncio
import contextlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drawbridge.client import MAX_RETRY_DELAY, ServiceError, Unreachable
from drawbridge.dataset.parts import Images, Part, Parts
from drawbridge.dataset.services import Service

CONCURRENT_REQUESTS = 4
"""Requests to a service at the same time, so that every worker has one."""
RETRIES = 8
"""Retries of a request, each for the part that is next then, after which a service is given up: about a minute."""
FIRST_DELAY = 0.25
"""Seconds before the first retry, without Retry-After; each further retry waits twice as long."""

Judge = Callable[[Images, int], NDArray[np.uint8]]
"""Gives the verdicts on images of a class."""


class Drawing:
    """Draws `parts`. `request` has the parameters that all of them share, `classes` the names of the labels."""

    def __init__(self, parts: Parts, request: dict[str, Any], classes: Sequence[str], judge: Judge | None) -> None:
        self.parts, self.request, self.classes, self.judge = parts, request, classes, judge
        self.changed = asyncio.Condition()
        self.finished = asyncio.Event()
        self.given_up: dict[str, Exception] = {}
        """Why services were given up, by their names."""

    async def run(self, services: Sequence[Service]) -> None:
        """Draw all parts. Raises what the last service failed with if none is left, and ImpossibleClass."""
        for service in services:
            service.client.retries = 0  # a part that fails goes to another service at once
        bar = tqdm(total=self.parts.count, initial=self.parts.kept, unit=" images", smoothing=0.05)
        with ThreadPoolExecutor(1) as self.executor, bar as self.progress:
            try:
                async with asyncio.TaskGroup() as group:
                    for service in services:
                        for _ in range(CONCURRENT_REQUESTS):
                            group.create_task(self._work(service, quiet=len(services) == 1))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if not self.parts.finished:
            raise [*self.given_up.values()][-1]

    async def _work(self, service: Service, quiet: bool) -> None:
        """Draw one part after another, until the data set is finished or the service fails for good."""
        failures = 0
        while part := await self._next_part():
            try:
                images = await self._request(service, part)
            except (Unreachable, ServiceError) as error:
                async with self.changed:
                    self.parts.give_back(part)
                    self.changed.notify_all()
                if failures == RETRIES or not _is_temporary(error):
                    if service.name not in self.given_up and not quiet:
                        tqdm.write(f"{service.name} is given up: {error}", file=sys.stderr)
                    self.given_up.setdefault(service.name, error)
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.finished.wait(), _delay(failures, error))
                failures += 1
            else:
                failures = 0
                await self._add(part, images)

    async def _request(self, service: Service, part: Part) -> Images:
        """The images of a part. Raises Unreachable also for a response that does not hold them."""
        label = [self.classes[part.label]]
        samples = await service.client.generate(**self.request, label=label, first=part.first_image, n=part.n)
        try:
            if samples.labels.tolist() == [part.label] * part.n:
                return samples.arrays
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        raise Unreachable(f"{service.name} sent a damaged response")

    async def _next_part(self) -> Part | None:
        """The next part, as soon as there is one; None if the data set is finished."""
        async with self.changed:
            while not self.parts.finished:
                if part := self.parts.take():
                    return part
                await self.changed.wait()
        self.finished.set()
        return None

    async def _add(self, part: Part, images: Images) -> None:
        """Judge and save a part, on a thread, so that drawing goes on meanwhile."""
        verdicts = await asyncio.get_running_loop().run_in_executor(self.executor, self._save, part, images)
        async with self.changed:
            self.parts.add(part, verdicts)
            self.progress.update(self.parts.kept - self.progress.n)
            self.changed.notify_all()

    def _save(self, part: Part, images: Images) -> NDArray[np.uint8]:
        verdicts = np.zeros(part.n, np.uint8) if self.judge is None else self.judge(images, part.label)
        self.parts.save(part, verdicts, images)
        return verdicts


def _is_temporary(error: Unreachable | ServiceError) -> bool:
    """Whether a service may serve a later request."""
    return isinstance(error, Unreachable) or error.status == 429 or error.status >= 500


def _delay(failures: int, error: Unreachable | ServiceError) -> float:
    """Seconds until the next request: what the service asked for, else FIRST_DELAY doubled by each failure."""
    asked = error.retry_after if isinstance(error, ServiceError) else None
    return min(MAX_RETRY_DELAY, FIRST_DELAY * 2**failures if asked is None else asked)
