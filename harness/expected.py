"""Requests whose responses are known byte for byte.

A service that handles one request at a time returns the expected bytes. Another service must return the same bytes
under load, in batches with other requests, and during faults.
"""

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np

from harness.server import SERVICE, environment, run_server
from service.codecs.png import png

TIMEOUT = 120.0
"""Seconds after which a request counts as one that never ends."""
FEW_STEPS = 8
"""Largest number of steps of a `few-step` request."""
FORMATS = ("png", "webp", "npz", "zip", "json", "events")
TIMED_EVENTS = (b"event: progress", b"event: preview", b"event: image_generation.partial_image")
"""Beginnings of server-sent events that depend on when a step ends."""
CREATED = re.compile(rb'"created(_at)?": ?[0-9]+')
Model = dict[str, Any]
"""An entry of GET /models."""


@dataclass(frozen=True)
class ExpectedRequest:
    """A request that always returns the same bytes."""

    url: str
    image: bytes | None = None
    """The file to upload, if any."""
    json: str = ""
    """The body, if it is JSON."""
    method: str = "POST"

    @property
    def kind(self) -> str:
        """The amount of work: `upload`, `one-shot`, `few-step` or `many-step`. Latencies are reported by kind."""
        if self.image is not None:
            return "upload"
        steps = int(httpx.URL(self.url).params.get("steps", "1"))
        return "one-shot" if steps == 1 else "few-step" if steps <= FEW_STEPS else "many-step"

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        """Send the request and read the whole response."""
        if self.json:
            headers = {"Content-Type": "application/json"}
            return await client.request(self.method, self.url, content=self.json, headers=headers)
        files = None if self.image is None else {"image": self.image}
        return await client.request(self.method, self.url, files=files)


Expected = Mapping[ExpectedRequest, bytes]
"""The expected body of every request."""
Chooser = Callable[[list[Model]], Iterable[ExpectedRequest]]
"""Returns requests to some of the models."""


def comparable_body(response: httpx.Response) -> bytes:
    """Return the part of a body that the request determines.

    That is a whole body but for the time of creation that OpenAI's API asks for, and of server-sent events all but
    progress, previews and partial images.
    """
    content = response.content
    if response.request.url.path.startswith("/v1/"):
        content = CREATED.sub(b"", content)
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        return content
    return b"\n\n".join(event for event in content.split(b"\n\n") if not event.startswith(TIMED_EVENTS))


def expected_responses(choose: Chooser, **settings: object) -> dict[ExpectedRequest, bytes]:
    """Start a service with one worker and `settings`, and return its `sequential_responses`."""
    with run_server(SERVICE, environment(**{"port": 0, "device": "cpu", "workers": 1, **settings})) as server:
        return asyncio.run(sequential_responses(server.url, choose))


async def sequential_responses(url: str, choose: Chooser) -> dict[ExpectedRequest, bytes]:
    """Send the requests that `choose` returns for the served models one after the other, and return their bodies."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
        models = (await client.get("/models")).json()["models"]
        expected = {}
        for request in choose(models):
            response = await request.send(client)
            response.raise_for_status()
            expected[request] = comparable_body(response)
        return expected


def random_urls(
    models: list[Model],
    source: random.Random,
    count: int,
    formats: Sequence[str] = ("png", "npz"),
    image_counts: Sequence[int] = (1, 1, 1, 2, 5),
    extra_steps: int = 12,
) -> list[str]:
    """Return URLs of `count` different requests to each model, with up to `extra_steps` more steps than its minimum."""
    urls = []
    for model in models:
        takes = model["takes"]
        for _ in range(count):
            query: list[tuple[str, object]] = [("model", model["name"]), ("seed", source.randrange(2**53))]
            query += [("first", source.choice((0, 0, 7, 2**40))), ("n", source.choice(image_counts))]
            if "label" in takes and source.random() < 0.7:
                query.append(("label", source.choice(takes["label"]["one_of"])))
            for name in ("sampler", "prior"):
                if name in takes:
                    query.append((name, source.choice(takes[name]["one_of"])))
            if "steps" in takes:
                minimum, maximum = takes["steps"]["minimum"], takes["steps"]["maximum"]
                query.append(("steps", source.randint(minimum, min(maximum, minimum + extra_steps))))
            if "guidance" in takes:
                query.append(("guidance", source.choice((1.0, takes["guidance"]["default"], 3.0))))
            urls.append(f"/generate?{urlencode([*query, ('format', source.choice(formats))])}")
    return urls


def mixed_requests(models: list[Model], source: random.Random, count: int) -> list[ExpectedRequest]:
    """Return `count` different requests to each model in all formats, and interpolations and uploads besides."""
    image_counts = (*(1,) * 10, 2, 5, 20)
    urls = random_urls(models, source, count, FORMATS, image_counts, extra_steps=16)
    requests = [ExpectedRequest(url) for url in urls]
    for model in models:
        steps = model["takes"].get("steps")
        query = f"model={model['name']}"
        if steps:
            query += f"&steps={min(steps['maximum'], source.randint(5, 10))}"
        for form in ("png", "gif", "zip"):
            start, end = (source.randrange(2**53) for _ in range(2))
            requests.append(ExpectedRequest(f"/interpolate?{query}&seed={start}&seed={end}&frames=5&format={form}"))
        if model["encodes"] and "steps" not in model["takes"]:  # models with steps run a whole chain to encode
            image = random_drawing(source)
            for path in ("/encode", "/reconstruct"):
                requests.append(ExpectedRequest(f"{path}?model={model['name']}&format=npz", image))
    return requests


def random_drawing(source: random.Random) -> bytes:
    """Return a PNG of 28x28 random grey values with a black border."""
    grey = np.random.default_rng(source.randrange(2**32)).integers(0, 256, (28, 28), np.uint8)
    grey[:4] = grey[-4:] = grey[:, :4] = grey[:, -4:] = 0
    return png(grey)


def seeded_requests(model: str, seeds: Iterable[int], query: str) -> list[ExpectedRequest]:
    """Return a request to `model` for each seed."""
    return [ExpectedRequest(f"/generate?model={model}&seed={seed}&{query}") for seed in seeds]
