"""The configuration of a training run: every value that decides its result, and none that does not."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models import families, store
from models.base import Family, Recipe
from training.data import Dataset

CONFIG = "config.json"
"""The file of a run's configuration."""


class ConfigError(Exception):
    """A configuration or a flag is invalid; the message says what to change."""


@dataclass(frozen=True)
class RunConfig:
    """The identity of a run: on the same kind of device, equal configurations end with the same weights.

    A run may continue with a larger `recipe["epochs"]`, and with another path to the same data.
    """

    family: str
    model: dict[str, Any]
    """The fields of the family's Config."""
    recipe: dict[str, Any]
    """The fields of the Recipe."""
    data: str
    """A name or a path, as for `training.data.load`; of the last command that continued the run."""
    seed: int
    precision: str
    revision: int = 1
    """The family's revision when the run started."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """`describe` of the training images; empty in runs of earlier versions."""
    reading: dict[str, Any] = field(default_factory=dict)
    """How the images are read: the fields of `training.data.Options` that are not the default."""
    augmentation: dict[str, Any] = field(default_factory=dict)
    """The fields of `training.augmentation.Augmentation` that are not off."""
    start: dict[str, Any] = field(default_factory=dict)
    """`family` and `digest` of the weights that the run started from; empty for random ones."""
    extended_from: tuple[float, ...] = ()
    """The former values of `recipe["epochs"]`, if it was raised."""

    def save_or_verify(self, path: Path) -> None:
        """Write this configuration to `path`, where a run starts or continues.

        Raises ConfigError if the configuration that is there differs in a field that may not change.
        """
        former = RunConfig.read(path) if path.exists() else None
        if former is not None:
            self._verify(former, path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        config = self if former is None else replace(self, extended_from=former._extended_to(self.recipe["epochs"]))
        if config != former:
            store.write_atomic(path, (json.dumps(asdict(config), indent=2) + "\n").encode())

    def _verify(self, former: "RunConfig", run: Path) -> None:
        """Raise ConfigError if the run of configuration `former` in the directory `run` cannot continue with this."""
        if former.dataset and former.dataset["digest"] != self.dataset["digest"]:
            raise ConfigError(
                f"{self.data} holds other images than when {run} started, or is read with other flags; use another "
                "--run"
            )
        before, now = _flatten(former._fixed_fields()), _flatten(self._fixed_fields())
        if former.dataset:  # the digest decides, not the name
            before["data"] = now["data"]
        if before["recipe.epochs"] < now["recipe.epochs"]:
            before["recipe.epochs"] = now["recipe.epochs"]
        changed = [
            f"{key}: started with {before.get(key)}, now {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{run} was started with another configuration ({'; '.join(changed)}); use the former values to resume "
                "it (--epochs may be larger), or another --run to start a new run"
            )

    def _fixed_fields(self) -> dict[str, Any]:
        """What decides the result, except the images, which have a digest; through JSON, which makes tuples lists."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, dataset={}, reading={}, extended_from=()))))
        return fields

    def _extended_to(self, epochs: float) -> tuple[float, ...]:
        """`extended_from` of this run when it continues to `epochs`."""
        former: float = self.recipe["epochs"]
        return (*self.extended_from, former) if epochs > former else self.extended_from

    @staticmethod
    def read(path: Path) -> "RunConfig":
        """Read the configuration of an existing run. Raises ConfigError if there is none, or an invalid one."""
        try:
            fields = json.loads(path.read_text())
            return RunConfig(**{**fields, "extended_from": tuple(fields.get("extended_from", ()))})
        except FileNotFoundError:
            raise ConfigError(f"{path.parent} is not a run; start one with `python -m training fit FAMILY`") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not the configuration of a run ({error}); restore it") from None

    def new_family(self) -> Family:
        """The family with initial weights, for data as `dataset` describes it."""
        family = families.get(self.family)
        return family(self.model_config(), tuple(self.dataset["shape"]), len(self.dataset["classes"]))

    def model_config(self) -> Any:
        """The family's Config object."""
        return families.get(self.family).Config(**self.model)

    def training_recipe(self) -> Recipe:
        """The Recipe object."""
        return Recipe(**{**self.recipe, "betas": tuple(self.recipe["betas"])})


def describe(data: Dataset) -> dict[str, Any]:
    """What a run says about its training images, as JSON: name, digest, number, shape and class names."""
    return {
        "name": data.name,
        "digest": data.digest,
        "images": len(data.images),
        "shape": list(data.images.shape[1:]),
        "classes": list(data.classes),
    }


def check_sampling_options(family: Family, options: dict[str, Any]) -> None:
    """Raise ConfigError if `family` does not accept the `steps`, `sampler` or `guidance` in `options`."""
    steps, sampler, guidance = options.get("steps"), options.get("sampler"), options.get("guidance")
    if steps is not None and not family.steps.minimum <= steps <= family.steps.maximum:
        raise ConfigError(f"--steps: {family.name} takes {family.steps.minimum} to {family.steps.maximum}")
    if sampler is not None and sampler not in family.samplers:
        raise ConfigError(
            f"--{family.sampler_parameter}: {family.name} has {', '.join(family.samplers) or 'none; omit the flag'}"
        )
    if guidance is None:
        return
    if (limits := family.guidance) is None:
        raise ConfigError(f"--guidance: {family.name} takes none; omit the flag")
    if not limits.minimum <= guidance <= limits.maximum:
        raise ConfigError(f"--guidance: {family.name} takes {limits.minimum} to {limits.maximum}")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
