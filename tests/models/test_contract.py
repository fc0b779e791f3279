"""The contract of every family. A new family is tested by these without any change."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import families, store
from models.base import Range, Rows, sample
from models.nets import fold_norms
from tests.conftest import manifest_of, small

COUNT = 4
IMAGES, COLOUR, POINTS = (1, 28, 28), (3, 12, 8), (2,)


@pytest.fixture(
    params=[(name, shape) for shape in (IMAGES, COLOUR, POINTS) for name in families.names()],
    ids=lambda param: param[0] + {IMAGES: "", COLOUR: "-colour", POINTS: "-points"}[param[1]],
    scope="module",
)
def family(request):
    return small(*request.param).for_sampling()


def inputs(family, count=COUNT):
    """Seed, index and label of `count` rows."""
    index = torch.arange(count)
    return torch.full_like(index, 11), index, family.one_hot(index % max(family.classes, 1))


def few_steps(family):
    return min(3, family.steps.maximum)


class KernelsOnly(TorchDispatchMode):
    """Fails on operations that a CUDA graph cannot contain.

    Fake tensors, and those on the device "meta", raise if the host reads their values; this mode fails on tensors that
    are not on `device`.
    """

    def __init__(self, device="cuda"):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == self.device for tensor in tensors), func
        return result


class TestEveryFamily:
    def test_has_a_description(self, family):
        assert all(dataclasses.astuple(family.about))
        assert family.name in families.names()

    def test_every_setting_has_help(self, family):
        for field in dataclasses.fields(family.Config):
            assert field.metadata.get("help"), field.name

    def test_ranges_contain_their_default(self, family):
        for limits in (family.steps, family.guidance):
            if isinstance(limits, Range):
                assert limits.minimum <= limits.default <= limits.maximum

    @torch.inference_mode()
    def test_samples_are_in_range(self, family):
        x = sample(family, *inputs(family), steps=few_steps(family))
        assert x.shape == (COUNT, *family.data_shape)
        assert x.dtype == torch.float32
        assert float(x.abs().max()) <= 1

    @torch.inference_mode()
    def test_the_same_seed_gives_the_same_image(self, family):
        torch.manual_seed(1)
        first = sample(family, *inputs(family), steps=few_steps(family))
        torch.manual_seed(2)
        again = sample(family, *inputs(family), steps=few_steps(family))
        assert torch.equal(first, again)

    @torch.inference_mode()
    def test_another_seed_or_index_gives_another_image(self, family):
        seed, index, label = inputs(family)
        steps = few_steps(family)
        x = sample(family, seed, index, label[:1].expand_as(label), steps=steps)
        assert len(torch.unique(x.flatten(1), dim=0)) == COUNT
        assert not torch.equal(x, sample(family, seed + 1, index, label, steps=steps))

    @torch.inference_mode()
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_no_row_depends_on_other_rows(self, family, guidance):
        seed, index, label = inputs(family)
        together = sample(family, seed, index, label, steps=few_steps(family), guidance=guidance)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = sample(family, seed[order], index[order], label[order], steps=few_steps(family), guidance=guidance)
        assert torch.equal(shuffled, together[order])

    @torch.inference_mode()
    def test_rows_of_different_schedules_share_a_batch(self, family):
        seed, index, label = inputs(family, 2)
        last = [family.schedule(steps)[-1] for steps in (few_steps(family), family.steps.minimum)]
        state = family.initial_state(seed, index, label, torch.stack([family.schedule(family.steps.minimum)[0]] * 2))
        step = torch.ones_like(seed)
        mixed = family.step(Rows(state, label, torch.stack(last), torch.tensor([1.0, 3.0]), seed, index, step))
        for row, guidance in enumerate((1.0, 3.0)):
            coefficients, scale = last[row].expand(2, -1), torch.full((2,), guidance)
            uniform = family.step(Rows(state, label, coefficients, scale, seed, index, step))
            assert torch.allclose(mixed[row], uniform[row], atol=1e-5)

    @torch.inference_mode()
    def test_a_label_changes_the_image_of_a_conditional_family(self, family):
        if not family.classes:
            assert family.one_hot(torch.tensor([-1])).shape == (1, 0)
            return
        seed, index, _ = inputs(family)
        a, b = (family.one_hot(torch.full_like(seed, digit)) for digit in (3, 8))
        steps = few_steps(family)
        assert not torch.equal(sample(family, seed, index, a, steps=steps), sample(family, seed, index, b, steps=steps))
        between = sample(family, seed, index, (a + b) / 2, steps=steps)
        assert between.isfinite().all()
        assert family.one_hot(torch.tensor([-1])).sum() == 0

    @torch.inference_mode()
    def test_every_sampler_has_a_schedule_of_the_requested_length(self, family):
        for sampler in family.samplers or (None,):
            for steps in {family.steps.minimum, family.steps.default, min(family.steps.maximum, 50)}:
                schedule = family.schedule(steps, sampler)
                assert schedule.dim() == 2
                assert len(schedule) == steps
                assert schedule.isfinite().all()

    @torch.inference_mode()
    def test_encodes_or_raises_an_error(self, family):
        seed, index, label = inputs(family)
        x = torch.rand(COUNT, *family.data_shape) * 2 - 1
        if not family.encodes:
            with pytest.raises(NotImplementedError, match=family.name):
                family.encode(x, label)
            return
        coefficients = family.schedule(family.steps.minimum)[:1].expand(COUNT, -1)
        assert family.encode(x, label).shape == family.initial_state(seed, index, label, coefficients).shape

    @torch.inference_mode()
    def test_edits_or_raises_an_error(self, family):
        seed, index, label = inputs(family)
        x, eps = (torch.rand(COUNT, *family.data_shape) * 2 - 1 for _ in range(2))
        coefficients = family.schedule(few_steps(family))[-1].expand(COUNT, -1)
        before = family.initial_state(seed, index, label, coefficients)
        after = family.step(Rows(before, label, coefficients, torch.ones(COUNT), seed, index, torch.ones_like(seed)))
        if not family.edits:
            with pytest.raises(NotImplementedError, match=family.name):
                family.noised(x, coefficients, eps)
            with pytest.raises(NotImplementedError, match=family.name):
                family.predicted(before, after, coefficients)
            return
        assert family.noised(x, coefficients, eps).shape == before.shape
        predicted = family.predicted(before, after, coefficients)
        torch.testing.assert_close(predicted, family.decode(after), atol=1e-4, rtol=0)  # the last step ends there

    @torch.inference_mode()
    def test_has_a_likelihood_or_raises_an_error(self, family):
        _, _, label = inputs(family)
        x = torch.rand(COUNT, *family.data_shape) * 2 - 1
        if not family.likelihood:
            with pytest.raises(NotImplementedError, match=family.name):
                family.log_likelihood(x, label)
            return
        nats = family.log_likelihood(x, label)
        assert nats.shape == (COUNT,)
        assert nats.isfinite().all()

    @torch.inference_mode()
    def test_saved_and_loaded_weights_give_the_same_images(self, family, tmp_path):
        manifest = store.save(tmp_path / "it", family, manifest_of(family), b"picture")
        loaded, read = store.load(tmp_path / "it")
        assert read == manifest
        rows = inputs(family)
        expected = sample(family, *rows, steps=few_steps(family))
        assert torch.equal(sample(loaded, *rows, steps=few_steps(family)), expected)
        fold_norms(loaded)
        torch.testing.assert_close(sample(loaded, *rows, steps=few_steps(family)), expected, rtol=0, atol=1e-5)

    @torch.inference_mode()
    def test_a_row_has_the_same_bits_in_a_batch_of_any_size(self, family, tmp_path):
        store.save(tmp_path / "it", family, manifest_of(family), b"")
        loaded, _ = store.load(tmp_path / "it")
        fold_norms(loaded)
        rows, steps = inputs(loaded, 9), few_steps(loaded)
        together = sample(loaded, *rows, steps=steps, guidance=2.0)
        for size in (1, 2, 3, 4, 5, 8):
            part = sample(loaded, *(tensor[-size:] for tensor in rows), steps=steps, guidance=2.0)
            assert torch.equal(part, together[-size:]), size

    @torch.inference_mode()
    def test_a_cuda_graph_can_contain_sampling(self, family):
        served = small(family.name, family.data_shape).for_sampling()
        fold_norms(served)
        columns = family.schedule(few_steps(family)).shape[1]

        def on_gpu(*shape, dtype=torch.float32):
            return torch.empty(shape, dtype=dtype, device="cuda")

        with FakeTensorMode(), KernelsOnly():
            for module in served.modules():
                for tensors in (module._parameters, module._buffers):
                    tensors.update({k: on_gpu(*x.shape, dtype=x.dtype) for k, x in tensors.items() if x is not None})
            seed, index, step = (on_gpu(COUNT, dtype=torch.int64) for _ in range(3))
            label, coefficients, guidance = on_gpu(COUNT, family.classes), on_gpu(COUNT, columns), on_gpu(COUNT)
            state = served.initial_state(seed, index, label, coefficients)
            state = served.step(Rows(state, label, coefficients, guidance, seed, index, step))
            assert served.decode(state).shape == (COUNT, *family.data_shape)
            if family.edits:
                predicted = served.predicted(state, state, coefficients)
                assert served.noised(predicted, coefficients, predicted).shape == state.shape

    def test_a_cuda_graph_can_contain_the_losses_and_gradients_of_training(self, family):
        trained = small(family.name, family.data_shape).to("meta")  # torch differentiates fake tensors only on GPUs
        x = torch.empty(COUNT, *family.data_shape, device="meta")
        label = torch.empty(COUNT, dtype=torch.int64, device="meta")
        with KernelsOnly("meta"):
            for player in trained.update_order():
                terms = trained.loss(player, x, label)
                torch.autograd.grad(terms["loss"], list(trained.player(player).parameters()), allow_unused=True)
                assert torch.stack(list(terms.values())).dim() == 1

    def test_weights_omit_training_only_submodules(self, family):
        for module in family.training_only:
            assert not any(name.startswith(module) for name in family.state_dict())

    def test_the_loss_of_every_player_has_gradients(self, family):
        trained = small(family.name, family.data_shape)
        x, label = torch.rand(4, *family.data_shape) * 2 - 1, torch.tensor([0, 1, 2, -1])
        for player in dict.fromkeys(trained.update_order()):
            terms = trained.loss(player, x, label)
            assert all(term.dim() == 0 and term.isfinite() for term in terms.values())
            parameters = list(trained.player(player).parameters())
            gradients = torch.autograd.grad(terms["loss"], parameters, allow_unused=True)
            assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: x * torch.tensor([0.5]).to(x.device),
        lambda x: x[x > 0],  # its size depends on the values
        lambda x: x * float(x.mean()),
        lambda x: x if x.mean() > 0 else -x,
        lambda x: x.cpu(),
    ],
)
def test_operations_that_a_cuda_graph_cannot_contain_are_found(loss):
    x = torch.empty(3, device="meta")
    with KernelsOnly("meta"), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        loss(x)


def test_the_error_for_an_unknown_family_lists_all_families():
    with pytest.raises(families.UnknownFamily, match=", ".join(families.names())):
        families.get("nope")
