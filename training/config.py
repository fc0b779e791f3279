"""What a training run is: everything that decides its result, and nothing that does not."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import families, store
from models.base import Family, Recipe


class ConfigError(Exception):
    """A run cannot be started as asked; the message says what to do."""


@dataclass(frozen=True)
class RunConfig:
    """The identity of a run: two runs with equal ones end, on the same kind of device, with the same weights."""

    family: str
    model: dict[str, Any]
    """The family's own Config."""
    recipe: dict[str, Any]
    data: str
    seed: int
    precision: str
    revision: int = 1
    """The family's, when the run was begun."""

    def save_or_verify(self, path: Path) -> None:
        """Write to `path`, or where a run was begun there, hold against it. Raises ConfigError with the difference."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            store.write_atomic(path, (json.dumps(asdict(self), indent=2) + "\n").encode())
            return
        begun, asked = (_flat(json.loads(json.dumps(asdict(run)))) for run in (RunConfig.read(path), self))
        changed = [
            f"{key}: begun with {begun.get(key)}, now {asked.get(key)}"
            for key in sorted(begun.keys() | asked.keys())
            if begun.get(key) != asked.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{path.parent} was begun with another configuration ({'; '.join(changed)}); "
                "give the former values to resume it, or another --run to begin anew"
            )

    @staticmethod
    def read(path: Path) -> "RunConfig":
        """The configuration of a run that was begun. Raises ConfigError where there is none."""
        try:
            return RunConfig(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise ConfigError(f"{path.parent} is not a run; begin one with `python -m training fit FAMILY`") from None

    def model_config(self) -> Any:
        """The family's Config object."""
        return families.get(self.family).Config(**self.model)

    def training_recipe(self) -> Recipe:
        """The Recipe object."""
        return Recipe(**{**self.recipe, "betas": tuple(self.recipe["betas"])})


def check_sampling_options(family: Family, plan: dict[str, Any]) -> None:
    """Raises ConfigError where `steps`, `sampler` or `guidance` is nothing that `family` can be asked for."""
    steps, sampler, guidance = plan.get("steps"), plan.get("sampler"), plan.get("guidance")
    if steps is not None and not family.steps.minimum <= steps <= family.steps.maximum:
        raise ConfigError(f"--steps: {family.name} takes {family.steps.minimum} to {family.steps.maximum}")
    if sampler is not None and sampler not in family.samplers:
        raise ConfigError(
            f"--{family.sampler_parameter}: {family.name} has {', '.join(family.samplers) or 'none; leave it out'}"
        )
    if guidance is None:
        return
    if (limits := family.guidance) is None:
        raise ConfigError(f"--guidance: {family.name} takes none; leave it out")
    if not limits.minimum <= guidance <= limits.maximum:
        raise ConfigError(f"--guidance: {family.name} takes {limits.minimum} to {limits.maximum}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
