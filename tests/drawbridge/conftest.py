"""A running service for the tests of the client and the command."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from harness.server import Server
from tests.serving import serving


@pytest.fixture(scope="session")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights) as running:
        yield running


@pytest.fixture(scope="session")
def named_server(named_weights: Path) -> Iterator[Server]:
    with serving(named_weights) as running:
        yield running


@pytest.fixture
def expected(server: Server) -> Callable[..., np.ndarray]:
    """The images that the service itself responds with for a query."""

    def request(**query: Any) -> np.ndarray:
        response = httpx.post(f"{server.url}/generate", params={**query, "format": "npz"})
        return np.load(io.BytesIO(response.content))["images"]

    return request
