"""Metrics, log lines, the Server-Timing header and traces."""

import asyncio
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness.scraping import Samples, metric_value, parse_metrics
from service.app import TELEMETRY_FLUSH_SECONDS, Application, create_app
from service.auth.keys import KEY_PREFIX
from service.engine.request import Request, Sample, StartState
from service.settings import Settings
from service.telemetry import log
from service.telemetry.log import PIPE_BUF, RequestLog
from service.telemetry.request_context import RequestContext
from service.telemetry.tracing import Tracer
from tests.service.conftest import asgi_client

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(settings: Settings) -> AsyncIterator[tuple[Application, httpx.AsyncClient]]:
    """An application without earlier requests, and a client of it."""
    app = create_app(settings)
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield app, client


async def scrape(client: httpx.AsyncClient) -> Samples:
    """The values on the page of metrics."""
    return parse_metrics((await client.get("/metrics")).text)


# -- metrics -----------------------------------------------------------------------------------------------------------


async def test_metrics_count_requests_images_and_steps(fresh: tuple[Application, httpx.AsyncClient]) -> None:
    _, client = fresh
    await client.post("/generate?model=ddpm&steps=5&n=11&seed=1")
    await client.post("/generate?model=cgan&digit=7")
    await client.post("/generate?model=cgan&digit=77")
    await client.post("/generate?model=ddpm&n=64&steps=2&format=zip")
    concurrent = await asyncio.gather(*(client.post("/generate?model=ddpm&n=64&steps=3") for _ in range(4)))
    assert sorted(response.status_code for response in concurrent) == [200, 200, 200, 429]
    samples = await scrape(client)
    assert metric_value(samples, "requests_total", route="/generate", model="cgan", code="200") == 1
    assert metric_value(samples, "requests_total", route="/generate", model="", code="422") == 1
    assert metric_value(samples, "images_total", model="ddpm") == 11 + 64 + 3 * 64
    assert metric_value(samples, "images_total", model="cgan") == 1
    assert metric_value(samples, "rejected_total", reason="queue-is-full") == 1
    assert metric_value(samples, "accepted_total") == metric_value(samples, "ended_total", how="delivered") == 6
    assert metric_value(samples, "rows_in_flight") == 0
    assert metric_value(samples, "step_duration_seconds_count", model="cgan") == 1
    assert metric_value(samples, "queue_wait_seconds_count", model="ddpm") == 5
    assert metric_value(samples, "batch_rows_sum", model="cgan") == 1
    assert metric_value(samples, "request_duration_seconds_count", route="/generate") == 8
    digest = (await client.get("/models/cgan")).json()["digest"]
    assert metric_value(samples, "model_info", model="cgan", digest=digest) == 1


async def test_labels_hold_no_text_of_clients(fresh: tuple[Application, httpx.AsyncClient]) -> None:
    _, client = fresh
    for path in (
        "/nothing/here",
        "/models/unheard",
        "/generate?model=unheard",
        "/playground/main.js",
        "/v2/models/x/infer",
    ):
        await client.get(path)
    await client.request("BREW", "/generate")
    page = (await client.get("/metrics")).text
    assert "unheard" not in page
    assert "here" not in page
    assert "BREW" not in page


async def test_cancelled_requests_are_counted_by_stage(fresh: tuple[Application, httpx.AsyncClient]) -> None:
    app, client = fresh
    service = app.state.service
    samples = tuple(Sample(StartState(1, i)) for i in range(8))
    request = Request(service.catalog.models["ddpm"].key, samples, steps=1000)
    running, waiting = service.engine.submit(request), service.engine.submit(request)
    service.engine.cancel(waiting)
    while running.started_at is None:
        await asyncio.sleep(0.01)
    service.engine.cancel(running)
    while not running.outcome:
        await asyncio.sleep(0.01)
    metrics = await scrape(client)
    stages = {stage: metric_value(metrics, "cancelled_total", stage=stage) for stage in ("waiting", "drawing")}
    assert stages == {"waiting": 1, "drawing": 1}
    assert metric_value(metrics, "rows_in_flight") == 0


# -- headers -----------------------------------------------------------------------------------------------------------


async def test_every_response_has_a_request_id(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate?model=gan", headers={"X-Request-ID": "lesson-7"})
    assert response.headers["x-request-id"] == "lesson-7"
    for invalid in ("a b", f"{KEY_PREFIX}{'A' * 43}"):  # the log must not hold what may be a key
        response = await client.post("/generate?model=gan", headers={"X-Request-ID": invalid})
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
    assert (await client.get("/nothing")).headers["x-request-id"]


async def test_the_server_timing_header_has_the_phases_of_a_request(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate?model=gan")
    phases = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert list(phases) == ["queue", "device", "encode"]
    assert float(phases["device"]) > 0


# -- log ---------------------------------------------------------------------------------------------------------------


async def test_a_request_is_one_log_line_without_text_of_the_client(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # until the requests of other tests are logged
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    app = create_app(settings)
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        await client.post("/generate?model=cgan&digit=7&seed=5", headers={"Authorization": "Bearer secret-key"})
        await client.post("/generate?model=<script>", json={"seed": 8})
        await client.get("/etc/passwd?token=secret-token")
        await client.get("/livez")  # probes are logged at a lower level
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 404]
    delivered, unknown, _ = lines
    fields = [delivered[name] for name in ("route", "model", "seed", "images", "ended")]
    assert fields == ["/generate", "cgan", 5, 1, "delivered"]
    assert {"request_id", "batch", "queue_ms", "device_ms", "encode_ms", "ms", "timestamp", "pid"} <= delivered.keys()
    assert unknown["problem"] == "unknown-model"
    for text in ("secret", "script", "passwd", "token", "127.0.0.1"):
        assert text not in stream.getvalue()


async def test_log_lines_are_written_whole(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        """A stream that records each write."""

        def __init__(self) -> None:
            self.writes: list[str] = []

        def write(self, text: str) -> int:
            self.writes.append(text)
            return len(text)

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

    pipe = Pipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    RequestLog(settings).write([RequestContext(f"id-{i}", "GET", 0.0, "", "/", "") for i in range(100)])
    assert len(pipe.writes) > 1
    assert all(len(text) <= PIPE_BUF and text.endswith("\n") for text in pipe.writes)
    lines = "".join(pipe.writes).splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [f"id-{i}" for i in range(100)]


async def test_other_log_lines_are_json_with_their_exceptions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    log.configure(settings)
    try:
        raise ValueError("reason")
    except ValueError:
        logging.getLogger("service.x").exception("it %s", "failed")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("a library\nwarns", stacklevel=1)
    error, warning = map(json.loads, stream.getvalue().splitlines())
    assert "a library\nwarns" in warning["event"]
    assert (error["event"], error["level"], error["logger"]) == ("it failed", "error", "service.x")
    assert "ValueError: reason" in error["exception"]


# -- traces ------------------------------------------------------------------------------------------------------------


async def test_a_trace_has_a_span_for_each_phase(fresh: tuple[Application, httpx.AsyncClient]) -> None:
    app, client = fresh
    exporter = InMemorySpanExporter()
    app.tracer = Tracer(exporter)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = await client.post("/generate?model=ddpm&steps=4&seed=3", headers={"traceparent": parent})
    app.flush_telemetry()
    app.tracer.provider.force_flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"POST /generate", "queue", "device", "encode"}
    whole = spans["POST /generate"]
    assert f"{whole.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{whole.parent.span_id:016x}" == parent.split("-")[2]
    assert whole.attributes["drawbridge.request_id"] == response.headers["x-request-id"]
    assert whole.attributes["drawbridge.seed"] == "3"
    assert whole.attributes["http.response.status_code"] == 200
    times = [whole.start_time]
    for name in ("queue", "device", "encode"):
        assert spans[name].parent.span_id == whole.context.span_id
        times += [spans[name].start_time, spans[name].end_time]
    assert times == sorted(times), "the phases overlap"
    assert times[-1] <= whole.end_time
