"""Which model answers a request."""

from collections.abc import Sequence

from service.engine.catalog import Catalog, Model
from service.engine.request import NO_LABEL
from service.errors import InvalidParameter, UnknownModel
from service.generation.labels import NONE, find_label
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


def find_editor(catalog: Catalog, name: str) -> Model:
    """The model called `name`. Raises UnknownModel, and InvalidParameter if it does not edit images."""
    model = find_model(catalog, name)
    if not model.family.edits:
        editors = ", ".join(sorted(name for name, model in catalog.models.items() if model.family.edits))
        raise InvalidParameter(f"model: {model.name} does not edit images; these do: {editors or 'none'}")
    return model


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
    labels = [label for label in parameters.label if label != NONE]
    default = default_models(catalog, settings)["conditional" if digits or labels else "unconditional"]
    if default is None:
        names = ", ".join(sorted(catalog.models)) or "none"
        raise InvalidParameter(f"model: the default model is not installed; name one of: {names}")
    _check_default(catalog, catalog.models[default], labels)
    return catalog.models[default]


def _check_default(catalog: Catalog, default: Model, labels: Sequence[str]) -> None:
    """Raises InvalidParameter if the default model lacks one of the labels, with the models that have all of them."""
    missing = [label for label in labels if find_label(default, label) is None]
    if not missing:
        return
    known = [
        name for name, model in sorted(catalog.models.items())
        if all(find_label(model, label) is not None for label in labels)
    ]  # fmt: skip
    remedy = f"name one that does as `model`: {', '.join(known)}" if known else "no other model does, see GET /models"
    raise InvalidParameter(
        f"label: the default model {default.name} has no class {missing[0]!r}; {remedy}", models=known
    )


def default_models(catalog: Catalog, settings: Settings) -> dict[str, str | None]:
    """The models of requests that name none, without and with a label; None if it is not installed."""
    defaults = {"unconditional": settings.unconditional_model, "conditional": settings.conditional_model}
    return {kind: name if name in catalog.models else None for kind, name in defaults.items()}
