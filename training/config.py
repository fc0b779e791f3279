"""The configuration of a training run: every value that decides its result, and none that does not."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import families, store
from models.base import Family, Recipe


class ConfigError(Exception):
    """A configuration or a flag is invalid; the message says what to change."""


@dataclass(frozen=True)
class RunConfig:
    """The identity of a run: on the same kind of device, equal configurations end with the same weights."""

    family: str
    model: dict[str, Any]
    """The fields of the family's Config."""
    recipe: dict[str, Any]
    """The fields of the Recipe."""
    data: str
    """A name or a folder, as for `training.data.load`."""
    seed: int
    precision: str
    revision: int = 1
    """The family's revision when the run started."""

    def save_or_verify(self, path: Path) -> None:
        """Write this configuration to `path`, or compare it with the one that is there.

        Raises ConfigError with the differences, if any.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            store.write_atomic(path, (json.dumps(asdict(self), indent=2) + "\n").encode())
            return
        # Through JSON, which turns tuples into lists.
        former, current = (_flatten(json.loads(json.dumps(asdict(run)))) for run in (RunConfig.read(path), self))
        changed = [
            f"{key}: started with {former.get(key)}, now {current.get(key)}"
            for key in sorted(former.keys() | current.keys())
            if former.get(key) != current.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{path.parent} was started with another configuration ({'; '.join(changed)}); "
                "use the former values to resume it, or another --run to start a new run"
            )

    @staticmethod
    def read(path: Path) -> "RunConfig":
        """Read the configuration of an existing run. Raises ConfigError if there is none."""
        try:
            return RunConfig(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise ConfigError(f"{path.parent} is not a run; start one with `python -m training fit FAMILY`") from None

    def model_config(self) -> Any:
        """The family's Config object."""
        return families.get(self.family).Config(**self.model)

    def training_recipe(self) -> Recipe:
        """The Recipe object."""
        return Recipe(**{**self.recipe, "betas": tuple(self.recipe["betas"])})


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
