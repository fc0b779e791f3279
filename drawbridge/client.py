"""A client of the service: httpx is all that it needs, and NumPy or Pillow for whoever wants arrays or pictures.

    with Client("http://127.0.0.1:8000") as client:
        sevens = client.generate("cgan", digit=7, n=100)
        sevens.arrays                               # uint8 [100, 28, 28]
        for event in client.stream("ddpm", digit=3, previews=True): ...

AsyncClient has the same methods to be awaited. A draw that names no seed gets one here, so that trying again is the
same draw: answers 429 and 503, and connections that fail, are tried again after what Retry-After says.
"""

import asyncio
import io
import itertools
import json
import secrets
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

RETRY_STATUSES = (429, 503)
MAX_RETRY_DELAY = 30.0
"""Seconds that are waited at most before another try, whatever the service says."""
DEFAULT_TIMEOUT = 60.0 * 10
"""Seconds that an answer may take."""


class ServiceError(Exception):
    """What the service said is wrong: `status`, and `problem`, the members of its problem document (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or f"the service answered {status}")
        self.status, self.problem = status, problem


class Unreachable(Exception):
    """The service does not answer."""


@dataclass(frozen=True)
class Samples:
    """Images that were drawn."""

    arrays: "NDArray[np.uint8]"
    """[n, 28, 28]."""
    labels: "NDArray[np.int64]"
    """[n], -1 where the model was told none."""
    seed: int
    digest: str
    """Of the weights."""
    url: str
    """The path that gives the same again."""

    def pictures(self) -> "list[Image]":
        """The same for Pillow."""
        from PIL import Image

        return [Image.fromarray(array) for array in self.arrays]


@dataclass(frozen=True)
class Event:
    """What a stream says: `start`, `progress`, `preview`, `image` or `end`."""

    kind: str
    data: dict[str, Any]

    @property
    def png(self) -> bytes:
        """The picture of a `preview` or an `image`."""
        return b64decode(self.data["png"])

    def array(self) -> "NDArray[np.uint8]":
        """The same as an array [28, 28]."""
        import numpy as np
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.png)))


class _Shared:
    """What both clients know: how to ask, how to read the answer, and when to ask again."""

    def __init__(self, retries: int) -> None:
        self.retries = retries

    def asked(self, model: str | None, how: dict[str, Any], form: str) -> dict[str, Any]:
        """A request for httpx. Whoever names no seed gets one."""
        said = {"model": model, "seed": secrets.randbelow(2**53), **how, "format": form}
        if isinstance(said.get("digit"), int):
            said["digit"] = [said["digit"]]
        return {"method": "POST", "url": "/generate", "json": {k: v for k, v in said.items() if v is not None}}

    def pause(self, attempt: int, answer: httpx.Response | None) -> float | None:
        """Seconds until another try; None where there is none, or none would help or is needed."""
        if attempt >= self.retries or (answer is not None and answer.status_code not in RETRY_STATUSES):
            return None
        said = "" if answer is None else answer.headers.get("retry-after", "")
        return min(MAX_RETRY_DELAY, float(said) if said.isdigit() else 0.25 * 2**attempt)


def _shown(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer, read to its end. Raises ServiceError where it is a problem."""
    if answer.is_error:
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        raise ServiceError(answer.status_code, problem if isinstance(problem, dict) else {})
    return answer


def _draws(answer: httpx.Response) -> Samples:
    import numpy as np

    held = np.load(io.BytesIO(answer.content))
    headers = answer.headers
    seed, digest, url = int(headers["x-seed"]), headers["x-model-digest"], headers["content-location"]
    return Samples(held["images"], held["labels"], seed, digest, url)


class _Reader:
    """Lines of a stream as events."""

    def __init__(self) -> None:
        self.kind, self.ended = "", False

    def read(self, line: str) -> Iterable[Event]:
        """The event that a line completes. Raises ServiceError where the service says that it cannot go on."""
        name, _, value = line.partition(": ")
        if name == "event":
            self.kind = value
        elif name == "data":
            data = json.loads(value)
            if self.kind == "error":
                raise ServiceError(data.get("status", 500), data)
            self.ended = self.kind == "end"
            yield Event(self.kind, data)

    def close(self) -> None:
        """Raises Unreachable where the stream broke off."""
        if not self.ended:
            raise Unreachable("the stream broke off before its end; ask again")


class Client(_Shared):
    """Of the service at `url`, which may want a `key`; a context that closes its connections."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        retries: int = 5,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(retries)
        self.http = httpx.Client(base_url=url, timeout=timeout, transport=transport, headers=_shown(key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.http.close()

    def models(self) -> list[dict[str, Any]]:
        """What is served, and what each model takes. Raises ServiceError and Unreachable, as all others do."""
        found: list[dict[str, Any]] = self._send(method="GET", url="/models").json()["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """The document of GET /models/{name}: the model's description and its manifest."""
        document: dict[str, Any] = self._send(method="GET", url=f"/models/{quote(name, safe='')}").json()
        return document

    def generate(self, model: str | None = None, **how: Any) -> Samples:
        """Draw: `how` are parameters of /generate, `digit` one or several."""
        return _draws(self._send(**self.asked(model, how, "npz")))

    def stream(self, model: str | None = None, **how: Any) -> Iterator[Event]:
        """Draw, and tell of it as it goes; with `previews` images under way are shown."""
        reader = _Reader()
        answer = self._send(**self.asked(model, how, "events"), stream=True)
        try:
            for line in answer.iter_lines():
                yield from reader.read(line)
        except httpx.TransportError as error:
            raise Unreachable(f"the stream broke off: {error!r}") from None
        finally:
            answer.close()
        reader.close()

    def _send(self, stream: bool = False, **request: Any) -> httpx.Response:
        for attempt in itertools.count():
            answer, error = None, None
            try:
                answer = self.http.send(self.http.build_request(**request), stream=stream)
            except httpx.TransportError as failure:
                error = failure
            pause = self.pause(attempt, answer)
            if pause is None:
                break
            if answer is not None:
                answer.close()
            time.sleep(pause)
        if answer is None:
            raise Unreachable(f"{self.http.base_url} does not answer: {error or repr(error)}")
        if answer.is_error:
            answer.read()
        return _checked(answer)


class AsyncClient(_Shared):
    """The same, to be awaited. `transport` is httpx's, for a service that is no process of its own."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        retries: int = 5,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(retries)
        self.http = httpx.AsyncClient(base_url=url, timeout=timeout, transport=transport, headers=_shown(key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """As for Client."""
        found: list[dict[str, Any]] = (await self._send(method="GET", url="/models")).json()["models"]
        return found

    async def model(self, name: str) -> dict[str, Any]:
        """As for Client."""
        document: dict[str, Any] = (await self._send(method="GET", url=f"/models/{quote(name, safe='')}")).json()
        return document

    async def generate(self, model: str | None = None, **how: Any) -> Samples:
        """As for Client."""
        return _draws(await self._send(**self.asked(model, how, "npz")))

    async def stream(self, model: str | None = None, **how: Any) -> AsyncIterator[Event]:
        """As for Client."""
        reader = _Reader()
        answer = await self._send(**self.asked(model, how, "events"), stream=True)
        try:
            async for line in answer.aiter_lines():
                for event in reader.read(line):
                    yield event
        except httpx.TransportError as error:
            raise Unreachable(f"the stream broke off: {error!r}") from None
        finally:
            await answer.aclose()
        reader.close()

    async def _send(self, stream: bool = False, **request: Any) -> httpx.Response:
        for attempt in itertools.count():
            answer, error = None, None
            try:
                answer = await self.http.send(self.http.build_request(**request), stream=stream)
            except httpx.TransportError as failure:
                error = failure
            pause = self.pause(attempt, answer)
            if pause is None:
                break
            if answer is not None:
                await answer.aclose()
            await asyncio.sleep(pause)
        if answer is None:
            raise Unreachable(f"{self.http.base_url} does not answer: {error or repr(error)}")
        if answer.is_error:
            await answer.aread()
        return _checked(answer)
