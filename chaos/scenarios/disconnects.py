"""Disconnects: half of all clients disconnect at random moments.

They disconnect while they wait, while their images are generated, or in the middle of a body. The other half gets its
expected bytes. Afterwards no batch slot stays taken, and the other half alone is served as fast as before.
"""

import asyncio
import random
from collections.abc import Iterator

import httpx

from chaos import accounting
from chaos.scenario import Line, Setting
from harness.clients import LoadReport, for_seconds, run_clients
from harness.expected import expected_responses, mixed_requests, seeded_requests
from harness.server import SERVICE, environment, run_server
from harness.weights import copy_weights

CLIENTS = 32
MAX_SECONDS = 0.6
"""A client disconnects within this time. Until then a part of its images is generated."""


def run(setting: Setting) -> Iterator[Line]:
    seconds, required = (3.0, 0.25) if setting.quick else (120.0, 0.8)
    baseline_seconds = seconds / 2 if setting.quick else 20.0
    weights = copy_weights(setting.root, "cgan", "ddpm", "vae")
    source = random.Random(setting.seed)
    count = 4 if setting.quick else 12
    expected = expected_responses(lambda models: mixed_requests(models, source, count), weights=weights)
    requests = list(expected)
    long = seeded_requests("ddpm", range(64), "steps=10&n=20&format=zip")
    long += seeded_requests("cgan", range(64), "n=200&format=events")
    disconnected = 0

    async def disconnect(client: httpx.AsyncClient, source: random.Random) -> None:
        nonlocal disconnected
        request = source.choice(requests if source.random() < 0.5 else long)
        try:
            async with asyncio.timeout(source.uniform(0, MAX_SECONDS)):
                await request.send(client)
        except TimeoutError:  # httpx has closed the connection
            disconnected += 1

    with run_server(SERVICE, environment(port=0, weights=weights, workers=2, device="cpu")) as server:

        def measure(duration: float, disconnecting: int) -> LoadReport:
            report = LoadReport(expected)
            clients = [*[report.client()] * (CLIENTS // 2), *[disconnect] * disconnecting]
            run_clients(server.url, clients, for_seconds(duration), setting.seed)
            return report

        measure(1.0, 0)
        before = measure(baseline_seconds, 0)
        during = measure(seconds, CLIENTS // 2)
        figures = f"{CLIENTS // 2} of {CLIENTS} clients"
        yield Line(f"disconnects in {seconds:g} s", disconnected, 0, figures)
        yield Line("responses to the other clients", during.total, during.lost, f"{during.p99()}{during.errors()}")
        yield accounting.requests_accounted(server.url)
        after = measure(baseline_seconds, 0)
        share = after.correct / before.correct
        figures = f"{share:.2f} of the responses before, at least {required:g} required{after.errors()}"
        yield Line("responses to the other clients afterwards", after.total, after.lost + (share < required), figures)
