"""The faults of a soak, each between two pauses of the clients in which the counters must agree."""

import asyncio
import http.client
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import httpx

from chaos import accounting
from chaos.accounting import WORKERS
from chaos.damage import Damage, broken_weights, each_worker, happens, reload
from chaos.soak.growth import Series
from chaos.soak.traffic import ARCHIVES, MODELS, REPLACED, Traffic
from harness.clients import CORRECT, http_client
from harness.connections import EXCHANGES, run_exchange
from harness.expected import TIMEOUT, ExpectedRequest
from harness.scraping import metric_value
from harness.server import Server, descriptors
from harness.weights import WEIGHTS
from models import store

FLOOD = 100
"""Requests of a flood, sent at once. They have more images than the queue takes."""
FLOODED = f"flood of {FLOOD} requests at once"
SLOW_READERS = 6
SLOW_BYTES, SLOW_SECONDS = 4096, 0.05
"""A slow reader reads this many bytes, then waits this long."""
EXCHANGES_AT_ONCE = 6
PATIENCE = 300.0
"""Seconds after which something that should happen counts as never happening. A soak shares its machine."""
STOP_SECONDS = 3.0
"""The longest time that a worker is stopped."""


class Faults:
    """Injects one fault after the other, in an order that `source` decides, each as often as the others.

    `other` holds other weights of the served models. The worker that is the first at the start is never ended, so that
    its memory shows the growth over the whole run. `start` is when it began, in `time.monotonic()`.
    """

    def __init__(
        self, server: Server, traffic: Traffic, weights: Path, other: Path, source: random.Random, start: float
    ) -> None:
        self.server, self.traffic, self.source, self.start = server, traffic, source, start
        self.weights = weights
        self.damage = Damage(weights, other, [name for name in MODELS if name != REPLACED], source)
        self.lasting = server.workers[0]
        self.lasting_ended = False
        self.digests = cycle([store.read_manifest(root / REPLACED).digest for root in (other, WEIGHTS)])
        self.replacements = cycle([other, WEIGHTS])
        """The directories that the weights of REPLACED are taken from next, and their digests."""
        self.accepted = 0
        self.in_killed = 0
        """Accepted requests that were in progress in workers that were killed, by the service's counters."""
        self.comparisons = self.disagreements = 0
        """Pauses in which the counters were compared, and those in which they did not agree."""
        self.descriptors = Series("open descriptors of the supervisor and the lasting worker", "", 20, 60)
        self.actions: dict[str, Callable[[], int]] = {
            "SIGKILL of a worker": lambda: self._end_worker(signal.SIGKILL),
            "SIGTERM of a worker": lambda: self._end_worker(signal.SIGTERM),
            f"SIGSTOP of a worker for up to {STOP_SECONDS:g} s": self._stop_worker,
            "reload with other weights": self._replace_weights,
            "reload with broken weights": self._break_weights,
            f"{EXCHANGES_AT_ONCE} slow, oversized and ambiguous connections": self._exchange,
            f"{SLOW_READERS} clients that read slowly": self._read_slowly,
            FLOODED: self._flood,
        }
        self.counts, self.errors = Counter[str](), Counter[str]()
        self.problems: dict[str, str] = {}
        """The last exception of a fault, by its name."""
        self.refused = 0
        """Requests of floods that got 429."""
        self.left: list[str] = []
        """Faults that are due before any is repeated."""
        self.busy_at_kill = 0
        """Requests that the service may have been busy with when the last worker was killed."""

    def inject(self) -> None:
        """Inject the next fault, and compare the counters before and after it."""
        if not self.left:
            self.left = self.source.sample([*self.actions], len(self.actions))
        name = self.left.pop()
        self.compare_counters(0)
        self.busy_at_kill = 0
        self.traffic.hurried = True
        time.sleep(self.source.uniform(0.3, 1.0))
        with self.traffic.fault():
            try:
                self.errors[name] += self.actions[name]()
            except Exception as error:  # an error here must not end hours of work
                self.errors[name] += 1
                self.problems[name] = repr(error)
            self.traffic.hurried = False
        self.counts[name] += 1
        self.compare_counters(self.busy_at_kill)

    def compare_counters(self, killed: int) -> None:
        """Pause the clients and compare the service's counters with what they must be.

        No image may be in progress, and every accepted request has ended once, but for those that were in a worker when
        it was killed: they were accepted a second time. At most `killed` of them are new since the last comparison.
        """
        self.traffic.paused = True
        try:
            lowest, highest = self.in_killed, self.in_killed + killed

            def agree() -> bool:
                samples = accounting.read_metrics(self.server.url)
                self.accepted = int(metric_value(samples, "accepted_total"))
                self.in_killed = accounting.unfinished_requests(samples)
                return not accounting.rows_in_flight(samples) and lowest <= self.in_killed <= highest

            idle = happens(lambda: not self.traffic.in_flight, PATIENCE)
            self.disagreements += not (idle and happens(agree, PATIENCE))
            self.comparisons += 1
            self.descriptors.times.append(time.monotonic() - self.start)
            self.lasting_ended = self.lasting not in self.server.workers
            pids = [self.server.process.pid, *([] if self.lasting_ended else [self.lasting])]
            self.descriptors.values.append(sum(map(descriptors, pids)))
        finally:
            self.traffic.paused = False

    # Each fault returns how much went wrong.

    def _end_worker(self, number: signal.Signals) -> int:
        before = self.server.workers
        os.kill(self.source.choice([pid for pid in before if pid != self.lasting]), number)
        if number == signal.SIGKILL:
            self.busy_at_kill = self.traffic.busy()
        time.sleep(0.5)
        self.traffic.hurried = False

        def replaced() -> bool:
            return len(now := self.server.workers) == WORKERS and set(now) != set(before)

        return int(not (happens(replaced, PATIENCE) and self._reload()))  # the new worker reloads once it is ready

    def _stop_worker(self) -> int:
        pid = self.source.choice(self.server.workers)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.source.uniform(0.5, STOP_SECONDS))
        finally:
            os.kill(pid, signal.SIGCONT)
        return int(pid not in self.server.workers)

    def _replace_weights(self) -> int:
        self._copy(REPLACED, next(self.replacements))
        reloaded = self._reload()
        served = {client.get(f"/models/{REPLACED}").json()["digest"] for client in each_worker(self.server)}
        return int(not (reloaded and served == {next(self.digests)}))

    def _break_weights(self) -> int:
        name = self.source.choice(self.damage.names)
        self.source.choice([*self.damage.actions.values()])(name)
        named = self._reload() and broken_weights(self.server) == {frozenset([name])}
        self._copy(name, WEIGHTS)
        return int(not (named and self._reload() and broken_weights(self.server) == {frozenset()}))

    def _reload(self) -> bool:
        return reload(self.server, PATIENCE)

    def _copy(self, name: str, root: Path) -> None:
        shutil.rmtree(self.weights / name)
        shutil.copytree(root / name, self.weights / name)

    def _exchange(self) -> int:
        exchanges = self.source.sample(EXCHANGES, EXCHANGES_AT_ONCE)
        with ThreadPoolExecutor(EXCHANGES_AT_ONCE) as pool:
            results = pool.map(
                lambda exchange: run_exchange(self.server.url, exchange, PATIENCE) in exchange.allowed, exchanges
            )
            return sum(not allowed for allowed in results)

    def _read_slowly(self) -> int:
        requests = self.source.sample(self.traffic.kinds[ARCHIVES], SLOW_READERS)
        with ThreadPoolExecutor(SLOW_READERS) as pool:
            return sum(not correct for correct in pool.map(self._is_correct_if_read_slowly, requests))

    def _is_correct_if_read_slowly(self, request: ExpectedRequest) -> bool:
        """Read a response through small windows, a little at a time. Returns whether it has its expected bytes.

        It may be refused while the queue is full.
        """
        address = httpx.URL(self.server.url)
        status, digest, body = 429, "", bytearray()
        while status == 429:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
            connection.sock = socket.socket()
            connection.sock.settimeout(TIMEOUT)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
            connection.sock.connect((address.host, address.port))
            connection.request(request.method, request.url)
            response = connection.getresponse()
            status, digest, body = response.status, response.getheader("x-model-digest", ""), bytearray()
            while data := response.read(SLOW_BYTES):
                body += data
                time.sleep(SLOW_SECONDS)
            connection.close()
        return status == 200 and bytes(body) == self.traffic.expected[digest].get(request)

    def _flood(self) -> int:
        requests = self.source.choices(self.traffic.kinds[ARCHIVES], k=FLOOD)

        async def send_all() -> list[str]:
            async with http_client(self.server.url) as client:
                return await asyncio.gather(*(self.traffic.attempt(client, request) for request in requests))

        outcomes = Counter(asyncio.run(send_all()))
        self.refused += outcomes["status 429"]
        return FLOOD - outcomes[CORRECT] - outcomes["status 429"]
