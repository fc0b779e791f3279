"""The gate: who shows a key comes in, within what the key allows; all workers count together.

What a key has had of a rate is one number, the time at which it would be all given back (the generic cell rate
algorithm, ITU-T I.371): it may use up its whole amount at once, and gets it back evenly.
"""

import fcntl
import math
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import Scope

from service.auth.keys import Key, Keys, RateLimit
from service.errors import QuotaExceeded, Unauthorized

PUBLIC_PATHS = ("/", "/docs", "/lab", "/livez", "/openapi.json", "/readyz")
PUBLIC_PREFIXES = ("/docs/", "/lab/", "/playground/")
"""What everybody may see: pages that hold nothing, and whether the service lives."""
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="drawbridge"'}
RATES = ("requests", "images")
COUNTER_FILE_PREFIX = "key-"
"""What the file of a key's tally is called, before the key's name."""


class UsageCounter:
    """What a key has had, in a file that all workers have mapped: a number a rate, and requests under way a worker."""

    def __init__(self, path: Path, number: int, count: int) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = 8 * (len(RATES) + count)
        os.ftruncate(self.file, size)  # the same for all of them, and zeros at first
        self.numbers = memoryview(mmap.mmap(self.file, size)).cast("d")
        self.own = len(RATES) + number
        self.numbers[self.own] = 0.0  # whoever had this number before is dead

    def under_way(self) -> int:
        """Requests that are being answered, by all workers."""
        return int(sum(self.numbers[len(RATES) :]))

    def acquire(self, most: int | None) -> bool:
        """Count one more request as being answered here, until `leave`; False where there are `most` in all workers."""
        with self._locked():
            if most is not None and self.under_way() >= most:
                return False
            self.numbers[self.own] += 1
            return True

    def release(self) -> None:
        """One that came in has its answer."""
        self.numbers[self.own] -= 1

    def consume(self, which: str, rate: RateLimit, cost: int, now: float) -> float:
        """Take `cost` off a rate: seconds until there is so much, 0 where there was and it is taken."""
        place, each = RATES.index(which), rate.seconds / rate.amount
        with self._locked():
            back = max(self.numbers[place], now) + cost * each
            wait = back - rate.seconds - now
            if wait <= 1e-9 * rate.seconds:
                self.numbers[place] = back
                return 0.0
            return wait

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """While no other worker looks at the numbers, or changes them by what it saw."""
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def remaining(self, which: str, rate: RateLimit, now: float) -> tuple[int, int]:
        """How much there is of a rate, and the seconds until there is all of it."""
        owed = max(0.0, self.numbers[RATES.index(which)] - now)
        return max(0, math.floor((rate.seconds - owed) * rate.amount / rate.seconds + 1e-6)), math.ceil(owed)


class QuotaLease:
    """A request that a key let in."""

    def __init__(self, key: Key, tally: UsageCounter) -> None:
        self.key, self.tally, self.acquired = key, tally, False

    def acquire(self) -> None:
        """Come in, until `leave`. Raises QuotaUsedUp where the key may not ask now."""
        most = self.key.concurrent
        if not self.tally.acquire(most):
            raise QuotaExceeded(f"{most} requests at once are all that this key may have", headers={"Retry-After": "1"})
        self.acquired = True
        self.consume("requests", 1)

    def release(self) -> None:
        """Go, if it ever came in."""
        if self.acquired:
            self.tally.release()
            self.acquired = False

    def consume(self, which: str, cost: int) -> None:
        """Take `cost` off what the key may have of a rate. Raises QuotaUsedUp where there is less."""
        rate: RateLimit | None = getattr(self.key, which)
        if rate is None:
            return
        if cost > rate.amount:
            raise QuotaExceeded(f"{cost} {which} at once are more than this key may ever have; ask for {rate.amount}")
        wait = self.tally.consume(which, rate, cost, time.monotonic())
        if wait:
            retry = math.ceil(wait)
            raise QuotaExceeded(
                f"this key may have {rate.amount} {which} in {rate.seconds:g} s; ask again in {retry} s",
                headers={"Retry-After": str(retry)},
                retry_after=retry,
            )

    def refund(self, which: str, cost: int) -> None:
        """Undo a `spend` of what was refused all the same."""
        if (rate := getattr(self.key, which)) is not None:
            self.tally.consume(which, rate, -cost, time.monotonic())

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """What is left (draft-ietf-httpapi-ratelimit-headers-10)."""
        rates = {which: rate for which in RATES if (rate := getattr(self.key, which)) is not None}
        if rates:
            now = time.monotonic()
            policy = (f'"{which}";q={rate.amount};w={rate.seconds:.0f}' for which, rate in rates.items())
            left = {which: self.tally.remaining(which, rate, now) for which, rate in rates.items()}
            yield b"ratelimit-policy", ", ".join(policy).encode()
            yield b"ratelimit", ", ".join(f'"{which}";r={r};t={t}' for which, (r, t) in left.items()).encode()


class Authenticator:
    """Knows keys, and what each has had; `shared` is a directory of all `count` workers, of which this is `number`."""

    def __init__(self, keys: Keys, shared: Path, number: int, count: int) -> None:
        self.keys, self.shared, self.number, self.count = keys, shared, number, count
        # Those that there are say what the worker had under way that was this one before it died.
        self.counters = {
            path.name.removeprefix(COUNTER_FILE_PREFIX): UsageCounter(path, number, count)
            for path in shared.glob(f"{COUNTER_FILE_PREFIX}*")
        }

    def authenticate(self, scope: Scope, path: str) -> QuotaLease | None:
        """Whoever asks with a key for `path`; nobody in particular where none is needed. Raises Unauthorized."""
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES) or "door" in scope:
            return None
        secret = _presented_key(scope)
        if not secret:
            raise Unauthorized("send a key: Authorization: Bearer KEY, or X-API-Key: KEY", headers=CHALLENGE)
        key = self.keys.find(secret)
        if key is None:
            raise Unauthorized("no such key; ask whoever runs the service for one", headers=CHALLENGE)
        if key.name not in self.counters:
            self.counters[key.name] = UsageCounter(
                self.shared / f"{COUNTER_FILE_PREFIX}{key.name}", self.number, self.count
            )
        return QuotaLease(key, self.counters[key.name])


def _presented_key(scope: Scope) -> str:
    """The key in the headers, if there is one."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            return str(text.strip())
        if name == b"authorization" and text[:7].lower() == "bearer ":
            return str(text[7:].strip())
    return ""
