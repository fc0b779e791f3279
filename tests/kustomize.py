"""Composes a kustomization the way `kubectl kustomize` does, as far as deploy/kubernetes uses it.

It knows resources, components, image names and strategic merge patches whose lists merge by name. A key that it does
not know is an error.
"""

from pathlib import Path
from typing import Any

import yaml

KEYS = {"apiVersion", "kind", "resources", "components", "images", "patches"}
MERGED_LISTS = ("containers", "env", "volumes", "volumeMounts")
"""Lists of a Deployment that the patches change; their elements merge by `name`. Other lists are replaced."""
Manifest = dict[str, Any]


def build(directory: Path) -> list[Manifest]:
    """Return the manifests of the kustomization in `directory`."""
    manifests: list[Manifest] = []
    _apply(directory, manifests)
    return manifests


def _apply(directory: Path, manifests: list[Manifest]) -> None:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KEYS, f"{directory}: {kustomization.keys() - KEYS}"
    for name in kustomization.get("resources", []) + kustomization.get("components", []):
        if (directory / name).is_dir():
            _apply(directory / name, manifests)
        else:
            manifests += yaml.safe_load_all((directory / name).read_text())
    for patch in kustomization.get("patches", []):
        assert patch.keys() == {"path"}
        change = yaml.safe_load((directory / patch["path"]).read_text())
        (target,) = (each for each in manifests if _identity(each) == _identity(change))
        target.update(_merged(target, change))
    for image in kustomization.get("images", []):
        for manifest in manifests:
            for container in containers(manifest):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"


def containers(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the containers of a Deployment; other manifests have none."""
    found: list[dict[str, Any]] = manifest["spec"].get("template", {}).get("spec", {}).get("containers", [])
    return found


def _identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value, key) for key, value in new.items()}}
    if isinstance(old, list) and key in MERGED_LISTS:
        by_name = {item["name"]: item for item in old}
        first = [_merged(by_name.pop(item["name"], None), item) for item in new]
        return [*first, *by_name.values()]
    return new
