"""/v2: the Open Inference Protocol with its binary tensors, for clients of Triton, KServe and the like.

Inputs, all INT64: `digit` [n] or `n` [1] says how many, and `seed` [1] which. Parameters of the request: `steps`,
`sampler`, `prior`, `guidance`, `first`, and `timeout` in microseconds. Outputs: `images` UINT8 [n, 28, 28] and `labels`
INT64 [n], -1 where the model was told none.
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
from service.api import openapi_schema, schemas
from service.api.context import AppContext
from service.codecs import images
from service.engine.catalog import Model
from service.errors import InvalidParameter, Problem, UnsupportedBody
from service.generation import plan

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

BINARY = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
KINDS = {"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "UINT64": np.uint64, "UINT32": np.uint32}
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
    """Those of /generate have the same bounds there."""

    steps: int | None = None
    sampler: str | None = None
    prior: str | None = None
    guidance: float | None = None
    first: int | None = None
    timeout: int | None = Field(None, description="Microseconds.")
    binary_data_output: bool = False


class Asked(BaseModel):
    """The JSON of a request, as the protocol has it; members of it that mean nothing here are passed over."""

    id: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: _Options = _Options()


DESCRIBED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": openapi_schema.plain(Asked)}, OCTETS: {}},
    },
    "responses": {"200": {"content": {OCTETS: {}}}},
}
"""What FastAPI cannot know of a route that reads its body itself."""


@router.get("")
async def server() -> dict[str, Any]:
    """What this is."""
    return {"name": "drawbridge", "version": VERSION, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
@router.get("/health/ready")
async def health() -> dict[str, Any]:
    """Whether it answers; /readyz tells of every model."""
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


@router.post("/models/{name}/infer", openapi_extra=DESCRIBED)
@router.post("/models/{name}/versions/{version}/infer", openapi_extra=DESCRIBED)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Draw."""
    state: AppContext = request.app.state.service
    model = _find(request, name, version)
    asked, binary = await _read(request)
    said = _tensors(asked, binary)
    words = asked.parameters.model_dump(exclude_none=True, exclude={"binary_data_output", "timeout"})
    if asked.parameters.timeout is not None:
        words["timeout"] = asked.parameters.timeout / 1e6
    for key in ("n", "seed"):
        if key in said:
            if said[key].size != 1:
                raise InvalidParameter(f"{key}: a tensor of one number")
            words[key] = int(said[key][0])
    if "digit" in said:
        words["digit"] = said["digit"].tolist()
        if words.setdefault("n", len(said["digit"])) != len(said["digit"]):
            raise InvalidParameter("n: as many as there are digits, or left out")
    parameters = schemas.validate(schemas.Generate, {"model": model.key, **words})
    draw = plan.plan_generation(parameters, model, images.IMAGE_FORMATS[0], state.settings.max_images, state.new_seed)
    result = (await state.draw(draw.request, model, request, seed=draw.seed)).result()
    told = {"model_name": name, "model_version": model.version, "parameters": {"seed": draw.seed}}
    if asked.id is not None:
        told["id"] = asked.id
    return _answer(told, asked, {"images": result.images, "labels": result.labels})


def error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a problem, as this protocol tells of it."""
    return 400 if problem.status == 422 else problem.status, {"error": problem.detail}


def _find(request: Request, name: str, version: str | None) -> Model:
    return plan.find_model(request.app.state.service.engine.catalog, f"{name}@{version or ''}")


async def _read(request: Request) -> tuple[Asked, memoryview]:
    """The JSON head of a request, and what comes after it."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedBody("send it as it is, without a Content-Encoding")
    body = memoryview(await request.body())
    length = request.headers.get(BINARY, str(len(body)))
    if not re.fullmatch("[0-9]{1,10}", length) or int(length) > len(body):
        raise InvalidParameter(f"{BINARY}: the number of bytes of the JSON that the body begins with")
    try:
        head = json.loads(bytes(body[: int(length)]))
    except (ValueError, RecursionError):
        raise InvalidParameter("the body does not begin with JSON") from None
    return schemas.validate(Asked, head, strict=True), body[int(length) :]


def _tensors(asked: Asked, binary: memoryview) -> dict[str, NDArray[Any]]:
    """The inputs by their names, as flat arrays. Raises InvalidParameter."""
    found: dict[str, NDArray[Any]] = {}
    for item in asked.inputs:
        kind, size = np.dtype(KINDS[item.datatype]), item.parameters.binary_data_size
        try:
            if size is None:
                if np.array(item.data).dtype.kind not in "iu":
                    raise TypeError("not whole numbers")
                found[item.name] = np.array(item.data, kind).reshape(-1)
            else:
                found[item.name] = np.frombuffer(binary[:size], kind)
                binary = binary[size:]
        except (TypeError, ValueError, OverflowError):
            raise InvalidParameter(f"{item.name}: its datatype and data do not go together") from None
        count = math.prod(item.shape)
        if len(found[item.name]) != count or not count:
            raise InvalidParameter(f"{item.name}: {len(found[item.name])} numbers, where its shape has {count}")
    if not found.keys() & {"digit", "n"}:
        raise InvalidParameter("inputs: give `digit` or `n`")
    return found


def _answer(told: dict[str, Any], asked: Asked, outputs: dict[str, NDArray[Any]]) -> Response:
    """The outputs that are asked for, in JSON or behind it."""
    plain = asked.parameters.binary_data_output
    wanted: dict[str, bool | None] = {item.name: item.parameters.binary_data for item in asked.outputs}
    if not wanted:
        wanted = dict.fromkeys(outputs, plain)
    items, parts = [], []
    for name, binary in wanted.items():
        array = outputs[name]
        item: dict[str, Any] = {"name": name, "shape": array.shape}
        item["datatype"] = "UINT8" if array.dtype == np.uint8 else "INT64"
        if plain if binary is None else binary:
            parts.append(array.tobytes())
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = array.reshape(-1).tolist()
        items.append(item)
    text = json.dumps({**told, "outputs": items}).encode()
    if not parts:
        return Response(text, media_type="application/json")
    return Response(b"".join((text, *parts)), media_type=OCTETS, headers={BINARY: str(len(text))})
