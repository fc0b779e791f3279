"""The application on small untrained weights, spoken to without a socket."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi import FastAPI
from PIL import Image

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="module")
def settings(weights: Path) -> Settings:
    """Limits low enough to be met."""
    return Settings(
        weights=weights, device="cpu", max_batch_size=8, max_images=64, queue_images=200, max_body_bytes=50_000
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://drawbridge") as made:
        yield made


def pixels(answer: httpx.Response) -> np.ndarray:
    """The pixels of an answered picture."""
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.asarray(image)


def problem(answer: httpx.Response, status: int) -> str:
    """The detail of a problem document, which is one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail", "instance"} <= body.keys()
    assert "Traceback" not in answer.text
    return str(body["detail"])
