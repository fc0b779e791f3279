"""/v2: the Open Inference Protocol with its binary tensors, for clients of Triton, KServe and the like.

Inputs, all INT64: `digit` [n] or `n` [1] says how many, and `seed` [1] which. Parameters of the request: `steps`,
`sampler`, `prior`, `guidance`, `first`, and `timeout` in microseconds. Outputs: `images` UINT8 [n, 28, 28] and `labels`
INT64 [n], -1 where the model was told none.
"""

import json
import math
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from service import draws, images, schemas
from service.catalog import Model
from service.errors import InvalidParameter, Problem, UnknownModel, UnsupportedBody
from service.state import State

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

BINARY = "Inference-Header-Content-Length"
KINDS = {"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "UINT64": np.uint64, "UINT32": np.uint32}
INPUTS = ("digit", "n", "seed")
PARAMETERS = ("steps", "sampler", "prior", "guidance", "first")


@router.get("")
async def server() -> dict[str, Any]:
    """What this is."""
    return {"name": "drawbridge", "version": "0.1.0", "extensions": ["binary_tensor_data"]}


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
    return {"name": name, "versions": [_version(model)], "platform": "drawbridge", "inputs": inputs, "outputs": outputs}


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def ready(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """Whether the model is served."""
    return {"name": _find(request, name, version).name, "ready": True}


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Draw."""
    state: State = request.app.state.service
    model = _find(request, name, version)
    head, binary = await _read(request)
    said = _tensors(head, binary)
    parameters = head.get("parameters", {})
    words: dict[str, Any] = {"model": name, **{key: parameters[key] for key in PARAMETERS if key in parameters}}
    if "timeout" in parameters:
        words["timeout"] = parameters["timeout"] / 1e6
    if "digit" in said:
        words |= {"digit": said["digit"].tolist(), "n": len(said["digit"])}
    for key in ("n", "seed"):
        if key in said:
            if said[key].size != 1:
                raise InvalidParameter(f"{key}: a tensor of one number")
            words[key] = int(said[key][0])
    if "digit" in said and words["n"] != len(said["digit"]):
        raise InvalidParameter("n: as many as there are digits, or left out")
    asked = schemas.validate(schemas.Generate, words)
    draw = draws.generate(asked, model, images.STILLS[0], state.settings.max_images, state.new_seed)
    result = (await state.draw(draw.request, request, request.receive)).result()
    told = {"model_name": name, "model_version": _version(model), "parameters": {"seed": draw.seed}}
    if "id" in head:
        told["id"] = head["id"]
    return _answer(told, head, {"images": result.images, "labels": result.labels})


def error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a problem, as this protocol tells of it."""
    return 400 if problem.status == 422 else problem.status, {"error": problem.detail}


def _find(request: Request, name: str, version: str | None) -> Model:
    model = draws.find(request.app.state.service.catalog, name)
    if version not in (None, "", _version(model)):
        raise UnknownModel(f"{name} is here as version {_version(model)} alone")
    return model


def _version(model: Model) -> str:
    return model.manifest.digest[:12]


async def _read(request: Request) -> tuple[dict[str, Any], memoryview]:
    """The JSON head of a request, and what comes after it."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedBody("send it as it is, without a Content-Encoding")
    body = memoryview(await request.body())
    length = request.headers.get(BINARY, str(len(body)))
    if not length.isdigit() or int(length) > len(body):
        raise InvalidParameter(f"{BINARY}: the number of bytes of the JSON that the body begins with")
    try:
        head = json.loads(bytes(body[: int(length)]))
    except (ValueError, RecursionError):
        raise InvalidParameter("the body does not begin with JSON") from None
    fields = {"inputs": list, "outputs": list, "parameters": dict}
    if not isinstance(head, dict) or any(not isinstance(head.get(key, kind()), kind) for key, kind in fields.items()):
        raise InvalidParameter("the JSON is an object with `inputs`, and perhaps `outputs`, `parameters` and `id`")
    if not isinstance(head.get("parameters", {}).get("timeout", 0), (int, float)):
        raise InvalidParameter("timeout: a number of microseconds")
    return head, body[int(length) :]


def _tensors(head: dict[str, Any], binary: memoryview) -> dict[str, NDArray[Any]]:
    """The inputs by their names, as flat arrays. Raises InvalidParameter."""
    found: dict[str, NDArray[Any]] = {}
    for item in head.get("inputs", []):
        if not isinstance(item, dict) or item.get("name") not in INPUTS or item.get("datatype") not in KINDS:
            raise InvalidParameter(f"inputs: each is one of {', '.join(INPUTS)}, INT64")
        kind, name = np.dtype(KINDS[item["datatype"]]), item["name"]
        size = item.get("parameters", {}).get("binary_data_size")
        try:
            count = math.prod(item["shape"])
            if size is None:
                array = np.array(item["data"], kind).reshape(-1)
            else:
                array = np.frombuffer(binary[:size], kind)
                binary = binary[size:]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InvalidParameter(f"{name}: its shape, datatype and data do not go together") from None
        if len(array) != count or not count:
            raise InvalidParameter(f"{name}: {len(array)} numbers, where its shape has {count}")
        found[name] = array
    if not found.keys() & {"digit", "n"}:
        raise InvalidParameter("inputs: give `digit` or `n`")
    return found


def _answer(told: dict[str, Any], head: dict[str, Any], outputs: dict[str, NDArray[Any]]) -> Response:
    """The outputs that are asked for, in JSON or behind it."""
    plain = bool(head.get("parameters", {}).get("binary_data_output", False))
    asked = dict.fromkeys(outputs, plain)
    if head.get("outputs"):
        listed = [item for item in head["outputs"] if isinstance(item, dict)]
        names = {str(item.get("name")): item.get("parameters", {}) for item in listed}
        if strangers := names.keys() - outputs.keys():
            raise InvalidParameter(f"outputs: no {', '.join(strangers)}; there are {', '.join(outputs)}")
        asked = {name: bool(options.get("binary_data", plain)) for name, options in names.items()}
    items, parts = [], []
    for name, binary in asked.items():
        array = outputs[name]
        item: dict[str, Any] = {"name": name, "shape": array.shape}
        item["datatype"] = "UINT8" if array.dtype == np.uint8 else "INT64"
        if binary:
            parts.append(array.tobytes())
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = array.reshape(-1).tolist()
        items.append(item)
    text = json.dumps({**told, "outputs": items}).encode()
    if not parts:
        return Response(text, media_type="application/json")
    return Response(b"".join((text, *parts)), media_type="application/octet-stream", headers={BINARY: str(len(text))})
