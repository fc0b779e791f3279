"""From an HTTP request to parameters, and from parameters of /generate to a plan.

Most requests to /generate differ from an earlier one in their seed alone, so a parsed request is cached by everything
but its seed.
"""

import base64
import binascii
import re
import typing
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Scope

from models.noise import MAX_SEED
from service.api.context import AppContext
from service.codecs import formats
from service.codecs.formats import Format, ImageBatch
from service.errors import InvalidParameter, UnsupportedBody
from service.generation.parameters import Generate, P, validate
from service.generation.plan import GenerationPlan, plan_generation
from service.generation.selection import choose_model

JSON = "application/json"
MEDIA_TYPES = "send parameters in the query, as application/json, or (with images) multipart/form-data"
QUERY_SEED = re.compile(rb"(?:^|&)seed=([0-9]{1,18})(?=&|$)")
"""A seed in a query that needs no further checks."""
KEY_HEADERS = (b"accept", b"x-timeout")
"""Headers that change a plan."""
MAX_CACHED_REQUESTS = 1024
MAX_CACHED_IMAGES = 16
MAX_CACHED_BYTES = 1024
"""Bytes of the longest query, headers and body that are cached."""


class ParsedRequest(NamedTuple):
    """A plan, and how to respond."""

    plan: GenerationPlan
    format: Format[ImageBatch]
    deterministic: bool
    """Whether the request names a model and a seed, so that the same request always means the same images."""


def parse_generate(service: AppContext, scope: Scope, body: bytes) -> ParsedRequest:
    """Parse a request to /generate, with a new seed if it names none. Raises the Problem that is wrong with it."""
    values = _json_values(scope, body)
    key, seed = _cache_key(scope, values, len(body))
    cached: ParsedRequest | None = service.parse_cache.get(key)
    if cached is not None:
        plan = cached.plan.with_seed(service.new_seed() if seed is None else seed)
        return ParsedRequest(plan, cached.format, cached.deterministic and seed is not None)
    parameters = _merge(Generate, scope, values, strict=True)
    return _plan(service, scope, parameters, key)


async def parse_generate_form(service: AppContext, request: Request) -> ParsedRequest:
    """Parse a request to /generate whose parameters are in a form. Raises the Problem that is wrong with it."""
    parameters, files = await read(request, Generate)
    if files:
        raise InvalidParameter("image: /generate takes no image; /interpolate does")
    return _plan(service, request.scope, parameters, None)


async def read(request: Request, schema: type[P], max_files: int = 2) -> tuple[P, list[bytes]]:
    """The request's parameters and its uploads called `image`. Raises InvalidParameter or UnsupportedBody."""
    parameters, files = await read_uploads(request, schema, ("image",), max_files)
    return parameters, files["image"]


async def read_uploads(
    request: Request, schema: type[P], names: Sequence[str], max_files: int
) -> tuple[P, dict[str, list[bytes]]]:
    """The request's parameters, and its uploads by name, of `names`. Raises InvalidParameter or UnsupportedBody.

    Uploads are files in a form, or base64 in a JSON body.
    """
    if is_form(request.scope):
        values, files = await _form_values(request, schema, names, max_files)
        return _merge(schema, request.scope, values, strict=False), files
    values = _json_values(request.scope, await request.body())
    files = {name: _json_files(name, values.pop(name, [])) for name in names}
    if sum(map(len, files.values())) > max_files:
        raise InvalidParameter(f"{' and '.join(names)}: send at most {max_files} files")
    return _merge(schema, request.scope, values, strict=True), files


async def refuse_get_body(request: Request) -> None:
    """Dependency of all routes: raises UnsupportedBody for a GET with a body."""
    if request.method == "GET":
        _check_no_body(await request.body())


def is_form(scope: Scope) -> bool:
    """Whether the body is a multipart form."""
    return scope["method"] != "GET" and _content_type(scope) == "multipart/form-data"


def _plan(
    service: AppContext, scope: Scope, parameters: Generate, key: tuple[bytes | str, ...] | None
) -> ParsedRequest:
    """Plan a request, and cache the plan under `key`."""
    model = choose_model(service.catalog, service.settings, parameters)
    accept = b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
    format_ = formats.negotiate(formats.IMAGE_FORMATS, parameters.format, accept)
    plan = plan_generation(parameters, model, format_.name, service.settings.max_images, service.new_seed)
    named = parameters.model is not None
    if key is not None and parameters.n <= MAX_CACHED_IMAGES:
        if len(service.parse_cache) >= MAX_CACHED_REQUESTS:
            service.parse_cache.clear()
        service.parse_cache[key] = ParsedRequest(plan, format_, named)
    return ParsedRequest(plan, format_, named and parameters.seed is not None)


def _cache_key(
    scope: Scope, values: dict[str, Any], body_length: int
) -> tuple[tuple[bytes | str, ...] | None, int | None]:
    """Everything in a request but its seed, and the seed; the key is None if the request needs a full parse."""
    query: bytes = scope["query_string"]
    headers = [part for header in scope["headers"] if header[0] in KEY_HEADERS for part in header]
    if b"%" in query or sum(map(len, headers), len(query) + body_length) > MAX_CACHED_BYTES:
        return None, None
    seed = values.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
        return None, None
    if (match := QUERY_SEED.search(query)) is not None:
        query = query[: match.start()] + query[match.end() :]
        if "seed" in values:  # an error
            return None, None
        seed = int(match[1])
    if b"seed" in query:  # a second seed, or one in another spelling
        return None, None
    rest = {name: value for name, value in values.items() if name != "seed"}
    return (query, repr(rest) if rest else "", *headers), seed


def _merge(schema: type[P], scope: Scope, body: dict[str, Any], *, strict: bool) -> P:
    """The parameters in the query, the `body` and headers. A `strict` body holds no numbers written as strings."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    values = _collect(query, schema)
    if twice := sorted(values.keys() & body.keys()):
        raise InvalidParameter(f"in the query and in the body: {', '.join(twice)}; give each parameter once")
    lists = _list_fields(schema)
    body = {name: [value] if name in lists and not isinstance(value, list) else value for name, value in body.items()}
    values |= body
    if "timeout" in schema.model_fields:
        for name, value in scope["headers"]:
            if name == b"x-timeout":
                values.setdefault("timeout", value.decode("latin-1"))
    parameters = validate(schema, values)
    if body and strict:
        validate(schema, {**parameters.model_dump(exclude=set(body)), **body}, strict=True)
    return parameters


def _json_values(scope: Scope, body: bytes) -> dict[str, Any]:
    """The members of a JSON body that are not null. Raises InvalidParameter or UnsupportedBody."""
    if scope["method"] == "GET":
        _check_no_body(body)
        return {}
    kind = _content_type(scope)
    if not body and kind in ("", "application/x-www-form-urlencoded"):
        return {}
    if kind not in ("", JSON):
        raise UnsupportedBody(MEDIA_TYPES)
    try:
        values = from_json(body)
    except (ValueError, RecursionError):
        _check_not_encoded(scope)
        if kind == JSON:
            raise InvalidParameter("the body is not valid JSON") from None
        raise UnsupportedBody(f"the body has no Content-Type and is not JSON; {MEDIA_TYPES}") from None
    if not isinstance(values, dict):
        raise InvalidParameter("the JSON body must be an object of parameters")
    return {name: value for name, value in values.items() if value is not None}


async def _form_values(
    request: Request, schema: type[BaseModel], names: Sequence[str], max_files: int
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The fields of a form, and its uploads by name."""
    _check_not_encoded(request.scope)
    options = parse_options_header(request.headers["content-type"])[1]
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # some codecs take quadratic time
        raise UnsupportedBody("encode the form in UTF-8")
    async with request.form(max_files=max_files, max_fields=32) as form:
        items = form.multi_items()
        misplaced = {name for name, value in items if (name in names) != isinstance(value, UploadFile)}
        if misplaced:
            fields = " or ".join(f"`{name}`" for name in names)
            raise InvalidParameter(
                f"{', '.join(sorted(misplaced))}: uploads must be form fields called {fields}, and only uploads may be"
            )
        files: dict[str, list[bytes]] = {name: [] for name in names}
        for name, value in items:
            if isinstance(value, UploadFile):
                files[name].append(await value.read())
        return _collect([(name, value) for name, value in items if isinstance(value, str)], schema), files


def _json_files(name: str, value: Any) -> list[bytes]:
    """The files of a JSON member: base64, with or without the head of a data: URL; or a list of such."""
    texts = value if isinstance(value, list) else [value]
    try:
        return [base64.b64decode(text.rpartition(";base64,")[2], validate=True) for text in texts]
    except (AttributeError, ValueError, binascii.Error):
        raise InvalidParameter(f"{name}: in JSON, send a file as a string in base64; or upload it in a form") from None


def _collect(items: list[tuple[str, str]], schema: type[BaseModel]) -> dict[str, Any]:
    """Values by name: a list for a field that is one, otherwise the only value."""
    values: dict[str, Any] = {}
    lists = _list_fields(schema)
    for name, value in items:
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidParameter(f"{name}: given more than once; give it once")
        else:
            values[name] = value
    return values


def _check_no_body(body: bytes) -> None:
    if body:
        raise UnsupportedBody("GET takes its parameters in the URL, which caches know it by; send a body with POST")


def _check_not_encoded(scope: Scope) -> None:
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in scope["headers"]):
        raise UnsupportedBody("send the body without a Content-Encoding")


@cache
def _list_fields(schema: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in schema.model_fields.items() if typing.get_origin(field.annotation) is list)


def _content_type(scope: Scope) -> str:
    """The media type of the body without parameters, or an empty string."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return str(value.decode("latin-1").partition(";")[0].strip().lower())
    return ""
