"""Load: 2 to 256 clients, all models, steps and formats.

Responses have the bytes of each request alone, every accepted request ends exactly once, and memory stays flat once
the largest number of clients has connected: the slope of a least-squares line through the memory of all processes,
which counts shared pages once.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from chaos import accounting
from chaos.scenario import Line, Setting
from harness.clients import LoadReport, for_seconds, run_clients
from harness.expected import expected_responses, mixed_requests
from harness.server import SERVICE, environment, memory_mb, run_server

CLIENTS = (256, 64, 8, 2)
"""The largest number first, so that its memory is allocated before the slope is measured."""


def run(setting: Setting) -> Iterator[Line]:
    seconds, count, bound = (2, 1, 600.0) if setting.quick else (120, 20, 3.0)
    source = random.Random(setting.seed)
    expected = expected_responses(lambda models: mixed_requests(models, source, count))
    with run_server(SERVICE, environment(port=0, device="cpu")) as server:
        run_clients(server.url, [LoadReport(expected).client()] * max(CLIENTS), for_seconds(seconds), setting.seed)
        with memory_samples(server.process.pid, 0.2 if setting.quick else 2.0) as (times, megabytes):
            for clients in CLIENTS[::2] if setting.quick else CLIENTS:
                report, start = LoadReport(expected), time.monotonic()
                run_clients(server.url, [report.client()] * clients, for_seconds(seconds), setting.seed + clients)
                rate = report.rate(start, start + seconds)
                figures = f"{rate:,.0f} responses/s; {report.p99()}{report.errors()}"
                yield Line(f"{clients} clients for {seconds} s", report.total, report.lost, figures)
        slope = np.polyfit(times, megabytes, 1)[0] * 60
        figures = f"{megabytes[0]:,.0f} MB first, {megabytes[-1]:,.0f} MB last: {slope:+.2f} MB/min, {bound:g} allowed"
        yield Line("memory of all processes sampled", len(megabytes), int(slope > bound), figures)
        yield accounting.requests_accounted(server.url)


@contextmanager
def memory_samples(pid: int, interval: float) -> Iterator[tuple[list[float], list[float]]]:
    """Sample the memory of a service until the block ends. Yields the lists of seconds and of megabytes."""
    times, megabytes = list[float](), list[float]()
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(interval):
            times.append(time.monotonic())
            megabytes.append(memory_mb(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield times, megabytes
    finally:
        stopped.set()
        thread.join()
