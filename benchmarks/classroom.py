"""A class with the playground: browsers and the service on one machine, and the same load without browsers.

    python -m benchmarks classroom [--pages 30] [--seconds 30]

- Each page is a window, as large as a phone's, of one Chromium with the playground and the model `cgan`. About every
  two seconds, it chooses another digit or a random seed, and gets 16 images.
- A first picture is timed from the navigation, with an empty cache; a draw from the click. Both end with the frame of
  the screen after all images are there. The pages measure this themselves.
- The same from the load generator, without browsers: thirty clients that request at once what a page requests until its
  first picture, one after the other; and clients that draw at the pace of the pages.
- The processor time of the browsers and of the service, because they share the machine.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from selenium import webdriver

from harness.browser import INSTALLED, chromium
from harness.clients import for_seconds, run_clients
from harness.load import run_load
from harness.server import cpu_seconds, run_service

ADDRESS = "view=generate&model=cgan&label=7&n=16&seed=3"
PAUSE = 2.0
"""Seconds between the draws of a page: at random, from half to one and a half times as long."""
OPENINGS = 5
"""How often one page alone is opened."""
TIMEOUT = 60
ARGUMENTS = ("--window-size=390,844", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
             "--disable-background-timer-throttling")  # fmt: skip

SCRIPT = """
const frame = () => new Promise(requestAnimationFrame);
const loaded = (image) => image.complete && image.naturalWidth && !image.classList.contains("pending");
/** Wait until the grid has final images, and not the one from before any more; then for the next frame. */
async function shown(before) {
  for (;;) {
    await frame();
    const images = [...document.querySelectorAll(".grid img")];
    if (images.length && images[0] !== before && images.every(loaded)) break;
  }
  await frame();
}
/** Draw every `pause` milliseconds or so, and return how long each draw took. */
window.drawFor = async (milliseconds, pause) => {
  const times = [];
  const end = performance.now() + milliseconds;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random())));
    if (performance.now() > end) return times;
    const choices = document.querySelectorAll("input[name=label]:not(:checked), [aria-label='Random seed']");
    const before = document.querySelector(".grid img");
    const start = performance.now();
    choices[Math.floor(Math.random() * choices.length)].click();
    await shown(before);
    times.push(performance.now() - start);
  }
};
window.firstPicture = shown(null).then(() => performance.now());
"""
"""What every page runs before its own scripts. Times are milliseconds, since the navigation or since a click."""


def awake_chromium() -> AbstractContextManager[webdriver.Chrome]:
    """A Chromium whose windows are all as awake as one in front."""
    return chromium(*ARGUMENTS, load_strategy="none", logs=("browser",), script_timeout=TIMEOUT)


class Pages:
    """Windows of one browser, all at the same address."""

    def __init__(self, browser: webdriver.Chrome, count: int) -> None:
        self.browser = browser
        while len(browser.window_handles) < count:
            browser.switch_to.new_window("window")
        for _ in self.windows():
            browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SCRIPT})

    def open(self, address: str) -> list[float]:
        """Open the address in all windows at once. Returns the milliseconds to the first picture of each."""
        for _ in self.windows():
            self.browser.execute_cdp_cmd("Network.enable", {})
            self.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})  # as on its own device
        for _ in self.windows():
            self.browser.get(address)
        times = self.results("firstPicture")
        for _ in self.windows():
            self.browser.execute_cdp_cmd("Network.disable", {})  # to report each request would slow the draws down
        return times

    def draw(self, seconds: float) -> list[float]:
        """Let all pages draw at the same time. Returns the milliseconds of each draw."""
        self.start(f"window.drawn = drawFor({1000 * seconds}, {1000 * PAUSE})")
        time.sleep(seconds)
        return [took for page in self.results("drawn") for took in page]

    def start(self, script: str) -> None:
        """Run a script in every window, without waiting for promises."""
        for _ in self.windows():
            self.browser.execute_script(script)

    def results(self, promise: str) -> list[Any]:
        """The value of a promise of every window."""
        script = f"const done = arguments[0]; (async () => done(await {promise}))()"
        return [self.browser.execute_async_script(script) for _ in self.windows()]

    def requests(self) -> list[str]:
        """The paths that the first page has requested, in their order."""
        names = self.results("Promise.resolve(performance.getEntriesByType('resource').map(({ name }) => name))")[0]
        parts = [urlsplit(name) for name in names if name.startswith("http")]
        return ["/", *(f"{part.path}?{part.query}".removesuffix("?") for part in parts)]

    def windows(self) -> Iterator[None]:
        """Turn to one window after another."""
        for handle in self.browser.window_handles:
            self.browser.switch_to.window(handle)
            yield


def open_without_browsers(url: str, paths: Sequence[str], clients: int) -> tuple[list[float], float]:
    """The milliseconds in which each of `clients`, all at once, gets the responses at all paths.

    The clients go on for a while. The second value is how many times they got all responses, together.
    """
    sent = [
        f"GET {path.replace('previews=true', 'format=json')} HTTP/1.1\r\nHost: drawbridge\r\n\r\n".encode()
        for path in paths
    ]
    results = run_load(url, [itertools.cycle(sent).__next__ for _ in range(clients)], seconds=5, warm=0)
    if any(result.failed or len(result.latencies) < len(paths) for result in results):
        raise SystemExit("a client did not get all responses")
    times = [1000 * sum(result.latencies[: len(paths)]) for result in results]
    return times, sum(len(result.latencies) for result in results) / len(paths)


def draw_without_browsers(url: str, clients: int, seconds: float) -> list[float]:
    """The milliseconds of each draw by clients that send what pages send, and read the events."""
    times = list[float]()

    async def draw(client: httpx.AsyncClient, source: random.Random) -> None:
        await asyncio.sleep(PAUSE * source.uniform(0.5, 1.5))
        params = {"model": "cgan", "label": source.randrange(10), "n": 16, "seed": source.getrandbits(32)}
        start = time.perf_counter()
        response = await client.post(
            "/generate", params=params | {"previews": True}, headers={"Accept": "text/event-stream"}
        )
        took = 1000 * (time.perf_counter() - start)
        if "event: end" not in response.text:
            raise SystemExit(f"a draw failed: {response.status_code} {response.text[:200]}")
        times.append(took)

    run_clients(url, [draw] * clients, for_seconds(seconds), seed=0)
    return times


def descendants(pid: int) -> list[int]:
    """A process, and all that it and they have started; a thread of any of them may have."""
    parents = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])

    def descends(process: int) -> bool:
        return process == pid or (process in parents and descends(parents[process]))

    return [process for process in parents if descends(process)]


def print_row(name: str, times: Sequence[float]) -> None:
    """Print the median, the 95th percentile, the maximum and the number of times in milliseconds."""
    p95 = statistics.quantiles(times, n=20, method="inclusive")[18]
    print(f"{name:44}{statistics.median(times):9,.0f}{p95:9,.0f}{max(times):9,.0f}{len(times):9,}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks classroom", description=__doc__)
    parser.add_argument("--pages", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    if not INSTALLED:
        print("error: chromium is not installed; Debian's packages are chromium and chromium-driver", file=sys.stderr)
        raise SystemExit(2)
    print(f"{os.cpu_count()} cores, load average of the last minute {os.getloadavg()[0]:.1f}")
    print(f"{'milliseconds':44}{'p50':>9}{'p95':>9}{'most':>9}{'number':>9}")
    with run_service(device="cpu", allow_anonymous="true") as (url, pid):
        address = f"{url}/?{ADDRESS}"
        with awake_chromium() as browser:
            one = Pages(browser, 1)
            print_row("first picture, one page", [took for _ in range(OPENINGS) for took in one.open(address)])
            paths = one.requests()
            print_row("draw, one page", one.draw(args.seconds))
        with awake_chromium() as browser:
            pages = Pages(browser, args.pages)
            print_row(f"first picture, {args.pages} pages at once", pages.open(address))
            processes = {"the service": pid, "the browser": browser.service.process.pid}
            before = {name: cpu_seconds(descendants(process)) for name, process in processes.items()}
            start = time.monotonic()
            print_row(f"draw, {args.pages} pages", pages.draw(args.seconds))
            seconds = time.monotonic() - start
            cores = {name: (cpu_seconds(descendants(processes[name])) - before[name]) / seconds for name in processes}
        alone = f"{args.pages} clients without a browser"
        spent = cpu_seconds(descendants(pid))
        times, openings = open_without_browsers(url, paths, args.pages)
        spent = cpu_seconds(descendants(pid)) - spent
        print_row(f"first picture, {alone}", times)
        print_row(f"draw, {alone}", draw_without_browsers(url, args.pages, args.seconds))
    print(f"milliseconds of a core in the service per opening of the page: {1000 * spent / openings:.1f}")
    print("cores in use during the draws of all pages: " + ", ".join(f"{n} {used:.2f}" for n, used in cores.items()))


if __name__ == "__main__":
    main()
