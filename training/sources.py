"""Where samples to be judged come from: weights on disk, or a running service."""

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import torch
from torch import Tensor

from models import store
from models.base import Family, sample
from models.pixels import to_uint8
from models.store import Manifest
from training.config import ConfigError, check_sampling_options

BATCH = 64
TIMEOUT_SECONDS = 600.0
"""Seconds that an answer may take."""


@dataclass(frozen=True)
class SampleSet:
    """Samples, and what they were asked to be."""

    images: Tensor
    """[N, 1, 28, 28] uint8."""
    requested_labels: Tensor | None
    """[N] int64, or None where the model cannot be asked."""


class Source(Protocol):
    """Something that draws. Digits take turns, where the model can be asked for one."""

    def names(self) -> list[str]:
        """The models there are."""

    def published_metrics(self, name: str) -> dict[str, Any]:
        """The metrics in the manifest of model `name`."""

    def sample(self, name: str, seed: int, count: int, **asked: Any) -> SampleSet:
        """Images 0..count-1 of `seed` by model `name` with its defaults, or what `asked` puts in their place."""


class Weights:
    """The weights directories under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return store.list_weights(self.root)

    def published_metrics(self, name: str) -> dict[str, Any]:
        return store.read_manifest(self.root / name).metrics

    def sample(self, name: str, seed: int, count: int, **asked: Any) -> SampleSet:
        family, manifest = store.load(self.root / name)
        check_sampling_options(family, asked)
        return sample_exported(family, manifest, seed, count, **asked)


class Service:
    """A running service at `url`. Raises ConfigError where there is none, or it refuses."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url, self.transport = url, transport
        with self._client() as client:
            answer = self._get(client, "/models")
        try:
            self.takes = {model["name"]: model["takes"] for model in answer.json()["models"]}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"--against {url}: what answers there is no Drawbridge") from None

    def names(self) -> list[str]:
        return sorted(self.takes)

    def published_metrics(self, name: str) -> dict[str, Any]:
        self._check(name)
        with self._client() as client:
            found: dict[str, Any] = self._get(client, f"/models/{name}").json()["manifest"]["metrics"]
        return found

    def sample(self, name: str, seed: int, count: int, **asked: Any) -> SampleSet:
        self._check(name)
        digits = self.takes[name].get("digit", {}).get("one_of", [])
        if "prior" in self.takes[name]:
            asked = {"prior" if key == "sampler" else key: value for key, value in asked.items()}
        images = []
        with self._client() as client:
            for first in range(0, count, BATCH):
                query = {"model": name, "seed": seed, "first": first, "n": min(BATCH, count - first), "digit": digits}
                answer = self._get(client, "/generate", **query, format="npz", **asked)
                images.append(torch.from_numpy(np.load(io.BytesIO(answer.content))["images"]).unsqueeze(1))
        return SampleSet(torch.cat(images), torch.arange(count) % len(digits) if digits else None)

    def _check(self, name: str) -> None:
        if name not in self.takes:
            raise ConfigError(f"{self.url} has no model {name!r}; it has {', '.join(self.names())}")

    def _client(self) -> httpx.Client:
        try:
            key = os.environ.get("DRAWBRIDGE_KEY")
            shown = {"Authorization": f"Bearer {key}"} if key else {}
            return httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, transport=self.transport, headers=shown)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--against {self.url}: no address of a service ({error})") from None

    def _get(self, client: httpx.Client, path: str, **query: Any) -> httpx.Response:
        """The answer; one that says to come back later is waited for, up to PATIENCE seconds in all."""
        waited = 0.0
        while True:
            try:
                answer = client.get(path, params=query)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ConfigError(f"--against {self.url}: no service answers there ({error})") from None
            pause = float(answer.headers.get("retry-after", 1.0))
            if answer.status_code != 429 or waited + pause > TIMEOUT_SECONDS:
                break
            time.sleep(pause)
            waited += pause
        if answer.is_error:
            raise ConfigError(f"--against {self.url}: {answer.status_code}, {answer.text}")
        return answer


@torch.inference_mode()
def sample_exported(family: Family, manifest: Manifest, seed: int, count: int, **asked: Any) -> SampleSet:
    """Images 0..count-1 of `seed` with the manifest's defaults, or what `asked` puts in their place."""
    asked = {**store.defaults(family, manifest), **asked}
    index = torch.arange(count)
    label = index % max(family.classes, 1)
    images = []
    for part in index.split(BATCH):
        seeds = torch.full_like(part, seed)
        images.append(to_uint8(sample(family, seeds, part, family.one_hot(label[part]), **asked)))
    return SampleSet(torch.cat(images), label if family.classes else None)
