"""The runner: batch invariance, interpolation between initial states, and inversion."""

from typing import Any

import numpy as np
import pytest
import torch

from models import families
from models.base import invert
from service.engine.interpolation import slerp
from service.engine.request import NO_LABEL, Request, Sample, StartState
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
