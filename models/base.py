"""The contract that every family implements.

A family is a chain from an initial state to an image: `initial_state`, then one `step` per line of the schedule, then
`decode`. A GAN's chain has one step; DDPM's has as many as the request says. No code outside `models/` depends on which
family it holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from models.nets import check_shape

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Range(Generic[Number]):
    """The values that a parameter may take, `minimum <= value <= maximum`, and its default."""

    minimum: Number
    maximum: Number
    default: Number


@dataclass(frozen=True)
class Recipe:
    """Default training settings of a family; each is a flag of `python -m training fit`."""

    epochs: float = field(metadata={"help": "passes over the training data"})
    batch: int = field(metadata={"help": "images per iteration"})
    lr: float = field(metadata={"help": "Adam's highest learning rate"})
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"help": "Adam's betas"})
    ema: int = field(
        default=0, metadata={"help": "half-life of the averaged weights in images; 0 keeps the last weights"}
    )
    warmup: int = field(default=0, metadata={"help": "images over which the learning rate rises from 0"})
    cosine: bool = field(default=False, metadata={"help": "decay the learning rate to 0 along half a cosine"})


CLOSED_FORM = Recipe(epochs=0, batch=128, lr=0.0)
"""For families without gradient training: `fit` is all their training."""


@dataclass(frozen=True)
class About:
    """A description of a family for readers."""

    title: str
    formula: str
    """The objective in plain text."""
    paper: str


@dataclass(frozen=True)
class Rows:
    """A batch on the device: row b of every tensor belongs to the same sample.

    Rows may be at different steps of different schedules, with different labels, guidance scales and seeds.
    """

    state: Tensor
    """[B, *S] float32, each row's current state."""
    label: Tensor
    """[B, classes] float32: one-hot, a mixture of two classes for an interpolation, or zeros for no label."""
    coefficients: Tensor
    """[B, K] float32, the coefficients of each row's current step: its line of `Family.schedule`."""
    guidance: Tensor
    """[B] float32, the guidance scale; 1 is the plain conditional model."""
    seed: Tensor
    """[B] int64."""
    index: Tensor
    """[B] int64, the image's index within its seed."""
    step: Tensor
    """[B] int64, 1 for the first step of the chain."""
    guided: bool = True
    """Whether the guidance scale of any row may differ from 1."""
    noisy: bool = True
    """Whether the coefficients of any row may add noise: whether any may be nonzero in `Family.noise_column`."""
    joint_guidance: int = 0
    """The most rows of which a step evaluates the net with and without labels at once, as a batch of twice the size.
    The bits are those of two passes if the net is batch-invariant; on a CPU a service proves this before it joins them,
    on a GPU it joins the passes of all rows with guidance."""


def coefficient_columns(coefficients: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """The columns of coefficients [B, K], [B, 1, ...] each, shaped to multiply states [B, ...]."""
    return coefficients.t().reshape(-1, len(coefficients), *[1] * (state.dim() - 1)).unbind()


Terms = dict[str, Tensor]
"""Named scalars of a loss; training minimises `loss` and logs the others."""


class Family(nn.Module):
    """A kind of generative model of data of `data_shape` in [-1, 1], with `classes` labels (0: no labels).

    A family is one file in `models/families/` with one subclass of this class. `Config` alone determines its nets.
    """

    Config: ClassVar[type[Any]]
    """A frozen dataclass; each field has `metadata={"help": ...}` and becomes a flag of the training command. A field
    that is added later has a default that leaves earlier nets as they were."""
    about: ClassVar[About]
    recipe: ClassVar[Recipe]
    players: ClassVar[tuple[str, ...]] = ()
    """The players of the training game, each the name of a submodule; empty if `self` is the only player."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Submodules that only training needs; saved and served weights omit them."""
    starts: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """For a run that starts from another family's weights: the submodules that get those of a submodule of it. One that
    is not listed gets those of the same name."""
    conditional: ClassVar[bool] = False
    unconditional: ClassVar[bool] = True
    """Whether a row without a label (zeros) is a sample of the whole distribution."""
    samples_label: ClassVar[bool] = False
    """Whether a request that names no label gets one that its seed determines."""
    steps: Range[int] = Range(1, 1, 1)
    samplers: ClassVar[tuple[str, ...]] = ()
    """Sampler names that `schedule` accepts, the default first; empty if there is no choice."""
    sampler_parameter: ClassVar[Literal["sampler", "prior"]] = "sampler"
    """The name of the request parameter that selects the sampler."""
    guidance: Range[float] | None = None
    """The guidance scales that it takes; None if the family has no guidance."""
    noise_column: ClassVar[int | None] = None
    """The column of `schedule` with the standard deviation of the fresh noise that a step adds. None if steps add none,
    or always the same."""
    encodes: ClassVar[bool] = False
    """Whether the family implements `encode`."""
    inversion: Mapping[str, Any] = MappingProxyType({})
    """The `steps`, `sampler` and `guidance` that reconstruct an encoded image; a missing one has no effect."""
    likelihood: ClassVar[Literal["", "bound", "codes"]] = ""
    """What `log_likelihood` gives: a lower bound of log p(x), the log density of the codes, or "" for nothing."""
    revision: ClassVar[int] = 1
    """Incremented when the same tensors and config give other images. Weights of another revision do not load."""

    def __init__(self, config: Any, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        check_shape(data_shape)
        self.config = config
        self.data_shape = tuple(data_shape)
        self.classes = classes if self.conditional else 0

    # -- sampling ------------------------------------------------------------------------------------------------------

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The chain's coefficients [steps, K] float32, one line per step. K may be 0."""
        return torch.zeros(steps, 0)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        """The initial states [B, *S]: a pure function of seed [B] int64, index [B] int64 and the other arguments.

        label [B, classes] is as in `Rows`; coefficients [B, K] is the first line of each row's schedule.
        """
        raise NotImplementedError

    def step(self, rows: Rows) -> Tensor:
        """The next states [B, *S']. Rows are independent of each other; `decode` takes the states of the last step."""
        raise NotImplementedError

    def decode(self, state: Tensor) -> Tensor:
        """Data [B, *data_shape] in [-1, 1] from final states, or a preview from earlier ones."""
        return state.clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """Encode data x [B, *data_shape] in [-1, 1] as initial states [B, *S].

        With a non-empty `inversion_schedule`, the result is the state that the inversion starts from.
        Raises NotImplementedError if the family has no encoder.
        """
        raise NotImplementedError(f"{self.name} has no encoder")

    def inversion_schedule(self) -> Tensor:
        """The schedule [steps, K] that turns what `encode` returns into initial states, run without guidance.

        Empty for most families.
        """
        return self.schedule(self.steps.minimum)[:0]

    def predicted(self, before: Tensor, after: Tensor, coefficients: Tensor) -> Tensor:
        """The data [B, *data_shape] that a step predicted as the end of its chain.

        before and after [B, *S] are the states on both sides of the step, coefficients [B, K] its line of the schedule.
        Raises NotImplementedError if the family's steps predict nothing.
        """
        raise NotImplementedError(f"{self.name} predicts no data")

    def noised(self, x: Tensor, coefficients: Tensor, eps: Tensor) -> Tensor:
        """The states [B, *S] before the steps of `coefficients`, of chains that lead from noise eps to data x.

        x and eps [B, *data_shape], coefficients [B, K] is a line of each row's schedule. With `predicted`, it is all
        that an edit of an image needs (`edits`). Raises NotImplementedError if no noise meets data in the chain.
        """
        raise NotImplementedError(f"{self.name} has no chain from noise to data")

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        """A lower bound of log p(x), or log p(code of x), as `likelihood` says: [B] nats for data x [B, *data_shape].

        Log densities of codes are comparable only between codes of the same size.
        Raises NotImplementedError if the family has no likelihood.
        """
        raise NotImplementedError(f"{self.name} has no likelihood")

    # -- training ------------------------------------------------------------------------------------------------------

    def update_order(self) -> tuple[str, ...]:
        """The players in the order of their optimizer steps within one iteration; the first step takes a fresh batch.

        Empty if the family has no parameters to train by gradients.
        """
        return self.players or (("self",) if any(True for _ in self.parameters()) else ())

    def player(self, name: str) -> nn.Module:
        """The module whose parameters the player `name` optimises."""
        return self if name == "self" else self.get_submodule(name)

    def lr_multiplier(self, player: str) -> float:
        """The factor on the recipe's learning rate for `player`."""
        return 1.0

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        """Named terms of `player`'s objective on data x [B, *data_shape] and label [B] int64 (-1: unknown).

        Randomness comes from torch's global generator, whose state is part of training's checkpoints. Neither branches
        nor sizes depend on values of tensors, and no tensor comes from the host, so that a GPU can record it.
        """
        raise NotImplementedError

    def fit(self, x: Tensor, label: Tensor) -> None:
        """Estimate what gradients do not, from all training data and the current parameters.

        x [N, *data_shape] in [-1, 1] and label [N] int64 (-1: unknown). Training calls it before it samples and before
        export. A pure function of its arguments and the parameters that sets buffers; most families need none.
        """

    # -- common to all families ----------------------------------------------------------------------------------------

    @property
    def edits(self) -> bool:
        """Whether chains can start from an image and complete one: whether `predicted` and `noised` are implemented."""
        kind = type(self)
        return kind.predicted is not Family.predicted and kind.noised is not Family.noised

    @property
    def name(self) -> str:
        """The name of the family's file."""
        return type(self).__module__.rpartition(".")[2]

    def defaults(self) -> dict[str, Any]:
        """The default `steps`, `sampler` and `guidance`, as far as the family takes them."""
        defaults: dict[str, Any] = {}
        if self.steps.minimum < self.steps.maximum:
            defaults["steps"] = self.steps.default
        if self.samplers:
            defaults["sampler"] = self.samplers[0]
        if self.guidance is not None:
            defaults["guidance"] = self.guidance.default
        return defaults

    def one_hot(self, label: Tensor) -> Tensor:
        """Label [B] int64 in -1..classes-1 -> [B, classes] float32; -1 becomes zeros."""
        return (label[:, None] == torch.arange(self.classes, device=label.device)).to(torch.float32)

    def for_sampling(self) -> "Family":
        """Self without the training-only submodules, frozen, in eval mode and in channels-last memory format."""
        for name in self.training_only:
            delattr(self, name)
        return self.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def sample(
    family: Family,
    seed: Tensor,
    index: Tensor,
    label: Tensor,
    *,
    steps: int,
    sampler: str | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Data [B, *data_shape] for seed [B], index [B] and label [B, classes]: the whole chain at once, offline.

    The engine does the same one step at a time, with rows that arrive at different times.
    """
    schedule = family.schedule(steps, sampler).to(seed.device)
    state = family.initial_state(seed, index, label, schedule[:1].expand(len(seed), -1))
    return run_schedule(family, state, schedule, guidance, seed, index, label)


def invert(family: Family, x: Tensor, label: Tensor) -> Tensor:
    """The initial states [B, *S] of data x [B, *data_shape]: those from which `step` and `decode` reconstruct x."""
    zero = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return _run_steps(family, family.encode(x, label), family.inversion_schedule().to(x.device), 1.0, zero, zero, label)


def run_schedule(
    family: Family, state: Tensor, schedule: Tensor, guidance: float, seed: Tensor, index: Tensor, label: Tensor
) -> Tensor:
    """Data [B, *data_shape] at the end of `schedule` [steps, K] from states [B, *S]; the rest as in `sample`."""
    return family.decode(_run_steps(family, state, schedule, guidance, seed, index, label))


def _run_steps(
    family: Family, state: Tensor, schedule: Tensor, guidance: float, seed: Tensor, index: Tensor, label: Tensor
) -> Tensor:
    scale = torch.full((len(seed),), guidance, device=seed.device)
    for k, line in enumerate(schedule, start=1):
        coefficients = line.expand(len(seed), -1)
        state = family.step(Rows(state, label, coefficients, scale, seed, index, torch.full_like(seed, k)))
    return state
