"""/v2: the Open Inference Protocol with binary tensors, for clients of Triton, KServe and similar servers.

Inputs: `label` [n], the names of classes in BYTES, or their numbers, or `n` [1] is the number of images; `seed` [1] is
their seed. Numbers are whole, in INT64 or any other type of numbers. `digit` means `label` for models whose classes are
the digits. Request parameters: `steps`, `sampler`, `prior`, `guidance`, `first`, and `timeout` in
microseconds. Outputs: `images` UINT8 [n, H, W], or [n, H, W, 3] in colour, and `labels` INT64 [n], -1 for no label.
"""

import asyncio
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service import VERSION
from service.api import openapi_schema, parsing
from service.api.context import AppContext
from service.api.limits import max_body_bytes
from service.engine.catalog import Model
from service.errors import BodyTooLarge, InvalidParameter, Problem, UnsupportedBody
from service.generation.parameters import Generate, Parameters, validate
from service.generation.plan import plan_generation
from service.generation.selection import find_model

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
Datatype = Literal[
    "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BYTES"
]  # fmt: skip
LABELS = ("label", "digit")
"""The inputs with an element per image, of which a request has at most one."""
FIRST_VERSION = "1"
"""The name that clients of other servers give to a model's version where they must give one: the served version."""
CONTENTS = (
    "of the Open Inference Protocol, this service has health, metadata, config, stats, the repository's index and "
    "infer; it loads and unloads weights by itself"
)


class _Part(BaseModel):
    """Base of the parts of a request: unknown members are errors."""

    model_config = ConfigDict(extra="forbid")


class _InputOptions(_Part):
    binary_data_size: int | None = Field(None, ge=0)


class _Input(_Part):
    name: Literal["label", "digit", "n", "seed"]
    datatype: Datatype
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**32)]], Field(max_length=8)]
    data: list[Any] | None = None
    parameters: _InputOptions = _InputOptions()


class _OutputOptions(_Part):
    binary_data: bool | None = None


class _Output(_Part):
    name: Literal["images", "labels"]
    parameters: _OutputOptions = _OutputOptions()


class _Options(_Part):
    """The sampling options have the bounds of /generate."""

    steps: int | None = None
    sampler: str | None = None
    prior: str | None = None
    guidance: float | None = None
    first: int | None = None
    timeout: int | None = Field(None, description="Microseconds.")
    binary_data_output: bool = False


class InferenceRequest(_Part):
    """The JSON of a request."""

    id: str | None = None
    model_name: str | None = Field(None, description="Without effect, like the version: the URL names the model.")
    model_version: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: _Options = _Options()


DOCUMENTED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": openapi_schema.plain(InferenceRequest)}, OCTETS: {}},
    },
    "responses": {"200": {"content": {OCTETS: {}}}},
}
"""OpenAPI of the routes, which read their bodies themselves."""
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Loading.", "content": {"application/json": {}}}}


@router.get("")
async def server() -> dict[str, Any]:
    """Name and version of this server."""
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    return {"name": "drawbridge", "version": VERSION, "extensions": extensions}


@router.get("/health/live")
@router.get("/health/ready")
async def health() -> dict[str, Any]:
    """Whether the server responds; /readyz checks every model."""
    return {"live": True, "ready": True}


class RepositoryIndex(Parameters):
    """Parameters of the repository's index."""

    ready: bool = Field(False, description="List only models that are ready.")


@router.post("/repository/index", openapi_extra={"requestBody": openapi_schema.body(RepositoryIndex)})
async def repository_index(request: Request) -> list[dict[str, Any]]:
    """All models, and those whose weights do not load. A model that requests load when they need it is ready."""
    service: AppContext = request.app.state.service
    parameters, _ = await parsing.read(request, RepositoryIndex, max_files=0)
    index = [
        {"name": model.name, "version": model.version, "state": _state(service, model), "reason": ""}
        for model in service.catalog.models.values()
    ]
    broken = {name: reason for name, reason in service.catalog.broken.items() if name not in service.catalog.models}
    index += [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": broken[name]} for name in broken]
    return [entry for entry in index if entry["state"] == "READY" or not parameters.ready]


@router.get("/models/stats")
async def all_statistics(request: Request) -> dict[str, Any]:
    """The statistics of all models."""
    return await _statistics(request, list(request.app.state.service.catalog.models.values()))


@router.get("/models/{name}/stats")
@router.get("/models/{name}/versions/{version}/stats")
async def statistics(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """What all workers have generated since the start, by model: versions are not counted separately."""
    return await _statistics(request, [_find(request, name, version)])


@router.get("/models/{name}/config")
@router.get("/models/{name}/versions/{version}/config")
async def config(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """The model's inputs and outputs in the form of Triton's model configuration, and the names of its classes."""
    model = _find(request, name, version)
    inputs, outputs = _tensors_of(model)
    return {
        "name": name,
        "platform": "drawbridge",
        "backend": "drawbridge",
        "max_batch_size": 0,  # the first dimension of a tensor is not a batch's: a request is one call
        "input": [_config_of(tensor) for tensor in inputs],
        "output": [_config_of(tensor) for tensor in outputs],
        "classes": model.classes,
    }


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """The model's inputs and outputs."""
    model = _find(request, name, version)
    inputs, outputs = _tensors_of(model)
    return {"name": name, "versions": [model.version], "platform": "drawbridge", "inputs": inputs, "outputs": outputs}


@router.get("/models/{name}/ready", responses=NOT_READY)
@router.get("/models/{name}/versions/{version}/ready", responses=NOT_READY)
async def ready(request: Request, name: str, version: str | None = None) -> JSONResponse:
    """Whether the model is in memory, or is loaded when a request needs it."""
    model = _find(request, name, version)
    ready = _state(request.app.state.service, model) == "READY"
    return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)


@router.post("/models/{name}/infer", openapi_extra=DOCUMENTED)
@router.post("/models/{name}/versions/{version}/infer", openapi_extra=DOCUMENTED)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Generate images."""
    service: AppContext = request.app.state.service
    model = _find(request, name, version)
    body, binary = await _read(request)
    parameters = validate(Generate, {"model": model.key, **_parameters(body, _tensors(body, binary))})
    plan = plan_generation(parameters, model, "png", service.settings.max_images, service.new_seed)
    result = (await service.generate(plan.request, model, request, seed=plan.seed)).result()
    document = {"model_name": name, "model_version": model.version, "parameters": {"seed": plan.seed}}
    if body.id is not None:
        document["id"] = body.id
    return _response(document, body, {"images": result.images, "labels": result.labels})


def error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a problem in this protocol's error format."""
    return 400 if problem.status == 422 else problem.status, {"error": problem.detail}


def _state(service: AppContext, model: Model) -> str:
    return "LOADING" if service.loader.state(model) == "loading" else "READY"


def _find(request: Request, name: str, version: str | None) -> Model:
    digest = "" if version in (None, FIRST_VERSION) else version
    return find_model(request.app.state.service.catalog, f"{name}@{digest}")


def _tensors_of(model: Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The model's inputs and outputs."""
    inputs: list[dict[str, Any]] = []
    if model.classes:
        inputs.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
    if model.classes_are_digits:
        inputs.append({"name": "digit", "datatype": "INT64", "shape": [-1]})
    inputs += [{"name": name, "datatype": "INT64", "shape": [1]} for name in ("n", "seed")]
    outputs = [
        {"name": "images", "datatype": "UINT8", "shape": [-1, *model.image_shape]},
        {"name": "labels", "datatype": "INT64", "shape": [-1]},
    ]
    return inputs, outputs


def _config_of(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"]}


async def _statistics(request: Request, models: list[Model]) -> dict[str, Any]:
    request.app.flush_telemetry()
    totals = await asyncio.to_thread(request.app.metrics.model_totals)
    return {"model_stats": [_statistics_of(model, totals[model.name]) for model in models]}


def _statistics_of(model: Model, totals: Mapping[str, float]) -> dict[str, Any]:
    """The statistics of a model. Requests share device steps, so durations are those of steps and not of requests."""

    def duration(name: str) -> dict[str, int]:
        return {"count": int(totals[f"{name}_count"]), "ns": round(1e9 * totals[f"{name}_sum"])}

    return {
        "name": model.name,
        "version": model.version,
        "inference_count": int(totals["images_total"]),
        "execution_count": int(totals["step_duration_seconds_count"]),
        "inference_stats": {
            "success": {"count": int(totals["requests_total_2xx"])},
            "fail": {"count": int(totals["requests_total_4xx"] + totals["requests_total_5xx"])},
            "queue": duration("queue_wait_seconds"),
            "compute_infer": duration("step_duration_seconds"),
        },
    }


async def _read(request: Request) -> tuple[InferenceRequest, memoryview]:
    """The JSON at the start of the body, and the bytes after it."""
    body = memoryview(await _decoded_body(request))
    length = request.headers.get(JSON_LENGTH_HEADER, str(len(body)))
    if not re.fullmatch("[0-9]{1,10}", length) or int(length) > len(body):
        raise InvalidParameter(f"{JSON_LENGTH_HEADER}: send the length in bytes of the JSON at the start of the body")
    try:
        document = json.loads(bytes(body[: int(length)]), object_pairs_hook=_without_nulls)
    except (ValueError, RecursionError):
        raise InvalidParameter("the body does not start with valid JSON") from None
    return validate(InferenceRequest, document, strict=True), body[int(length) :]


def _without_nulls(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's members; null is the same as leaving one out."""
    return {name: value for name, value in members if value is not None}


async def _decoded_body(request: Request) -> bytes:
    """The body without its Content-Encoding. Raises UnsupportedBody, InvalidParameter or BodyTooLarge."""
    body, encoding = await request.body(), request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedBody("Content-Encoding: gzip and deflate are understood; or send the body without it")
    limit = max_body_bytes(request.scope, request.app.state.service.settings)
    return await asyncio.to_thread(_decompress, body, limit)


def _decompress(body: bytes, limit: int) -> bytes:
    """The content of gzip or zlib data, of at most `limit` bytes."""
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # by the data's header
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidParameter("the body is not what its Content-Encoding says") from None
    if len(content) > limit:
        raise BodyTooLarge(f"send at most {limit} bytes; these are more once they are decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidParameter("the body's compressed data ends too early or goes on behind its end")
    return content


def _parameters(body: InferenceRequest, tensors: dict[str, list[Any]]) -> dict[str, Any]:
    """Parameters of /generate. Raises InvalidParameter."""
    values = body.parameters.model_dump(exclude_none=True, exclude={"binary_data_output", "timeout"})
    if body.parameters.timeout is not None:
        values["timeout"] = body.parameters.timeout / 1e6
    for name in ("n", "seed"):
        if name in tensors:
            if len(tensors[name]) != 1:
                raise InvalidParameter(f"{name}: send a tensor with one number")
            (values[name],) = tensors[name]
    for name in tensors.keys() & LABELS:
        values[name] = tensors[name]
        if values.setdefault("n", len(tensors[name])) != len(tensors[name]):
            raise InvalidParameter(f"n: must equal the number of {name}s, or be left out")
    return values


def _tensors(body: InferenceRequest, binary: memoryview) -> dict[str, list[Any]]:
    """The inputs by name, flattened: strings in BYTES, otherwise integers. Raises InvalidParameter."""
    tensors: dict[str, list[Any]] = {}
    for item in body.inputs:
        if item.name in tensors:
            raise InvalidParameter(f"{item.name}: send it once")
        size = item.parameters.binary_data_size
        read = _strings if item.name == "label" and item.datatype == "BYTES" else _integers
        tensors[item.name] = read(item, None if size is None else binary[:size])
        binary = binary[size or 0 :]
        count = math.prod(item.shape)
        if len(tensors[item.name]) != count or not count:
            raise InvalidParameter(f"{item.name}: {len(tensors[item.name])} elements, but its shape has {count}")
    if len(binary):
        raise InvalidParameter(f"inputs: {len(binary)} bytes follow the tensors; send their `binary_data_size`")
    if not tensors.keys() & {*LABELS, "n"}:
        raise InvalidParameter("inputs: send `label` or `n`")
    return tensors


def _strings(item: _Input, binary: memoryview | None) -> list[str]:
    """A tensor of strings: in JSON, or each after its length, a little-endian uint32. Raises InvalidParameter."""
    try:
        return _elements(item.data, str) if binary is None else list(_unpack_strings(binary))
    except ValueError:
        raise InvalidParameter(f"{item.name}: send strings in UTF-8, or numbers in a datatype of numbers") from None


def _unpack_strings(binary: memoryview) -> Iterator[str]:
    while binary:
        end = 4 + int.from_bytes(binary[:4], "little")
        if len(binary) < end:
            raise ValueError("the last string is incomplete")
        yield bytes(binary[4:end]).decode()
        binary = binary[end:]


def _integers(item: _Input, binary: memoryview | None) -> list[int]:
    """A tensor of whole numbers: in JSON or as bytes. Raises InvalidParameter."""
    if item.datatype == "BYTES":
        raise InvalidParameter(f"{item.name}: send whole numbers, in a datatype of numbers")
    dtype = np.dtype(item.datatype.lower().replace("fp", "float"))
    try:
        values = np.array(_elements(item.data, int, float)) if binary is None else np.frombuffer(binary, dtype)
        return _whole_numbers(values, dtype)
    except (ValueError, OverflowError):
        raise InvalidParameter(f"{item.name}: send whole numbers of its datatype, {item.datatype}") from None


def _elements(data: list[Any] | None, *kinds: type) -> list[Any]:
    """The elements of a tensor in JSON, flattened. Raises ValueError if it is ragged, or they are of other kinds.

    NumPy would make all strings as long as the longest.
    """
    elements: list[Any] = np.array(data, object).reshape(-1).tolist()
    if any(type(element) not in kinds for element in elements):
        raise ValueError("elements of other kinds")
    return elements


def _whole_numbers(values: NDArray[Any], dtype: np.dtype[Any]) -> list[int]:
    """`values` as a flat list of integers. Raises ValueError if they are not whole, or not in the range of `dtype`."""
    if values.dtype.kind == "f" and np.all((np.abs(values) < 2**63) & (values == np.floor(values))):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError("not whole numbers")
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise ValueError("out of range")
    integers: list[int] = values.reshape(-1).tolist()
    return integers


def _response(document: dict[str, Any], body: InferenceRequest, outputs: dict[str, NDArray[Any]]) -> Response:
    """The requested outputs, in JSON or as binary data after it."""
    default = body.parameters.binary_data_output
    requested: dict[str, bool | None] = {item.name: item.parameters.binary_data for item in body.outputs}
    if not requested:
        requested = dict.fromkeys(outputs, default)
    items, parts = [], []
    for name, binary in requested.items():
        array = outputs[name]
        item: dict[str, Any] = {"name": name, "shape": array.shape}
        item["datatype"] = "UINT8" if array.dtype == np.uint8 else "INT64"
        if default if binary is None else binary:
            parts.append(array.tobytes())
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = array.reshape(-1).tolist()
        items.append(item)
    text = json.dumps({**document, "outputs": items}).encode()
    if not parts:
        return Response(text, media_type="application/json")
    return Response(b"".join((text, *parts)), media_type=OCTETS, headers={JSON_LENGTH_HEADER: str(len(text))})
