"""When is it worth while to encode images off the event loop?

    python -m benchmarks encoding

Encoding n images on the loop holds everyone up for as long as it takes; a thread holds nobody up, and costs a hop.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np
from service.codecs.images import ImageBatch

from service.codecs import formats as images

REPEATS = 200
COUNTS = (1, 4, 16, 64, 256, 1024)


async def milliseconds(work: Callable[[], Awaitable[object]], repeats: int) -> float:
    """Median milliseconds of `work`."""
    found = []
    for _ in range(repeats):
        before = time.perf_counter()
        await work()
        found.append(1000 * (time.perf_counter() - before))
    return statistics.median(found)


def strokes(n: int) -> ImageBatch:
    """n images that compress about as digits do: [n, 28, 28], a bright curve on black."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    centre, radius = rng.uniform(10, 18, (2, n, 1, 1)), rng.uniform(4, 9, (n, 1, 1))
    distance = np.hypot(rows - centre[0], columns - centre[1]) - radius
    grey = np.clip(255 * (2 - np.abs(distance)), 0, 255).astype(np.uint8)
    return ImageBatch(grey, np.zeros(n, np.int64), {"model": "none", "seed": 0})


async def measure() -> None:
    """Print a line for each format and number of images."""

    async def nothing() -> None:
        await asyncio.to_thread(int)

    print(
        f"median ms of {REPEATS} (fewer from 64 images on); a hop to a thread and back, with nothing to do there:",
        end=" ",
    )
    print(f"{await milliseconds(nothing, REPEATS):.3f}")
    print(f"{'format':>8}{'images':>8}{'on the loop':>14}{'in a thread':>14}{'each':>10}")
    for format_ in images.IMAGE_FORMATS:
        for count in COUNTS:
            drawn, repeats = strokes(count), max(5, REPEATS // max(1, count // 16))

            async def inline() -> None:
                format_.encode(drawn)  # noqa: B023

            async def threaded() -> None:
                await asyncio.to_thread(format_.encode, drawn)  # noqa: B023

            here, there = await milliseconds(inline, repeats), await milliseconds(threaded, repeats)
            print(f"{format_.name:>8}{count:8}{here:14.3f}{there:14.3f}{here / count:10.4f}")


def main() -> None:
    """Print the table."""
    asyncio.run(measure())


if __name__ == "__main__":
    main()
