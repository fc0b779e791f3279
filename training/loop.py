"""The loop: one for every family. It counts images, not epochs, and resumes by running the same command again."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import families, parallel
from models.base import Family, Recipe
from models.pixels import to_unit
from training import checkpoint
from training.config import ConfigError, RunConfig
from training.data import Dataset, InfiniteSampler
from training.log import Log
from training.samples import distance, fixed_samples, grid_png

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes; may change from one call to the next."""

    device: torch.device
    compile: bool = False


class Trainer:
    """A family on its way: nets, averaged nets, optimisers, position in the data, counters.

    `state_dict` is all of it; a trainer that loads one goes on as if it had never stopped.
    """

    def __init__(
        self, family: Family, recipe: Recipe, data: Dataset, hardware: Hardware, *, seed: int, precision: str = "f32"
    ) -> None:
        self.recipe, self.data, self.hardware = recipe, data, hardware
        self.precision = precision
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
        if hardware.compile:
            for net in self.family.children():
                net.compile()

    @classmethod
    def from_config(cls, config: RunConfig, data: Dataset, hardware: Hardware) -> "Trainer":
        """The trainer of a run: what `config` says, its nets as its seed makes them."""
        torch.manual_seed(config.seed)
        family = families.get(config.family)(config.model_config(), tuple(data.images.shape[1:]), len(data.classes))
        recipe = config.training_recipe()
        return cls(family, recipe, data, hardware, seed=config.seed, precision=config.precision)

    @property
    def total_images(self) -> int:
        """Images after which the run is done; 0 where gradients have nothing to do."""
        return math.ceil(self.recipe.epochs * len(self.data.images)) if self.optimizers else 0

    @property
    def images_seen(self) -> int:
        """Images that the weights come from, counting one as often as it was seen."""
        return self.images if self.total_images else len(self.data.images)

    def fit(self) -> None:
        """Have the averaged family estimate what gradients do not."""
        if type(self.average).fit is not Family.fit:
            self.average.fit(
                to_unit(self.data.images).to(self.hardware.device), self.data.labels.to(self.hardware.device)
            )

    def train_step(self) -> dict[str, Tensor]:
        """Every player's move once, then the average: one iteration. Returns the named terms, still on the device."""
        terms: dict[str, Tensor] = {}
        before = self.images
        first, *_ = moves = self.family.update_order()
        for player in moves:
            if player == first:
                x, label = self.next_batch()
            terms |= {_term(player, name): value for name, value in self.optimizer_step(player, x, label).items()}
        if parallel.rank() == 0:  # which measures and saves
            self.update_average(self.images - before)
        return terms

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Images [B, ...] in [-1, 1] and labels [B] on the device, this process's; counts those of all."""
        index = next(self.batches)
        self.images += len(index)
        index = parallel.shard(index)
        x = to_unit(self.data.images[index].to(self.hardware.device, non_blocking=True))
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, self.data.labels[index].to(self.hardware.device, non_blocking=True)

    def optimizer_step(self, player: str, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        """One optimiser step of `player`; the others' parameters stand still and get no gradient."""
        optimizer = self.optimizers[player]
        pace = self.family.lr_multiplier(player)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = pace * learning_rate(self.recipe, self.images - self.recipe.batch, self.total_images)
        dtype = DTYPES[self.precision]
        with torch.autocast(self.hardware.device.type, dtype, enabled=dtype != torch.float32):
            terms = self.family.loss(player, x, label)
        gradients = torch.autograd.grad(self.scaler.scale(terms["loss"]), parameters, allow_unused=True)
        found = {name: value.detach() for name, value in terms.items()}
        parallel.all_reduce_mean_([*(gradient for gradient in gradients if gradient is not None), *found.values()])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.scaler.step(optimizer)
        self.scaler.update()
        return found

    @torch.no_grad()
    def update_average(self, images: int) -> None:
        """Move the served weights by an iteration of so many images.

        Their half-life is `recipe.ema` images, shorter while the run is young (EDM, appendix F.2).
        """
        half_life = min(self.recipe.ema, 0.05 * self.images)
        weight = 1 - 0.5 ** (images / half_life) if half_life else 1.0
        trained = self.family.state_dict()
        pairs = [(average, trained[name]) for name, average in self.average.state_dict().items()]
        running = [(average, value) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in running], [value for _, value in running], weight)
        for average, value in pairs:
            if not average.is_floating_point():  # a batch norm's counter
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
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
            "device": self.hardware.device.type,
            "data": self.data.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken. Raises ConfigError where the data or the family's nets have changed since."""
        if state["data"] != self.data.digest:
            raise ConfigError(f"{self.data.name} holds other images than this run was begun with; begin a new run")
        try:
            self.family.load_state_dict(state["family"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise ConfigError(
                f"the checkpoint is of another version of {self.family.name}, whose nets had other tensors; "
                f"begin a new run ({' '.join(str(error).split())[:200]})"
            ) from None
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][player])
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state["batches"])
        checkpoint.set_random_state(state["random"], self.hardware.device)
        self.images, self.seconds, self.best = state["images"], state["seconds"], state["best"]


def learning_rate(recipe: Recipe, images: int, goal: int) -> float:
    """The rate after `images` of `goal`: a rise over `recipe.warmup`, then flat or along half a cosine to 0."""
    rise = min(1.0, (images + recipe.batch) / recipe.warmup) if recipe.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, images / goal))) if recipe.cosine else 1.0
    return recipe.lr * rise * fall


def train(trainer: Trainer, run: Path, log: Log | None, every: int, stop: Callable[[], str | None]) -> str | None:
    """Train to the goal, or until `stop` gives a reason, which is returned. Always leaves a checkpoint behind.

    Every `every` images the run draws its grid, measures its samples against the data, and saves. Of several processes
    that share a batch only the first has a log and writes anything, and one that is to stop stops all.
    """
    latest = run / checkpoint.LATEST
    begun = latest.exists()
    if begun:
        trainer.load_state_dict(checkpoint.load(latest))
    if log is not None:
        log.rewind(trainer.images)  # of a run that was killed before its first checkpoint there may be lines too
    if log is not None and not trainer.total_images and not begun:
        before_fit = time.monotonic()
        validate(trainer, run, log)
        trainer.seconds = time.monotonic() - before_fit
        checkpoint.save(latest, trainer.state_dict())
    parallel.broadcast_(list(trainer.family.state_dict().values()))
    reason = None
    clock = time.monotonic()
    while trainer.images < trainer.total_images and reason is None:
        before = trainer.images
        terms = trainer.train_step()
        reason = stop()
        if parallel.any_of(reason is not None):
            reason = reason or "another process stopped"
        if log is None:
            continue
        log.progress(trainer.images, terms)
        due = trainer.images // every > before // every or trainer.images >= trainer.total_images
        if due:
            validate(trainer, run, log)
        if due or reason or time.monotonic() - clock > 120:
            now = time.monotonic()
            trainer.seconds += now - clock
            clock = now
            checkpoint.save(latest, trainer.state_dict())
    return reason


def validate(trainer: Trainer, run: Path, log: Log) -> None:
    """Draw the grid with the noise of always, measure the samples, and keep the weights if they are the best yet."""
    trainer.fit()
    samples = fixed_samples(trainer.average, trainer.hardware.device)
    score = distance(samples, trainer.data)
    log.samples(trainer.images, score, grid_png(samples) if samples.dim() == 4 else None)
    if score < trainer.best:
        trainer.best = score
        checkpoint.save(run / checkpoint.BEST, trainer.state_dict())


def _term(player: str, name: str) -> str:
    return name if player == "self" else f"{player}.{name}"
