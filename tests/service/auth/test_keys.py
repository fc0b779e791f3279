"""Keys: who may ask, and how much."""

import os
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from harness.server import ROOT
from service.app import create_app
from service.auth import keys
from service.auth.authenticator import Authenticator, QuotaLease, UsageCounter
from service.auth.keys import Key, RateLimit
from service.errors import QuotaExceeded
from service.settings import Settings
from tests.serving import serving

Asks = Callable[..., httpx.Response]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def asked(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_is_found_by_its_hash_alone(file: Path) -> None:
    one, two = keys.add(file, "one", {}), keys.add(file, "two", {"requests": "5/minute", "concurrent": 2})
    held = keys.read(file)
    assert held.find(one).name == "one"
    assert held.find(two).requests == RateLimit(5, 60.0)
    assert held.find(one[:-1]) is None
    assert held.find(held.keys[0].sha256) is None
    text = file.read_text()
    assert one not in text
    assert two not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[keys]\n", "does not read as TOML"),
        ('[[keys]]\nname = "a"\n', "sha256"),
        ('[[keys]]\nname = "a b"\nsha256 = "0"\n', "name"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\nrequests = "many"\n', "50/second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\nrate = 5\n', "rate"),
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n' * 2, "same name"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_a_line(file: Path, text: str, complaint: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match="keys") as refusal:
        keys.read(file)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_twice_leaves_the_file_as_it_was(file: Path) -> None:
    keys.add(file, "one", {})
    before = file.read_text()
    with pytest.raises(ValueError, match="same name"):
        keys.add(file, "one", {})
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_rate_is_used_up_at_once_and_given_back_evenly(tmp_path: Path) -> None:
    here, there = (UsageCounter(tmp_path / "t", number, 2) for number in (0, 1))
    rate = RateLimit(10, 60.0)
    assert [tally.consume("images", rate, 4, 100.0) for tally in (here, there)] == [0.0, 0.0]
    assert here.remaining("images", rate, 100.0) == (2, 48)
    assert there.consume("images", rate, 4, 100.0) == pytest.approx(12.0)
    assert here.remaining("images", rate, 100.0) == (2, 48), "what is refused costs nothing"
    assert here.consume("images", rate, 4, 112.0) == 0.0
    assert there.remaining("images", rate, 200.0) == (10, 0)
    assert here.consume("requests", rate, 10, 112.0) == 0.0, "each rate by itself"


def test_a_rate_holds_however_many_workers_count(tmp_path: Path) -> None:
    tallies = [UsageCounter(tmp_path / "t", number, 8) for number in range(8)]
    rate = RateLimit(100, 1e6)
    with ThreadPoolExecutor(8) as pool:
        spent = pool.map(lambda tally: sum(tally.spend("requests", rate, 1, 5.0) == 0.0 for _ in range(50)), tallies)
    assert sum(spent) == 100


def test_no_more_come_in_at_once_than_may_however_many_workers_look(tmp_path: Path) -> None:
    shown = Key(name="lab", sha256="0" * 64, requests="1000000/second", concurrent=3)
    tallies = [UsageCounter(tmp_path / "t", number, 8) for number in range(8)]
    start = threading.Barrier(len(tallies))

    def came_in(tally: UsageCounter) -> QuotaLease | None:
        guest = QuotaLease(shown, tally)
        start.wait()
        try:
            guest.acquire()
        except QuotaExceeded:
            return None
        return guest

    with ThreadPoolExecutor(len(tallies)) as pool:
        for _ in range(300):
            inside = [guest for guest in pool.map(came_in, tallies) if guest is not None]
            assert len(inside) == 3
            for guest in inside:
                guest.release()
    assert tallies[0].under_way() == 0


def test_what_a_dead_worker_had_under_way_is_forgotten_by_its_successor(tmp_path: Path) -> None:
    first, other = (UsageCounter(tmp_path / "t", number, 2) for number in (0, 1))
    for tally in (first, first, other):
        tally.numbers[tally.own] += 1
    assert other.under_way() == 3
    UsageCounter(tmp_path / "t", 0, 2)
    assert other.under_way() == 1


async def test_who_has_no_key_sees_the_pages_and_nothing_else(settings: Settings, tmp_path: Path, file: Path) -> None:
    secret = keys.add(file, "lab", {})
    app = create_app(settings, authenticator=Authenticator(keys.read(file), tmp_path, 0, 1))
    async with app.router.lifespan_context(app), asked(app) as client:
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/playground/main.js"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/models", "/generate?model=gan", "/metrics", "/v1/models", "/v2", "/nothing"):
            refused = await client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"].startswith("Bearer")
        for headers in (bearer("db_guess"), {"X-API-Key": ""}, {"Authorization": f"Basic {secret}"}):
            assert (await client.get("/models", headers=headers)).status_code == 401
        for headers in (bearer(secret), {"X-API-Key": secret}, {"X-API-Key": f"{secret} "}):
            drawn = await client.get("/generate?model=gan&seed=1", headers=headers)
            assert drawn.status_code == 200
            assert drawn.headers["cache-control"].startswith("private, ")
        assert "ratelimit" not in refused.headers
        assert (await client.get("/openapi.json")).json()["security"] == [{"key": []}]


async def test_limits_are_kept_and_told(settings: Settings, tmp_path: Path, file: Path) -> None:
    secret = keys.add(file, "lab", {"requests": "5/hour", "images": "20/day"})
    app = create_app(settings, authenticator=Authenticator(keys.read(file), tmp_path, 0, 1))
    async with app.router.lifespan_context(app), asked(app) as client:
        client.headers = bearer(secret)
        first = await client.post("/generate?model=gan&n=15")
        assert first.headers["ratelimit-policy"] == '"requests";q=5;w=3600, "images";q=20;w=86400'
        assert first.headers["ratelimit"] == '"requests";r=4;t=720, "images";r=5;t=64800'
        more = await client.post("/generate?model=gan&n=6")
        assert more.status_code == 429
        assert int(more.headers["retry-after"]) == pytest.approx(4320, abs=5)
        assert more.json()["type"].endswith("quota-used-up")
        never = await client.post("/generate?model=gan&n=21")
        assert never.status_code == 429
        assert "retry-after" not in never.headers
        assert (await client.post("/generate?model=gan&n=5")).status_code == 200
        assert (await client.get("/models")).status_code == 200
        last = await client.get("/models")
        assert last.status_code == 429
        assert last.headers["ratelimit"].startswith('"requests";r=0')


async def test_what_the_engine_refuses_costs_nothing(settings: Settings, tmp_path: Path, file: Path) -> None:
    secret = keys.add(file, "lab", {"images": "100/day", "concurrent": 2})
    app = create_app(settings, authenticator=Authenticator(keys.read(file), tmp_path, 0, 1))
    async with app.router.lifespan_context(app), asked(app) as client:
        client.headers = bearer(secret)
        app.state.service.engine.queue_images = 4
        full = await client.post("/generate?model=gan&n=5")
        assert full.json()["type"].endswith("queue-is-full")
        assert full.headers["ratelimit"].startswith('"images";r=100;')
        app.authenticator.counters["lab"].numbers[-1] = 2
        crowded = await client.post("/generate?model=gan")
        assert crowded.status_code == 429
        assert "2 requests at once" in crowded.json()["detail"]


def test_keys_are_shared_by_workers_and_renewed_without_a_restart(weights: Path, file: Path) -> None:
    command = [sys.executable, "-m", "service", "key", "lab", "--file", str(file), "--requests", "6/hour"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    secret = made.stdout.strip()
    assert tomllib.loads(file.read_text())["keys"][0]["requests"] == "6/hour"
    with serving(weights, workers=2, keys=file) as server:
        codes = [httpx.get(f"{server.url}/models", headers=bearer(secret), timeout=30).status_code for _ in range(8)]
        assert codes == [200] * 6 + [429] * 2  # a connection each, and so both workers
        other = keys.add(file, "other", {})
        assert httpx.get(f"{server.url}/models", headers=bearer(other), timeout=30).status_code == 401
        os.kill(server.process.pid, 1)
        for _ in range(100):
            if httpx.get(f"{server.url}/models", headers=bearer(other), timeout=30).status_code == 200:
                break
        assert all(secret not in line and other not in line for line in server.lines)
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
