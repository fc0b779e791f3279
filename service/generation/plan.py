"""Plans: an engine request, checked against the model, and the URL that reproduces it."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from torch import Tensor

from models.base import Range
from service.engine.catalog import Model
from service.engine.request import ANY_LABEL, NO_LABEL, Edit, Request, Sample, StartState
from service.errors import InvalidParameter
from service.generation.labels import format_label, labels_of
from service.generation.parameters import Generate, Interpolate, Vary

COMPLETION_STEPS = 20
"""The least default number of steps for completing an image. Each step adapts what is generated to what is known."""


class GenerationPlan(NamedTuple):
    """A request that the model can answer."""

    model: Model
    request: Request
    url_parts: tuple[str, str]
    """The URL with every relevant parameter, before and after the value of the (first) seed."""
    seed: int
    immutable: bool
    """Whether the client named the model's version and every option for which its manifest has a default: a reload may
    change those defaults."""
    reproducible: bool = True
    """Whether the URL alone reproduces the images; not with uploaded images."""
    recipe: tuple[dict[str, Any], list[str]] | None = None
    """Of /generate: the options that the model lets clients choose, and the requested labels."""

    @property
    def location(self) -> str:
        """The URL that reproduces the images, relative to the service's root."""
        return f"{self.url_parts[0]}{self.seed}{self.url_parts[1]}"

    def metadata(self, root: str) -> dict[str, Any]:
        """What containers say about their images; `root` is the path that the service is mounted at."""
        reproduce = {"url": root + self.location} if self.reproducible else {}
        return {"model": self.model.name, "seed": self.seed, **reproduce}

    def with_seed(self, seed: int) -> "GenerationPlan":
        """The same plan of /generate with another seed."""
        samples = tuple(Sample(StartState(seed, one.start.index, one.start.label)) for one in self.request.samples)
        return self._replace(request=self.request._replace(samples=samples), seed=seed)

    def etag(self, scope: str) -> str:
        """A strong ETag: equal tags promise equal bytes. `scope` is everything else that the arithmetic depends on."""
        text = "\n".join((self.model.digest, self.model.fingerprint, scope, self.location))
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def plan_generation(
    parameters: Generate, model: Model, format_name: str, max_images: int, new_seed: Callable[[], int]
) -> GenerationPlan:
    """The plan of a /generate request, with a new seed if it names none. Raises InvalidParameter."""
    if parameters.n > max_images:
        raise InvalidParameter(
            f"n: at most {max_images} per request; request the rest with first={max_images}, and so on"
        )
    if parameters.previews and format_name != "events":
        raise InvalidParameter("previews: only with format=events")
    if parameters.guesses and not (parameters.previews and model.family.edits):
        raise InvalidParameter("guesses: only with previews=true, and from models with `edits` in GET /models")
    if len(parameters.label or parameters.digit) > max_images:
        raise InvalidParameter(f"{'label' if parameters.label else 'digit'}: at most {max_images}, one per image")
    named = labels_of(model, parameters)
    labels = named or [ANY_LABEL]
    seed = new_seed() if parameters.seed is None else parameters.seed
    indices = range(parameters.first, parameters.first + parameters.n)
    samples = tuple(Sample(StartState(seed, i, labels[i % len(labels)])) for i in indices)
    options, query = _sampling_options(model, parameters)
    immutable = parameters.model == model.key and all(getattr(parameters, name) is not None for name, _ in query)
    recipe = (dict(query), [format_label(model, label) for label in named])
    query = [
        ("first", parameters.first),
        ("n", parameters.n),
        *(("label", label) for label in recipe[1]),
        *query,
        ("format", format_name),
    ]
    request = _engine_request(model, samples, options, parameters)
    return GenerationPlan(model, request, _url_parts("/generate", model, query), seed, immutable, recipe=recipe)


def plan_interpolation(
    parameters: Interpolate,
    model: Model,
    format_name: str,
    images: Sequence[Tensor],
    new_seed: Callable[[], int],
) -> GenerationPlan:
    """The plan of an /interpolate request. `images` are the uploads [C, H, W]. Raises InvalidParameter."""
    named = labels_of(model, parameters)
    labels = named or [NO_LABEL if images else ANY_LABEL]
    seeds = parameters.seed or [new_seed()]
    if images and not model.family.encodes:
        raise InvalidParameter(f"image: {model.name} has no encoder; GET /models lists models with one (`encodes`)")
    if images and (len(images) != 2 or len(parameters.seed) == 2):
        raise InvalidParameter("image: send two images, and at most one seed with them")
    if not images and len(seeds) < 2 and len(named) < 2:
        raise InvalidParameter("give two ends: `seed` twice, or `label` twice, or two uploads called `image`")
    start = StartState(seeds[0], 0, labels[0], images[0] if images else None)
    end = StartState(seeds[-1], 0, labels[-1], images[-1] if images else None)
    last = parameters.frames - 1
    spherical = parameters.path == "spherical"
    samples = tuple(Sample(start, end, i / last, spherical) for i in range(parameters.frames))
    if images:  # by default, use the options that reconstruct an encoded image
        missing = {name: value for name, value in model.family.inversion.items() if getattr(parameters, name) is None}
        parameters = parameters.model_copy(update=missing)
    options, query = _sampling_options(model, parameters)
    immutable = parameters.model == model.key and all(getattr(parameters, name) is not None for name, _ in query)
    query = [
        *(("seed", seed) for seed in seeds[1:]),
        *(("label", format_label(model, label)) for label in named),
        ("frames", parameters.frames),
        ("path", parameters.path),
        *query,
        ("format", format_name),
    ]
    request = _engine_request(model, samples, options, parameters)
    url_parts = _url_parts("/interpolate", model, query)
    return GenerationPlan(model, request, url_parts, seeds[0], immutable, not images)


def plan_edit(
    parameters: Vary,
    model: Model,
    format_name: str,
    image: Tensor,
    mask: Tensor | None,
    max_images: int,
    new_seed: Callable[[], int],
) -> GenerationPlan:
    """The plan of samples that start from an image [C, H, W], or complete it where mask [1, H, W] is true.

    A request without labels means none: the seed's would contradict the image. Raises InvalidParameter.
    """
    family, values = model.family, dict[str, Any](model=model.key)
    unlabelled = family.unconditional and not (parameters.label or parameters.digit)
    if unlabelled and family.guidance is not None and parameters.guidance is None:
        values["guidance"] = 1.0  # without a label, any other gives the same at twice the cost
    if mask is not None:
        if parameters.sampler is not None:
            raise InvalidParameter("sampler: completing an image has a sampler of its own; leave it out")
        if parameters.steps is None:
            values["steps"] = min(max(model.steps, COMPLETION_STEPS), family.steps.maximum)
    plan = plan_generation(parameters.model_copy(update=values), model, format_name, max_images, new_seed)
    request, strength = plan.request, parameters.strength
    if round(request.steps / strength) > family.steps.maximum:
        least = f"at least {request.steps / family.steps.maximum:g} for {request.steps} steps of {model.name}"
        raise InvalidParameter(f"strength: {least}; raise it, or request fewer steps")
    samples = request.samples
    if unlabelled:
        samples = tuple(Sample(sample.start._replace(label=NO_LABEL)) for sample in samples)
    edit = Edit(image, strength, mask) if mask is not None or strength < 1 else None
    request = request._replace(samples=samples, edit=edit)
    return plan._replace(request=request, immutable=False, reproducible=False)


def with_previews(request: Request) -> Request:
    """The same engine request, with previews of unfinished images."""
    return request._replace(previews=True)


def _url_parts(path: str, model: Model, query: list[tuple[str, Any]]) -> tuple[str, str]:
    """The URL before and after the seed's value."""
    return f"{path}?{urlencode({'model': model.key}, safe='@')}&seed=", f"&{urlencode(query, quote_via=quote)}"


def _engine_request(
    model: Model, samples: tuple[Sample, ...], options: dict[str, Any], parameters: Generate | Interpolate
) -> Request:
    request = Request(model.key, samples, **options, priority=parameters.priority, timeout=parameters.timeout)
    if isinstance(parameters, Generate) and parameters.previews:
        return request._replace(previews=True, guesses=parameters.guesses)
    return request


def _sampling_options(model: Model, parameters: Generate | Interpolate) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Steps, sampler and guidance for the engine, and those of them that the model lets clients choose, for the URL."""
    family, options, query = model.family, dict[str, Any](steps=model.steps), list[tuple[str, Any]]()
    if family.steps.minimum < family.steps.maximum:
        options["steps"] = _within("steps", model, family.steps, parameters.steps, model.steps)
        query.append(("steps", options["steps"]))
    elif parameters.steps not in (None, family.steps.default):
        raise InvalidParameter(f"steps: {model.name} always takes {family.steps.default}; leave it out")
    choices = {"sampler": parameters.sampler, "prior": parameters.prior}
    if family.samplers:
        kind = family.sampler_parameter
        chosen = choices.pop(kind)
        options["sampler"] = model.sampler if chosen is None else chosen
        if options["sampler"] not in family.samplers:
            raise InvalidParameter(f"{kind}: {model.name} has {', '.join(family.samplers)}")
        query.append((kind, options["sampler"]))
    for name, chosen in choices.items():
        if chosen is not None:
            raise InvalidParameter(f"{name}: {model.name} has no such choice; leave it out")
    if family.guidance is not None:
        options["guidance"] = _within("guidance", model, family.guidance, parameters.guidance, model.guidance)
        query.append(("guidance", options["guidance"]))
    elif parameters.guidance is not None:
        raise InvalidParameter(f"guidance: {model.name} does not take it; leave it out")
    return options, query


def _within(name: str, model: Model, limits: Range[Any], value: Any, default: Any) -> Any:
    value = default if value is None else value
    if not limits.minimum <= value <= limits.maximum:
        raise InvalidParameter(f"{name}: {model.name} takes {limits.minimum} to {limits.maximum}")
    return value
