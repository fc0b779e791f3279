"""The runner: batch invariance, interpolation between initial states, and inversion."""

from typing import Any

import numpy as np
import pytest
import torch

from models import families
from models.base import invert
from models.pixels import to_uint8
from service.engine.interpolation import slerp
from service.engine.request import NO_LABEL, Edit, Request, Sample, StartState
from service.engine.runner import Runner
from tests.conftest import small

CPU = torch.device("cpu")


MULTI_STEP = [name for name in families.names() if families.get(name).steps.maximum > 1]


def warm_runner(name: str, max_batch_size: int = 16) -> Runner:
    runner = Runner(small(name).for_sampling(), CPU, max_batch_size)
    runner.warm_up()
    return runner


@pytest.fixture(scope="module", params=families.names())
def runner(request: pytest.FixtureRequest) -> Runner:
    """A warm runner of each family."""
    return warm_runner(request.param)


@pytest.mark.parametrize("name", [name for name in MULTI_STEP if families.get(name).guidance is not None])
def test_small_batches_join_both_passes_of_guidance_with_the_same_bytes(name: str) -> None:
    runner = warm_runner(name)
    joint_rows = runner.joint_guidance
    assert joint_rows == max(size for size in runner.sizes if 2 * size <= 16)
    samples = [Sample(StartState(5, i, i)) for i in range(9)]
    images = [generate(runner, samples[:n], 3, guidance=1.7) for n in (1, 2, joint_rows, 9)]
    runner.joint_guidance = 0
    assert images == [generate(runner, samples[:n], 3, guidance=1.7) for n in (1, 2, joint_rows, 9)]


def test_passes_that_give_other_bits_together_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(small("flow").for_sampling(), CPU, 16)
    forward = runner.family.unet.forward

    def rounds_otherwise(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        labelled = label.any(1)
        return forward(x, time, label) * (1 + 1e-6 * (labelled.any() and not labelled.all()))

    monkeypatch.setattr(runner.family.unet, "forward", rounds_otherwise)
    runner.warm_up()
    assert runner.joint_guidance == 0
    assert len(runner.sizes) > 1


def generate(runner: Runner, samples: list[Sample], steps: int, guidance: float = 1.0, **options: Any) -> list[bytes]:
    """The images of `samples`, generated in one batch."""
    request = Request("m", tuple(samples), steps, guidance=guidance, **options)
    rows = runner.rows(request)
    images = [runner.advance(rows) for _ in range(request.steps_per_row)][-1]
    return [image.tobytes() for image in images if image is not None]


def test_an_image_has_the_same_bytes_in_a_batch_of_any_size(runner: Runner) -> None:
    label = 3 if runner.family.classes else -1
    steps = min(4, runner.family.steps.maximum)
    samples = [Sample(StartState(11, i, label)) for i in range(16)]
    together = generate(runner, samples, steps)
    for size in (1, 2, 3, 5, 7, 8, 13):
        assert generate(runner, samples[:size], steps) == together[:size]
        assert generate(runner, samples[-size:], steps) == together[-size:]


@pytest.mark.parametrize("name", MULTI_STEP)
def test_rows_with_other_schedules_do_not_change_an_image(name: str) -> None:
    runner = warm_runner(name)
    expected = generate(runner, [Sample(StartState(1, 0, 4))], 6)
    rows = runner.rows(Request("m", (Sample(StartState(1, 0, 4)),), 6))
    others = [
        runner.rows(Request("m", (Sample(StartState(9, k, k)),), 7, sampler, 1.0 + k))
        for k, sampler in enumerate(runner.family.samplers or (None,))
    ]
    ahead = [other[0] for other in others]
    runner.advance(ahead)  # one step ahead of the first row
    for _ in range(6):
        first, *_ = runner.advance([*rows, *ahead])
    assert first is not None
    assert [first.tobytes()] == expected


def test_an_interpolation_starts_and_ends_at_the_images_of_its_ends(runner: Runner) -> None:
    label = 5 if runner.family.classes else -1
    a, b = StartState(1, 0, label), StartState(2, 0, label)
    images = generate(runner, [Sample(a, b, weight) for weight in (0.0, 0.5, 1.0)], 1)
    # The noise of later steps comes from the seed of the start, so the end is exact only for a chain of one step.
    assert [images[0], images[2]] == generate(runner, [Sample(a), Sample(b)], 1)


def test_the_seed_determines_a_missing_label_of_a_family_that_needs_one() -> None:
    runner = Runner(small("cgan").for_sampling(), CPU, 8)
    starts = [StartState(3, i) for i in range(500)] + [StartState(3, 0, 7)]
    request = Request("m", tuple(Sample(start) for start in starts), 1)
    labels = runner.labels(request).tolist()
    assert set(labels) == set(range(10))
    assert labels[-1] == 7
    assert runner.labels(Request("m", request.samples[5:6], 1)).tolist() == labels[5:6]


@pytest.mark.parametrize("name", ["ddpm", "flow", "vae"])
def test_inversion_and_sampling_share_batches_without_changing_the_results(name: str) -> None:
    runner = warm_runner(name, 8)
    family = runner.family
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    options = {"steps": 1, "sampler": None, "guidance": 2.0, **family.inversion}
    inversion_steps = len(runner.inversion_schedule)
    steps, guidance = (3, 3.0) if inversion_steps else (1, 1.0)
    images = tuple(Sample(StartState(0, 0, NO_LABEL, image)) for image in x)
    encoded = runner.rows(Request("m", images, **options, inversion_steps=inversion_steps, codes_only=True))
    reconstructed = runner.rows(Request("m", images, **options, inversion_steps=inversion_steps))
    sampled = runner.rows(Request("m", (Sample(StartState(5, 0)),), steps, guidance=guidance))
    results: dict[int, np.ndarray] = {}
    device_steps, rows = 0, [*encoded, *sampled, *reconstructed]
    while rows:
        advanced = list(zip(rows, runner.advance(rows), strict=True))
        results |= {id(row): image for row, image in advanced if image is not None}
        rows, device_steps = [row for row, image in advanced if image is None], device_steps + 1
    assert device_steps == max(1, inversion_steps + options["steps"])
    codes = torch.from_numpy(np.stack([results[id(row)] for row in encoded]))
    label = torch.zeros(2, family.classes)
    with torch.inference_mode():
        torch.testing.assert_close(codes, invert(family, x, label), atol=1e-4, rtol=1e-4)
    expected = generate(runner, list(images), **options, inversion_steps=inversion_steps)
    assert [results[id(row)].tobytes() for row in reconstructed] == expected
    expected = generate(runner, [Sample(StartState(5, 0))], steps, guidance)
    assert [results[id(sampled[0])].tobytes()] == expected


EDITORS = [name for name in families.names() if small(name).edits]
HALF = torch.zeros(1, 28, 28, dtype=torch.bool)
HALF[:, :14] = True
KNOWN = (~HALF).expand(1, 28, 28).numpy()[0]


def picture() -> torch.Tensor:
    """An image [1, 28, 28] whose values are those of bytes."""
    return torch.randint(0, 256, (1, 28, 28), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1


def edited(runner: Runner, edit: Edit | None, count: int = 4, steps: int = 6, **options: Any) -> np.ndarray:
    """The images [count, 28, 28] of an edit."""
    images = generate(runner, [Sample(StartState(3, i, 5)) for i in range(count)], steps, edit=edit, **options)
    return np.stack([np.frombuffer(image, np.uint8).reshape(28, 28) for image in images])


@pytest.fixture(scope="module", params=EDITORS)
def editor(request: pytest.FixtureRequest) -> Runner:
    """A warm runner of each family that edits images."""
    return warm_runner(request.param)


def test_diffusion_and_flow_edit_images() -> None:
    assert EDITORS == ["ddpm", "flow"]


def test_known_pixels_stay_exactly_and_the_others_differ(editor: Runner) -> None:
    image = picture()
    for strength in (1.0, 0.5):
        images = edited(editor, Edit(image, strength, HALF))
        assert (images[:, KNOWN] == to_uint8(image)[0].numpy()[KNOWN]).all()
        assert len(np.unique(images[:, ~KNOWN], axis=0)) == 4


def test_what_is_to_be_completed_depends_on_the_known_pixels_alone(editor: Runner) -> None:
    image = picture()
    images = edited(editor, Edit(image, 1.0, HALF))
    hidden_changed = torch.where(HALF, -image, image)
    assert np.array_equal(edited(editor, Edit(hidden_changed, 1.0, HALF)), images)
    assert not np.array_equal(edited(editor, Edit(hidden_changed, 0.5, HALF)), edited(editor, Edit(image, 0.5, HALF)))
    known_changed = torch.where(HALF, image, -image)
    assert not np.array_equal(edited(editor, Edit(known_changed, 1.0, HALF))[:, ~KNOWN], images[:, ~KNOWN])


def test_the_sampler_of_a_completion_differs_from_that_of_a_sample(editor: Runner) -> None:
    # With everything but one pixel to generate, only the chain differs.
    mask = torch.ones_like(HALF)
    mask[0, 0, 0] = False
    assert not np.array_equal(edited(editor, Edit(picture(), 1.0, mask)), edited(editor, None))


def test_a_completion_ignores_the_noise_and_the_memory_of_samplers(editor: Runner) -> None:
    if "ddim" in editor.family.samplers:
        images = [edited(editor, Edit(picture(), 1.0, HALF), sampler=name) for name in editor.family.samplers]
        assert all(np.array_equal(images[0], other) for other in images)


def test_strength_is_the_share_of_the_chain_that_runs(editor: Runner) -> None:
    request = Request("m", (Sample(StartState(3, 0)),), 4, edit=Edit(picture(), 0.4))
    (row,) = editor.rows(request)
    assert np.array_equal(row.schedule, editor.schedule(10, None)[-4:])
    assert request.steps_per_row == 4


def test_edits_have_the_same_bytes_alone_and_beside_other_rows(editor: Runner) -> None:
    edits: list[tuple[Edit | None, dict[str, Any]]] = [
        (Edit(picture(), 1.0, HALF), {}),
        (None, {}),
        (Edit(picture().flip(1), 0.6), {"guidance": 2.0}),
        (Edit(picture().flip(2), 0.7, ~HALF), {"guidance": 3.0}),
    ]
    alone = [edited(editor, edit, 3, **options) for edit, options in edits]
    samples = tuple(Sample(StartState(3, i, 5)) for i in range(3))
    rows = [row for edit, options in edits for row in editor.rows(Request("m", samples, 6, edit=edit, **options))]
    order = np.random.default_rng(0).permutation(len(rows))
    results: dict[int, np.ndarray] = {}
    for start in (0, 5):  # some rows are behind the others
        for _ in range(2):
            results |= zip(order[start:], editor.advance([rows[i] for i in order[start:]]), strict=True)
    while waiting := [i for i in order if results.get(i) is None]:
        results |= zip(waiting, editor.advance([rows[i] for i in waiting]), strict=True)
    assert np.array_equal(np.stack([results[i] for i in range(12)]).reshape(4, 3, 28, 28), np.stack(alone))


def test_a_code_that_is_not_finite_does_not_advance_other_rows() -> None:
    runner = Runner(small("vae").for_sampling(), CPU, 8)
    (sampled,) = runner.rows(Request("m", (Sample(StartState(1, 0)),), 1))
    image = torch.full((1, 28, 28), torch.nan)
    (encoded,) = runner.rows(Request("m", (Sample(StartState(0, 0, NO_LABEL, image)),), 1, codes_only=True))
    with pytest.raises(FloatingPointError):
        runner.advance([sampled, encoded])
    assert sampled.step == 0


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_slerp_stays_on_the_sphere_and_is_uniform_in_the_angle(weight: float) -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    point = slerp(a, b, torch.tensor(weight))
    angle = weight * np.pi / 2
    torch.testing.assert_close(point, 2 * torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32))


def test_slerp_between_parallel_vectors_is_linear() -> None:
    a = torch.tensor([1.0, 1.0])
    torch.testing.assert_close(slerp(a, 3 * a, torch.tensor(0.5)), 2 * a)
    assert slerp(a, torch.zeros(2), torch.tensor(0.5)).isfinite().all()
