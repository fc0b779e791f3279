"""Sources of samples to evaluate: weights on disk, or a running service."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from torch import Tensor

from drawbridge.client import Client, ServiceError, Unreachable
from models import store
from models.base import Family, sample
from models.pixels import channels_first, to_uint8
from models.store import Manifest
from training.config import ConfigError, check_sampling_options

BATCH = 64
TIMEOUT_SECONDS = 600.0
"""Longest wait for one response."""
RETRIES = 20
"""Attempts after the first one that a busy service gets."""


@dataclass(frozen=True)
class SampleSet:
    """Samples and the labels that were requested for them."""

    images: Tensor
    """[N, C, H, W] uint8."""
    requested_labels: Tensor | None
    """[N] int64, or None if the model takes no label."""


class Source(Protocol):
    """Generates samples of named models. Requested labels cycle through a conditional model's classes."""

    def names(self) -> list[str]:
        """The names of all models."""

    def manifest(self, name: str) -> Manifest:
        """The manifest of model `name`."""

    def sample(
        self, name: str, seed: int, count: int, *, first: int = 0, unlabelled: bool = False, **options: Any
    ) -> SampleSet:
        """Images first..first+count-1 of `seed` from model `name`; `options` override its defaults.

        `unlabelled` samples a conditional model without labels.
        """


class Weights:
    """The weights directories under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return store.list_weights(self.root)

    def manifest(self, name: str) -> Manifest:
        return store.read_manifest(self.root / name)

    def sample(
        self, name: str, seed: int, count: int, *, first: int = 0, unlabelled: bool = False, **options: Any
    ) -> SampleSet:
        family, manifest = store.load(self.root / name)
        check_sampling_options(family, options)
        return sample_exported(family, manifest, seed, count, first=first, unlabelled=unlabelled, **options)


class Service:
    """A running service at `url`, called with the API key in $DRAWBRIDGE_KEY, if any.

    Raises ConfigError if no service responds or it refuses a request.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url, self.transport = url, transport
        try:
            # No retries: a wrong address is reported at once.
            with self._client(retries=0) as client:
                self.parameters = {model["name"]: model["takes"] for model in client.models()}
        except (Unreachable, ServiceError) as error:
            raise self._error(error) from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"--against {url}: the server there is not Drawbridge") from None

    def names(self) -> list[str]:
        return sorted(self.parameters)

    def manifest(self, name: str) -> Manifest:
        self._check(name)
        try:
            with self._client(RETRIES) as client:
                fields: dict[str, Any] = client.model(name)["manifest"]
        except (Unreachable, ServiceError) as error:
            raise self._error(error) from None
        try:
            manifest = Manifest(**fields)
        except TypeError as error:
            raise ConfigError(f"--against {self.url}: the service is of another version ({error})") from None
        return dataclasses.replace(manifest, data_shape=tuple(manifest.data_shape), classes=tuple(manifest.classes))

    def sample(
        self, name: str, seed: int, count: int, *, first: int = 0, unlabelled: bool = False, **options: Any
    ) -> SampleSet:
        self._check(name)
        parameters = self.parameters[name]
        labels = ["none"] if unlabelled else parameters.get("label", {}).get("one_of")
        if "prior" in parameters and "sampler" in options:
            options["prior"] = options.pop("sampler")
        images = []
        try:
            with self._client(RETRIES) as client:
                for i in range(0, count, BATCH):
                    n = min(BATCH, count - i)
                    samples = client.generate(name, seed=seed, first=first + i, n=n, label=labels, **options)
                    images.append(channels_first(torch.from_numpy(samples.arrays)))
        except (Unreachable, ServiceError) as error:
            raise self._error(error) from None
        requested = torch.arange(first, first + count) % len(labels) if labels and not unlabelled else None
        return SampleSet(torch.cat(images), requested)

    def _check(self, name: str) -> None:
        if name not in self.parameters:
            raise ConfigError(f"{self.url} has no model {name!r}; it has {', '.join(self.names())}")

    def _client(self, retries: int) -> Client:
        key = os.environ.get("DRAWBRIDGE_KEY") or None
        try:
            return Client(self.url, key=key, retries=retries, timeout=TIMEOUT_SECONDS, transport=self.transport)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--against {self.url}: not a valid URL ({error})") from None

    def _error(self, error: Unreachable | ServiceError) -> ConfigError:
        status = f"{error.status}, " if isinstance(error, ServiceError) else ""
        return ConfigError(f"--against {self.url}: {status}{' '.join(str(error).split())}")


@torch.inference_mode()
def sample_exported(
    family: Family,
    manifest: Manifest,
    seed: int,
    count: int,
    *,
    first: int = 0,
    unlabelled: bool = False,
    **options: Any,
) -> SampleSet:
    """Images first..first+count-1 of `seed` with the manifest's defaults; `options` override them.

    Labels cycle through the classes, unless `unlabelled`.
    """
    options = {**store.defaults(family, manifest), **options}
    index = torch.arange(first, first + count)
    labelled = family.classes and not unlabelled
    label = index % family.classes if labelled else torch.full_like(index, -1)
    images = []
    for part, labels in zip(index.split(BATCH), label.split(BATCH), strict=True):
        seeds = torch.full_like(part, seed)
        images.append(to_uint8(sample(family, seeds, part, family.one_hot(labels), **options)))
    return SampleSet(torch.cat(images), label if labelled else None)
