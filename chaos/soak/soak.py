"""The run of a soak: a service, its traffic and its faults, and the lines that say what was lost."""

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import httpx

from chaos.accounting import WORKERS
from chaos.scenario import Line
from chaos.soak.faults import FLOODED, Faults
from chaos.soak.growth import Series, sampled_memory
from chaos.soak.traffic import HANG_UP_SECONDS, MODELS, REPLACED, Traffic, known_responses, soak_requests
from harness.clients import background_clients
from harness.connections import LIMITS
from harness.expected import TIMEOUT, Expected, ExpectedRequest
from harness.server import SERVICE, Server, cpu_seconds, environment, run_server
from harness.weights import copy_weights, perturb_weights

CLIENTS = 12
CLIENT_PAUSE = 6.0
"""Mean seconds between the requests of a client while there is no fault."""
FAULT_PAUSE = 45.0
"""Mean seconds between faults."""
SHORT_RUN_PAUSES = 40
"""A short run pauses between faults for this part of its duration."""
REQUESTS = 3
"""Different requests of each kind to each model."""
SAMPLE_SECONDS = 15.0
"""Seconds between samples of memory."""
SHORT_RUN_SAMPLES = 80
"""Samples of a short run, which takes them more often."""
QUEUE = 256
"""Images in the queue: more than the largest request of EXCHANGES for each worker, less than a flood."""
SETTINGS = {**LIMITS, "header_timeout": 5, "body_timeout": 5, "keep_alive_timeout": 6, "workers": WORKERS,
            "device": "cpu", "queue_images": QUEUE, "max_images": 64}  # fmt: skip
"""Timeouts that a machine shared with other work keeps. Idle connections stay open for longer than httpx keeps them, so
that it never sends on one that is being closed."""


class Soak:
    """A soak of `hours`, or longer if not every fault has been injected by then. `stop` ends it early."""

    def __init__(self, hours: float, seed: int) -> None:
        self.seconds, self.seed = 3600 * hours, seed
        self.stopped = False
        self.error = ""
        self.elapsed = self.cpu = 0.0
        self.traffic = Traffic({}, {}, CLIENT_PAUSE)
        self.faults: Faults | None = None
        self.memory = [
            Series("memory of the supervisor", " MB", per_hour=1, in_all=5),
            Series("memory of the worker that is never ended", " MB", per_hour=15, in_all=60),
        ]
        self.log_bytes = self.log_lines = self.tracebacks = 0

    def stop(self) -> None:
        """End the run after the current fault."""
        self.stopped = True

    def run(self, on_minute: Callable[[], None]) -> None:
        """Run until the time is over. An exception ends the run and becomes a line of the table."""
        try:
            with tempfile.TemporaryDirectory(prefix="soak-") as root:
                self._run(Path(root), on_minute)
        except Exception as error:
            self.error = repr(error)

    def _run(self, root: Path, on_minute: Callable[[], None]) -> None:
        weights, other = copy_weights(root, *MODELS), copy_weights(root / "other", *MODELS)
        for name in MODELS:
            perturb_weights(other / name, self.seed)
        replaced = copy_weights(root / "replaced", *(name for name in MODELS if name != REPLACED))
        shutil.copytree(other / REPLACED, replaced / REPLACED)
        self.traffic.kinds, self.traffic.expected = expected_of_all((weights, replaced), self.seed)
        with run_server(SERVICE, environment(port=0, weights=weights, **SETTINGS)) as server:
            start = time.monotonic()
            source = random.Random(self.seed)
            self.faults = Faults(server, self.traffic, weights, other, source, start)
            pids = dict(zip((server.process.pid, self.faults.lasting), self.memory, strict=True))
            interval = min(SAMPLE_SECONDS, self.seconds / SHORT_RUN_SAMPLES)
            with (
                background_clients(server.url, [self.traffic.client] * CLIENTS, self.seed),
                sampled_memory(pids, start, interval),
            ):
                self._inject(self.faults, source, on_minute)
            self._read_log(server)

    def _inject(self, faults: Faults, source: random.Random, on_minute: Callable[[], None]) -> None:
        """Inject faults until the time is over, and report every minute."""
        server, minutes, requests = faults.server, 0, 0
        used = self._cpu(server)
        mean = min(FAULT_PAUSE, self.seconds / SHORT_RUN_PAUSES)
        while not self._over(faults):
            faults.inject()
            resume_at = time.monotonic() + source.expovariate(1 / mean)
            while time.monotonic() < resume_at and not self._over(faults):
                time.sleep(min(0.2, mean))
                self.cpu = self._cpu(server) - used
                if self.elapsed >= 60 * (minutes + 1):
                    minutes = int(self.elapsed / 60)
                    if self.traffic.total == requests:
                        raise RuntimeError("no request has ended for a minute")
                    requests = self.traffic.total
                    self._read_log(server)
                    print(self._minute(minutes), flush=True)
                    on_minute()
        faults.compare_counters(0)
        self.cpu = self._cpu(server) - used

    def _over(self, faults: Faults) -> bool:
        """Return whether the time is over and every fault has been injected, or `stop` was called."""
        self.elapsed = time.monotonic() - faults.start
        complete = len(faults.counts) == len(faults.actions)
        return self.stopped or (complete and self.elapsed >= self.seconds)

    @staticmethod
    def _cpu(server: Server) -> float:
        return cpu_seconds([os.getpid(), server.process.pid, *server.workers])

    def _read_log(self, server: Server) -> None:
        """Look through the lines that the log has got since the last call."""
        with server.log.open("rb") as log:
            log.seek(self.log_bytes)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self.log_bytes += len(new)
        self.log_lines += new.count(b"\n")
        self.tracebacks += new.count(b"Traceback")

    @property
    def core_share(self) -> float:
        """The processor time of service, clients and faults, in cores."""
        return self.cpu / self.elapsed if self.elapsed else 0.0

    def _minute(self, minutes: int) -> str:
        assert self.faults is not None
        lost = self.traffic.lost.total() + self.faults.errors.total() + self.faults.disagreements
        supervisor, worker = (series.values[-1] if series.values else 0.0 for series in self.memory)
        return (
            f"{minutes} min: {self.traffic.total:,} requests, {self.traffic.retries.total():,} retries, "
            f"{self.faults.counts.total()} faults, {lost} lost; supervisor {supervisor:,.0f} MB, "
            f"worker {worker:,.0f} MB; {100 * self.core_share:.0f} % of a core"
        )

    def series(self) -> list[Series]:
        """Return what was measured over time."""
        return [*self.memory, *([self.faults.descriptors] if self.faults else [])]

    def head(self) -> str:
        """Return a sentence about the run."""
        hours, planned = f"{self.elapsed / 3600:.2f}", f"{self.seconds / 3600:.2f}"
        duration = f"{hours} hours" if self.elapsed >= self.seconds else f"{hours} of {planned} hours"
        return (
            f"{duration}, seed {self.seed}, {CLIENTS} clients, {WORKERS} workers; service and clients used "
            f"{100 * self.core_share:.0f} % of one of {os.cpu_count()} cores."
        )

    def lines(self) -> list[Line]:
        """Return the lines of the table so far."""
        traffic, faults = self.traffic, self.faults
        if faults is None:
            return [Line("the soak ended with an exception", 1, 1, self.error)]
        lines = [
            Line(
                f"{kind} sent",
                traffic.ended[kind] + traffic.lost[kind],
                traffic.lost[kind],
                _listed(traffic.problems[kind]),
            )
            for kind in traffic.kinds
        ]
        slowest = f"the slowest took {traffic.slowest:.1f} s with its retries, {TIMEOUT:g} s allowed"
        retries = _listed(traffic.retries) or "none"
        lines += [
            Line(f"clients that hung up within {HANG_UP_SECONDS:g} s", traffic.hung_up, 0),
            Line(
                "requests in all", traffic.total, traffic.lost.total(), f"{slowest}; retries during faults: {retries}"
            ),
        ]
        for name in faults.actions:
            never = "" if faults.counts[name] else "the run ended before it"
            figures = f"{faults.refused:,} requests refused with 429" if name == FLOODED else ""
            figures = faults.problems.get(name, figures)
            lines.append(Line(name, faults.counts[name], faults.errors[name], figures, never))
        agree = (
            f"each of {faults.accepted:,} accepted requests ended once, but for {faults.in_killed} in workers that "
            "were killed: other workers accepted them again"
        )
        lines.append(Line("pauses to compare counters", faults.comparisons, faults.disagreements, agree))
        for series in self.series():
            if series.times:
                lines.append(
                    Line(f"{series.name} sampled", len(series.times), int(series.exceeded()), series.describe())
                )
        lines.append(Line("log lines checked for tracebacks", self.log_lines, self.tracebacks))
        if faults.lasting_ended:
            lines.append(Line("the worker that is never ended has ended", 1, 1))
        if self.error:
            lines.append(Line("the soak ended with an exception", 1, 1, self.error))
        return lines


def expected_of_all(roots: Iterable[Path], seed: int) -> tuple[dict[str, list[ExpectedRequest]], dict[str, Expected]]:
    """Return the requests by kind, and their bodies with the weights in each of `roots`."""
    kinds: dict[str, list[ExpectedRequest]] = {}
    expected = dict[str, Expected]()
    for weights in roots:
        with run_server(SERVICE, environment(port=0, device="cpu", workers=1, weights=weights)) as server:
            models = httpx.get(f"{server.url}/models", timeout=TIMEOUT).json()["models"]
            kinds = kinds or soak_requests(models, random.Random(seed), REQUESTS)
            requests = [request for requests in kinds.values() for request in requests]
            expected |= asyncio.run(known_responses(server.url, requests))
    return kinds, expected


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
