"""/v2: the Open Inference Protocol with binary tensors, for clients of Triton, KServe and similar servers.

Inputs, all INT64: `digit` [n] or `n` [1] is the number of images, `seed` [1] their seed. Request parameters: `steps`,
`sampler`, `prior`, `guidance`, `first`, and `timeout` in microseconds. Outputs: `images` UINT8 [n, 28, 28] and `labels`
INT64 [n], -1 for no label.
"""

import json
import math
import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service import VERSION
from service.api import openapi_schema
from service.api.context import AppContext
from service.engine.catalog import Model
from service.errors import InvalidParameter, Problem, UnsupportedBody
from service.generation.parameters import Generate, validate
from service.generation.plan import plan_generation
from service.generation.selection import find_model

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
DATATYPES = {"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "UINT64": np.uint64, "UINT32": np.uint32}
INPUTS = ("digit", "n", "seed")


class _InputOptions(BaseModel):
    binary_data_size: int | None = Field(None, ge=0)


class _Input(BaseModel):
    name: Literal["digit", "n", "seed"]
    datatype: Literal["INT64", "INT32", "UINT8", "UINT64", "UINT32"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**32)]], Field(max_length=8)]
    data: list[Any] | None = None
    parameters: _InputOptions = _InputOptions()


class _OutputOptions(BaseModel):
    binary_data: bool | None = None


class _Output(BaseModel):
    name: Literal["images", "labels"]
    parameters: _OutputOptions = _OutputOptions()


class _Options(BaseModel):
    """The sampling options have the bounds of /generate."""

    steps: int | None = None
    sampler: str | None = None
    prior: str | None = None
    guidance: float | None = None
    first: int | None = None
    timeout: int | None = Field(None, description="Microseconds.")
    binary_data_output: bool = False


class InferenceRequest(BaseModel):
    """The JSON of a request; unknown members are ignored."""

    id: str | None = None
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


@router.get("")
async def server() -> dict[str, Any]:
    """Name and version of this server."""
    return {"name": "drawbridge", "version": VERSION, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
@router.get("/health/ready")
async def health() -> dict[str, Any]:
    """Whether the server responds; /readyz checks every model."""
    return {"live": True, "ready": True}


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """The model's inputs and outputs."""
    model = _find(request, name, version)
    names = [part for part in INPUTS if part != "digit" or model.family.classes]
    inputs = [{"name": part, "datatype": "INT64", "shape": [-1] if part == "digit" else [1]} for part in names]
    outputs = [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]},
        {"name": "labels", "datatype": "INT64", "shape": [-1]},
    ]
    return {"name": name, "versions": [model.version], "platform": "drawbridge", "inputs": inputs, "outputs": outputs}


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def ready(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """Whether the model is served."""
    return {"name": _find(request, name, version).name, "ready": True}


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


def _find(request: Request, name: str, version: str | None) -> Model:
    return find_model(request.app.state.service.catalog, f"{name}@{version or ''}")


async def _read(request: Request) -> tuple[InferenceRequest, memoryview]:
    """The JSON at the start of the body, and the bytes after it."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedBody("send the body without a Content-Encoding")
    body = memoryview(await request.body())
    length = request.headers.get(JSON_LENGTH_HEADER, str(len(body)))
    if not re.fullmatch("[0-9]{1,10}", length) or int(length) > len(body):
        raise InvalidParameter(f"{JSON_LENGTH_HEADER}: send the length in bytes of the JSON at the start of the body")
    try:
        document = json.loads(bytes(body[: int(length)]))
    except (ValueError, RecursionError):
        raise InvalidParameter("the body does not start with valid JSON") from None
    return validate(InferenceRequest, document, strict=True), body[int(length) :]


def _parameters(body: InferenceRequest, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Parameters of /generate. Raises InvalidParameter."""
    values = body.parameters.model_dump(exclude_none=True, exclude={"binary_data_output", "timeout"})
    if body.parameters.timeout is not None:
        values["timeout"] = body.parameters.timeout / 1e6
    for name in ("n", "seed"):
        if name in tensors:
            if tensors[name].size != 1:
                raise InvalidParameter(f"{name}: send a tensor with one number")
            values[name] = int(tensors[name][0])
    if "digit" in tensors:
        values["digit"] = tensors["digit"].tolist()
        if values.setdefault("n", len(tensors["digit"])) != len(tensors["digit"]):
            raise InvalidParameter("n: must equal the number of digits, or be left out")
    return values


def _tensors(body: InferenceRequest, binary: memoryview) -> dict[str, NDArray[Any]]:
    """The inputs by name, as flat arrays. Raises InvalidParameter."""
    tensors: dict[str, NDArray[Any]] = {}
    for item in body.inputs:
        dtype, size = np.dtype(DATATYPES[item.datatype]), item.parameters.binary_data_size
        try:
            if size is None:
                if np.array(item.data).dtype.kind not in "iu":
                    raise TypeError("not integers")
                tensors[item.name] = np.array(item.data, dtype).reshape(-1)
            else:
                tensors[item.name] = np.frombuffer(binary[:size], dtype)
                binary = binary[size:]
        except (TypeError, ValueError, OverflowError):
            raise InvalidParameter(f"{item.name}: the data does not match its datatype") from None
        count = math.prod(item.shape)
        if len(tensors[item.name]) != count or not count:
            raise InvalidParameter(f"{item.name}: {len(tensors[item.name])} numbers, but its shape has {count}")
    if not tensors.keys() & {"digit", "n"}:
        raise InvalidParameter("inputs: send `digit` or `n`")
    return tensors


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
