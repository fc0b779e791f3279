"""Parameters of requests, as pydantic models."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from models.noise import MAX_SEED
from service.engine.request import NO_LABEL
from service.engine.scheduler import Priority
from service.errors import InvalidParameter

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _label_text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str):
        raise PydanticCustomError("label", "send the name or the number of a class")
    return value


Label = Annotated[
    str,
    Field(max_length=255),
    BeforeValidator(_label_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 255}, {"type": "integer", "minimum": 0}]}),
]
"""The name of a class, its number, or `none` (`service/generation/labels.py`)."""


def _parse_digit(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    return NO_LABEL if value == "none" else parse(value)


def _format_digit(digit: int) -> int | str:
    return "none" if digit == NO_LABEL else digit


Digit = Annotated[
    int,
    Field(ge=0),
    WrapValidator(_parse_digit),
    PlainSerializer(_format_digit, return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "enum": ["none"]}]}),
]
"""A class, or NO_LABEL, which requests spell `none`."""
DIGIT_HELP = "The same as `label`, for models whose classes are the digits."
Polarity = Annotated[
    Literal["auto", "dark-on-light", "light-on-dark"],
    Field(
        description="What uploaded pictures show, for models of digits: dark ink on light paper or the reverse; `auto` "
        "decides for each."
    ),
]


class Parameters(BaseModel):
    """Base of all parameters: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Sampling(Parameters):
    """Parameters that /generate and /interpolate share."""

    model: str | None = Field(
        None, description="Name of the weights, see GET /models, which also names the defaults for requests without it."
    )
    steps: int | None = Field(None, ge=1, description="Sampling steps, for models that take more than one.")
    sampler: str | None = Field(None, description="Sampler, for models that offer several.")
    prior: str | None = Field(None, description="Prior of the latent codes, for models that offer several.")
    guidance: float | None = Field(None, allow_inf_nan=False, description="Guidance scale; 1 is the plain model.")
    priority: Priority = Field(
        "interactive",
        description="While both kinds of requests wait, `bulk` gets an eighth of the device time of `interactive`.",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Seconds until the request fails with 504; requests that cannot finish in time are refused at "
        "once. The header X-Timeout says the same; the parameter takes precedence.",
    )
    format: str | None = Field(None, description="Format of the response; takes precedence over the Accept header.")


class Generate(_Sampling):
    """Parameters of /generate."""

    label: list[Label] = Field(
        [],
        description="Class to generate, by name or number (`classes` in GET /models); may repeat: image i takes the "
        "i-th, cycling. `none`: without a label. Default: the seed determines the class.",
    )
    digit: list[Digit] = Field([], description=DIGIT_HELP)
    n: int = Field(1, ge=1, description="Number of images.")
    seed: Seed | None = Field(None, description="The same seed gives the same images. Default: a random seed.")
    previews: bool = Field(False, description="With format `events`: send unfinished images and the progress.")
    guesses: bool = Field(
        False,
        description="With `previews`: also send what the model predicts as the final image, from models with `edits`.",
    )
    first: int = Field(0, ge=0, le=2**53, description="Index of the first image: n images are first .. first + n - 1.")


class Interpolate(_Sampling):
    """Parameters of /interpolate: two seeds, or two labels at one seed, or two uploaded images."""

    seed: list[Seed] = Field([], max_length=2, description="Two seeds are the ends; one seed is that of both labels.")
    label: list[Label] = Field([], max_length=2, description="Two labels are the ends; one label is that of all.")
    digit: list[Digit] = Field([], max_length=2, description=DIGIT_HELP)
    frames: int = Field(8, ge=2, le=256, description="Number of images, both ends included.")
    path: Literal["spherical", "linear"] = Field("spherical", description="Path between the ends.")
    polarity: Polarity = "auto"


class Vary(Generate):
    """Parameters of /vary, beside the uploaded image."""

    model: str = Field(description="Name of weights that edit images (`edits` in GET /models).")
    strength: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the chain that runs: how much noise the image gets, so how far the samples may be from "
        "it. 1 generates without the image.",
    )
    polarity: Polarity = "auto"


class Inpaint(Vary):
    """Parameters of /inpaint, beside the uploaded image and mask."""

    strength: float = Field(
        1.0,
        gt=0,
        le=1,
        description="How much noise the part to complete gets. At 1, what the image has there is without effect.",
    )


class Encode(Parameters):
    """Parameters of /encode and /reconstruct, beside the uploaded images."""

    model: str = Field(description="Name of weights with an encoder (`encodes` in GET /models).")
    label: list[Label] = Field([], description="Labels of the images, for conditional models; cycles.")
    digit: list[Digit] = Field([], description=DIGIT_HELP)
    polarity: Polarity = "auto"
    format: str | None = Field(None, description="Format of the response; takes precedence over the Accept header.")


class Nearest(Parameters):
    """Parameters of /nearest, beside the uploaded image."""

    model: str = Field(description="Name of weights whose training images are searched (`nearest` in GET /models).")
    n: int = Field(5, ge=1, le=100, description="Number of training images to return.")
    polarity: Polarity = "auto"


class Decode(Parameters):
    """Parameters of /decode."""

    model: str = Field(description="Name of weights with an encoder (`encodes` in GET /models).")
    codes: list[Any] = Field(min_length=1, description="Latent codes of the model's `code_shape`, as /encode returns.")
    label: list[Label] = Field([], description="Labels of the codes, for conditional models; cycles.")
    digit: list[Digit] = Field([], description=DIGIT_HELP)
    format: str | None = Field(None, description="Format of the response; takes precedence over the Accept header.")


P = TypeVar("P", bound=BaseModel)


def validate(schema: type[P], values: dict[str, Any], *, strict: bool = False) -> P:
    """`values` as a `schema`, with numbers as strings unless `strict`. Raises InvalidParameter with all errors."""
    try:
        return schema.model_validate(values, strict=strict)
    except ValidationError as error:
        names = ", ".join(schema.model_fields)
        errors = []
        for item in error.errors(include_url=False, include_context=False):
            parameter = ".".join(str(part) for part in item["loc"]) or "body"
            unknown = item["type"] == "extra_forbidden"
            listed = f"; the parameters are: {names}" if len(item["loc"]) == 1 else ""
            message = f"unknown parameter{listed}" if unknown else item["msg"]
            errors.append({"parameter": parameter, "message": message})
        detail = "; ".join(f"{item['parameter']}: {item['message']}" for item in errors)
        raise InvalidParameter(detail, errors=errors) from None
