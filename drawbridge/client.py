"""Clients of the service. They need httpx; arrays also need NumPy, and pictures NumPy and Pillow.

    with Client("http://127.0.0.1:8000") as client:
        sevens = client.generate("cgan", label=7, n=100)
        sevens.arrays                               # uint8 [100, 28, 28]
        meals = client.generate("emoji", label="food", n=100)
        meals.arrays                                # uint8 [100, 32, 32, 3]
        meals.classes[meals.labels[0]]              # "food"
        for event in client.stream("ddpm", label=3, previews=True): ...
        client.inpaint("ddpm", "half.png", "mask.png", n=9)
        client.vary("flow", sevens.arrays[0], strength=0.6)
        client.nearest("cgan", sevens.arrays[0]).sentence   # "Not copied: ..."

AsyncClient has the same methods as coroutines. Statuses 429 and 503 and failed connections are retried, after the delay
in Retry-After where the response has one. A request without a seed gets a random one before the first attempt, so every
attempt requests the same samples. Requests to loopback addresses do not use the proxy that the environment names.
"""

import asyncio
import io
import ipaddress
import json
import secrets
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = 5
DEFAULT_TIMEOUT = 600.0
"""Seconds without a byte from the service after which an attempt fails."""
RETRY_STATUSES = (429, 503)
MAX_RETRY_DELAY = 30.0
"""Seconds; longer delays in Retry-After are cut to this."""


T = TypeVar("T")

Picture = Any
"""The bytes of a picture file, its path, a Pillow image, or an array: bytes [H, W] or [H, W, 3], or bools [H, W]."""


class ServiceError(Exception):
    """The service refused the request: `status`, and `problem`, the members of its problem document (RFC 9457).

    `retry_after` is the number of seconds in the header Retry-After; None if the response has none.
    """

    def __init__(self, status: int, problem: dict[str, Any], retry_after: float | None = None) -> None:
        super().__init__(problem.get("detail") or f"the service responded with status {status}")
        self.status, self.problem, self.retry_after = status, problem, retry_after


class Unreachable(Exception):
    """The service does not respond, the connection broke during a response, or httpx cannot use the proxy."""


@dataclass(frozen=True)
class Samples:
    """The response to `generate`, `inpaint` or `vary`."""

    content: bytes = field(repr=False)
    """The file as the service sent it: an npz, unless another format was requested."""
    seed: int
    digest: str
    """SHA-256 of the weights."""
    url: str
    """Path and query that give the same samples again; empty for `inpaint` and `vary`, which need the picture, too."""

    @cached_property
    def arrays(self) -> "NDArray[np.uint8]":
        """Images [n, H, W], or [n, H, W, 3] in colour. Needs NumPy and the format npz."""
        images: NDArray[np.uint8] = self._read("images")
        return images

    @cached_property
    def labels(self) -> "NDArray[np.int64]":
        """Labels [n], numbers of `classes`, -1 where the image has none. Needs NumPy and the format npz."""
        labels: NDArray[np.int64] = self._read("labels")
        return labels

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the model's classes by number; empty if it has none. Needs NumPy and the format npz."""
        return tuple(map(str, self._read("classes", missing=())))

    def pictures(self) -> "list[Image]":
        """The images for Pillow. Needs NumPy, Pillow and the format npz."""
        try:
            from PIL import Image
        except ModuleNotFoundError:
            raise ImportError("Samples.pictures needs Pillow: pip install pillow") from None
        return [Image.fromarray(array) for array in self.arrays]

    def _read(self, member: str, missing: Any = None) -> Any:
        """An array of the npz, or `missing`, unless None, where the npz has no such array."""
        try:
            import numpy as np
        except ModuleNotFoundError:
            raise ImportError("the arrays of Samples need NumPy: pip install numpy") from None
        with np.load(io.BytesIO(self.content)) as archive:
            return archive[member] if missing is None or member in archive else missing


@dataclass(frozen=True)
class Event:
    """One event of `stream`: its kind is `start`, `progress`, `preview`, `image` or `end`."""

    kind: str
    data: dict[str, Any]

    @property
    def png(self) -> bytes:
        """The image of a `preview` or an `image` event."""
        return b64decode(self.data["png"])

    def array(self) -> "NDArray[np.uint8]":
        """The same image as an array [H, W], or [H, W, 3] in colour. Needs NumPy and Pillow."""
        try:
            import numpy as np
            from PIL import Image
        except ModuleNotFoundError:
            raise ImportError("Event.array needs NumPy and Pillow: pip install numpy pillow") from None
        return np.asarray(Image.open(io.BytesIO(self.png)))


@dataclass(frozen=True)
class Neighbour:
    """A training image near to another image."""

    index: int
    """Its place in the training images, from 0."""
    label: int
    """The number of its class; -1 if it has none."""
    class_name: str | None
    distance: float
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Nearest:
    """The training images nearest to an image, and whether it is a copy of one."""

    copied: bool
    """Whether it is a training image, or as near to one as the nearest 1 % of the held-out images."""
    sentence: str
    """The same in words."""
    nearer_than: float
    """The share of held-out images that are farther from their nearest training image."""
    neighbours: tuple[Neighbour, ...]
    """Nearest first."""
    dataset: dict[str, Any]
    """`name`, `digest`, number of `images`, and `attribution` of the training images."""


Outcome = httpx.Response | httpx.TransportError
"""How an attempt to send a request ends."""


def _attempts(url: httpx.URL, retries: int) -> Generator[float, Outcome]:
    """Decide about retries for both clients, without doing any input or output.

    Yields the seconds to wait before each attempt, and is sent the attempt's outcome. Ends after a success; raises
    ServiceError or Unreachable where the last attempt failed.
    """
    delay = 0.0
    for attempt in range(retries):
        outcome = yield delay
        if not _is_temporary(outcome):
            break
        delay = _retry_delay(attempt, outcome)
    else:
        outcome = yield delay
    if isinstance(outcome, httpx.UnsupportedProtocol):
        raise Unreachable(f"{url}: the protocol must be http:// or https://")
    if isinstance(outcome, httpx.TransportError):
        raise Unreachable(f"{url} does not respond: {str(outcome) or repr(outcome)}") from outcome
    if outcome.is_error:
        raise ServiceError(outcome.status_code, _problem(outcome), _retry_after(outcome))


def _is_temporary(outcome: Outcome) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRY_STATUSES
    return not isinstance(outcome, httpx.UnsupportedProtocol)


def _retry_delay(attempt: int, outcome: Outcome) -> float:
    """Seconds: Retry-After where the response has it, else 0.25 doubled by each attempt."""
    asked = _retry_after(outcome) if isinstance(outcome, httpx.Response) else None
    return min(MAX_RETRY_DELAY, 0.25 * 2**attempt if asked is None else asked)


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds in the header Retry-After; None if the response has none."""
    header = response.headers.get("retry-after", "")
    return float(header) if header.isdigit() else None


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _parse(response: httpx.Response, parse: Callable[[httpx.Response], T]) -> T:
    """`parse(response)`. Raises ServiceError where the response is not what the service sends."""
    try:
        return parse(response)
    except (ValueError, KeyError, TypeError):
        detail = f"the server at {response.url} is not Drawbridge"
        raise ServiceError(response.status_code, {"detail": detail}) from None


def _models(response: httpx.Response) -> list[dict[str, Any]]:
    return list(response.json()["models"])


def _model(response: httpx.Response) -> dict[str, Any]:
    return dict(response.json())


def _samples(response: httpx.Response) -> Samples:
    headers = response.headers
    return Samples(response.content, int(headers["x-seed"]), headers["x-model-digest"], headers["content-location"])


def _edited_samples(response: httpx.Response) -> Samples:
    headers = response.headers
    return Samples(response.content, int(headers["x-seed"]), headers["x-model-digest"], "")


def _nearest(response: httpx.Response) -> Nearest:
    fields = response.json()
    neighbours = tuple(
        Neighbour(one["index"], one["label"], one["class"], one["distance"], b64decode(one["png"]))
        for one in fields["neighbours"]
    )
    return Nearest(fields["copied"], fields["sentence"], fields["nearer_than"], neighbours, fields["dataset"])


class _EventParser:
    """Parses the lines of a stream of server-sent events."""

    def __init__(self) -> None:
        self.kind, self.ended = "", False

    def feed(self, line: str) -> Iterator[Event]:
        """Yield the event that the line completes. Raises ServiceError for an event of kind `error`."""
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
        """Raise Unreachable if the stream stopped before the event `end`."""
        if not self.ended:
            raise Unreachable("the stream broke off before its end; send the request again")


_MODELS_REQUEST = {"method": "GET", "url": "/models"}


def _model_request(name: str) -> dict[str, Any]:
    return {"method": "GET", "url": f"/models/{quote(name, safe='')}"}


def _generate_request(model: str | None, parameters: dict[str, Any], format: str) -> dict[str, Any]:
    body = _values(model, parameters, format)
    body |= {name: [body[name]] for name in ("label", "digit") if name in body and not isinstance(body[name], list)}
    return {"method": "POST", "url": "/generate", "json": body}


def _edit_request(
    path: str, model: str, pictures: dict[str, Picture], parameters: dict[str, Any], format: str
) -> dict[str, Any]:
    files = {name: (name, _picture_file(picture)) for name, picture in pictures.items() if picture is not None}
    return {"method": "POST", "url": path, "data": _values(model, parameters, format), "files": files}


def _nearest_request(model: str, image: Picture, parameters: dict[str, Any]) -> dict[str, Any]:
    values = {name: _json_value(value) for name, value in parameters.items() if value is not None}
    files = {"image": ("image", _picture_file(image))}
    return {"method": "POST", "url": "/nearest", "data": {"model": model, **values}, "files": files}


def _values(model: str | None, parameters: dict[str, Any], format: str) -> dict[str, Any]:
    """The values of a request, with a random seed if it has none."""
    given = {"model": model, **parameters, "format": format}
    values = {name: _json_value(value) for name, value in given.items() if value is not None}
    return {"seed": secrets.randbelow(2**53), **values}


def _picture_file(picture: Picture) -> bytes:
    """The file of a picture. Raises ImportError without NumPy and Pillow, if they are needed."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    try:
        import numpy as np
        from PIL import Image
    except ModuleNotFoundError:
        raise ImportError("a picture that is not a file needs NumPy and Pillow: pip install numpy pillow") from None
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        picture = Image.fromarray(array * np.uint8(255) if array.dtype == bool else array)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _json_value(value: Any) -> Any:
    """Convert a parameter to what JSON has: numbers and arrays of NumPy, PyTorch or pandas, ranges and tuples."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        return [_json_value(item) for item in value]
    return value


def _is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, which a proxy cannot reach."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _proxy_errors() -> Iterator[None]:
    """Raise Unreachable where httpx cannot use a proxy that the environment names."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise Unreachable(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a proxy that cannot be used: {error}") from None


def _authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


class Client:
    """A client of the service at `url`; a context manager that closes its connections at the end.

    `key` is the API key, `retries` the number of attempts after the first, `timeout` in seconds, and `transport` one of
    httpx's. All methods raise ServiceError where the service refuses the request, and Unreachable where it does not
    respond.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.retries = retries
        if transport is None and _is_loopback(url):
            transport = httpx.HTTPTransport()  # with a transport, httpx uses no proxy
        with _proxy_errors():
            self.http = httpx.Client(base_url=url, timeout=timeout, transport=transport)
        self.http.headers.update(_authorization(key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.http.close()

    def models(self) -> list[dict[str, Any]]:
        """The models that the service has, and the parameters that each takes."""
        return _parse(self._send(_MODELS_REQUEST), _models)

    def model(self, name: str) -> dict[str, Any]:
        """One model, with its manifest."""
        return _parse(self._send(_model_request(name)), _model)

    def generate(self, model: str | None = None, *, format: str = "npz", **parameters: Any) -> Samples:
        """Generate samples. `parameters` are those of /generate, None for one left out.

        `label` is one or several names or numbers of classes: a list, a range, an array, or the `labels` of other
        samples. A number that is also the name of a class means that class. `digit` means `label` for models whose
        classes are the digits.
        """
        return _parse(self._send(_generate_request(model, parameters, format)), _samples)

    def inpaint(
        self, model: str, image: Picture, mask: Picture | None = None, *, format: str = "npz", **parameters: Any
    ) -> Samples:
        """Complete the pixels of `image` that are white or true in `mask`; without one, its transparent pixels.

        The others stay as they are. `parameters` are those of /inpaint.
        """
        pictures = {"image": image, "mask": mask}
        return _parse(self._send(_edit_request("/inpaint", model, pictures, parameters, format)), _edited_samples)

    def vary(self, model: str, image: Picture, *, format: str = "npz", **parameters: Any) -> Samples:
        """Generate variations of `image`, the farther from it the larger `strength` is; `parameters` as of /vary."""
        return _parse(self._send(_edit_request("/vary", model, {"image": image}, parameters, format)), _edited_samples)

    def nearest(self, model: str, image: Picture, **parameters: Any) -> Nearest:
        """Find the training images of `model` nearest to `image`, and whether it is a copy of one.

        The service needs their index. `parameters` are those of /nearest.
        """
        return _parse(self._send(_nearest_request(model, image, parameters)), _nearest)

    def stream(self, model: str | None = None, **parameters: Any) -> Iterator[Event]:
        """Generate samples and yield events meanwhile; with `previews=True` also unfinished images."""
        parser = _EventParser()
        response = self._send(_generate_request(model, parameters, "events"), stream=True)
        try:
            for line in response.iter_lines():
                yield from parser.feed(line)
        except httpx.TransportError as error:
            raise Unreachable(f"the stream broke off: {error!r}") from None
        finally:
            response.close()
        parser.close()

    def _send(self, request: dict[str, Any], stream: bool = False) -> httpx.Response:
        attempts = _attempts(self.http.base_url, self.retries)
        delay = next(attempts)
        while True:
            if delay:
                time.sleep(delay)
            try:
                response = self.http.send(self.http.build_request(**request), stream=stream)
                if response.is_error:
                    response.read()
                delay = attempts.send(response)
            except httpx.TransportError as error:
                delay = attempts.send(error)
            except StopIteration:
                return response


class AsyncClient:
    """Client with coroutines in place of methods; `stream` is an asynchronous iterator."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.retries = retries
        if transport is None and _is_loopback(url):
            transport = httpx.AsyncHTTPTransport()
        with _proxy_errors():
            self.http = httpx.AsyncClient(base_url=url, timeout=timeout, transport=transport)
        self.http.headers.update(_authorization(key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """As Client.models."""
        return _parse(await self._send(_MODELS_REQUEST), _models)

    async def model(self, name: str) -> dict[str, Any]:
        """As Client.model."""
        return _parse(await self._send(_model_request(name)), _model)

    async def generate(self, model: str | None = None, *, format: str = "npz", **parameters: Any) -> Samples:
        """As Client.generate."""
        return _parse(await self._send(_generate_request(model, parameters, format)), _samples)

    async def inpaint(
        self, model: str, image: Picture, mask: Picture | None = None, *, format: str = "npz", **parameters: Any
    ) -> Samples:
        """As Client.inpaint."""
        request = _edit_request("/inpaint", model, {"image": image, "mask": mask}, parameters, format)
        return _parse(await self._send(request), _edited_samples)

    async def vary(self, model: str, image: Picture, *, format: str = "npz", **parameters: Any) -> Samples:
        """As Client.vary."""
        request = _edit_request("/vary", model, {"image": image}, parameters, format)
        return _parse(await self._send(request), _edited_samples)

    async def nearest(self, model: str, image: Picture, **parameters: Any) -> Nearest:
        """As Client.nearest."""
        return _parse(await self._send(_nearest_request(model, image, parameters)), _nearest)

    async def stream(self, model: str | None = None, **parameters: Any) -> AsyncIterator[Event]:
        """As Client.stream."""
        parser = _EventParser()
        response = await self._send(_generate_request(model, parameters, "events"), stream=True)
        try:
            async for line in response.aiter_lines():
                for event in parser.feed(line):
                    yield event
        except httpx.TransportError as error:
            raise Unreachable(f"the stream broke off: {error!r}") from None
        finally:
            await response.aclose()
        parser.close()

    async def _send(self, request: dict[str, Any], stream: bool = False) -> httpx.Response:
        attempts = _attempts(self.http.base_url, self.retries)
        delay = next(attempts)
        while True:
            if delay:
                await asyncio.sleep(delay)
            try:
                response = await self.http.send(self.http.build_request(**request), stream=stream)
                if response.is_error:
                    await response.aread()
                delay = attempts.send(response)
            except httpx.TransportError as error:
                delay = attempts.send(error)
            except StopIteration:
                return response
