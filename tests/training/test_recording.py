"""Recorded iterations, on a CPU: a recorder that imitates a GPU's, and refuses what a GPU would not repeat."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import families, parallel
from tests.conftest import SMALL
from training import data, transfer
from training.augmentation import Augmentation
from training.data import Dataset
from training.loop import Hardware, Trainer
from training.recording import Record, recorder, unchanged

CPU = torch.device("cpu")
FORBIDDEN = (
    torch.ops.aten._local_scalar_dense.default,  # `item`, `float`
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.lift_fresh.default,  # `torch.tensor`
)
SMALLER = {"wgan_gp": {"critic_steps": 2}, "meanflow": {"width": 8}}
BY_GRADIENTS = [name for name in families.names() if families.get(name).recipe.epochs]


class Kernels(TorchDispatchMode):
    """Notes what a GPU would record: operations with their numbers, and the addresses of tensors from before.

    A recording repeats all of this, whatever the host's numbers have become. Fails if the host reads a tensor, or makes
    one from its numbers, which a GPU would have to wait for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._made: dict[int, Tensor] = {}
        """The tensors that it made, by the address of their storage; kept, so that no address is used twice."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in FORBIDDEN, func
        leaves = tree_leaves((args, kwargs))
        given = {_storage(x): x.data_ptr() for x in leaves if isinstance(x, Tensor)}
        if func.namespace != "profiler":
            numbers = [x for x in leaves if not isinstance(x, Tensor)]
            self.calls.append((str(func), numbers, [given[key] for key in given if key not in self._made]))
        result = func(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._made |= {_storage(x): x for x in results if _storage(x) not in given}
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def imitate_recorder(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Calls the function to warm up and to record, and again at each replay, which must do the same."""
    function()
    with Kernels() as recorded:
        output = function()

    def replay() -> Tensor:
        with Kernels() as replayed:
            again = function()
        assert replayed.calls == recorded.calls
        return output.copy_(again)

    return replay


def call_recorder(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Records nothing: the eager run on the same inputs."""
    return function


def cannot_record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Fails as a GPU does, after a call to warm up."""
    function()
    raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")


def never_record(_: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise AssertionError("this run is not recorded")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return data.make("noise", images, torch.arange(50) % 11 - 1, tuple("0123456789"))


def trainer(name: str, dataset: Dataset, record: Record | None, **options: Any) -> Trainer:
    """A small trainer, whose learning rate and average change from one iteration to the next."""
    kind = families.get(name)
    torch.manual_seed(1)
    family = kind(kind.Config(**SMALL.get(name, {}) | SMALLER.get(name, {})), (1, 28, 28), 10)
    recipe = dataclasses.replace(kind.recipe, batch=8, warmup=100, cosine=True, epochs=10, ema=40)
    return Trainer(family, recipe, dataset, Hardware(CPU, record), seed=2, **options)


def train(trained: Trainer, iterations: int, seed: int | None = None) -> list[dict[str, Tensor]]:
    """The loss terms of each iteration, from `seed` or from where the random numbers are."""
    if seed is not None:
        torch.manual_seed(seed)
    return [trained.train_step() for _ in range(iterations)]


def assert_equal(a: Any, b: Any, name: str = "state") -> None:
    """The trees have the same numbers to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, list):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{name}.{k}")
    else:
        assert a == b, name


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_a_recorded_run_resumed_from_a_checkpoint_equals_a_called_run_to_the_bit(
    name: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.denoisers.any_set", lambda _: True)  # as on a GPU
    called = trainer(name, dataset, call_recorder)
    terms = train(called, 4, seed=3)
    expected = called.state_dict()

    first = trainer(name, dataset, imitate_recorder)
    replayed = train(first, 2, seed=3)
    state = copy.deepcopy(first.state_dict())
    train(first, 1)  # the state that the checkpoint restores is another one
    torch.manual_seed(9)
    second = trainer(name, dataset, imitate_recorder)
    second.load_state_dict(copy.deepcopy(state))
    replayed += train(second, 2)
    assert_equal(expected, second.state_dict())
    assert_equal(terms, replayed)

    first.load_state_dict(state)  # into a trainer that has a recording already
    train(first, 2)
    assert_equal(expected, first.state_dict())


@pytest.mark.parametrize("name", ["ddpm", "vae", "gan"])
def test_a_recorded_run_is_that_of_the_cpu_up_to_rounding(name: str, dataset: Dataset) -> None:
    plain, recorded = trainer(name, dataset, None), trainer(name, dataset, imitate_recorder)
    terms, random = [], []
    for trained in (plain, recorded):
        terms.append(train(trained, 3, seed=3))
        random.append(torch.get_rng_state())
    for expected, actual in zip(*terms, strict=True):
        assert {key: float(value) for key, value in actual.items()} == pytest.approx(
            {key: float(value) for key, value in expected.items()}, rel=1e-3, abs=1e-4
        )
    for key, value in plain.average.state_dict().items():
        torch.testing.assert_close(recorded.average.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert recorded.images == plain.images
    assert torch.equal(*random)


def test_the_weights_without_an_average_are_the_last_ones(dataset: Dataset) -> None:
    trained = trainer("gan", dataset, imitate_recorder)
    trained.recipe = dataclasses.replace(trained.recipe, ema=0)
    train(trained, 3)
    for key, value in trained.average.state_dict().items():
        assert torch.equal(value, trained.family.state_dict()[key]), key


@pytest.mark.parametrize(("before", "after"), [(None, imitate_recorder), (imitate_recorder, None)])
def test_a_run_goes_on_where_iterations_are_recorded_and_where_not(
    before: Record | None, after: Record | None, dataset: Dataset
) -> None:
    first, second = trainer("gan", dataset, before), trainer("gan", dataset, after)
    train(first, 3, seed=3)
    state = first.state_dict()
    rates = [group["lr"] for optimizer in state["optimizers"].values() for group in optimizer["param_groups"]]
    assert rates == [first.rate("generator")] * 2
    assert all(isinstance(rate, float) for rate in rates)
    second.load_state_dict(copy.deepcopy(state))
    for trained in (first, second):
        train(trained, 2, seed=4)
    for key, value in first.family.state_dict().items():
        torch.testing.assert_close(second.family.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_a_recording_changes_nothing_but_the_terms_that_its_replay_returns(dataset: Dataset) -> None:
    trained = trainer("vae", dataset, call_recorder)
    train(trained, 2)
    before = copy.deepcopy(trained.state_dict())
    with unchanged(trained._tensors, CPU):
        imitate_recorder(trained._iterate_inputs)
    assert_equal(before, trained.state_dict())


def test_loss_terms_are_not_overwritten_by_later_iterations(dataset: Dataset) -> None:
    first, second = train(trainer("vae", dataset, imitate_recorder), 2)
    assert float(first["loss"]) != float(second["loss"])


def test_a_device_that_cannot_record_goes_on_eagerly_with_one_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, trained = trainer("gan", dataset, call_recorder), trainer("gan", dataset, cannot_record)
    assert_equal(train(expected, 3, seed=3), train(trained, 3, seed=3))
    assert_equal(expected.state_dict(), trained.state_dict())
    assert capsys.readouterr().err == (
        "iterations are not recorded, which is slower: CUDA error: operation not permitted when stream is capturing\n"
    )


@pytest.mark.parametrize("options", [{"precision": "f16"}, {"augmentation": Augmentation(shift=1)}])
def test_iterations_that_need_the_host_are_called(options: dict[str, Any], dataset: Dataset) -> None:
    plain, trained = (trainer("ae", dataset, record, **options) for record in (None, never_record))
    train(plain, 2, seed=3)
    train(trained, 2, seed=3)
    assert_equal(plain.state_dict(), trained.state_dict())


def test_iterations_of_several_processes_are_called(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    assert trainer("ae", dataset, never_record).inputs is None


def test_iterations_on_images_of_another_device_are_called(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "resident", lambda images, labels, _: (images.to("meta"), labels.to("meta")))
    assert trainer("ae", dataset, never_record).inputs is None


def test_a_cpu_records_nothing() -> None:
    assert recorder(CPU) is None


class Imitated:
    """What `imitate_recorder` is asked to record."""

    def __init__(self) -> None:
        self.x, self.rate = torch.ones(2), 0.5

    def with_a_number_of_the_host(self) -> Tensor:
        self.rate += 1
        return self.x * self.rate

    def with_a_new_tensor_of_the_host(self) -> Tensor:
        self.x = self.x.clone()
        self.kept = [*getattr(self, "kept", []), self.x]
        return self.x + 1

    def with_a_copy_from_the_host(self) -> Tensor:
        return self.x + torch.tensor([1.0, 2.0], device=self.x.device)

    def with_a_branch(self) -> Tensor:
        return self.x + 1 if self.x.sum() > 0 else self.x


@pytest.mark.parametrize("name", [name for name in vars(Imitated) if name.startswith("with")])
def test_the_imitated_recorder_refuses_what_a_gpu_would_not_repeat(name: str) -> None:
    with pytest.raises(AssertionError):
        imitate_recorder(getattr(Imitated(), name))()
