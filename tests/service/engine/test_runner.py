"""One model on the device: batch sizes that agree, chains that begin between two points."""

from typing import Any

import numpy as np
import pytest
import torch

from models import families
from models.base import invert
from service.engine.interpolation import slerp
from service.engine.request import Request, Sample, StartState
from service.engine.runner import Runner
from tests.conftest import small

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=families.names())
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every family in turn, warm."""
    found = Runner(small(request.param).for_sampling(), CPU, 16)
    found.warm_up()
    return found


def chain(runner: Runner, samples: list[Sample], steps: int, guidance: float = 1.0, **asked: Any) -> list[bytes]:
    """The images of `samples` drawn in one batch."""
    request = Request("m", tuple(samples), steps, guidance=guidance, **asked)
    rows = runner.rows(request)
    images = [runner.advance(rows) for _ in range(request.steps_per_row)][-1]
    return [image.tobytes() for image in images if image is not None]


def test_an_image_is_the_same_bytes_in_a_batch_of_every_size(runner: Runner) -> None:
    label = 3 if runner.family.classes else -1
    steps = min(4, runner.family.steps.maximum)
    samples = [Sample(StartState(11, i, label)) for i in range(16)]
    together = chain(runner, samples, steps)
    for size in (1, 2, 3, 5, 7, 8, 13):
        assert chain(runner, samples[:size], steps) == together[:size]
        assert chain(runner, samples[-size:], steps) == together[-size:]


def test_neighbours_with_other_plans_change_nothing(runner: Runner) -> None:
    family = runner.family
    if family.steps.maximum == 1:
        pytest.skip("one link is the only plan")
    alone = chain(runner, [Sample(StartState(1, 0, 4))], 6)
    rows = runner.rows(Request("m", (Sample(StartState(1, 0, 4)),), 6))
    others = [
        runner.rows(Request("m", (Sample(StartState(9, k, k)),), 7, sampler, 1.0 + k))
        for k, sampler in enumerate(family.samplers or (None,))
    ]
    ahead = [other[0] for other in others]
    runner.advance(ahead)  # so that they are a step ahead
    for _ in range(6):
        first, *_ = runner.advance([*rows, *ahead])
    assert first is not None
    assert [first.tobytes()] == alone


def test_the_ends_of_a_way_are_the_images_of_its_points(runner: Runner) -> None:
    label = 5 if runner.family.classes else -1
    a, b = StartState(1, 0, label), StartState(2, 0, label)
    way = chain(runner, [Sample(a, b, weight) for weight in (0.0, 0.5, 1.0)], 1)
    # The seed of fresh noise is the start's, so only a chain of one link is sure to arrive where the other point does.
    assert [way[0], way[2]] == chain(runner, [Sample(a), Sample(b)], 1)


def test_a_family_that_needs_a_class_gets_one_that_the_seed_decides() -> None:
    runner = Runner(small("cgan").for_sampling(), CPU, 8)
    points = [StartState(3, i) for i in range(500)] + [StartState(3, 0, 7)]
    request = Request("m", tuple(Sample(point) for point in points), 1)
    classes = runner.labels(request).tolist()
    assert set(classes) == set(range(10))
    assert classes[-1] == 7
    assert runner.labels(Request("m", request.samples[5:6], 1)).tolist() == classes[5:6]


@pytest.mark.parametrize("name", ["ddpm", "flow", "vae"])
def test_an_image_walks_back_a_link_at_a_time_beside_rows_that_are_drawn(name: str) -> None:
    family = small(name).for_sampling()
    runner = Runner(family, CPU, 8)
    runner.warm_up()
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    asked = {"steps": 1, "sampler": None, "guidance": 2.0, **family.inversion}
    back = len(runner.inversion_schedule)
    images = tuple(Sample(StartState(0, 0, -1, image)) for image in x)
    coded = runner.rows(Request("m", images, **asked, inversion_steps=back, codes_only=True))
    whole = runner.rows(Request("m", images, **asked, inversion_steps=back))
    drawn = runner.rows(Request("m", (Sample(StartState(5, 0)),), 3 if back else 1, guidance=3.0 if back else 1.0))
    found: dict[int, np.ndarray] = {}
    steps, rows = 0, [*coded, *drawn, *whole]
    while rows:
        left = [(row, image) for row, image in zip(rows, runner.advance(rows), strict=True)]
        found |= {id(row): image for row, image in left if image is not None}
        rows, steps = [row for row, image in left if image is None], steps + 1
    assert steps == max(1, back + asked["steps"])
    codes = torch.from_numpy(np.stack([found[id(row)] for row in coded]))
    label = torch.zeros(2, family.classes)
    with torch.inference_mode():
        torch.testing.assert_close(codes, invert(family, x, label), atol=1e-4, rtol=1e-4)
    alone = chain(runner, list(images), **asked, inversion_steps=back)
    assert [found[id(row)].tobytes() for row in whole] == alone
    plain = chain(runner, [Sample(StartState(5, 0))], 3 if back else 1, 3.0 if back else 1.0)
    assert found[id(drawn[0])].tobytes() == plain[0]


def test_a_code_that_is_no_number_leaves_its_neighbours_where_they_were() -> None:
    family = small("vae").for_sampling()
    runner = Runner(family, CPU, 8)
    (drawn,) = runner.rows(Request("m", (Sample(StartState(1, 0)),), 1))
    (coded,) = runner.rows(
        Request("m", (Sample(StartState(0, 0, -1, torch.full((1, 28, 28), torch.nan))),), 1, codes_only=True)
    )
    with pytest.raises(FloatingPointError):
        runner.advance([drawn, coded])
    assert drawn.step == 0


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_slerp_keeps_to_the_sphere_and_turns_evenly(weight: float) -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    point = slerp(a, b, torch.tensor(weight))
    angle = weight * np.pi / 2
    torch.testing.assert_close(point, 2 * torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32))


def test_slerp_between_parallel_vectors_is_the_line() -> None:
    a = torch.tensor([1.0, 1.0])
    torch.testing.assert_close(slerp(a, 3 * a, torch.tensor(0.5)), 2 * a)
    assert slerp(a, torch.zeros(2), torch.tensor(0.5)).isfinite().all()
