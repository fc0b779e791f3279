"""The one contract every family fulfils.

Every family is a chain from a start state to an image: `start`, then `step` as often as the plan has links, then
`decode`. A GAN's chain has one link, DDPM's has as many as the caller asks for. Nothing above this floor may ask which
family it holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Range(Generic[Number]):
    """What a caller may ask for: `minimum <= value <= maximum`, and what he gets who asks for nothing."""

    minimum: Number
    maximum: Number
    default: Number


@dataclass(frozen=True)
class Recipe:
    """How training runs a family unless told otherwise; plain numbers, every one a flag of `python -m training fit`."""

    epochs: float = field(metadata={"help": "passes over the training data"})
    batch: int = field(metadata={"help": "images an iteration"})
    lr: float = field(metadata={"help": "Adam's learning rate at its highest"})
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"help": "Adam's betas"})
    ema: int = field(
        default=0, metadata={"help": "half-life of the averaged weights in images; 0 serves the last ones"}
    )
    warmup: int = field(default=0, metadata={"help": "images over which the learning rate rises from 0"})
    cosine: bool = field(default=False, metadata={"help": "let the learning rate fall to 0 along half a cosine"})


CLOSED_FORM = Recipe(epochs=0, batch=128, lr=0.0)
"""For families that gradients have nothing to do with: `fit` is all their training."""


@dataclass(frozen=True)
class About:
    """What a family is, for people."""

    title: str
    formula: str
    """The objective in plain text."""
    paper: str


@dataclass(frozen=True)
class Rows:
    """The batch on the device: row b of every tensor belongs to the same sample.

    Rows may be at different steps of different plans, with different labels, guidance and seeds.
    """

    state: Tensor
    """[B, *S] float32, where each row stands."""
    label: Tensor
    """[B, classes] float32: one-hot, a mixture on the way from one class to another, or zeros for none."""
    coefficients: Tensor
    """[B, K] float32, the coefficients of the link that each row takes now: its line of `Family.plan`."""
    guidance: Tensor
    """[B] float32, the strength of the label; 1 is the plain conditional model."""
    seed: Tensor
    """[B] int64."""
    index: Tensor
    """[B] int64, the image's index within its seed."""
    step: Tensor
    """[B] int64, 1 for the first link of the chain."""


def coefficient_columns(rows: Rows) -> tuple[Tensor, ...]:
    """The coefficients of `rows.link` one by one, [B, 1, ...] each, as they multiply the states."""
    return rows.coefficients.t().reshape(-1, len(rows.coefficients), *[1] * (rows.state.dim() - 1)).unbind()


Terms = dict[str, Tensor]
"""Named scalars of a loss; `loss` is the one to descend, the others are for the log."""


class Family(nn.Module):
    """A kind of generative model over data of `data_shape` in [-1, 1], with `classes` labels (0: it takes none).

    A family is one file in `models/families/` with one subclass of this in it. Its nets are built from `Config` alone.
    """

    Config: ClassVar[type[Any]]
    """A frozen dataclass; each field has `metadata={"help": ...}` and becomes a flag of training."""
    about: ClassVar[About]
    recipe: ClassVar[Recipe]
    players: ClassVar[tuple[str, ...]] = ()
    """The sides of the training game, each the name of a submodule; empty where `self` is the only one."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Submodules that only training needs; weights are saved and served without them."""
    conditional: ClassVar[bool] = False
    unconditional: ClassVar[bool] = True
    """Whether a row with no label (zeros) is drawn from the whole distribution; else a label is drawn for it first."""
    steps: Range[int] = Range(1, 1, 1)
    samplers: ClassVar[tuple[str, ...]] = ()
    """Names for `plan`, the default first; empty where there is nothing to choose."""
    sampler_parameter: ClassVar[Literal["sampler", "prior"]] = "sampler"
    """The word by which callers choose one."""
    guidance: Range[float] | None = None
    """The strengths of the label that it takes; None where there is nothing to strengthen."""
    encodes: ClassVar[bool] = False
    """Whether `encode` is there."""
    inversion: Mapping[str, Any] = MappingProxyType({})
    """The `steps`, `sampler` and `guidance` by which an encoded image comes back; what is not here does not matter."""
    likelihood: ClassVar[Literal["", "bound", "codes"]] = ""
    """Whether `log_likelihood` is there: a lower bound of the data's, or the density of the codes that it becomes."""
    revision: ClassVar[int] = 1
    """Raised when the same tensors and config come to mean other images: weights of another revision are refused."""
    compiles: ClassVar[bool] = True
    """Whether training may `torch.compile` the nets; not where a loss differentiates a gradient."""

    def __init__(self, config: Any, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        self.config = config
        self.data_shape = tuple(data_shape)
        self.classes = classes if self.conditional else 0

    # -- sampling ------------------------------------------------------------------------------------------------------

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The chain's coefficients [steps, K] float32, one line a link. K may be 0."""
        return torch.zeros(steps, 0)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        """The first states [B, *S], a pure function of seed [B] int64, index [B] int64, label [B, classes] and link.

        `coefficients` [B, K] is each row's first line of its plan.
        """
        raise NotImplementedError

    def step(self, rows: Rows) -> Tensor:
        """The states one link further, [B, *S']. No row depends on its neighbours; the last link's can be decoded."""
        raise NotImplementedError

    def decode(self, state: Tensor) -> Tensor:
        """Data [B, *data_shape] in [-1, 1] of states at the end of their chain, and of what is to be seen before it."""
        return state.clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """Where data x [B, *data_shape] in [-1, 1] enters the chain: its start states [B, *S], or where the way back to
        them begins.
        """
        raise NotImplementedError(f"{self.name} has no encoder")

    def inversion_schedule(self) -> Tensor:
        """The plan [steps, K] by which what `encode` gives becomes start states, without guidance; of most, empty."""
        return self.schedule(self.steps.minimum)[:0]

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        """A lower bound of log p(x), or log p(code of x), as `likelihood` says: [B] nats for data x [B, *data_shape].

        Densities of codes compare with those of codes of the same size alone.
        """
        raise NotImplementedError(f"{self.name} knows no likelihood")

    # -- training ------------------------------------------------------------------------------------------------------

    def update_order(self) -> tuple[str, ...]:
        """The players in the order in which they move within one iteration; the first mover draws a fresh batch.

        None where gradients have nothing to do.
        """
        return self.players or (("self",) if any(True for _ in self.parameters()) else ())

    def player(self, name: str) -> nn.Module:
        """The module whose parameters `name` may change."""
        return self if name == "self" else self.get_submodule(name)

    def lr_multiplier(self, player: str) -> float:
        """What the recipe's learning rate is multiplied by for `player`."""
        return 1.0

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        """Named terms of `player`'s objective on data x [B, *data_shape] and label [B] int64 (-1: unknown).

        Randomness comes from torch's global generator, which training saves with its checkpoints.
        """
        raise NotImplementedError

    def fit(self, x: Tensor, label: Tensor) -> None:
        """What gradients do not estimate, from all of the training data and whatever gradients have found so far.

        x [N, *data_shape] in [-1, 1] and label [N] int64 (-1: unknown). Called before samples are drawn and at export;
        a pure function of its arguments and the parameters, whose findings are buffers. Most families need nothing.
        """

    # -- what everything above this floor relies on --------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the family's file."""
        return type(self).__module__.rpartition(".")[2]

    def defaults(self) -> dict[str, Any]:
        """The `steps`, `sampler` and `guidance` of who asks for none, as far as there is anything to choose."""
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
        """Self without the opponents, frozen and in eval mode, laid out for inference (channels last)."""
        for opponent in self.training_only:
            delattr(self, opponent)
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

    The engine does the same a link at a time, for rows that came at different times.
    """
    plan = family.schedule(steps, sampler).to(seed.device)
    state = family.initial_state(seed, index, label, plan[:1].expand(len(seed), -1))
    return run_schedule(family, state, plan, guidance, seed, index, label)


def invert(family: Family, x: Tensor, label: Tensor) -> Tensor:
    """The start states [B, *S] of data x [B, *data_shape]: what `step` and `decode` bring back to x."""
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return _run_steps(family, family.encode(x, label), family.inversion_schedule().to(x.device), 1.0, none, none, label)


def run_schedule(
    family: Family, state: Tensor, plan: Tensor, guidance: float, seed: Tensor, index: Tensor, label: Tensor
) -> Tensor:
    """Data [B, *data_shape] at the end of `plan` [steps, K] from start states [B, *S], otherwise as `draw`."""
    return family.decode(_run_steps(family, state, plan, guidance, seed, index, label))


def _run_steps(
    family: Family, state: Tensor, plan: Tensor, guidance: float, seed: Tensor, index: Tensor, label: Tensor
) -> Tensor:
    strength = torch.full((len(seed),), guidance, device=seed.device)
    for k, link in enumerate(plan, start=1):
        line = link.expand(len(seed), -1)
        state = family.step(Rows(state, label, line, strength, seed, index, torch.full_like(seed, k)))
    return state
