"""A service process of a test's own, on a free port of the loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server import SERVICE, Server, environment, running


@contextmanager
def serving(weights: Path, **settings: object) -> Iterator[Server]:
    settings = {"weights": weights, "port": 0, "device": "cpu", "seats": 8, "workers": 1} | settings
    with running(SERVICE, environment(**settings)) as server:
        yield server
