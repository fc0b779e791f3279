"""What a short diffusion request waits when a long one is under way.

    python -m benchmarks.short_beside_long

Two requests to one service: 10 steps, and 100 steps sent just before. Alone and together in turn, medians.
"""

import asyncio
import statistics
import time

import httpx

from benchmarks.server import serving

REPEATS = 15
SHORT, LONG = 10, 100


async def timed(client: httpx.AsyncClient, steps: int, seed: int) -> float:
    """Milliseconds of one request."""
    before = time.perf_counter()
    answer = await client.post("/generate", params={"model": "ddpm", "digit": 7, "steps": steps, "seed": seed})
    answer.raise_for_status()
    return 1000 * (time.perf_counter() - before)


async def measure(url: str) -> dict[str, list[float]]:
    """Milliseconds of every repeat, by what was measured."""
    found: dict[str, list[float]] = {
        "short alone": [],
        "long alone": [],
        "short beside long": [],
        "long beside short": [],
    }
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await timed(client, LONG, 0)
        for seed in range(REPEATS):
            found["short alone"].append(await timed(client, SHORT, seed))
            found["long alone"].append(await timed(client, LONG, seed))
            long = asyncio.create_task(timed(client, LONG, seed))
            await asyncio.sleep(0)  # the long one is sent first
            found["short beside long"].append(await timed(client, SHORT, seed))
            found["long beside short"].append(await long)
    return found


def main() -> None:
    """Print the table."""
    with serving(device="cpu") as url:
        found = asyncio.run(measure(url))
    print(f"ddpm, one image a request, {SHORT} and {LONG} steps; {REPEATS} repeats in turn")
    print(f"{'':20}{'median ms':>12}{'min':>9}{'max':>9}")
    for name, values in found.items():
        print(f"{name:20}{statistics.median(values):12.1f}{min(values):9.1f}{max(values):9.1f}")
    ratio = statistics.median(b / a for a, b in zip(found["short alone"], found["short beside long"], strict=True))
    print(f"short beside long / short alone: {ratio:.2f} (median of the repeats' ratios)")


if __name__ == "__main__":
    main()
