"""Locks: keys that are missing, wrong, right, or shown where they should not be; quotas of many callers at once.

Two workers count together, and operations have a port of their own.
"""

import hashlib
import random
import re
import select
import socket
import statistics
import string
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx

from chaos.scenario import Line, Setting
from chaos.weights import copied
from harness.server import ROOT, SERVICE, Server, environment, run_server
from service.auth import keys
from service.auth.keys import Keys

DRAW = "/generate?model=cgan&seed=1&digit=3"
JSON = {"Content-Type": "application/json"}
CALLERS = 24
MOST = 3
"""Requests at once of the key that may have so many."""
APART = 5.0
"""Standard errors of their difference from which on two times are not the same."""


def run(setting: Setting) -> Iterator[Line]:
    weights, file = copied(setting.root, "cgan", "ddpm"), setting.root / "keys.toml"
    calls, often, rounds = (60, 1, 2_000) if setting.quick else (600, 4, 40_000)
    plain = keys.add(file, "plain", {})
    limited = {name: keys.add(file, name, limits) for name, limits in LIMITS.items()}
    yield refused(weights)
    yield compared(setting, rounds)
    settings = environment(port=0, weights=weights, workers=2, device="cpu", keys=file, admin_port=0)
    with run_server(SERVICE, settings) as server:
        yield shown(server, plain, often)
        yield counted(server, "requests", limited["requests"], calls)
        yield counted(server, "images", limited["images"], calls)
        yield at_once(server, limited["concurrent"], 25 * often)
        yield apart(server, plain)
        yield secrets(server, [plain, *limited.values()], often)


LIMITS: dict[str, dict[str, str | int]] = {
    "requests": {"requests": "40/day"},
    "images": {"images": "40/day"},
    "concurrent": {"concurrent": MOST},
}


def refused(weights: Path) -> Line:
    """Addresses that others reach, without keys."""
    hosts, wrong = ("0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org", ""), list[str]()
    for host in hosts:
        done = subprocess.run(SERVICE, cwd=ROOT, env=environment(host=host, port=0, weights=weights), timeout=60,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode != 2 or done.stderr.count("\n") != 1 or "DRAWBRIDGE_KEYS" not in done.stderr:
            wrong.append(f"{host!r}: status {done.returncode}")
    return Line("starts on an address that others reach, without keys", len(hosts), len(wrong),
                "; ".join(["refused in one line that says what to do", *wrong]))  # fmt: skip


def compared(setting: Setting, rounds: int) -> Line:
    """How long it takes to find that a key is wrong, by where it is, the order of tries being random.

    What is compared are digests, so that a caller who gets nearer to a key gets no nearer to its digest.
    """
    source, file = random.Random(setting.seed), setting.root / "timed.toml"
    right = keys.add(file, "timed", {})
    held: Keys = keys.read(file)
    names = ("wrong at the first byte", "wrong at the last byte", "right")
    taken: dict[str, list[int]] = {name: [] for name in names}
    wrong = 0
    for _ in range(rounds):
        other = source.choice(string.ascii_letters)  # new words each time, of which none lies where another lay
        tries = dict(zip(names, (other + right[1:], right[:-1] + other, "".join(right)), strict=True))
        for name in source.sample(names, len(names)):
            begun_at = time.perf_counter_ns()
            found = held.find(tries[name])
            taken[name].append(time.perf_counter_ns() - begun_at)
            wrong += (found is None) != (tries[name] != right)
    distance = standing(*(blocks(taken[name]) for name in names[:2]))
    figures = ", ".join(f"{name}: {statistics.median(times):,.0f} ns" for name, times in taken.items())
    lost = wrong + (abs(distance) > APART)
    return Line(
        "keys compared", rounds * len(names), lost, f"{figures}; the former two {distance:+.1f} standard errors apart"
    )


def blocks(times: Sequence[int], count: int = 50) -> list[float]:
    """Medians of so many parts of a series, which interruptions move little."""
    size = len(times) // count
    return [statistics.median(times[i * size : (i + 1) * size]) for i in range(count)]


def standing(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean of what two series differ by, pair by pair, in its standard errors."""
    apart = [b - a for a, b in zip(one, other, strict=True)]
    return statistics.mean(apart) / (statistics.stdev(apart) / len(apart) ** 0.5 or 1.0)


def shown(server: Server, key: str, often: int) -> Line:
    """A key in every way that it can be shown, and what is none."""
    bearer = {"Authorization": f"Bearer {key}"}
    cases: tuple[tuple[dict[str, str], int], ...] = (
        ({}, 401), (bearer, 200), ({"X-API-Key": key}, 200), ({"authorization": f"bearer {key}"}, 200),
        ({"AUTHORIZATION": f"BEARER   {key} "}, 200), ({"X-API-Key": f"  {key}  "}, 200),
        ({**bearer, "X-API-Key": key}, 200), ({"Authorization": key}, 401), ({"Authorization": f"Basic {key}"}, 401),
        ({"Authorization": f"Bearer{key}"}, 401), ({"Authorization": "Bearer "}, 401), ({"X-API-Key": ""}, 401),
        ({"X-API-Key": key[:-1]}, 401), ({"X-API-Key": key + "A"}, 401), ({"X-API-Key": key.swapcase()}, 401),
        ({"X-API-Key": key[:9] + " " + key[9:]}, 401), ({"X-API-Key": f'"{key}"'}, 401),
        ({"X-API-Key": "A" * 30_000}, 401),
        ({"X-API-Key": hashlib.sha256(key.encode()).hexdigest()}, 401), ({"X-API-Key": "\\xff\\xe9"}, 401),
        ({"Cookie": f"key={key}"}, 401), ({"Proxy-Authorization": f"Bearer {key}"}, 401),
    )  # fmt: skip
    asked = ("/models", DRAW, "/v1/models", "/v2/models/cgan", "/nowhere")
    wrong = Counter[str]()
    at = httpx.URL(server.url)
    for headers, status in cases * often:
        for url in asked:
            client = HTTPConnection(at.host, at.port, timeout=60)  # which sends headers as they are
            client.request("GET", url, headers=headers)
            answer = client.getresponse()
            meant = 404 if status == 200 and url == "/nowhere" else status
            challenged = status != 401 or answer.headers["WWW-Authenticate"] is not None
            wrong[f"{url} with {headers}: {answer.status}"] += answer.status != meant or not challenged
            client.close()
    for url in (f"/models?key={key}", f"/models?api_key={key}", f"/models/{key}"):
        wrong["in the URL"] += httpx.get(f"{server.url}{url}", timeout=60).status_code != 401
    found = "; ".join(["401 with a challenge, or let in", *(what for what, count in wrong.items() if count)])
    return Line("keys shown in every way", len(cases) * often * len(asked) + 3, wrong.total(), found)


def counted(server: Server, which: str, key: str, calls: int) -> Line:
    """Of a rate of 40, asked for by many callers at once on connections of their own, which both workers have."""
    cost = 1 if which == "requests" else 3
    url = DRAW if which == "requests" else "/generate?model=cgan&n=3"

    def ask(_: int) -> int:
        return httpx.get(f"{server.url}{url}", headers={"X-API-Key": key}, timeout=60).status_code

    with ThreadPoolExecutor(CALLERS) as pool:
        seen = Counter(pool.map(ask, range(calls)))
    most = 40 // cost
    wrong = seen[200] != most or set(seen) != {200, 429}
    return Line(
        f"requests beyond a quota of 40 {which}",
        calls,
        int(wrong),
        f"{seen[200]} of {most} allowed, {seen[429]} times 429",
    )


def at_once(server: Server, key: str, rounds: int) -> Line:
    """Callers of a key for three at once who all begin a request, and end none before they know who was let in."""
    at, wrong = httpx.URL(server.url), 0
    for _ in range(rounds):
        callers = [HTTPConnection(at.host, at.port, timeout=60) for _ in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(lambda caller: begun(caller, key), callers))
        until, told = time.monotonic() + 10, list[object]()
        while len(told) < CALLERS - MOST and time.monotonic() < until:
            told = select.select([caller.sock for caller in callers], [], [], 0.1)[0]
        inside = [caller for caller in callers if caller.sock not in told]
        for caller in inside:
            caller.send(b"{}")
        statuses = Counter(caller.getresponse().status for caller in callers)
        wrong += len(inside) != MOST or statuses != {200: MOST, 429: CALLERS - MOST}
        for caller in callers:
            caller.close()
    return Line(
        f"{CALLERS} callers at once with a key for {MOST}", rounds, wrong, "never more, never fewer, in two workers"
    )


def begun(caller: HTTPConnection, key: str) -> None:
    """A request whose body is still to come."""
    caller.putrequest("POST", DRAW)
    for name, value in (("X-API-Key", key), ("Content-Type", "application/json"), ("Content-Length", "2")):
        caller.putheader(name, value)
    caller.endheaders()


def apart(server: Server, key: str) -> Line:
    """What watches at its own port, everything else at the other, each whatever key is shown."""
    door = next(found[1] for line in server.lines if (found := re.search(r"operations on (http://[\d.:]+)", line)))
    watched, rest = (
        ("/livez", "/readyz", "/metrics"),
        ("/models", DRAW, "/v1/models", "/v2", "/", "/docs", "/openapi.json"),
    )
    cases = [(door, path, 200) for path in watched] + [(server.url, path, 404) for path in watched]
    cases += [(door, path, 404) for path in rest] + [(server.url, path, 200) for path in rest]
    wrong = list[str]()
    for url, path, status in cases:
        answer = httpx.get(f"{url}{path}", headers={"X-API-Key": key}, timeout=60)
        if answer.status_code != status:
            wrong.append(f"{path}: {answer.status_code}")
    return Line(
        "paths at the port that is not theirs, and at theirs",
        len(cases),
        len(wrong),
        "; ".join(["404, or 200", *wrong]),
    )


def secrets(server: Server, shown_keys: Sequence[str], often: int) -> Line:
    """Keys wherever a caller may write one, right ones and such as look right; then all that the service told."""
    sent = [*shown_keys, *(f"{keys.KEY_PREFIX}{random.Random(i).randbytes(16).hex()}" for i in range(3))]
    times = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for secret in sent * often:
            for headers, url, body in (
                ({"X-API-Key": secret}, DRAW, b""),
                ({"Authorization": f"Bearer {secret}"}, f"/generate?model={secret}", b""),
                ({"Authorization": f"Basic {secret}"}, f"/models/{secret}", b""),
                ({"X-API-Key": secret, "X-Request-ID": secret}, f"/{secret}?{secret}={secret}", b""),
                ({"X-API-Key": secret, "traceparent": secret, "User-Agent": secret, "Cookie": secret}, DRAW, b""),
                ({"X-API-Key": secret, **JSON}, "/generate", b'{"%s": 1}' % secret.encode()),
                ({"X-API-Key": secret, **JSON}, "/v1/images/generations", b'{"prompt": "%s"}' % secret.encode()),
                ({"X-API-Key": secret, "Content-Type": secret}, f"/v2/models/{secret}/infer", secret.encode()),
            ):  # fmt: skip
                client.request("POST" if body else "GET", url, headers=headers, content=body)
                times += 1
        spoken_to(server.url, f"{sent[0]} / HTTP/1.1\r\n\r\n")
    door = next(found[1] for line in server.lines if (found := re.search(r"operations on (http://[\d.:]+)", line)))
    time.sleep(0.5)  # lines are written a little later
    told = "".join(server.lines) + httpx.get(f"{door}/metrics", timeout=60).text
    lost = sum(told.count(secret) for secret in sent)
    return Line(
        "requests with keys in every place",
        times,
        lost,
        f"no key in {len(server.lines):,} lines of the log, nor in the metrics",
    )


def spoken_to(url: str, text: str) -> None:
    """Say something that is not HTTP."""
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port or 80), timeout=10) as connection:
        connection.sendall(text.encode())
        connection.recv(999)
