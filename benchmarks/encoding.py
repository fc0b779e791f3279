"""Image encoding on the event loop compared with encoding in a thread, by format and number of images.

    python -m benchmarks encoding

Encoding on the loop blocks all requests for as long as it takes. A thread blocks none, and costs a switch there and
back.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np

from service.codecs import formats
from service.codecs.formats import ImageBatch

REPEATS = 200
COUNTS = (1, 4, 16, 64, 256, 1024)


async def median_milliseconds(work: Callable[[], Awaitable[object]], repeats: int) -> float:
    """Return the median milliseconds of `work`."""
    times = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        await work()
        times.append(1000 * (time.perf_counter() - started_at))
    return statistics.median(times)


def curves(count: int) -> ImageBatch:
    """Return `count` images [28, 28] of a bright curve on black, which compress about as well as digits."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    centre, radius = rng.uniform(10, 18, (2, count, 1, 1)), rng.uniform(4, 9, (count, 1, 1))
    distance = np.hypot(rows - centre[0], columns - centre[1]) - radius
    grey = np.clip(255 * (2 - np.abs(distance)), 0, 255).astype(np.uint8)
    return ImageBatch(grey, np.zeros(count, np.int64), {"model": "none", "seed": 0}, classes=tuple("0123456789"))


async def measure() -> None:
    """Print a line for each format and number of images."""

    async def switch() -> None:
        await asyncio.to_thread(int)

    print(f"medians of {REPEATS} in ms, of fewer from 64 images on")
    print(f"a thread that does nothing: {await median_milliseconds(switch, REPEATS):.3f}")
    print(f"{'format':>8}{'images':>8}{'on the loop':>14}{'in a thread':>14}{'per image':>12}")
    for format_ in formats.IMAGE_FORMATS:
        for count in COUNTS:
            batch, repeats = curves(count), max(5, REPEATS // max(1, count // 16))

            async def inline() -> None:
                format_.encode(batch)  # noqa: B023

            async def threaded() -> None:
                await asyncio.to_thread(format_.encode, batch)  # noqa: B023

            on_loop, in_thread = (
                await median_milliseconds(inline, repeats),
                await median_milliseconds(threaded, repeats),
            )
            print(f"{format_.name:>8}{count:8}{on_loop:14.3f}{in_thread:14.3f}{on_loop / count:12.4f}")


def main() -> None:
    """Print the table."""
    asyncio.run(measure())


if __name__ == "__main__":
    main()
