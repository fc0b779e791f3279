"""Faults outside: signals, damaged weights, a clock that jumps, no descriptors left.

Callers ask all the time. Where processes end, they ask again until they are answered; where none does, nobody may
notice anything.
"""

import os
import random
import resource
import shutil
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from benchmarks.reload import renew
from chaos import accounting
from chaos.accounting import WORKERS
from chaos.clients import Caller, ExpectedRequest, LoadReport, background_load, drawn, expected_answers
from chaos.scenario import Line, Setting
from chaos.weights import ROOT, copied
from harness.server import SERVICE, Server, environment, run_server
from models.store import MANIFEST, TENSORS

CALLERS = 6
REST = 0.1
"""Seconds between the requests of each in the quick form, where the processors are for what is to happen."""
MODELS = ("cgan", "kde", "vae")
"""Those that callers ask for."""
OTHER = "pca"
"""One that nobody asks for."""
LONG = 60.0
"""Seconds after which something that should happen counts as never happening."""


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copied(setting.root, *MODELS, OTHER)
    asked = {"cgan": "digit=3&n=3", "kde": "n=2", "vae": "n=20&format=zip"}

    def known(_: object) -> list[ExpectedRequest]:
        seeds = [source.randrange(2**53) for _ in range(12)]
        return [each for name, query in asked.items() for each in drawn(name, seeds, query)]

    truth = expected_answers(known, weights=weights)
    settings = {"weights": weights, "workers": WORKERS, "device": "cpu"}
    yield from _signals(setting, truth, settings)
    with run_server(SERVICE, environment(port=0, **settings)) as server:
        yield from _damage(setting, truth, server, weights)
        yield from _descriptors(setting, truth, server)
        yield accounting.closed(server.url)
    yield from _clock(setting, truth, settings)


def crowd(setting: Setting, tally: LoadReport) -> list[Caller]:
    """Callers who ask all the time."""
    return [tally.caller(REST if setting.quick else 0.0)] * CALLERS


def _signals(setting: Setting, truth: dict[ExpectedRequest, bytes], settings: dict[str, object]) -> Iterator[Line]:
    """Workers and whole services are ended and killed; callers ask again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    source = random.Random(setting.seed)
    tally = LoadReport(truth, retry_seconds=LONG)
    times: dict[str, list[tuple[float, float]]] = {}  # from when to when each was looked at
    bad = Counter[str]()
    ends = [signal.SIGKILL] if setting.quick else [signal.SIGKILL, signal.SIGTERM] * 5
    ended: tuple[str, float] | None = None
    with ExitStack() as callers:
        for end in (*ends, None):
            with run_server(SERVICE, environment(port=port, **settings)) as server:
                if ended is None:
                    callers.enter_context(background_load(server.url, crowd(setting, tally), setting.seed))
                time.sleep(1.0)
                if ended is not None:
                    times.setdefault(ended[0], []).append((ended[1], time.monotonic()))
                if end is None:
                    callers.close()
                    break
                for one in (signal.SIGKILL, signal.SIGTERM):
                    name, since, before = f"{one.name} of a worker", time.monotonic(), server.workers
                    os.kill(source.choice(before), one)
                    bad[name] += not _within(lambda: _replaced(server, before))  # noqa: B023  within this round
                    time.sleep(0.5)
                    times.setdefault(name, []).append((since, time.monotonic()))
                ended = f"{end.name} of the service, and a restart", time.monotonic()
                server.process.send_signal(end)
                bad[ended[0]] += server.process.wait(LONG) != (0 if end == signal.SIGTERM else -end)
    for name, windows in times.items():
        gaps = [tally.gap(*window) for window in windows]
        found = f"without an answer for {statistics.median(gaps):.2f} s, at most {max(gaps):.2f}"
        yield Line(name, len(gaps), bad[name], found)
    found = f"asked again {tally.retries:,} times{tally.wrong()}"
    yield Line("answers to callers who ask again", tally.answers.total(), tally.lost, found)


def _replaced(server: Server, before: Sequence[int]) -> bool:
    """Whether one of the workers has a successor."""
    now = server.workers
    return len(now) == WORKERS and set(now) != set(before)


def _within(happened: Callable[[], bool], seconds: float = LONG) -> bool:
    """Whether it happens in time."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def _damage(setting: Setting, truth: dict[ExpectedRequest, bytes], server: Server, weights: Path) -> Iterator[Line]:
    """Files of weights are damaged while they are served, SIGHUP has them looked at, and they are restored."""
    source = random.Random(setting.seed)
    new = setting.root / "new"
    for name in MODELS:
        shutil.copytree(ROOT / name, new / name)
        renew(new / name, setting.seed)

    def truncated(name: str) -> None:
        tensors = weights / name / TENSORS
        os.truncate(tensors, source.randrange(tensors.stat().st_size))

    def flipped(name: str) -> None:
        tensors = weights / name / TENSORS
        data = bytearray(tensors.read_bytes())
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        tensors.write_bytes(data)

    def swapped(name: str) -> None:
        other = source.choice([other for other in MODELS if other != name])
        shutil.copyfile(ROOT / other / TENSORS, weights / name / TENSORS)

    def half_copied(name: str) -> None:
        data = (new / name / TENSORS).read_bytes()
        (weights / name / TENSORS).write_bytes(data[: source.randrange(len(data))])
        shutil.copyfile(new / name / MANIFEST, weights / name / MANIFEST)

    def deleted(name: str) -> None:
        (weights / name / TENSORS).unlink()

    def garbled(name: str) -> None:
        manifest = weights / name / MANIFEST
        os.truncate(manifest, source.randrange(manifest.stat().st_size))

    damages = {
        "weights truncated": truncated,
        "a bit of weights flipped": flipped,
        "weights swapped between models": swapped,
        "new weights half copied": half_copied,
        "weights deleted": deleted,
        "a manifest truncated": garbled,
    }
    tally = LoadReport(truth)
    done, bad = Counter[str](), Counter[str]()
    with background_load(server.url, crowd(setting, tally), setting.seed):
        for _ in range(1 if setting.quick else 6):
            for what, damage in damages.items():
                name = source.choice(MODELS)
                damage(name)
                done[what] += 1
                bad[what] += not (_reloaded(server) and _broken(server) == {frozenset([name])})
                shutil.rmtree(weights / name)
                shutil.copytree(ROOT / name, weights / name)
                bad[what] += not (_reloaded(server) and _broken(server) == {frozenset()})
        shutil.rmtree(weights / OTHER)
        gone = _reloaded(server) and _statuses(server) == {404}
        shutil.copytree(ROOT / OTHER, weights / OTHER)
        back = _reloaded(server) and _statuses(server) == {200}
    for what, times in done.items():
        yield Line(what, times, bad[what])
    yield Line("a directory of weights deleted", 1, int(not (gone and back)), "404 until it is back")
    found = f"damaged weights named by /readyz each time, drawn as before{tally.wrong()}"
    yield Line("answers beside damaged weights", tally.answers.total(), tally.lost, found)


def _reloaded(server: Server) -> bool:
    """Have weights looked at, and wait until all workers have."""

    def looks() -> float:
        return sum(value for (name, _), value in accounting.read(server.url).items() if name == "weights_reloads_total")

    before = looks()
    server.process.send_signal(signal.SIGHUP)
    return _within(lambda: looks() >= before + WORKERS)


def _broken(server: Server) -> set[frozenset[str]]:
    """The names of broken weights, as any worker has them: connections of one's own are dealt to all."""
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=LONG)) for _ in range(2 * WORKERS)]
        return {frozenset(client.get("/readyz").json()["broken"]) for client in clients}


def _statuses(server: Server) -> set[int]:
    """What a draw of OTHER is answered, by any worker."""
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=LONG)) for _ in range(2 * WORKERS)]
        return {client.post(f"/generate?model={OTHER}&seed=1").status_code for client in clients}


def _descriptors(setting: Setting, truth: dict[ExpectedRequest, bytes], server: Server) -> Iterator[Line]:
    """All descriptors that the processes may have are taken by connections that say nothing."""
    at = httpx.URL(server.url)
    tally = LoadReport(truth)
    rounds = 1 if setting.quick else 5
    recovered = list[float]()
    refused = 0
    with background_load(server.url, crowd(setting, tally), setting.seed):
        _within(lambda: tally.right > CALLERS)  # all are connected
        for _ in range(rounds):
            limits = {pid: _limited(pid) for pid in (server.process.pid, *server.workers)}
            idle = [socket.create_connection((at.host, at.port)) for _ in range(300)]
            time.sleep(1.0 if setting.quick else 5.0)
            with httpx.Client(base_url=server.url, timeout=1.0) as late:
                try:
                    late.get("/livez")
                except httpx.TransportError:
                    refused += 1
            for connection in idle:
                connection.close()
            begun = time.monotonic()
            if _within(lambda: _answers(server.url)):
                recovered.append(time.monotonic() - begun)
            for pid, limit in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    lost = rounds - len(recovered) + rounds - refused
    told = f"whoever comes then is answered {max(recovered, default=LONG):.2f} s after they are free"
    yield Line("descriptors exhausted by 300 connections", rounds, lost, told)
    yield Line("answers to those connected before", tally.answers.total(), tally.lost, tally.wrong().removeprefix("; "))


def _limited(pid: int) -> tuple[int, int]:
    """Leave a process a few descriptors more than it has, and return what it might have had."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    has = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (has + 16, hard))
    return soft, hard


def _answers(url: str) -> bool:
    """Whether a caller who connects now is answered."""
    try:
        return httpx.get(f"{url}/livez", timeout=1.0).is_success
    except httpx.TransportError:
        return False


def _clock(setting: Setting, truth: dict[ExpectedRequest, bytes], settings: dict[str, object]) -> Iterator[Line]:
    """The clock of day jumps about, by libfaketime; the monotonic one is nobody's to set."""
    done = "the clock jumped"
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        yield Line(done, 0, 0, "not done: libfaketime is not there (Debian's package of that name)")
        return
    clock = setting.root / "clock"
    clock.write_text("+0s\n")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    jumps = (3600, -7200, 315_360_000, -31_536_000, 86_400, 0) * (1 if setting.quick else 3)
    tally, unseen = LoadReport(truth), 0
    with run_server(SERVICE, environment(port=0, **settings) | faked) as server:
        with background_load(server.url, crowd(setting, tally), setting.seed):
            for jump in jumps:
                clock.write_text(f"{jump:+d}s\n")
                unseen += not _within(lambda: abs(_ahead(server.url) - jump) < 60)  # noqa: B023  within this round
                time.sleep(0.5 if setting.quick else 2.0)
        yield Line(done, len(jumps), unseen, "hours to ten years, both ways")
        yield Line("answers beside it", tally.answers.total(), tally.lost, tally.wrong().removeprefix("; "))
        yield accounting.closed(server.url)


def _ahead(url: str) -> float:
    """Seconds that the service's clock is ahead of ours, by the date of its answers."""
    date = parsedate_to_datetime(httpx.get(f"{url}/livez", timeout=30).headers["date"])
    return (date - datetime.now(UTC)).total_seconds()
