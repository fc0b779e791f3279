"""The API's description, as far as FastAPI cannot find it: bodies, and what may be wrong with a request.

OpenAPI 3.0 is older than the JSON Schema that pydantic writes; `plain` brings that down to it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from service import errors
from service.errors import MEDIA_TYPE, Problem

ANYWHERE: tuple[type[Problem], ...] = (
    errors.BadRequest, errors.Unauthorized, errors.HeadTooSlow, errors.BodyTooLarge, errors.HeadTooLarge,
    errors.QuotaExceeded, Problem,
)  # fmt: skip
"""What may be wrong with any request."""
DRAWING: tuple[type[Problem], ...] = (
    errors.UnknownModel, errors.NotAcceptable, errors.BodyTooSlow, errors.UnsupportedBody, errors.InvalidParameter,
    errors.QueueIsFull, errors.DrawFailed, errors.Unavailable, errors.TooLate,
)  # fmt: skip
"""What else may be wrong where something is drawn."""
INVALID = "422"
"""What FastAPI thinks of every route with a parameter, and says in words of its own."""
PROBLEM = {
    "type": "object",
    "description": "RFC 9457; `detail` says what to do.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
        "detail": {"type": "string"}, "instance": {"type": "string"},
    },
}  # fmt: skip


Dialect = Callable[[Problem], tuple[int, dict[str, Any]]]
"""Status and body of a problem, as another API tells of it."""


def completed(schema: dict[str, Any], dialects: Mapping[str, Dialect]) -> dict[str, Any]:
    """The description with all that may be wrong; below the prefixes of `dialects` it is told as they tell it."""
    for path, operations in schema["paths"].items():
        dialect = next((found for prefix, found in dialects.items() if path.startswith(f"{prefix}/")), None)
        for operation in operations.values():
            draws = "requestBody" in operation or "draw" in operation["tags"]
            kinds = (*ANYWHERE, *(DRAWING if draws else (errors.UnknownModel,) if "{name}" in path else ()))
            said = {status: answer for status, answer in operation["responses"].items() if status != INVALID}
            operation["responses"] = {**answers(kinds, dialect), **said}
    for unused in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(unused)
    schema["components"]["schemas"]["Problem"] = PROBLEM
    schema["paths"] = _plain(schema["paths"], {})
    return schema


def answers(kinds: Iterable[type[Problem]], dialect: Dialect | None) -> dict[str, Any]:
    """The responses that these problems are, by status."""
    titles: dict[str, list[str]] = {}
    for kind in kinds:
        status = kind.status if dialect is None else dialect(kind(""))[0]
        titles.setdefault(str(status), []).append(kind.title)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if dialect is not None:
        content = {"application/json": {"schema": {"type": "object"}}}
    return {status: {"description": "; ".join(found), "content": content} for status, found in sorted(titles.items())}


def body(schema: type[BaseModel], *, images: bool = False) -> dict[str, Any]:
    """The body of a POST whose parameters may as well be in the query, with or without uploads."""
    forms = {"application/json": {"schema": {**plain(schema), "required": []}}}
    if images:
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        forms["multipart/form-data"] = {"schema": {"type": "object", "properties": {"image": files}}}
    return {"content": forms, "description": "What is not in the query, each parameter once."}


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
