"""The training loop of every family. It counts images, not epochs, and resumes from the last checkpoint."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models import parallel
from models.base import Family, Recipe
from models.devices import device_name
from models.pixels import to_unit
from training import checkpoint, film, numerics, transfer
from training.augmentation import Augmentation
from training.config import ConfigError, RunConfig
from training.data import Dataset, InfiniteSampler
from training.log import Log
from training.recording import Inputs, Record, unchanged
from training.samples import distance, fixed_samples, grid_png
from training.start import Start, copy_weights

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes; a resumed run may use other hardware."""

    device: torch.device
    record: Record | None = None
    """Records an iteration, which is then replayed, as far as `Trainer` can; None calls each iteration."""


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
        self.order = self.family.update_order()
        self.pixels, self.labels = data.images, data.labels
        """Of the training images, on the device if they fit and no augmentation needs them on the host."""
        if augmentation is None:
            self.pixels, self.labels = transfer.resident(data.images, data.labels, hardware.device)
        self.inputs = self._inputs()
        self._replay: Callable[[], Tensor] | None = None
        self._term_names: list[str] = []
        self.optimizers = {
            player: torch.optim.Adam(
                self.family.player(player).parameters(),
                self.recipe.lr,
                self.recipe.betas,
                fused=True,
                capturable=self.inputs is not None,
            )
            for player in dict.fromkeys(self.order)
        }
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=precision == "f16")
        self.batches = InfiniteSampler(len(data.images), self.recipe.batch, seed)
        self.images, self.seconds, self.best = 0, 0.0, math.inf
        self.fitted_at: int | None = None
        """`images` at the last `fit`."""

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
        batches, rates, weight = self.next_inputs()
        if self.inputs is None:
            return self.iterate((self.load(index, images) for index, images in batches), rates, weight)
        self.inputs.fill([index for index, _ in batches], rates, weight)
        if self._replay is None:
            self._replay = self._recorded()
        terms = self._replay().clone()  # the next replay overwrites its own
        return dict(zip(self._term_names, terms.unbind(), strict=True))

    def next_inputs(self) -> tuple[list[tuple[Tensor, int]], list[float], float]:
        """Draw the batches of the next iteration, and count the images of all processes.

        Returns this process's indices [B] of each batch with the images seen after it, the learning rate of each step,
        and the weight of the new values in the average.
        """
        before, batches, rates = self.images, [], []
        for player in self.order:
            if player == self.order[0]:
                index = next(self.batches)
                self.images += len(index)
                batches.append((parallel.shard(index), self.images))
            rates.append(self.rate(player))
        return batches, rates, average_weight(self.recipe, self.images - before, self.images)

    def rate(self, player: str) -> float:
        """The learning rate of `player` for the batch that was counted last."""
        rate = learning_rate(self.recipe, self.images - self.recipe.batch, self.total_images)
        return self.family.lr_multiplier(player) * rate

    def load(self, index: Tensor, images_seen: int = 0) -> tuple[Tensor, Tensor]:
        """Images [B, ...] in [-1, 1] and labels [B] of the batch `index` [B], on the device.

        `images_seen` counts the images after the batch, which decides its augmentation.
        """
        device = self.hardware.device
        index = index.to(self.pixels.device, non_blocking=True)
        images = self.pixels[index]
        if self.augmentation is not None:
            images = self.augmentation(images, self.seed, images_seen)
        x = to_unit(images.to(device, non_blocking=True))
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, self.labels[index].to(device, non_blocking=True)

    def iterate(
        self, batches: Iterable[tuple[Tensor, Tensor]], rates: Sequence[float | Tensor], weight: float | Tensor
    ) -> dict[str, Tensor]:
        """One iteration on images and labels of `batches`, at the learning rate of each step.

        `weight` is that of the new values in the average. Depends on no value of a tensor, so it can be recorded if
        `rates` and `weight` are tensors. Returns the named loss terms.
        """
        terms: dict[str, Tensor] = {}
        fresh = iter(batches)
        for player, rate in zip(self.order, rates, strict=True):
            if player == self.order[0]:
                x, label = next(fresh)
            means = self.optimizer_step(player, rate, x, label)
            terms |= {_term_name(player, name): value for name, value in means.items()}
        if parallel.rank() == 0:  # only the first process validates and saves
            self.update_average(weight)
        return terms

    def optimizer_step(self, player: str, rate: float | Tensor, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        """One optimiser step of `player`; the other players' parameters neither change nor get a gradient.

        Returns the named loss terms, averaged over all processes.
        """
        optimizer = self.optimizers[player]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = rate
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
    def update_average(self, weight: float | Tensor) -> None:
        """Move the averaged weights, which are exported, by the share `weight` of the way to the trained ones."""
        trained = self.family.state_dict()
        pairs = [(average, trained[name]) for name, average in self.average.state_dict().items()]
        running = [(average, value) for average, value in pairs if average.is_floating_point()]
        averages, values = [average for average, _ in running], [value for _, value in running]
        if isinstance(weight, Tensor):  # which `_foreach_lerp_` would read; exact for a weight of 1
            kept = 1 - weight
            torch._foreach_mul_(averages, kept)
            torch._foreach_add_(averages, torch._foreach_mul(values, 1 - kept))
        else:
            torch._foreach_lerp_(averages, values, weight)
        for average, value in pairs:
            if not average.is_floating_point():  # the counter of a batch norm
                average.copy_(value)

    def _inputs(self) -> Inputs | None:
        """The inputs of recorded iterations; None if they are called.

        Random transformations of images, f16's scale of the loss and exchanges between processes go through the host.
        """
        device = self.hardware.device
        if self.hardware.record is None or not self.order or self.pixels.device.type != device.type:
            return None
        if self.augmentation is not None or self.precision == "f16" or parallel.size() > 1:
            return None
        return Inputs(self.order.count(self.order[0]), self.recipe.batch, len(self.order), device)

    def _recorded(self) -> Callable[[], Tensor]:
        """A function that replays an iteration on `inputs`, or calls it where the device cannot record it."""
        record = self.hardware.record
        assert record is not None
        try:
            with unchanged(self._tensors, self.hardware.device):
                return record(self._iterate_inputs)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            tqdm.write(f"iterations are not recorded, which is slower: {reason}", file=sys.stderr)
            return self._iterate_inputs

    def _iterate_inputs(self) -> Tensor:
        """One iteration on `inputs`. Returns the loss terms [T], whose names are `_term_names`."""
        inputs = self.inputs
        assert inputs is not None
        terms = self.iterate((self.load(index) for index in inputs.index), inputs.rates, inputs.weight)
        self._term_names = [*terms]
        return torch.stack([*terms.values()])

    def _tensors(self) -> Iterator[Tensor]:
        """All tensors that an iteration changes."""
        for family in (self.family, self.average):
            yield from family.parameters()
            yield from family.buffers()
        for optimizer in self.optimizers.values():
            for state in optimizer.state.values():
                yield from state.values()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run continues."""
        return {
            "family": self.family.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {player: self._optimizer_state(player) for player in self.optimizers},
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
            for group in optimizer.param_groups:  # which came with the state, perhaps from another device
                group["capturable"] = self.inputs is not None
        self._replay = None  # it has the addresses of the former state
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state["batches"])
        checkpoint.set_random_state(state["random"], self.hardware.device)
        self.images, self.seconds, self.best = state["images"], state["seconds"], state["best"]
        self.fitted_at = state.get("fitted_at")  # missing in checkpoints of earlier versions

    def _optimizer_state(self, player: str) -> dict[str, Any]:
        """The state of a player's optimiser, with the learning rate as a number."""
        state = self.optimizers[player].state_dict()
        for group in state["param_groups"]:
            if isinstance(group["lr"], Tensor):
                group["lr"] = self.rate(player)
        return state


def has_closed_form(family: type[Family]) -> bool:
    """Whether `family` estimates something by `Family.fit`."""
    return family.fit is not Family.fit


def estimate_closed_form(family: Family, data: Dataset, device: torch.device, some: slice = slice(None)) -> None:
    """Run the closed-form estimation of `family` (`Family.fit`), if it has one, on `some` of the images."""
    if has_closed_form(type(family)):
        family.fit(to_unit(data.images[some].to(device)), data.labels[some].to(device))


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


def average_weight(recipe: Recipe, images: int, images_seen: int) -> float:
    """The weight of the new values in the averaged weights after an iteration over `images` images.

    The average's half-life is `recipe.ema` images, and shorter early in the run (EDM, appendix F.2). `images_seen`
    counts the images after the iteration.
    """
    half_life = min(recipe.ema, 0.05 * images_seen)
    return 1 - 0.5 ** (images / half_life) if half_life else 1.0


def train(trainer: Trainer, run: Path, log: Log | None, every: int, stop: Callable[[], str | None]) -> str | None:
    """Start or resume training in the directory `run`; return None at its end, or the reason that `stop` gave.

    Every `every` images the run validates and saves; it also saves at least every two minutes and when it ends. Of
    several processes that share a batch only the first has a log and writes files; a reason to stop one stops all.
    Raises NotFinite, and neither validates nor saves, if a loss or a part of the state is not finite.
    """
    device = trainer.hardware.device
    with numerics.reproducible(device), checkpoint.Writer(in_background=device.type == "cuda") as writer:
        resumed = (run / checkpoint.LATEST).exists()
        if resumed:
            trainer.load_state_dict(checkpoint.load(run / checkpoint.LATEST))
        if log is not None:
            log.rewind(trainer.images)  # also without a checkpoint: a run killed before its first one may have lines
        if log is not None and not trainer.total_images and not resumed:
            started_at = time.monotonic()
            validate(trainer, run, log, writer)
            trainer.seconds = time.monotonic() - started_at
            writer.save(run / checkpoint.LATEST, trainer.state_dict())
        if log is not None and trainer.total_images and not trainer.images:
            draw_frame(trainer, log)
        parallel.broadcast_(list(trainer.family.state_dict().values()))
        return _iterations(trainer, run, log, every, stop, writer)


def _iterations(
    trainer: Trainer,
    run: Path,
    log: Log | None,
    every: int,
    stop: Callable[[], str | None],
    writer: checkpoint.Writer,
) -> str | None:
    """The rest of the run, as `train` says. Waits for a GPU only where it validates, saves or draws a frame."""
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
        log.flush()
        checkpoint.require_finite(trainer.state_dict())
        if due:
            validate(trainer, run, log, writer)
        now = time.monotonic()
        trainer.seconds += now - saved_at
        saved_at = now
        writer.save(run / checkpoint.LATEST, trainer.state_dict())
    return reason


def validate(trainer: Trainer, run: Path, log: Log, writer: checkpoint.Writer) -> None:
    """Write the grid of fixed samples and their distance to the data; keep the checkpoint if it is the best so far."""
    trainer.fit()
    samples = fixed_samples(trainer.average, trainer.hardware.device)
    score = distance(samples, trainer.data)
    log.samples(trainer.images, score, grid_png(samples) if samples.dim() == 4 else None)
    if score < trainer.best:
        trainer.best = score
        writer.save(run / checkpoint.BEST, trainer.state_dict())


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
