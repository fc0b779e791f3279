"""What every family promises. A new one gets all of this by existing."""

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


IMAGES, POINTS = (1, 28, 28), (2,)


@pytest.fixture(
    params=[(name, shape) for shape in (IMAGES, POINTS) for name in families.names()],
    ids=lambda param: param[0] + ("" if param[1] == IMAGES else "-points"),
    scope="module",
)
def family(request):
    return small(*request.param).for_sampling()


def places(family, count=COUNT):
    index = torch.arange(count)
    return torch.full_like(index, 11), index, family.one_hot(index % max(family.classes, 1))


def few(family):
    return min(3, family.steps.maximum)


class KernelsAlone(TorchDispatchMode):
    """Lets nothing through that a graph of a GPU's kernels could not hold: fake tensors refuse to say what is in them,
    and this to move anything to or from the host.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == "cuda" for tensor in tensors), func
        return found


class TestEveryFamily:
    def test_tells_what_it_is(self, family):
        assert all(dataclasses.astuple(family.about))
        assert family.name in families.names()

    def test_every_setting_has_help(self, family):
        for field in dataclasses.fields(family.Config):
            assert field.metadata.get("help"), field.name

    def test_limits_hold_their_default(self, family):
        for limits in (family.steps, family.guidance):
            if isinstance(limits, Range):
                assert limits.minimum <= limits.default <= limits.maximum

    @torch.inference_mode()
    def test_draws_images_in_range(self, family):
        x = sample(family, *places(family), steps=few(family))
        assert x.shape == (COUNT, *family.data_shape)
        assert x.dtype == torch.float32
        assert float(x.abs().max()) <= 1

    @torch.inference_mode()
    def test_the_same_seed_draws_the_same_image(self, family):
        torch.manual_seed(1)
        first = sample(family, *places(family), steps=few(family))
        torch.manual_seed(2)
        again = sample(family, *places(family), steps=few(family))
        assert torch.equal(first, again)

    @torch.inference_mode()
    def test_another_seed_or_index_draws_another_image(self, family):
        seed, index, label = places(family)
        steps = few(family)
        x = sample(family, seed, index, label[:1].expand_as(label), steps=steps)
        assert len(torch.unique(x.flatten(1), dim=0)) == COUNT
        assert not torch.equal(x, sample(family, seed + 1, index, label, steps=steps))

    @torch.inference_mode()
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_no_row_depends_on_its_neighbours(self, family, guidance):
        seed, index, label = places(family)
        together = sample(family, seed, index, label, steps=few(family), guidance=guidance)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = sample(family, seed[order], index[order], label[order], steps=few(family), guidance=guidance)
        assert torch.equal(shuffled, together[order])

    @torch.inference_mode()
    def test_rows_of_different_plans_share_a_batch(self, family):
        seed, index, label = places(family, 2)
        last = [family.schedule(steps)[-1] for steps in (few(family), family.steps.minimum)]
        state = family.initial_state(seed, index, label, torch.stack([family.schedule(family.steps.minimum)[0]] * 2))
        step = torch.ones_like(seed)
        mixed = family.step(Rows(state, label, torch.stack(last), torch.tensor([1.0, 3.0]), seed, index, step))
        for row, guidance in enumerate((1.0, 3.0)):
            line, strength = last[row].expand(2, -1), torch.full((2,), guidance)
            uniform = family.step(Rows(state, label, line, strength, seed, index, step))
            assert torch.allclose(mixed[row], uniform[row], atol=1e-5)

    @torch.inference_mode()
    def test_labels_decide_where_it_takes_them(self, family):
        if not family.classes:
            assert family.one_hot(torch.tensor([-1])).shape == (1, 0)
            pytest.skip("takes no label")
        seed, index, _ = places(family)
        a, b = (family.one_hot(torch.full_like(seed, digit)) for digit in (3, 8))
        steps = few(family)
        assert not torch.equal(sample(family, seed, index, a, steps=steps), sample(family, seed, index, b, steps=steps))
        between = sample(family, seed, index, (a + b) / 2, steps=steps)
        assert between.isfinite().all()
        assert family.one_hot(torch.tensor([-1])).sum() == 0

    @torch.inference_mode()
    def test_every_sampler_has_a_plan_as_long_as_asked(self, family):
        for sampler in family.samplers or (None,):
            for steps in {family.steps.minimum, family.steps.default, min(family.steps.maximum, 50)}:
                plan = family.schedule(steps, sampler)
                assert plan.dim() == 2
                assert len(plan) == steps
                assert plan.isfinite().all()

    @torch.inference_mode()
    def test_encodes_or_says_that_it_cannot(self, family):
        seed, index, label = places(family)
        x = torch.rand(COUNT, *family.data_shape) * 2 - 1
        if not family.encodes:
            with pytest.raises(NotImplementedError, match=family.name):
                family.encode(x, label)
            return
        links = family.schedule(family.steps.minimum)[:1].expand(COUNT, -1)
        assert family.encode(x, label).shape == family.initial_state(seed, index, label, links).shape

    @torch.inference_mode()
    def test_knows_a_likelihood_or_says_that_it_does_not(self, family):
        _, _, label = places(family)
        x = torch.rand(COUNT, *family.data_shape) * 2 - 1
        if not family.likelihood:
            with pytest.raises(NotImplementedError, match=family.name):
                family.log_likelihood(x, label)
            return
        nats = family.log_likelihood(x, label)
        assert nats.shape == (COUNT,)
        assert nats.isfinite().all()

    @torch.inference_mode()
    def test_saved_and_loaded_draws_the_same(self, family, tmp_path):
        manifest = store.save(tmp_path / "it", family, manifest_of(family), b"picture")
        loaded, read = store.load(tmp_path / "it")
        assert read == manifest
        where = places(family)
        drawn = sample(family, *where, steps=few(family))
        assert torch.equal(sample(loaded, *where, steps=few(family)), drawn)
        fold_norms(loaded)
        torch.testing.assert_close(sample(loaded, *where, steps=few(family)), drawn, rtol=0, atol=1e-5)

    @torch.inference_mode()
    def test_a_row_is_the_same_to_the_bit_in_batches_of_any_size(self, family, tmp_path):
        store.save(tmp_path / "it", family, manifest_of(family), b"")
        loaded, _ = store.load(tmp_path / "it")
        fold_norms(loaded)
        where, steps = places(loaded, 9), few(loaded)
        together = sample(loaded, *where, steps=steps, guidance=2.0)
        for size in (1, 2, 3, 4, 5, 8):
            alone = sample(loaded, *(part[-size:] for part in where), steps=steps, guidance=2.0)
            assert torch.equal(alone, together[-size:]), size

    @torch.inference_mode()
    def test_draws_by_kernels_alone_where_there_is_a_gpu(self, family):
        served = small(family.name, family.data_shape).for_sampling()
        fold_norms(served)
        columns = family.schedule(few(family)).shape[1]

        def there(*shape, dtype=torch.float32):
            return torch.empty(shape, dtype=dtype, device="cuda")

        with FakeTensorMode(), KernelsAlone():
            for module in served.modules():
                for tensors in (module._parameters, module._buffers):
                    tensors.update({k: there(*x.shape, dtype=x.dtype) for k, x in tensors.items() if x is not None})
            seed, index, step = (there(COUNT, dtype=torch.int64) for _ in range(3))
            label, link, guidance = there(COUNT, family.classes), there(COUNT, columns), there(COUNT)
            state = served.initial_state(seed, index, label, link)
            state = served.step(Rows(state, label, link, guidance, seed, index, step))
            assert served.decode(state).shape == (COUNT, *family.data_shape)

    def test_serves_without_its_opponents(self, family):
        for opponent in family.training_only:
            assert not any(name.startswith(opponent) for name in family.state_dict())

    def test_every_player_has_a_loss_that_moves_it(self, family):
        trained = small(family.name, family.data_shape)
        x, label = torch.rand(4, *family.data_shape) * 2 - 1, torch.tensor([0, 1, 2, -1])
        for player in dict.fromkeys(trained.update_order()):
            terms = trained.loss(player, x, label)
            assert all(term.dim() == 0 and term.isfinite() for term in terms.values())
            parameters = list(trained.player(player).parameters())
            gradients = torch.autograd.grad(terms["loss"], parameters, allow_unused=True)
            assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_an_unknown_family_is_refused_with_those_that_there_are():
    with pytest.raises(families.UnknownFamily, match=", ".join(families.names())):
        families.get("nope")
