"""A running service for the tests of the client and the command."""

import io
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from drawbridge.dataset.parts import Parts
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


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Gives contexts in which this process gets SIGINT once, when so many parts of a data set were saved in it."""
    save = Parts.save

    @contextmanager
    def context(count: int) -> Iterator[None]:
        calls = itertools.count()

        def save_and_interrupt(parts: Parts, *arguments: Any) -> None:
            save(parts, *arguments)
            if next(calls) == count - 1:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Parts, "save", save_and_interrupt)
            yield

    return context
