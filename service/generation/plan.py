"""From parameters to a draw: what the model allows, what it gets by default, and how to ask for the same again."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import Range
from service.api.schemas import Decode, Encode, Generate, Interpolate
from service.codecs.images import EVENTS, Format, ImageBatch
from service.engine.catalog import Catalog, Model
from service.engine.request import Request, Sample, StartState
from service.errors import InvalidParameter, UnknownModel
from service.settings import Settings


class GenerationPlan(NamedTuple):
    """A request that the model can answer, and the words that ask for exactly it."""

    model: Model
    request: Request
    url_parts: tuple[str, str]
    """Its URL with every parameter that counts spelled out, before and after the value of the (first) seed."""
    seed: int
    version_pinned: bool
    """Whether it was asked for with its model's version, so that the same words never mean another draw."""
    reproducible: bool = True
    """Whether the words alone are enough to draw it again; an uploaded image is not among them."""

    @property
    def location(self) -> str:
        """The URL of the draw."""
        return f"{self.url_parts[0]}{self.seed}{self.url_parts[1]}"

    def metadata(self, root: str) -> dict[str, Any]:
        """What files say of it, of a service that is at `root`."""
        repeat = {"seed": self.seed, "url": root + self.location} if self.reproducible else {}
        return {"model": self.model.name, **repeat}

    def with_seed(self, seed: int) -> "GenerationPlan":
        """The same of /generate, at another seed."""
        samples = tuple(Sample(StartState(seed, one.start.index, one.start.label)) for one in self.request.samples)
        return self._replace(request=self.request._replace(samples=samples), seed=seed)

    def etag(self, scope: str) -> str:
        """A strong validator: equal ones promise equal bytes. `scope` is what arithmetic depends on besides."""
        text = "\n".join((self.model.digest, self.model.runner.fingerprint, scope, self.location))
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def find_model(catalog: Catalog, name: str) -> Model:
    """The model called `name`, or, by `name@digest`, that version of it; the first letters of a digest will do.

    Raises UnknownModel with those that there are.
    """
    name, _, digest = name.partition("@")
    here = [model for model in (catalog.models.get(name), catalog.previous.get(name)) if model is not None]
    for model in here:
        if model.digest.startswith(digest):
            return model
    names = sorted(catalog.models)
    if here:
        why = f"no version {digest!r} of {name}; there are: {', '.join(model.version for model in here)}"
        raise UnknownModel(why, models=[model.key for model in here])
    why = f"{name} cannot be served ({catalog.broken[name]})" if name in catalog.broken else f"no model {name!r}"
    raise UnknownModel(f"{why}; there are: {', '.join(names) or 'none'}", models=names)


def choose_model(
    catalog: Catalog, settings: Settings, parameters: Generate | Interpolate, *, uploads: bool = False
) -> Model:
    """The model that `parameters` name, else the default one. Raises UnknownModel, and InvalidParameter where a model
    has to be named.
    """
    if parameters.model is not None:
        return find_model(catalog, parameters.model)
    if uploads:
        raise InvalidParameter("model: name one that `encodes` the uploads; GET /models says which do")
    default = default_models(catalog, settings)["conditional" if parameters.digit else "unconditional"]
    if default is None:
        names = ", ".join(sorted(catalog.models)) or "none"
        raise InvalidParameter(f"model: the default one is not among the weights, so name one; there are: {names}")
    return catalog.models[default]


def default_models(catalog: Catalog, settings: Settings) -> dict[str, str | None]:
    """Which model draws where none is named, without a digit and with one; None where it is not there."""
    wanted = {"unconditional": settings.unconditional_model, "conditional": settings.conditional_model}
    return {kind: name if name in catalog.models else None for kind, name in wanted.items()}


def plan_generation(
    parameters: Generate, model: Model, format_: Format[ImageBatch], max_images: int, new_seed: Callable[[], int]
) -> GenerationPlan:
    """The draw that `parameters` ask of `model`, at a new seed where they name none. Raises InvalidParameter."""
    if parameters.n > max_images:
        raise InvalidParameter(
            f"n: at most {max_images} a request; ask for the rest with first={max_images}, and so on"
        )
    if parameters.previews and format_ is not EVENTS:
        raise InvalidParameter("previews: only with format=events, where there is a place for them")
    if len(parameters.digit) > max_images:
        raise InvalidParameter(f"digit: at most {max_images}, one for each image")
    check_labels(model, parameters.digit)
    seed = new_seed() if parameters.seed is None else parameters.seed
    digits = parameters.digit or [-1]
    indices = range(parameters.first, parameters.first + parameters.n)
    samples = tuple(Sample(StartState(seed, i, digits[i % len(digits)])) for i in indices)
    plan, words = _plan(model, parameters)
    rest = [("first", parameters.first), ("n", parameters.n), *(("digit", digit) for digit in parameters.digit)]
    request = _request(model, samples, plan, parameters)
    written = _words("/generate", model, [*rest, *words, ("format", format_.name)])
    return GenerationPlan(model, request, written, seed, _pinned(parameters, model))


def plan_interpolation(
    parameters: Interpolate,
    model: Model,
    format_: Format[ImageBatch],
    images: Sequence[Tensor],
    new_seed: Callable[[], int],
) -> GenerationPlan:
    """The draw of the way between two ends, likewise. `images` are the uploads, [1, 28, 28] each."""
    check_labels(model, parameters.digit)
    seeds = parameters.seed or [new_seed()]
    if images and not model.family.encodes:
        raise InvalidParameter(f"image: {model.name} has no encoder; GET /models says which do (`encodes`)")
    if images and (len(images) != 2 or len(parameters.seed) == 2):
        raise InvalidParameter("image: send two, and not two seeds besides")
    if not images and len(seeds) < 2 and len(parameters.digit) < 2:
        raise InvalidParameter("give two ends: `seed` twice, or `digit` twice, or two uploads called `image`")
    digits = parameters.digit or [-1]
    start = StartState(seeds[0], 0, digits[0], images[0] if images else None)
    end = StartState(seeds[-1], 0, digits[-1], images[-1] if images else None)
    last = parameters.frames - 1
    spherical = parameters.path == "spherical"
    samples = tuple(Sample(start, end, i / last, spherical) for i in range(parameters.frames))
    if images:  # what is not asked for otherwise is what brings them back
        missing = {name: value for name, value in model.family.inversion.items() if getattr(parameters, name) is None}
        parameters = parameters.model_copy(update=missing)
    plan, words = _plan(model, parameters)
    rest: list[tuple[str, Any]] = [
        *(("seed", seed) for seed in seeds[1:]),
        *(("digit", digit) for digit in parameters.digit),
    ]
    rest += [("frames", parameters.frames), ("path", parameters.path), *words, ("format", format_.name)]
    request = _request(model, samples, plan, parameters)
    written = _words("/interpolate", model, rest)
    return GenerationPlan(model, request, written, seeds[0], _pinned(parameters, model), not images)


def encode_endpoints(draw: GenerationPlan) -> Request:
    """What the engine is to do before a walk between two uploads: find their codes."""
    first = draw.request.samples[0]
    assert first.end is not None
    points, back = (Sample(first.start), Sample(first.end)), len(draw.model.runner.inversion_schedule)
    return draw.request._replace(samples=points, inversion_steps=back, codes_only=True)


def with_endpoint_codes(draw: GenerationPlan, codes: NDArray[np.float32]) -> GenerationPlan:
    """The walk between two uploads, with their codes [2, *S] in their place."""
    first = draw.request.samples[0]
    assert first.end is not None
    start, end = (
        point._replace(image=None, code=torch.from_numpy(code))
        for point, code in zip((first.start, first.end), codes, strict=True)
    )
    samples = tuple(sample._replace(start=start, end=end) for sample in draw.request.samples)
    return draw._replace(request=draw.request._replace(samples=samples))


def plan_encoding(parameters: Encode, model: Model, images: Sequence[Tensor], *, codes: bool) -> Request:
    """What the engine is to do with uploads [1, 28, 28] each: give their codes, or walk back from them to images."""
    _check_encoder(model, parameters)
    if not images:
        raise InvalidParameter("image: send at least one, as form fields called `image`")
    return _inverted(model, parameters, [{"image": image} for image in images], codes=codes)


def with_previews(request: Request) -> Request:
    """The same, with its images to be seen under way."""
    return request._replace(previews=True)


def plan_decoding(parameters: Decode, model: Model, max_images: int) -> Request:
    """What the engine is to do with codes: walk from them to images. Raises InvalidParameter."""
    _check_encoder(model, parameters)
    if len(parameters.codes) > max_images:
        raise InvalidParameter(f"codes: at most {max_images} a request")
    try:
        codes = torch.tensor(parameters.codes, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        codes = torch.empty(0)
    if codes.shape[1:] != model.code_shape or not bool(codes.isfinite().all()):
        raise InvalidParameter(f"codes: a list of arrays of shape {list(model.code_shape)}, of finite numbers")
    return _inverted(model, parameters, [{"code": code} for code in codes])


def _check_encoder(model: Model, parameters: Encode | Decode) -> None:
    """Raises InvalidParameter where the model has no encoder, or takes no such digits."""
    check_labels(model, parameters.digit)
    if not model.family.encodes:
        raise InvalidParameter(f"model: {model.name} has no encoder; GET /models says which do (`encodes`)")


def _inverted(
    model: Model, parameters: Encode | Decode, starts: Sequence[dict[str, Tensor]], *, codes: bool = False
) -> Request:
    """Chains from images or codes, by the plan that brings images back."""
    digits = parameters.digit or [-1]
    samples = tuple(Sample(StartState(0, i, digits[i % len(digits)], **start)) for i, start in enumerate(starts))
    plan = {"steps": model.steps, "sampler": model.sampler, **model.family.inversion}
    back = len(model.runner.inversion_schedule) if "image" in starts[0] else 0
    return Request(model.key, samples, **plan, inversion_steps=back, codes_only=codes)


def check_labels(model: Model, digits: Sequence[int]) -> None:
    """Raises InvalidParameter where the model takes no digit, or not these."""
    count = model.family.classes
    if digits and not count:
        raise InvalidParameter(f"digit: {model.name} cannot be told which digit to draw; GET /models says which can")
    if any(digit >= count for digit in digits):
        raise InvalidParameter(f"digit: {model.name} draws 0 to {count - 1}")


def _words(path: str, model: Model, rest: list[tuple[str, Any]]) -> tuple[str, str]:
    """The two ends of a URL that has a seed between them."""
    return f"{path}?{urlencode({'model': model.key}, safe='@')}&seed=", f"&{urlencode(rest)}"


def _pinned(parameters: Generate | Interpolate, model: Model) -> bool:
    return parameters.model == model.key


def _request(
    model: Model, samples: tuple[Sample, ...], plan: dict[str, Any], parameters: Generate | Interpolate
) -> Request:
    """What the engine is asked; how soon and how openly changes nothing of what is drawn."""
    previews = isinstance(parameters, Generate) and parameters.previews
    return Request(
        model.key, samples, **plan, priority=parameters.priority, timeout=parameters.timeout, previews=previews
    )


def _plan(model: Model, parameters: Generate | Interpolate) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Steps, sampler and guidance for the engine, and those of them that the model can be told as words."""
    family, plan, words = model.family, dict[str, Any](steps=model.steps), list[tuple[str, Any]]()
    if family.steps.minimum < family.steps.maximum:
        plan["steps"] = _within("steps", model, family.steps, parameters.steps, model.steps)
        words.append(("steps", plan["steps"]))
    elif parameters.steps not in (None, family.steps.default):
        raise InvalidParameter(f"steps: {model.name} takes {family.steps.default}, no more and no less")
    choices = {"sampler": parameters.sampler, "prior": parameters.prior}
    if family.samplers:
        word = family.sampler_parameter
        chosen = choices.pop(word)
        plan["sampler"] = model.sampler if chosen is None else chosen
        if plan["sampler"] not in family.samplers:
            raise InvalidParameter(f"{word}: {model.name} has {', '.join(family.samplers)}")
        words.append((word, plan["sampler"]))
    for other, chosen in choices.items():
        if chosen is not None:
            raise InvalidParameter(f"{other}: {model.name} gives no choice; leave it out")
    if family.guidance is not None:
        plan["guidance"] = _within("guidance", model, family.guidance, parameters.guidance, model.guidance)
        words.append(("guidance", plan["guidance"]))
    elif parameters.guidance is not None:
        raise InvalidParameter(f"guidance: {model.name} takes none; leave it out")
    return plan, words


def _within(name: str, model: Model, limits: Range[Any], value: Any, default: Any) -> Any:
    value = default if value is None else value
    if not limits.minimum <= value <= limits.maximum:
        raise InvalidParameter(f"{name}: {model.name} takes {limits.minimum} to {limits.maximum}")
    return value
