"""Authentication: missing, wrong and right keys in every place, and quotas under concurrent requests.

Two workers share the counters, and the admin endpoints have a port of their own.
"""

import hashlib
import random
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
from harness.server import ROOT, SERVICE, Server, environment, free_port, run_server
from harness.weights import copy_weights
from service.auth import keys
from service.auth.keys import Keys

GENERATE = "/generate?model=cgan&seed=1&digit=3"
JSON = {"Content-Type": "application/json"}
CLIENTS = 24
CONCURRENT = 3
"""Requests that the key with a limit on concurrency may have at once."""
DISTINGUISHABLE = 5.0
"""Standard errors by which two mean times must differ to count as different."""
LIMITS: dict[str, dict[str, str | int]] = {
    "requests": {"requests": "40/day"},
    "images": {"images": "40/day"},
    "concurrent": {"concurrent": CONCURRENT},
}


def run(setting: Setting) -> Iterator[Line]:
    weights, file = copy_weights(setting.root, "cgan", "ddpm"), setting.root / "keys.toml"
    requests, repeats, rounds = (60, 1, 2_000) if setting.quick else (600, 4, 40_000)
    plain = keys.add(file, "plain", {})
    limited = {name: keys.add(file, name, limits) for name, limits in LIMITS.items()}
    yield public_hosts(weights)
    yield timing(setting, rounds)
    admin_port = free_port()
    settings = environment(port=0, weights=weights, workers=2, device="cpu", keys=file, admin_port=admin_port)
    with run_server(SERVICE, settings) as server:
        admin_url = f"http://127.0.0.1:{admin_port}"
        yield presentations(server, plain, repeats)
        yield quota(server, "requests", limited["requests"], requests)
        yield quota(server, "images", limited["images"], requests)
        yield concurrency(server, limited["concurrent"], 25 * repeats)
        yield ports(server, admin_url, plain)
        yield leaks(server, admin_url, [plain, *limited.values()], repeats)


def public_hosts(weights: Path) -> Line:
    """Start on addresses that other machines reach, without keys."""
    hosts, errors = ("0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"), list[str]()
    for host in hosts:
        done = subprocess.run(SERVICE, cwd=ROOT, env=environment(host=host, port=0, weights=weights), timeout=60,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode != 2 or done.stderr.count("\n") != 1 or "DRAWBRIDGE_KEYS" not in done.stderr:
            errors.append(f"{host!r}: status {done.returncode}")
    figures = "; ".join(["refused in one line that names the setting", *errors])
    return Line("starts on a public address without keys", len(hosts), len(errors), figures)


def timing(setting: Setting, rounds: int) -> Line:
    """Measure whether the time of a lookup shows how much of a key is right, in random order.

    The service compares digests, so a guess that is closer to a key is no closer to its digest.
    """
    source, file = random.Random(setting.seed), setting.root / "timed.toml"
    key = keys.add(file, "timed", {})
    known: Keys = keys.read(file)
    names = ("wrong first byte", "wrong last byte", "right")
    times: dict[str, list[int]] = {name: [] for name in names}
    wrong = 0
    for _ in range(rounds):
        other = source.choice(string.ascii_letters)
        # New strings in each round, so that none is where another was in memory.
        guesses = dict(zip(names, (other + key[1:], key[:-1] + other, "".join(key)), strict=True))
        for name in source.sample(names, len(names)):
            started_at = time.perf_counter_ns()
            match = known.find(guesses[name])
            times[name].append(time.perf_counter_ns() - started_at)
            wrong += (match is None) != (guesses[name] != key)
    difference = paired_difference(*(block_medians(times[name]) for name in names[:2]))
    medians = ", ".join(f"{name}: {statistics.median(values):,.0f} ns" for name, values in times.items())
    lost = wrong + (abs(difference) > DISTINGUISHABLE)
    figures = f"{medians}; first and last byte differ by {difference:+.1f} standard errors"
    return Line("key lookups timed", rounds * len(names), lost, figures)


def block_medians(values: Sequence[int], count: int = 50) -> list[float]:
    """Return the medians of `count` blocks of a series. Interruptions move them little."""
    size = len(values) // count
    return [statistics.median(values[i * size : (i + 1) * size]) for i in range(count)]


def paired_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the mean difference of two series, pair by pair, in its standard errors."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return statistics.mean(differences) / (statistics.stdev(differences) / len(differences) ** 0.5 or 1.0)


def presentations(server: Server, key: str, repeats: int) -> Line:
    """Present a key in every way that is allowed and in many that are not."""
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
    urls = ("/models", GENERATE, "/v1/models", "/v2/models/cgan", "/nowhere")
    errors = Counter[str]()
    address = httpx.URL(server.url)
    for headers, status in cases * repeats:
        for url in urls:
            client = HTTPConnection(address.host, address.port, timeout=60)  # sends headers unchanged
            client.request("GET", url, headers=headers)
            response = client.getresponse()
            expected = 404 if status == 200 and url == "/nowhere" else status
            challenged = status != 401 or response.headers["WWW-Authenticate"] is not None
            errors[f"{url} with {headers}: {response.status}"] += response.status != expected or not challenged
            client.close()
    for url in (f"/models?key={key}", f"/models?api_key={key}", f"/models/{key}"):
        errors["in the URL"] += httpx.get(f"{server.url}{url}", timeout=60).status_code != 401
    figures = "; ".join(["200, or 401 with a challenge", *(error for error, count in errors.items() if count)])
    return Line("keys presented in every way", len(cases) * repeats * len(urls) + 3, errors.total(), figures)


def quota(server: Server, name: str, key: str, requests: int) -> Line:
    """Use up a quota of 40 with concurrent clients on new connections, which reach both workers."""
    cost = 1 if name == "requests" else 3
    url = GENERATE if name == "requests" else "/generate?model=cgan&n=3"

    def send(_: int) -> int:
        return httpx.get(f"{server.url}{url}", headers={"X-API-Key": key}, timeout=60).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = Counter(pool.map(send, range(requests)))
    allowed = 40 // cost
    wrong = statuses[200] != allowed or set(statuses) != {200, 429}
    figures = f"{statuses[200]} of {allowed} allowed, {statuses[429]} times 429"
    return Line(f"requests with a quota of 40 {name}", requests, int(wrong), figures)


def concurrency(server: Server, key: str, rounds: int) -> Line:
    """Start more requests at once than a key allows. None ends before the service has refused the others."""
    address, wrong = httpx.URL(server.url), 0
    for _ in range(rounds):
        clients = [HTTPConnection(address.host, address.port, timeout=60) for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda client: send_head(client, key), clients))
        deadline, answered = time.monotonic() + 10, list[object]()
        while len(answered) < CLIENTS - CONCURRENT and time.monotonic() < deadline:
            answered = select.select([client.sock for client in clients], [], [], 0.1)[0]
        admitted = [client for client in clients if client.sock not in answered]
        for client in admitted:
            client.send(b"{}")
        statuses = Counter(client.getresponse().status for client in clients)
        wrong += len(admitted) != CONCURRENT or statuses != {200: CONCURRENT, 429: CLIENTS - CONCURRENT}
        for client in clients:
            client.close()
    action = f"{CLIENTS} concurrent requests with a key for {CONCURRENT}"
    return Line(action, rounds, wrong, f"exactly {CONCURRENT} admitted each time, over two workers")


def send_head(client: HTTPConnection, key: str) -> None:
    """Send a request without its body."""
    client.putrequest("POST", GENERATE)
    for name, value in (("X-API-Key", key), ("Content-Type", "application/json"), ("Content-Length", "2")):
        client.putheader(name, value)
    client.endheaders()


def ports(server: Server, admin_url: str, key: str) -> Line:
    """Request admin and other paths on the admin port and on the public port, with a key."""
    admin = ("/livez", "/readyz", "/metrics")
    public = ("/models", GENERATE, "/v1/models", "/v2", "/", "/docs", "/openapi.json")
    cases = [(admin_url, path, 200) for path in admin] + [(server.url, path, 404) for path in admin]
    cases += [(admin_url, path, 404) for path in public] + [(server.url, path, 200) for path in public]
    errors = list[str]()
    for url, path, status in cases:
        response = httpx.get(f"{url}{path}", headers={"X-API-Key": key}, timeout=60)
        if response.status_code != status:
            errors.append(f"{path}: {response.status_code}")
    figures = "; ".join(["200 on the right port, 404 on the other", *errors])
    return Line("paths on the admin port and on the public port", len(cases), len(errors), figures)


def leaks(server: Server, admin_url: str, valid: Sequence[str], repeats: int) -> Line:
    """Send valid and made-up keys in every place of a request, then search the log and the metrics for them."""
    secrets = [*valid, *(f"{keys.KEY_PREFIX}{random.Random(i).randbytes(16).hex()}" for i in range(3))]
    requests = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for secret in secrets * repeats:
            for headers, url, body in (
                ({"X-API-Key": secret}, GENERATE, b""),
                ({"Authorization": f"Bearer {secret}"}, f"/generate?model={secret}", b""),
                ({"Authorization": f"Basic {secret}"}, f"/models/{secret}", b""),
                ({"X-API-Key": secret, "X-Request-ID": secret}, f"/{secret}?{secret}={secret}", b""),
                ({"X-API-Key": secret, "traceparent": secret, "User-Agent": secret, "Cookie": secret}, GENERATE, b""),
                ({"X-API-Key": secret, **JSON}, "/generate", b'{"%s": 1}' % secret.encode()),
                ({"X-API-Key": secret, **JSON}, "/v1/images/generations", b'{"prompt": "%s"}' % secret.encode()),
                ({"X-API-Key": secret, "Content-Type": secret}, f"/v2/models/{secret}/infer", secret.encode()),
            ):  # fmt: skip
                client.request("POST" if body else "GET", url, headers=headers, content=body)
                requests += 1
        send_text(server.url, f"{secrets[0]} / HTTP/1.1\r\n\r\n")
    time.sleep(0.5)  # the log is written with a delay
    output = "".join(server.lines) + httpx.get(f"{admin_url}/metrics", timeout=60).text
    lost = sum(output.count(secret) for secret in secrets)
    figures = f"no key in {len(server.lines):,} lines of the log, nor in the metrics"
    return Line("requests with keys in every place", requests, lost, figures)


def send_text(url: str, text: str) -> None:
    """Send `text`, which need not be HTTP, over a new connection."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(text.encode())
        connection.recv(999)
