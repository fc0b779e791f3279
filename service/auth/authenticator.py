"""Authentication by API key, and quotas that all workers count together.

A rate's state is one number: the time at which the full amount is available again (the generic cell rate algorithm,
ITU-T I.371). A client may use the full amount at once; it comes back evenly over the period.
"""

import math
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import Scope

from service.auth import keys as key_file
from service.auth.keys import Key, Keys, RateLimit
from service.errors import QuotaExceeded, Unauthorized
from service.settings import Settings

try:
    import fcntl
except ImportError:  # Windows, where one process serves and nothing else counts
    fcntl = None  # type: ignore[assignment]

PUBLIC_PATHS = ("/", "/docs", "/lab", "/livez", "/openapi.json", "/readyz")
PUBLIC_PREFIXES = ("/docs/", "/lab/", "/playground/")
"""Static pages and health checks, which need no key."""
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="drawbridge"'}
RATES = ("requests", "images")
COUNTER_FILE_PREFIX = "key-"
"""A key's counter file is called this and the key's name."""


class UsageCounter:
    """What a key has used: one number per rate, and the number of concurrent requests of each worker.

    The numbers are in a file that all workers map. `worker` is this worker's index among `count`.
    """

    def __init__(self, path: Path, worker: int, count: int) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = 8 * (len(RATES) + count)
        os.ftruncate(self.file, size)  # the same size for all workers; new bytes are zero
        self.numbers = memoryview(mmap.mmap(self.file, size)).cast("d")
        self.own = len(RATES) + worker
        self.numbers[self.own] = 0.0  # an earlier worker with this index is dead

    def concurrent_requests(self) -> int:
        """Requests in progress in all workers."""
        return int(sum(self.numbers[len(RATES) :]))

    def acquire(self, limit: int | None) -> bool:
        """Count one more request in progress until `release`; False if all workers together have `limit` of them."""
        with self._locked():
            if limit is not None and self.concurrent_requests() >= limit:
                return False
            self.numbers[self.own] += 1
            return True

    def release(self) -> None:
        """End one request in progress."""
        self.numbers[self.own] -= 1

    def consume(self, which: str, rate: RateLimit, cost: int, now: float) -> float:
        """Take `cost` from a rate and return 0, or return the seconds until that much is available."""
        position, seconds_each = RATES.index(which), rate.seconds / rate.amount
        with self._locked():
            full_at = max(self.numbers[position], now) + cost * seconds_each
            wait = full_at - rate.seconds - now
            if wait <= 1e-9 * rate.seconds:
                self.numbers[position] = full_at
                return 0.0
            return wait

    def remaining(self, which: str, rate: RateLimit, now: float) -> tuple[int, int]:
        """The amount left of a rate, and the seconds until the full amount is available."""
        owed = max(0.0, self.numbers[RATES.index(which)] - now)
        return max(0, math.floor((rate.seconds - owed) * rate.amount / rate.seconds + 1e-6)), math.ceil(owed)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other workers from changing the numbers between a read and a write."""
        if fcntl is None:
            yield
            return
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)


def release_worker(shared: Path, worker: int) -> None:
    """End the requests in progress of a worker that died, in every counter in the directory `shared`."""
    for path in shared.glob(f"{COUNTER_FILE_PREFIX}*"):
        with path.open("r+b") as file:
            file.seek(8 * (len(RATES) + worker))
            file.write(bytes(8))


class QuotaLease:
    """An authenticated request's share of its key's quotas.

    A `charged` request was accepted by a worker that died, which charged the key: it is not charged or refused again.
    """

    def __init__(self, key: Key, counter: UsageCounter, *, charged: bool = False) -> None:
        self.key, self.counter, self.charged, self.acquired = key, counter, charged, False
        self.undelivered = 0
        """Images that the key is charged for and that were not delivered yet."""

    def acquire(self) -> None:
        """Count the request, until `release`. Raises QuotaExceeded if the key's limits do not allow it now."""
        limit = None if self.charged else self.key.concurrent
        if not self.counter.acquire(limit):
            raise QuotaExceeded(f"this key allows {limit} requests at once", headers={"Retry-After": "1"})
        self.acquired = True
        self.consume("requests", 1)

    def release(self) -> None:
        """End the request, if it was acquired."""
        if self.acquired:
            self.counter.release()
            self.acquired = False

    def consume(self, which: str, cost: int) -> None:
        """Take `cost` from one of the key's rates. Raises QuotaExceeded if less is left."""
        rate: RateLimit | None = getattr(self.key, which)
        if rate is None:
            return
        if not self.charged:
            self._charge(which, rate, cost)
        if which == "images":
            self.undelivered += cost

    def _charge(self, which: str, rate: RateLimit, cost: int) -> None:
        if cost > rate.amount:
            raise QuotaExceeded(f"{cost} {which} at once exceed this key's limit; ask for at most {rate.amount}")
        wait = self.counter.consume(which, rate, cost, time.monotonic())
        if wait:
            retry = math.ceil(wait)
            raise QuotaExceeded(
                f"this key allows {rate.amount} {which} per {rate.seconds:g} s; retry in {retry} s",
                headers={"Retry-After": str(retry)},
                retry_after=retry,
            )

    def refund(self) -> None:
        """Give back the images that were not delivered."""
        if self.key.images is not None and self.undelivered:
            self.counter.consume("images", self.key.images, -self.undelivered, time.monotonic())
            self.undelivered = 0

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """The limits and what is left of them (draft-ietf-httpapi-ratelimit-headers-10)."""
        rates = {which: rate for which in RATES if (rate := getattr(self.key, which)) is not None}
        if rates:
            now = time.monotonic()
            policy = (f'"{which}";q={rate.amount};w={rate.seconds:.0f}' for which, rate in rates.items())
            left = {which: self.counter.remaining(which, rate, now) for which, rate in rates.items()}
            yield b"ratelimit-policy", ", ".join(policy).encode()
            yield b"ratelimit", ", ".join(f'"{which}";r={r};t={t}' for which, (r, t) in left.items()).encode()


class Authenticator:
    """Checks keys and counts their usage.

    `shared` is a directory that all `count` workers share; `worker` is this one's index.
    """

    def __init__(self, keys: Keys, shared: Path, worker: int, count: int) -> None:
        self.keys, self.shared, self.worker, self.count = keys, shared, worker, count
        # Opening a counter clears the slot that a dead worker with this index left behind.
        self.counters = {
            path.name.removeprefix(COUNTER_FILE_PREFIX): UsageCounter(path, worker, count)
            for path in shared.glob(f"{COUNTER_FILE_PREFIX}*")
        }

    def authenticate(self, scope: Scope, path: str) -> QuotaLease | None:
        """The lease of the request's key; None if `path` needs no key. Raises Unauthorized.

        `taken_over` in the scope marks a request that a worker had accepted before it died.
        """
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES) or "admin" in scope:
            return None
        secret = _presented_key(scope)
        if not secret:
            raise Unauthorized("send a key: Authorization: Bearer KEY, or X-API-Key: KEY", headers=CHALLENGE)
        key = self.keys.find(secret)
        if key is None:
            raise Unauthorized("unknown key; ask the operator of this service for one", headers=CHALLENGE)
        if key.name not in self.counters:
            path_ = self.shared / f"{COUNTER_FILE_PREFIX}{key.name}"
            self.counters[key.name] = UsageCounter(path_, self.worker, self.count)
        return QuotaLease(key, self.counters[key.name], charged="taken_over" in scope)


def create_authenticator(settings: Settings, shared: Path, worker: int = 0, count: int = 1) -> Authenticator | None:
    """The authenticator for the settings' keys; None if no key is needed. Raises ValueError if the file is invalid."""
    return None if settings.keys is None else Authenticator(key_file.read(settings.keys), shared, worker, count)


def _presented_key(scope: Scope) -> str:
    """The key in the request's headers, or an empty string."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            return str(text.strip())
        if name == b"authorization" and text[:7].lower() == "bearer ":
            return str(text[7:].strip())
    return ""
