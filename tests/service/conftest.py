"""The application on small untrained weights, requested without a socket."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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
    """Settings with limits that tests can reach."""
    return Settings(
        weights=weights, device="cpu", max_batch_size=8, max_images=64, queue_images=200, max_body_bytes=50_000
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    async with asgi_client(app) as client:
        yield client


def asgi_client(app: object, root_path: str = "") -> httpx.AsyncClient:
    """A client that calls an ASGI application, mounted at `root_path`, without a socket."""
    transport = httpx.ASGITransport(app, root_path=root_path, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge", timeout=60)


def pixels(response: httpx.Response) -> np.ndarray:
    """The pixels of the picture in a response."""
    assert response.status_code == 200, response.text
    return picture(response.content)


def arrays(response: httpx.Response) -> dict[str, np.ndarray]:
    """The arrays of an npz response."""
    assert response.status_code == 200, response.text
    return dict(np.load(io.BytesIO(response.content)))


def picture(content: bytes) -> np.ndarray:
    """The pixels of a picture file."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def problem(response: httpx.Response, status: int, kind: str | None = None) -> str:
    """The detail of a problem response, after checks of its form, its status and its kind."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert {"type", "title", "detail", "instance"} <= body.keys()
    assert "Traceback" not in response.text
    if kind is not None:
        assert body["type"] == f"urn:drawbridge:problem:{kind}"
    return str(body["detail"])


def http_scope(path: str, query: str = "") -> dict[str, Any]:
    """The ASGI scope of a POST without headers, for tests that receive and send messages themselves."""
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("drawbridge", 80), "state": {},
    }  # fmt: skip
