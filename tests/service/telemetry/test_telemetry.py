"""What the service tells of itself: metrics, log lines, timings, traces."""

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
from fastapi import FastAPI
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness.scraping import metric_value, parse_metrics
from service.app import TELEMETRY_FLUSH_SECONDS, create_app
from service.auth.keys import KEY_PREFIX
from service.engine.request import Request, Sample, StartState
from service.settings import Settings
from service.telemetry import log
from service.telemetry.tracing import Tracer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application that nobody has asked anything yet."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://drawbridge") as client,
    ):
        yield app, client


async def test_metrics_count_what_happens(fresh: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = fresh
    await client.post("/generate?model=ddpm&steps=5&n=11&seed=1")
    await client.post("/generate?model=cgan&digit=7")
    await client.post("/generate?model=cgan&digit=77")
    await client.post("/generate?model=ddpm&n=64&steps=2&format=zip")
    full = await asyncio.gather(*(client.post("/generate?model=ddpm&n=64&steps=3") for _ in range(4)))
    assert sorted(answer.status_code for answer in full) == [200, 200, 200, 429]
    found = parse_metrics((await client.get("/metrics")).text)
    assert metric_value(found, "requests_total", route="/generate", model="cgan", code="200") == 1
    assert metric_value(found, "requests_total", route="/generate", model="", code="422") == 1
    assert metric_value(found, "images_total", model="ddpm") == 11 + 64 + 3 * 64
    assert metric_value(found, "images_total", model="cgan") == 1
    assert metric_value(found, "rejected_total", reason="queue-is-full") == 1
    assert metric_value(found, "accepted_total") == metric_value(found, "ended_total", how="delivered") == 6
    assert metric_value(found, "rows_in_flight") == 0
    assert metric_value(found, "step_duration_seconds_count", model="cgan") == 1
    assert metric_value(found, "queue_wait_seconds_count", model="ddpm") == 5
    # Eleven rows ride as eight, then as three with places for three.
    assert metric_value(found, "batch_rows_sum", model="cgan") == 1
    assert metric_value(found, "request_duration_seconds_count", route="/generate") == 8
    digest = (await client.get("/models/cgan")).json()["digest"]
    assert metric_value(found, "model_info", model="cgan", digest=digest) == 1


async def test_labels_are_few_whatever_callers_write(fresh: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = fresh
    for path in (
        "/nothing/here",
        "/models/nobody",
        "/generate?model=nobody",
        "/playground/main.js",
        "/v2/models/x/infer",
    ):
        await client.get(path)
    await client.request("BREW", "/generate")
    page = (await client.get("/metrics")).text
    assert "nobody" not in page
    assert "here" not in page
    assert "BREW" not in page


async def test_who_hangs_up_is_counted_by_how_far_it_was(fresh: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = fresh
    service = app.state.service
    request = Request(
        service.engine.catalog.models["ddpm"].key, tuple(Sample(StartState(1, i)) for i in range(8)), steps=1000
    )
    drawing, waiting = service.engine.submit(request), service.engine.submit(request)
    service.engine.cancel(waiting)
    while drawing.began is None:
        await asyncio.sleep(0.01)
    service.engine.cancel(drawing)
    while not drawing.ended:
        await asyncio.sleep(0.01)
    found = parse_metrics((await client.get("/metrics")).text)
    assert {stage: metric_value(found, "cancelled_total", stage=stage) for stage in ("waiting", "drawing")} == {
        "waiting": 1,
        "drawing": 1,
    }
    assert metric_value(found, "rows_in_flight") == 0


async def test_a_request_has_a_name_and_tells_where_its_time_went(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate?model=gan", headers={"X-Request-ID": "lesson-7"})
    assert answer.headers["x-request-id"] == "lesson-7"
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert list(parts) == ["queue", "device", "encode"]
    assert float(parts["device"]) > 0
    for odd in ("a b", f"{KEY_PREFIX}{'A' * 43}"):  # what may be a key would be in the log
        answer = await client.post("/generate?model=gan", headers={"X-Request-ID": odd})
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
    assert (await client.get("/nothing")).headers["x-request-id"]


async def test_a_request_is_one_line_without_what_its_caller_wrote(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # other tests' requests are told of
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://drawbridge") as client:
            await client.post("/generate?model=cgan&digit=7&seed=5", headers={"Authorization": "Bearer secret-key"})
            await client.post("/generate?model=<script>", json={"seed": 8})
            await client.get("/etc/passwd?token=secret-token")
            await client.get("/livez")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 404]
    drawn = lines[0]
    assert (drawn["route"], drawn["model"], drawn["seed"], drawn["images"]) == ("/generate", "cgan", 5, 1)
    assert {"request_id", "batch", "queue_ms", "device_ms", "encode_ms", "ms", "timestamp", "pid"} <= drawn.keys()
    assert lines[1]["problem"] == "unknown-model"
    for word in ("secret", "script", "passwd", "token", "127.0.0.1"):
        assert word not in stream.getvalue()


async def test_other_lines_are_json_too_and_hold_their_errors(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        log.configure(settings)
        try:
            raise ValueError("ink")
        except ValueError:
            logging.getLogger("service.x").exception("it %s", "broke")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("a library\nwarns", stacklevel=1)
    finally:
        logging.captureWarnings(False)
        root.handlers = before
    line, warning = map(json.loads, stream.getvalue().splitlines())
    assert "a library\nwarns" in warning["event"]
    assert (line["event"], line["level"], line["logger"]) == ("it broke", "error", "service.x")
    assert "ValueError: ink" in line["exception"]


async def test_a_trace_has_the_parts_of_a_request(fresh: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = fresh
    exporter = InMemorySpanExporter()
    app.tracer = Tracer(exporter)  # type: ignore[attr-defined]
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await client.post("/generate?model=ddpm&steps=4&seed=3", headers={"traceparent": parent})
    app.tell_all()  # type: ignore[attr-defined]
    app.tracer.provider.force_flush()  # type: ignore[attr-defined]
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"POST /generate", "queue", "device", "encode"}
    whole = spans["POST /generate"]
    assert f"{whole.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{whole.parent.span_id:016x}" == parent.split("-")[2]
    assert whole.attributes["drawbridge.request_id"] == answer.headers["x-request-id"]
    assert whole.attributes["http.response.status_code"] == 200
    times = [whole.start_time]
    for name in ("queue", "device", "encode"):
        assert spans[name].parent.span_id == whole.context.span_id
        times += [spans[name].start_time, spans[name].end_time]
    assert times == sorted(times), "one part after another"
    assert times[-1] <= whole.end_time
