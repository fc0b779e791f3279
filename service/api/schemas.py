"""What requests may say, and how it is read: from the query, a JSON body, or a form."""

import typing
from functools import cache
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request

from models.noise import MAX_SEED
from service.engine.scheduler import Priority
from service.errors import InvalidParameter, UnsupportedBody

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Digit = Annotated[int, Field(ge=0)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="Name of the weights; GET /models lists them, and says which draw where none is named."
    )
    steps: int | None = Field(None, ge=1, description="Links of the chain, for models that take more than one.")
    sampler: str | None = Field(None, description="How the chain is walked, for models that give a choice.")
    prior: str | None = Field(None, description="What codes are drawn from, for models that give a choice.")
    guidance: float | None = Field(
        None, allow_inf_nan=False, description="Strength of the digit; 1 is the plain model."
    )
    priority: Priority = Field(
        "interactive",
        description="`bulk` has an eighth of the device's time that `interactive` has, while both wait.",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Seconds that it may take; what takes longer is refused, or leaves undrawn. Goes before a header "
        "X-Timeout, which says the same.",
    )
    format: str | None = Field(None, description="Format of the answer; goes before the Accept header.")


class Generate(_Parameters):
    """Parameters of /generate."""

    digit: list[Digit] = Field([], description="Digit to draw; may repeat: image i takes the i-th, cycling.")
    n: int = Field(1, ge=1, description="Number of images.")
    seed: Seed | None = Field(
        None, description="The same seed draws the same images; one is chosen where it is left out."
    )
    previews: bool = Field(False, description="With format `events`: show images under way, and how far they are.")
    first: int = Field(0, ge=0, le=2**53, description="Index of the first image: n images are first .. first + n - 1.")


class Interpolate(_Parameters):
    """Parameters of /interpolate: two seeds, or two digits at one seed, or two uploaded images."""

    seed: list[Seed] = Field([], max_length=2, description="Twice: the two ends. Once: where both digits are drawn.")
    digit: list[Digit] = Field([], max_length=2, description="Twice: the two ends. Once: the digit all along.")
    frames: int = Field(8, ge=2, le=256, description="Images from one end to the other, both included.")
    path: Literal["spherical", "linear"] = Field("spherical", description="The way between the two ends.")


class Encode(BaseModel):
    """Parameters of /encode and /reconstruct, beside the uploaded images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Name of the weights, one that `encodes`; GET /models says which do.")
    digit: list[Digit] = Field([], description="What the images show, for models that want to know; cycles.")
    format: str | None = Field(None, description="Format of the answer; goes before the Accept header.")


class Generations(BaseModel):
    """Parameters of /v1/images/generations: OpenAI's, and three of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(max_length=32_000, description="Names a digit, as a word or a numeral, or none.")
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str = "auto"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    response_format: Literal["b64_json"] | None = None
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    seed: Seed | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, allow_inf_nan=False)
    background: Any = Field(None, description="Like those below: taken, and without effect.")
    moderation: Any = None
    output_compression: Any = None
    quality: Any = None
    style: Any = None
    user: Any = None


class Decode(BaseModel):
    """Parameters of /decode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Name of the weights, one that `encodes`; GET /models says which do.")
    codes: list[Any] = Field(min_length=1, description="Codes of the model's `code_shape`, as /encode gives them.")
    digit: list[Digit] = Field([], description="What they show, for models that want to know; cycles.")
    format: str | None = Field(None, description="Format of the answer; goes before the Accept header.")


P = TypeVar("P", bound=BaseModel)


async def read(request: Request, schema: type[P], max_files: int = 2) -> tuple[P, list[bytes]]:
    """The request's parameters and uploads (form fields called `image`). Raises InvalidParameter, UnsupportedBody."""
    query = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    values = _gathered(query, schema)
    uploads: list[bytes] = []
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body: dict[str, Any] = {}
    if request.method == "GET":
        if kind and await request.body():
            raise UnsupportedBody("a GET says all in its URL, which is what caches know it by; send a body with POST")
    elif kind == "application/json":
        body = await _json(request)
    elif kind == "multipart/form-data":
        options = parse_options_header(request.headers["content-type"])[1]
        if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # some codecs take quadratic time
            raise UnsupportedBody("write the form in UTF-8, whatever its files hold")
        async with request.form(max_files=max_files, max_fields=32) as form:
            items = form.multi_items()
            if strangers := sorted(
                {name for name, value in items if (name == "image") != isinstance(value, UploadFile)}
            ):
                raise InvalidParameter(
                    f"{', '.join(strangers)}: uploads, and only they, are form fields called `image`"
                )
            uploads = [await value.read() for _, value in items if isinstance(value, UploadFile)]
            body = _gathered([(name, value) for name, value in items if isinstance(value, str)], schema)
    elif kind not in ("", "application/x-www-form-urlencoded") or (kind and await request.body()):
        raise UnsupportedBody("send parameters in the query, as application/json, or (with images) multipart/form-data")
    if twice := sorted(values.keys() & body.keys()):
        raise InvalidParameter(f"given in the query and again in the body: {', '.join(twice)}; give each once")
    said = {**values, **body}
    if "timeout" in schema.model_fields and (seconds := request.headers.get("x-timeout")) is not None:
        said.setdefault("timeout", seconds)
    parameters = validate(schema, said)
    if body and kind == "application/json":  # where a number is a number, and is not written as a string
        validate(schema, {**parameters.model_dump(exclude=set(body)), **body}, strict=True)
    return parameters, uploads


def validate(schema: type[P], values: dict[str, Any], *, strict: bool = False) -> P:
    """`values` as a `schema`, read from strings unless `strict`. Raises InvalidParameter that names each wrong one."""
    try:
        return schema.model_validate(values, strict=strict)
    except ValidationError as error:
        names = ", ".join(schema.model_fields)
        wrong = []
        for item in error.errors(include_url=False, include_context=False):
            parameter = ".".join(str(part) for part in item["loc"]) or "body"
            message = f"no such parameter; there are: {names}" if item["type"] == "extra_forbidden" else item["msg"]
            wrong.append({"parameter": parameter, "message": message})
        detail = "; ".join(f"{item['parameter']}: {item['message']}" for item in wrong)
        raise InvalidParameter(detail, errors=wrong) from None


def _gathered(items: list[tuple[str, str]], schema: type[BaseModel]) -> dict[str, Any]:
    """Names with their values: a list for a field that is one, else the only one there may be."""
    values: dict[str, Any] = {}
    lists = _lists(schema)
    for name, value in items:
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidParameter(f"{name}: given more than once; give it once")
        else:
            values[name] = value
    return values


@cache
def _lists(schema: type[BaseModel]) -> frozenset[str]:
    """The fields that may be given more than once."""
    return frozenset(name for name, field in schema.model_fields.items() if typing.get_origin(field.annotation) is list)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise InvalidParameter("the body does not read as JSON") from None
    if not isinstance(body, dict):
        raise InvalidParameter("the JSON body must be an object of parameters")
    return body
