"""Load: 2 to 256 clients, all models, steps and formats.

Bytes are those of each request alone, every accepted request ends once, and memory is flat once all clients have been
there: the slope of a straight line through what all processes hold (shared pages once), by least squares.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from chaos import accounting
from chaos.clients import LoadReport, expected_answers, for_seconds, mixed_requests, p99s, run_load
from chaos.scenario import Line, Setting
from harness.server import SERVICE, environment, memory_mb, run_server

CLIENTS = (256, 64, 8, 2)
"""The most first: what memory they need is there before its slope is looked at."""


def run(setting: Setting) -> Iterator[Line]:
    seconds, each, bound = (2, 1, 600.0) if setting.quick else (120, 20, 3.0)
    source = random.Random(setting.seed)
    truth = expected_answers(lambda models: mixed_requests(models, source, each))
    with run_server(SERVICE, environment(port=0, device="cpu")) as server:
        run_load(server.url, [LoadReport(truth).caller()] * max(CLIENTS), for_seconds(seconds), setting.seed)
        with watched(server.process.pid, 0.2 if setting.quick else 2.0) as (times, held):
            for clients in CLIENTS[::2] if setting.quick else CLIENTS:
                tally, begun = LoadReport(truth), time.monotonic()
                run_load(server.url, [tally.caller()] * clients, for_seconds(seconds), setting.seed + clients)
                found = f"{tally.rate(begun, begun + seconds):,.0f} a second; {p99s(tally)}{tally.wrong()}"
                yield Line(f"{clients} clients for {seconds} s", tally.answers.total(), tally.lost, found)
        slope = np.polyfit(times, held, 1)[0] * 60
        found = f"{held[0]:,.0f} MB at first, {held[-1]:,.0f} at last: {slope:+.2f} MB a minute, {bound:g} allowed"
        yield Line("memory of all processes looked at", len(held), int(slope > bound), found)
        yield accounting.closed(server.url)


@contextmanager
def watched(front: int, pause: float) -> Iterator[tuple[list[float], list[float]]]:
    """Seconds, and the megabytes of the service at them, gathered until the block ends."""
    times, held = list[float](), list[float]()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(pause):
            times.append(time.monotonic())
            held.append(memory_mb(front))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield times, held
    finally:
        over.set()
        thread.join()
