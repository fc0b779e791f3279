"""The parts of the OpenAPI document that FastAPI cannot derive: bodies, and the problems of each route.

`plain` converts pydantic's JSON Schema to the older dialect of OpenAPI 3.0.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from service import errors
from service.errors import MEDIA_TYPE, Problem

COMMON: tuple[type[Problem], ...] = (
    errors.BadRequest, errors.Unauthorized, errors.HeadersTooSlow, errors.BodyTooLarge, errors.HeadersTooLarge,
    errors.QuotaExceeded, Problem,
)  # fmt: skip
"""Problems of any route."""
GENERATING: tuple[type[Problem], ...] = (
    errors.UnknownModel, errors.NotAcceptable, errors.BodyTooSlow, errors.UnsupportedBody, errors.InvalidParameter,
    errors.QueueIsFull, errors.GenerationFailed, errors.Unavailable, errors.TimedOut,
)  # fmt: skip
"""Further problems of routes that generate images."""
INVALID = "422"
"""The status that FastAPI documents for every route with a parameter, with its own schema."""
PROBLEM = {
    "type": "object",
    "description": "RFC 9457; `detail` says what to do.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
        "detail": {"type": "string"}, "instance": {"type": "string"},
    },
}  # fmt: skip


Translate = Callable[[Problem], tuple[int, dict[str, Any]]]
"""Status and body of a problem in another API's error format."""


def complete(schema: dict[str, Any], translations: Mapping[str, Translate]) -> dict[str, Any]:
    """The document with all problems; below a prefix in `translations`, in that API's error format."""
    for path, operations in schema["paths"].items():
        translate = next((found for prefix, found in translations.items() if path.startswith(f"{prefix}/")), None)
        for operation in operations.values():
            generates = "requestBody" in operation or "generate" in operation["tags"]
            finds_model = any(one["name"] in ("name", "model") for one in operation.get("parameters", ()))
            kinds = (*COMMON, *(GENERATING if generates else (errors.UnknownModel,) if finds_model else ()))
            documented = {status: item for status, item in operation["responses"].items() if status != INVALID}
            operation["responses"] = {**problem_responses(kinds, translate), **documented}
    for unused in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(unused)
    schema["components"]["schemas"]["Problem"] = PROBLEM
    schema["paths"] = _plain(schema["paths"], {})
    return schema


def problem_responses(kinds: Iterable[type[Problem]], translate: Translate | None) -> dict[str, Any]:
    """The responses for these problems, by status."""
    titles: dict[str, list[str]] = {}
    for kind in kinds:
        status = kind.status if translate is None else translate(kind(""))[0]
        titles.setdefault(str(status), []).append(kind.title)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if translate is not None:
        content = {"application/json": {"schema": {"type": "object"}}}
    return {status: {"description": "; ".join(found), "content": content} for status, found in sorted(titles.items())}


def body(schema: type[BaseModel], uploads: Mapping[str, bool] = MappingProxyType({})) -> dict[str, Any]:
    """The body of a POST whose parameters may also be in the query.

    `uploads` are the names of uploads, each with whether it may be several files.
    """
    document = {**json_body(schema), "required": []}
    forms = {"application/json": {"schema": document}}
    if uploads:
        document["properties"] |= _files("byte", uploads)
        forms["multipart/form-data"] = {"schema": {"type": "object", "properties": _files("binary", uploads)}}
    return {"content": forms, "description": "Parameters that are not in the query."}


def _files(encoding: str, uploads: Mapping[str, bool]) -> dict[str, Any]:
    """The properties of uploads: a file, or a list of them where it may be several."""
    file = {"type": "string", "format": encoding}
    return {name: {"type": "array", "items": file} if several else file for name, several in uploads.items()}


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """The schema of a JSON body: null means "not given", and a single value stands for a list of one."""
    document = plain(schema)
    required = {name for name, field in schema.model_fields.items() if field.is_required()}
    for name, item in document["properties"].items():
        if item.get("type") == "array":
            texts = {key: item.pop(key) for key in ("description", "default") if key in item}
            item = document["properties"][name] = {"anyOf": [item, item["items"]], **texts}
        if name not in required:
            item["nullable"] = True
            if "enum" in item and None not in item["enum"]:
                item["enum"] = [*item["enum"], None]
    return document


def plain(schema: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model without references, null types, constants and numeric exclusive bounds."""
    whole = schema.model_json_schema()
    found = _plain(whole, whole.get("$defs", {}))
    assert isinstance(found, dict)
    return found


def _plain(part: Any, known: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_plain(item, known) for item in part]
    if not isinstance(part, dict):
        return part
    if (name := str(part.get("$ref", "")).rpartition("/")[2]) in known:
        return _plain(known[name], known)
    if "properties" in part:
        part = {**part, "properties": {name: _plain(item, known) for name, item in part["properties"].items()}}
    rest = {key: item if key == "properties" else _plain(item, known) for key, item in part.items()
            if key not in ("$defs", "title", "anyOf", "const")}  # fmt: skip
    if "const" in part:
        rest["enum"] = [part["const"]]
    if isinstance(bound := rest.get("exclusiveMinimum"), int | float) and not isinstance(bound, bool):
        rest |= {"minimum": bound, "exclusiveMinimum": True}
    kinds = [_plain(item, known) for item in part.get("anyOf", ())]
    others = [kind for kind in kinds if kind != {"type": "null"}]
    rest |= others[0] | rest if len(others) == 1 else {"anyOf": others} if others else {}
    if len(others) < len(kinds):
        rest["nullable"] = True
        rest |= {"enum": [*rest["enum"], None]} if "enum" in rest else {}
    return rest


def queries(schema: type[BaseModel]) -> list[dict[str, Any]]:
    """A model's fields as query parameters."""
    properties = plain(schema)["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": field.is_required(),
            "description": field.description or "",
            "schema": {
                key: value
                for key, value in properties[name].items()
                if key not in ("description", "nullable") and (key, value) != ("default", None)
            },
        }
        for name, field in schema.model_fields.items()
    ]
