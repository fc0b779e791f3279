"""Service processes for tests."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from harness.scraping import metric_value, parse_metrics
from harness.server import SERVICE, Server, environment, run_server


@contextmanager
def serving(weights: Path, **settings: object) -> Iterator[Server]:
    """Run the service on `weights` with one small CPU worker, unless `settings` say otherwise."""
    settings = {"weights": weights, "port": 0, "device": "cpu", "max_batch_size": 8, "workers": 1} | settings
    with run_server(SERVICE, environment(**settings)) as server:
        yield server


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_accepted(server: Server, requests: int = 1) -> None:
    """Wait until the service has accepted that many requests."""

    def are_accepted() -> bool:
        metrics = parse_metrics(httpx.get(f"{server.url}/metrics", timeout=30).text)
        return metric_value(metrics, "accepted_total") >= requests

    wait_for(are_accepted)


def connections_of(pid: int) -> int:
    """The number of TCP connections that a process has."""
    inodes = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()}
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return sum(f"socket:[{line.split()[9]}]" in inodes for line in table)
