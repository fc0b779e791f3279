"""API keys, their quotas, and how workers count together."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from harness.server import ROOT
from service.app import Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator, QuotaLease, UsageCounter
from service.auth.keys import Key, RateLimit
from service.errors import QuotaExceeded
from service.settings import Settings
from tests.service.conftest import asgi_client, problem
from tests.serving import serving


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a key file that does not exist yet."""
    return tmp_path / "keys.toml"


@asynccontextmanager
async def application(settings: Settings, file: Path) -> AsyncIterator[tuple[Application, httpx.AsyncClient]]:
    """An application that requires the keys in a file, and a client of it."""
    app = create_app(settings, authenticator=Authenticator(keys.read(file), file.parent, 0, 1))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield app, client


def bearer(secret: str) -> dict[str, str]:
    """Headers with a key."""
    return {"Authorization": f"Bearer {secret}"}


# -- the key file ------------------------------------------------------------------------------------------------------


def test_the_file_holds_only_hashes_of_keys(file: Path) -> None:
    first, second = keys.add(file, "one", {}), keys.add(file, "two", {"requests": "5/minute", "concurrent": 2})
    known = keys.read(file)
    found = known.find(first), known.find(second)
    assert [key.name for key in found if key is not None] == ["one", "two"]
    assert known.keys[1].requests == RateLimit(5, 60.0)
    assert known.find(first[:-1]) is None
    assert known.find(known.keys[0].sha256) is None
    assert first not in file.read_text()
    assert second not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[keys]\n", "is not valid TOML"),
        ('[[keys]]\nname = "a"\n', "sha256"),
        ('[[keys]]\nname = "a b"\nsha256 = "0"\n', "name"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\nrequests = "many"\n', "50/second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\nrate = 5\n', "rate"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n' * 2, "same name"),
    ],
)
def test_an_invalid_file_is_refused_with_one_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match="keys") as raised:
        keys.read(file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_refused_with_the_command_that_creates_it(file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"keys\.toml: No such file or directory; create it with `drawbridge key NAME`"
    ):
        keys.read(file)


def test_adding_an_existing_name_leaves_the_file_unchanged(file: Path) -> None:
    keys.add(file, "one", {})
    before = file.read_text()
    with pytest.raises(ValueError, match="same name"):
        keys.add(file, "one", {})
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# -- counting ----------------------------------------------------------------------------------------------------------


def test_a_rate_can_be_used_at_once_and_comes_back_evenly(tmp_path: Path) -> None:
    first, second = (UsageCounter(tmp_path / "counter", worker, 2) for worker in (0, 1))
    rate = RateLimit(10, 60.0)
    assert [counter.consume("images", rate, 4, 100.0) for counter in (first, second)] == [0.0, 0.0]
    assert first.remaining("images", rate, 100.0) == (2, 48)
    assert second.consume("images", rate, 4, 100.0) == pytest.approx(12.0)
    assert first.remaining("images", rate, 100.0) == (2, 48), "a refused request costs nothing"
    assert first.consume("images", rate, 4, 112.0) == 0.0
    assert second.remaining("images", rate, 200.0) == (10, 0)
    assert first.consume("requests", rate, 10, 112.0) == 0.0, "rates are counted separately"


def test_a_rate_holds_for_all_workers_together(tmp_path: Path) -> None:
    counters = [UsageCounter(tmp_path / "counter", worker, 8) for worker in range(8)]
    rate = RateLimit(100, 1e6)

    def consume(counter: UsageCounter) -> int:
        return sum(counter.consume("requests", rate, 1, 5.0) == 0.0 for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(consume, counters)) == 100


def test_the_limit_of_concurrent_requests_holds_for_all_workers_together(tmp_path: Path) -> None:
    key = Key(name="lab", sha256="0" * 64, requests="1000000/second", concurrent=3)
    counters = [UsageCounter(tmp_path / "counter", worker, 8) for worker in range(8)]
    start = threading.Barrier(len(counters))

    def acquire(counter: UsageCounter) -> QuotaLease | None:
        lease = QuotaLease(key, counter)
        start.wait()
        try:
            lease.acquire()
        except QuotaExceeded:
            return None
        return lease

    with ThreadPoolExecutor(len(counters)) as pool:
        for _ in range(300):
            acquired = [lease for lease in pool.map(acquire, counters) if lease is not None]
            assert len(acquired) == 3
            for lease in acquired:
                lease.release()
    assert counters[0].concurrent_requests() == 0


def test_a_worker_clears_the_count_of_its_dead_predecessor(tmp_path: Path) -> None:
    first, second = (UsageCounter(tmp_path / "counter", worker, 2) for worker in (0, 1))
    for counter in (first, first, second):
        assert counter.acquire(None)
    assert second.concurrent_requests() == 3
    UsageCounter(tmp_path / "counter", 0, 2)
    assert second.concurrent_requests() == 1


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_requests_without_a_valid_key_get_only_public_pages(settings: Settings, file: Path) -> None:
    secret = keys.add(file, "lab", {})
    async with application(settings, file) as (_, client):
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/playground/main.js"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/models", "/generate?model=gan", "/metrics", "/v1/models", "/v2", "/nothing"):
            refused = await client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert "ratelimit" not in refused.headers
        for headers in (bearer("db_guess"), {"X-API-Key": ""}, {"Authorization": f"Basic {secret}"}):
            problem(await client.get("/models", headers=headers), 401, "unauthorized")
        for headers in (bearer(secret), {"X-API-Key": secret}, {"X-API-Key": f"{secret} "}):
            response = await client.get("/generate?model=gan&seed=1", headers=headers)
            assert response.status_code == 200
            assert response.headers["cache-control"].startswith("private, ")
        assert (await client.get("/openapi.json")).json()["security"] == [{"key": []}]


async def test_headers_report_the_limits_of_a_key(settings: Settings, file: Path) -> None:
    secret = keys.add(file, "lab", {"requests": "5/hour", "images": "20/day"})
    async with application(settings, file) as (_, client):
        client.headers = httpx.Headers(bearer(secret))
        first = await client.post("/generate?model=gan&n=15")
        assert first.headers["ratelimit-policy"] == '"requests";q=5;w=3600, "images";q=20;w=86400'
        assert first.headers["ratelimit"] == '"requests";r=4;t=720, "images";r=5;t=64800'
        too_many = await client.post("/generate?model=gan&n=6")
        problem(too_many, 429, "quota-used-up")
        assert int(too_many.headers["retry-after"]) == pytest.approx(4320, abs=5)
        impossible = await client.post("/generate?model=gan&n=21")
        problem(impossible, 429, "quota-used-up")
        assert "retry-after" not in impossible.headers
        assert (await client.post("/generate?model=gan&n=5")).status_code == 200
        assert (await client.get("/models")).status_code == 200
        last = await client.get("/models")
        problem(last, 429, "quota-used-up")
        assert last.headers["ratelimit"].startswith('"requests";r=0')


async def test_a_request_that_the_engine_refuses_costs_no_images(settings: Settings, file: Path) -> None:
    secret = keys.add(file, "lab", {"images": "100/day", "concurrent": 2})
    async with application(settings, file) as (app, client):
        client.headers = httpx.Headers(bearer(secret))
        app.state.service.engine.queue_images = 4
        full = await client.post("/generate?model=gan&n=5")
        problem(full, 429, "queue-is-full")
        assert full.headers["ratelimit"].startswith('"images";r=100;')


async def test_concurrent_requests_over_the_limit_are_refused(settings: Settings, file: Path) -> None:
    secret = keys.add(file, "lab", {"concurrent": 2})
    async with application(settings, file) as (app, client):
        client.headers = httpx.Headers(bearer(secret))
        assert (await client.get("/models")).status_code == 200
        assert app.authenticator is not None
        counter = app.authenticator.counters["lab"]
        assert counter.concurrent_requests() == 0
        for _ in range(2):
            assert counter.acquire(None)
        assert "2 requests at once" in problem(await client.post("/generate?model=gan"), 429, "quota-used-up")
        assert counter.concurrent_requests() == 2


@pytest.mark.slow
def test_workers_share_the_keys_and_reload_them(weights: Path, file: Path) -> None:
    command = [sys.executable, "-m", "service", "key", "lab", "--file", str(file), "--requests", "6/hour"]
    created = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    secret = created.stdout.strip()
    assert tomllib.loads(file.read_text())["keys"][0]["requests"] == "6/hour"
    with serving(weights, workers=2, keys=file) as server:
        # Each request has its own connection, so both workers get some.
        codes = [httpx.get(f"{server.url}/models", headers=bearer(secret), timeout=30).status_code for _ in range(8)]
        assert codes == [200] * 6 + [429] * 2
        other = keys.add(file, "other", {})
        assert httpx.get(f"{server.url}/models", headers=bearer(other), timeout=30).status_code == 401
        os.kill(server.process.pid, signal.SIGHUP)
        deadline = time.monotonic() + 30
        while httpx.get(f"{server.url}/models", headers=bearer(other), timeout=30).status_code != 200:
            assert time.monotonic() < deadline, "the new key is still unknown"
            time.sleep(0.05)
        assert all(secret not in line and other not in line for line in server.lines), "the log has keys"
    duplicate = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert duplicate.returncode == 2
    assert duplicate.stderr.count("\n") == 1
