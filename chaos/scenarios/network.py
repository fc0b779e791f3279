"""Network: packets are lost, delayed, reordered and duplicated, windows are small, and clients vanish.

The service runs in one network namespace and its clients in another one (`harness/network.py`). Every response has its
expected bytes at the first attempt. Other clients, in the service's own namespace, are served beside slow ones as fast
as beside fast ones. Clients that vanish without a packet leave nothing behind.
"""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

from chaos import accounting
from chaos.damage import happens
from chaos.scenario import Line, Setting
from harness.clients import LoadReport, background_clients, for_seconds, percentile, run_clients
from harness.expected import TIMEOUT, Expected, ExpectedRequest, Model, expected_responses, mixed_requests
from harness.load import build_request
from harness.network import PERFECT, SERVER, Conditions, Network, NetworkUnavailable, bad_network, in_namespace
from harness.server import SERVICE, Server, descriptors, environment, run_server
from harness.weights import copy_weights

CONDITIONS = {
    "5 % of packets lost": Conditions(delay=0.005, loss=0.05),
    "packets delayed by 20 to 120 ms, which reorders them": Conditions(delay=0.02, jitter=0.1),
    "windows of two packets of 576 bytes": Conditions(delay=0.005, mtu=576, window=1072),
    "lost, delayed, reordered and doubled packets, small windows": Conditions(0.01, 0.03, 0.03, 0.02, 576, 4288),
}
WORST = [*CONDITIONS.values()][-1]
CUT = Conditions(loss=1.0)
MODELS = ("cgan", "ddpm", "vae")
CLIENTS, OTHERS = 16, 4
FACTOR, QUICK_FACTOR = 2.0, 5.0
"""How many times longer the 99th percentile of the others may be beside slow clients than beside fast ones. The quick
form measures for seconds, beside other work."""
LARGE = ExpectedRequest("/generate?model=cgan&seed=5&n=24&format=zip")
SMALL = ExpectedRequest("/generate?model=cgan&seed=6&digit=3")
VANISHING = 20
KILLED = "SIGKILL of a worker while packets are lost"
BESIDE = f"requests of others beside {CLIENTS} slow clients"
VANISH = "clients vanish without a packet"
TIMEOUTS = {"write_timeout": 6, "keep_alive_timeout": 6}


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copy_weights(setting.root, *MODELS)

    def choose(models: list[Model]) -> list[ExpectedRequest]:
        return [*mixed_requests(models, source, 2 if setting.quick else 8), LARGE, SMALL]

    with ExitStack() as stack:
        try:
            network = stack.enter_context(bad_network(setting.seed))
        except NetworkUnavailable as error:
            yield from (Line(action, 0, 0, skipped=str(error)) for action in (*CONDITIONS, KILLED, BESIDE, VANISH))
            return
        expected = expected_responses(choose, weights=weights)
        settings = environment(
            host=SERVER,
            allow_anonymous=True,
            port=0,
            weights=weights,
            workers=accounting.WORKERS,
            device="cpu",
            **TIMEOUTS,
        )
        with in_namespace(network.server):
            server = stack.enter_context(run_server(SERVICE, settings))
        yield from conditions(setting, network, server, expected)
        with in_namespace(network.server):
            yield accounting.requests_accounted(server.url)
        yield from killed_worker(setting, network, server, expected)
        yield others_beside_slow_clients(setting, network, server, expected)
        yield clients_vanish(network, server)
        with in_namespace(network.server):
            yield accounting.workers_replaced(server)


def conditions(setting: Setting, network: Network, server: Server, expected: Expected) -> Iterator[Line]:
    """Send every kind of request under each of CONDITIONS."""
    seconds = 3.0 if setting.quick else 40.0
    for action, chosen in CONDITIONS.items():
        report, before = LoadReport(expected), network.packets
        network.set(chosen)
        with in_namespace(network.client):
            run_clients(server.url, [report.client()] * CLIENTS, for_seconds(seconds), setting.seed)
        figures = f"{network.packets - before}; {report.p99()}{report.errors()}"
        yield Line(action, report.total, report.lost, figures)
    network.set(PERFECT)


def killed_worker(setting: Setting, network: Network, server: Server, expected: Expected) -> Iterator[Line]:
    """Kill workers while packets are lost. Another worker continues, and only begun streams are cut off and retried."""
    report = LoadReport(expected, retry_seconds=TIMEOUT)
    kills, missing = (1 if setting.quick else 5), 0
    network.set(WORST)
    with ExitStack() as stack:
        with in_namespace(network.client):
            stack.enter_context(background_clients(server.url, [report.client()] * CLIENTS, setting.seed))
        for _ in range(kills):
            time.sleep(2.0)
            before = server.workers
            os.kill(before[-1], signal.SIGKILL)
            missing += not happens(lambda: len(server.workers) == len(before) and server.workers != before)  # noqa: B023
        time.sleep(1.0)
    network.set(PERFECT)
    yield Line(KILLED, kills, missing)
    yield Line("requests beside it", report.total, report.lost, f"{report.retries} retries{report.errors()}")


def others_beside_slow_clients(setting: Setting, network: Network, server: Server, expected: Expected) -> Line:
    """Measure small requests of other clients beside large ones over a good network, then over the worst."""
    seconds, factor = (4.0, QUICK_FACTOR) if setting.quick else (40.0, FACTOR)
    percentiles, reports = list[float](), list[LoadReport]()
    for chosen in (PERFECT, WORST):
        network.set(chosen)
        large, small = LoadReport({LARGE: expected[LARGE]}), LoadReport({SMALL: expected[SMALL]})
        with ExitStack() as stack:
            with in_namespace(network.client):
                stack.enter_context(background_clients(server.url, [large.client()] * CLIENTS, setting.seed))
            with in_namespace(network.server):
                run_clients(server.url, [small.client()] * OTHERS, for_seconds(seconds), setting.seed)
        percentiles.append(percentile([each for latencies in small.latencies.values() for each in latencies], 0.99))
        reports += large, small
    network.set(PERFECT)
    fast, slow = percentiles
    figures = f"p99 {1000 * slow:.0f} ms, beside fast clients {1000 * fast:.0f} ms; at most {factor:g} times allowed"
    lost = sum(report.lost for report in reports) + (slow > factor * fast)
    return Line(BESIDE, reports[-1].total, lost, figures)


def clients_vanish(network: Network, server: Server) -> Line:
    """Cut the network while the service responds. It must free what the connections used."""

    def used() -> int:
        return sum(map(descriptors, (server.process.pid, *server.workers)))

    address = server.url.removeprefix("http://").split(":")
    before = used()
    network.set(WORST)
    with in_namespace(network.client):
        clients = [socket.create_connection((address[0], int(address[1]))) for _ in range(VANISHING)]
    for client in clients:
        client.sendall(build_request(LARGE.url))
    time.sleep(0.5)
    network.set(CUT)
    cut_at, most = time.monotonic(), used()

    def freed() -> bool:
        with in_namespace(network.server):
            return used() <= before and not accounting.rows_in_flight(accounting.read_metrics(server.url))

    lost = int(not happens(freed))
    figures = f"{most} open descriptors, {before} again after {time.monotonic() - cut_at:.1f} s"
    network.set(PERFECT)
    for client in clients:
        client.close()
    return Line(VANISH, VANISHING, lost + (most <= before), figures)
