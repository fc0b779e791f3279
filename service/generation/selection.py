"""Which model answers a request."""

from collections.abc import Sequence

from service.engine.catalog import Catalog, Model
from service.engine.request import ANY_LABEL, NO_LABEL
from service.errors import InvalidParameter, UnknownModel
from service.generation.parameters import Generate, Interpolate
from service.settings import Settings


def find_model(catalog: Catalog, name: str) -> Model:
    """The model called `name`; `name@digest` is a version of it, by the first letters of its digest.

    Raises UnknownModel, which lists the models.
    """
    name, _, digest = name.partition("@")
    versions = [model for model in (catalog.models.get(name), catalog.previous.get(name)) if model is not None]
    for model in versions:
        if model.digest.startswith(digest):
            return model
    names = sorted(catalog.models)
    if versions:
        available = ", ".join(model.version for model in versions)
        detail = f"{name} has no version {digest!r}; available versions: {available}"
        raise UnknownModel(detail, models=[model.key for model in versions])
    broken = catalog.broken.get(name)
    reason = f"no model {name!r}" if broken is None else f"{name} cannot be served ({broken})"
    raise UnknownModel(f"{reason}; available models: {', '.join(names) or 'none'}", models=names)


def choose_model(
    catalog: Catalog, settings: Settings, parameters: Generate | Interpolate, *, uploads: bool = False
) -> Model:
    """The model that `parameters` name, or the default one.

    Raises UnknownModel, and InvalidParameter where the request has to name a model.
    """
    if parameters.model is not None:
        return find_model(catalog, parameters.model)
    if uploads:
        raise InvalidParameter("model: name a model that `encodes` uploads; GET /models lists them")
    digits = [digit for digit in parameters.digit if digit != NO_LABEL]
    default = default_models(catalog, settings)["conditional" if digits else "unconditional"]
    if default is None:
        names = ", ".join(sorted(catalog.models)) or "none"
        raise InvalidParameter(f"model: the default model is not installed; name one of: {names}")
    return catalog.models[default]


def default_models(catalog: Catalog, settings: Settings) -> dict[str, str | None]:
    """The models of requests that name none, without and with a digit; None if it is not installed."""
    defaults = {"unconditional": settings.unconditional_model, "conditional": settings.conditional_model}
    return {kind: name if name in catalog.models else None for kind, name in defaults.items()}


def labels_of(model: Model, digits: Sequence[int], default: int = ANY_LABEL) -> list[int]:
    """The engine's labels for the digits of a request; `default` if it names none.

    Raises InvalidParameter if the model takes no digit, or not these.
    """
    count = model.family.classes
    if digits and not count:
        raise InvalidParameter(f"digit: {model.name} is not conditional; GET /models lists the models that are")
    if NO_LABEL in digits and not model.family.unconditional:
        raise InvalidParameter(f"digit: {model.name} always takes a digit, 0 to {count - 1}")
    if any(digit >= count for digit in digits):
        raise InvalidParameter(f"digit: {model.name} takes 0 to {count - 1}")
    return list(digits) or [default]
