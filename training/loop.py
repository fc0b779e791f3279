"""The training loop of every family. It counts images, not epochs, and resumes from the last checkpoint."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import parallel
from models.base import Family, Recipe
from models.devices import device_name
from models.pixels import to_unit
from training import checkpoint, film
from training.augmentation import Augmentation
from training.config import ConfigError, RunConfig
from training.data import Dataset, InfiniteSampler
from training.log import Log
from training.samples import distance, fixed_samples, grid_png
from training.start import Start, copy_weights

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes; a resumed run may use other hardware."""

    device: torch.device
    compile: bool = False


class Trainer:
    """The state of a training run: networks, averaged networks, optimisers, position in the data, counters.

    `state_dict` holds all of it; a trainer that loads one continues exactly as if it had not stopped.
    """

    def __init__(
        self,
        family: Family,
        recipe: Recipe,
        data: Dataset,
        hardware: Hardware,
        *,
        seed: int,
        precision: str = "f32",
        augmentation: Augmentation | None = None,
    ) -> None:
        self.recipe, self.data, self.hardware = recipe, data, hardware
        self.seed, self.precision, self.augmentation = seed, precision, augmentation
        self.family: Family = family.to(hardware.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.family).for_sampling()
        self.optimizers = {
            player: torch.optim.Adam(
                self.family.player(player).parameters(), self.recipe.lr, self.recipe.betas, fused=True
            )
            for player in dict.fromkeys(self.family.update_order())
        }
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=precision == "f16")
        self.batches = InfiniteSampler(len(data.images), self.recipe.batch, seed)
        self.images, self.seconds, self.best = 0, 0.0, math.inf
        self.fitted_at: int | None = None
        """`images` at the last `fit`."""
        if hardware.compile:
            for net in self.family.children():
                net.compile()

    @classmethod
    def from_config(
        cls, config: RunConfig, data: Dataset, hardware: Hardware, starts: Sequence[Start] = ()
    ) -> "Trainer":
        """The trainer of a new run with this configuration; its seed and `starts` decide the initial weights.

        Raises ConfigError if the weights of `starts` do not fit.
        """
        torch.manual_seed(config.seed)
        family, recipe = config.new_family(), config.training_recipe()
        for start in starts:
            copy_weights(family, *start, data.classes)
        augmentation = Augmentation(**config.augmentation) if config.augmentation else None
        return cls(
            family, recipe, data, hardware, seed=config.seed, precision=config.precision, augmentation=augmentation
        )

    @property
    def total_images(self) -> int:
        """Images after which the run ends; 0 if the family has nothing to train by gradients."""
        return math.ceil(self.recipe.epochs * len(self.data.images)) if self.optimizers else 0

    @property
    def images_seen(self) -> int:
        """Images that training has used, each counted every time."""
        return self.images if self.total_images else len(self.data.images)

    @property
    def updates(self) -> int:
        """Iterations so far, each an update of every player."""
        return self.images // film.images_per_update(self.family, self.recipe)

    def fit(self) -> None:
        """Run the averaged family's closed-form estimation, if it has one."""
        estimate_closed_form(self.average, self.data, self.hardware.device)
        self.fitted_at = self.images

    def train_step(self) -> dict[str, Tensor]:
        """One iteration: the players' optimiser steps in their order, then the update of the averaged weights.

        Returns the named loss terms, still on the device.
        """
        terms: dict[str, Tensor] = {}
        before = self.images
        first, *_ = players = self.family.update_order()
        for player in players:
            if player == first:
                x, label = self.next_batch()
            terms |= {_term_name(player, name): value for name, value in self.optimizer_step(player, x, label).items()}
        if parallel.rank() == 0:  # only the first process validates and saves
            self.update_average(self.images - before)
        return terms

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """This process's images [B, ...] in [-1, 1] and labels [B] of the next batch, on the device.

        Counts the images of all processes.
        """
        index = next(self.batches)
        self.images += len(index)
        index = parallel.shard(index)
        images = self.data.images[index]
        if self.augmentation is not None:
            images = self.augmentation(images, self.seed, self.images)
        x = to_unit(images.to(self.hardware.device, non_blocking=True))
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, self.data.labels[index].to(self.hardware.device, non_blocking=True)

    def optimizer_step(self, player: str, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        """One optimiser step of `player`; the other players' parameters neither change nor get a gradient.

        Returns the named loss terms, averaged over all processes.
        """
        optimizer = self.optimizers[player]
        multiplier = self.family.lr_multiplier(player)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = multiplier * learning_rate(self.recipe, self.images - self.recipe.batch, self.total_images)
        dtype = DTYPES[self.precision]
        with torch.autocast(self.hardware.device.type, dtype, enabled=dtype != torch.float32):
            terms = self.family.loss(player, x, label)
        gradients = torch.autograd.grad(self.scaler.scale(terms["loss"]), parameters, allow_unused=True)
        means = {name: value.detach() for name, value in terms.items()}
        parallel.all_reduce_mean_([*(gradient for gradient in gradients if gradient is not None), *means.values()])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.scaler.step(optimizer)
        self.scaler.update()
        return means

    @torch.no_grad()
    def update_average(self, images: int) -> None:
        """Update the averaged weights, which are exported, after an iteration over `images` images.

        Their half-life is `recipe.ema` images, and shorter early in the run (EDM, appendix F.2).
        """
        half_life = min(self.recipe.ema, 0.05 * self.images)
        weight = 1 - 0.5 ** (images / half_life) if half_life else 1.0
        trained = self.family.state_dict()
        pairs = [(average, trained[name]) for name, average in self.average.state_dict().items()]
        running = [(average, value) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in running], [value for _, value in running], weight)
        for average, value in pairs:
            if not average.is_floating_point():  # the counter of a batch norm
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run continues."""
        return {
            "family": self.family.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {player: optimizer.state_dict() for player, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.state_dict(),
            "random": checkpoint.random_state(self.hardware.device),
            "images": self.images,
            "seconds": self.seconds,
            "best": self.best,
            "fitted_at": self.fitted_at,
            "device": self.hardware.device.type,
            "device_name": device_name(self.hardware.device),
            "data": self.data.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`. Raises ConfigError if the data or the family's networks have changed since."""
        if state["data"] != self.data.digest:
            raise ConfigError(f"{self.data.name} holds other images than when this run started; start a new run")
        load_tensors(self.family, state["family"])
        load_tensors(self.average, state["average"])
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][player])
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state["batches"])
        checkpoint.set_random_state(state["random"], self.hardware.device)
        self.images, self.seconds, self.best = state["images"], state["seconds"], state["best"]
        self.fitted_at = state.get("fitted_at")  # missing in checkpoints of earlier versions


def has_closed_form(family: type[Family]) -> bool:
    """Whether `family` estimates something by `Family.fit`."""
    return family.fit is not Family.fit


def estimate_closed_form(family: Family, data: Dataset, device: torch.device, some: slice = slice(None)) -> None:
    """Run the closed-form estimation of `family` (`Family.fit`), if it has one, on `some` of the images."""
    if has_closed_form(type(family)):
        family.fit(to_unit(data.images[some]).to(device), data.labels[some].to(device))


def load_tensors(family: Family, tensors: dict[str, Tensor]) -> None:
    """Load the tensors of a checkpoint. Raises ConfigError if the family has other ones."""
    try:
        family.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint is of another version of {family.name}, with other tensors; "
            f"start a new run ({' '.join(str(error).split())[:200]})"
        ) from None


def learning_rate(recipe: Recipe, images: int, total_images: int) -> float:
    """The learning rate after `images` images: linear warm-up over `recipe.warmup`, then constant or half a cosine."""
    warmup = min(1.0, (images + recipe.batch) / recipe.warmup) if recipe.warmup else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, images / total_images))) if recipe.cosine else 1.0
    return recipe.lr * warmup * decay


def train(trainer: Trainer, run: Path, log: Log | None, every: int, stop: Callable[[], str | None]) -> str | None:
    """Start or resume training in the directory `run`; return None at its end, or the reason that `stop` gave.

    Every `every` images the run validates and saves; it also saves at least every two minutes and when it ends. Of
    several processes that share a batch only the first has a log and writes files; a reason to stop one stops all.
    Raises NotFinite, and neither validates nor saves, if a loss or a part of the state is not finite.
    """
    latest = run / checkpoint.LATEST
    resumed = latest.exists()
    if resumed:
        trainer.load_state_dict(checkpoint.load(latest))
    if log is not None:
        log.rewind(trainer.images)  # also without a checkpoint: a run killed before its first one may have left lines
    if log is not None and not trainer.total_images and not resumed:
        started_at = time.monotonic()
        validate(trainer, run, log)
        trainer.seconds = time.monotonic() - started_at
        checkpoint.save(latest, trainer.state_dict())
    if log is not None and trainer.total_images and not trainer.images:
        draw_frame(trainer, log)
    parallel.broadcast_(list(trainer.family.state_dict().values()))
    reason = None
    saved_at = time.monotonic()
    while trainer.images < trainer.total_images and reason is None:
        before = trainer.images
        terms = trainer.train_step()
        reason = stop()
        if parallel.any_of(reason is not None):
            reason = reason or "another process stopped"
        if log is None:
            continue
        log.progress(trainer.images, terms)
        if film.is_due(trainer.updates):
            draw_frame(trainer, log)
        due = trainer.images // every > before // every or trainer.images >= trainer.total_images
        if not (due or reason or time.monotonic() - saved_at > 120):
            continue
        checkpoint.require_finite(trainer.state_dict())
        if due:
            validate(trainer, run, log)
        now = time.monotonic()
        trainer.seconds += now - saved_at
        saved_at = now
        checkpoint.save(latest, trainer.state_dict())
    return reason


def validate(trainer: Trainer, run: Path, log: Log) -> None:
    """Write the grid of fixed samples and their distance to the data; keep the checkpoint if it is the best so far."""
    trainer.fit()
    samples = fixed_samples(trainer.average, trainer.hardware.device)
    score = distance(samples, trainer.data)
    log.samples(trainer.images, score, grid_png(samples) if samples.dim() == 4 else None)
    if score < trainer.best:
        trainer.best = score
        checkpoint.save(run / checkpoint.BEST, trainer.state_dict())


def draw_frame(trainer: Trainer, log: Log) -> None:
    """Write the film's frame of the averaged weights. Raises NotFinite if they are not finite.

    Changes neither the trainer nor the global random state. A closed form is estimated from `film.FITTED` images.
    """
    checkpoint.require_finite(trainer.average.state_dict())
    family, device, data = copy.deepcopy(trainer.average), trainer.hardware.device, trainer.data
    some = slice(None, None, math.ceil(len(data.images) / film.FITTED))  # of all classes, also where these are in order
    estimate_closed_form(family, data, device, some)
    log.frame(trainer.updates, film.frame_png(family, device))


def _term_name(player: str, name: str) -> str:
    return name if player == "self" else f"{player}.{name}"
