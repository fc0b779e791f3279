"""The runner for GPUs, with imitated recordings and copies on a CPU: its images are those of the runner for CPUs."""

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import families
from models.base import Family, Rows
from service.engine import catalog, slot_runner
from service.engine.request import NO_LABEL, Edit, Request, Sample, StartState
from service.engine.runner import BatchTooLarge, Row, Runner
from service.engine.slot_runner import SlotRunner
from service.engine.slots import Slots
from tests.conftest import small
from tests.models.test_contract import KernelsOnly
from tests.service.engine.imitation import imitate_copies, imitate_recorder

CPU = torch.device("cpu")
HALF = torch.zeros(1, 28, 28, dtype=torch.bool)
HALF[:, :14] = True


def slot_runner_of(name: str, max_batch_size: int = 16, tile_rows: int = 8) -> SlotRunner:
    """A warm runner with slots on a CPU."""
    runner = SlotRunner(
        small(name).for_sampling(),
        CPU,
        max_batch_size,
        tile_rows=tile_rows,
        record=imitate_recorder,
        receive=imitate_copies,
    )
    runner.warm_up()
    return runner


def picture(seed: int) -> torch.Tensor:
    """An image [1, 28, 28] whose values are those of bytes."""
    return torch.randint(0, 256, (1, 28, 28), generator=torch.Generator().manual_seed(seed)).float() / 127.5 - 1


def requests_of(runner: Runner) -> list[Request]:
    """Requests of every kind that the family takes."""
    family = runner.family
    most = family.steps.maximum
    label = 3 if family.classes else NO_LABEL
    requests = [Request("m", tuple(Sample(StartState(1, i, label)) for i in range(3)), min(5, most))]
    for number, sampler in enumerate(family.samplers):
        samples = tuple(Sample(StartState(2 + number, 2**33 + i)) for i in range(2))
        requests.append(Request("m", samples, min(4, most), sampler, previews=True, guesses=family.edits))
    if family.guidance is not None:
        requests.append(Request("m", (Sample(StartState(9, 0, 4)),), min(3, most), guidance=2.5, previews=True))
    a, b = StartState(5, 0, label), StartState(6, 0, label)
    requests.append(Request("m", tuple(Sample(a, b, weight) for weight in (0.0, 0.4, 1.0)), min(2, most)))
    if family.edits:
        known = Edit(picture(0), 1.0, HALF)
        requests += [
            Request("m", tuple(Sample(StartState(7, i, 5)) for i in range(2)), 4, edit=known, previews=True),
            Request("m", (Sample(StartState(8, 0, 5)),), 3, edit=Edit(picture(1), 0.6), guidance=1.5),
        ]
    if family.encodes:
        steps = len(runner.inversion_schedule)
        options: dict[str, Any] = {"steps": 1, "sampler": None, **family.inversion}
        images = tuple(Sample(StartState(0, 0, NO_LABEL, picture(k))) for k in (2, 3))
        requests += [
            Request("m", images, **options, inversion_steps=steps, codes_only=True),
            Request("m", images[:1], **options, inversion_steps=steps),
        ]
    return requests


def run(runner: Runner, requests: list[Request], source: np.random.Generator, most: int) -> list[dict[str, Any]]:
    """The images, previews and guesses of each row, where rows come and wait at random."""
    waiting = [row for request in requests for row in runner.rows(request)]
    every = [{"row": row, "image": None, "previews": [], "guesses": []} for row in waiting]
    unfinished = list(every)
    while unfinished:
        count = int(source.integers(1, most + 1))
        chosen = [unfinished[i] for i in source.permutation(len(unfinished))[:count]]
        rows = [each["row"] for each in chosen]
        if isinstance(runner, SlotRunner):
            images, previews = runner.launch(rows).collect()
        else:
            images = runner.advance(rows)
            previews = {}
            previewed = [i for i, image in enumerate(images) if image is None and rows[i].previews]
            if previewed:
                previews = dict(zip(previewed, runner.preview([rows[i] for i in previewed]), strict=True))
        for i, each in enumerate(chosen):
            each["image"] = images[i]
            if i in previews:
                each["previews"].append(previews[i].tobytes())
                each["guesses"].append(None if rows[i].guess is None else rows[i].guess.tobytes())
        unfinished = [each for each in unfinished if each["image"] is None]
    return every


@pytest.mark.parametrize("name", families.names())
def test_rows_that_come_and_wait_have_the_images_of_a_cpu(name: str) -> None:
    expected = Runner(small(name).for_sampling(), CPU, 16)
    expected.warm_up()
    runner = slot_runner_of(name)
    runner.free[:] = runner.free[:20]  # so that some rows have to leave their slots
    results = [
        run(each, requests_of(each), np.random.default_rng(seed), most)
        for each, seed, most in ((expected, 0, 16), (runner, 1, 16))
    ]
    assert len(results[0]) == len(results[1]) >= 6
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one["image"], other["image"])
        assert one["previews"] == other["previews"]
        assert one["guesses"] == other["guesses"]
    assert len(runner.free) == 20


@pytest.fixture(scope="module")
def ddpm() -> SlotRunner:
    return slot_runner_of("ddpm", 32)


@pytest.fixture
def passes(ddpm: SlotRunner) -> Iterator[list[int]]:
    """The rows of each call of the net."""
    forward, rows = ddpm.family.unet.forward, []

    def counted(x: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return forward(x, *conditions)

    ddpm.family.unet.forward = counted
    yield rows
    del ddpm.family.unet.forward


def rows_of(runner: Runner, count: int, seed: int = 1, **options: Any) -> list[Row]:
    samples = tuple(Sample(StartState(seed, i, i % 10)) for i in range(count))
    return runner.rows(Request("m", samples, **{"steps": 3, **options}))


def finish(runner: Runner, rows: list[Row]) -> list[bytes]:
    """The images of rows that finish in the same step."""
    for _ in range(rows[0].total_steps - rows[0].step):
        images = runner.advance(rows)
    return [image.tobytes() for image in images if image is not None]


def test_a_row_has_the_same_bytes_in_any_number_of_tiles(ddpm: SlotRunner) -> None:
    together = finish(ddpm, rows_of(ddpm, 29))
    for count in (1, 7, 8, 9, 17):
        assert finish(ddpm, rows_of(ddpm, count)) == together[:count]


def test_a_batch_is_padded_to_whole_tiles_and_a_proven_size(ddpm: SlotRunner, passes: list[int]) -> None:
    assert ddpm.sizes == [1, 2, 4, 8]
    assert [ddpm.size(count) for count in (1, 3, 8, 9, 19, 32)] == [1, 4, 8, 9, 20, 32]
    assert ddpm.launch(rows_of(ddpm, 19)).size == 20
    assert passes == [8, 8, 4]


def test_rows_with_guidance_have_tiles_of_their_own_and_one_joint_pass(ddpm: SlotRunner, passes: list[int]) -> None:
    ddpm.advance(rows_of(ddpm, 4))
    assert passes == [4]
    passes.clear()
    plain, guided = rows_of(ddpm, 12), rows_of(ddpm, 11, guidance=2.0)
    launch = ddpm.launch([row for pair in zip(plain, guided, strict=False) for row in pair] + plain[11:])
    assert passes == [8, 4, 16, 8]
    assert launch.size == 24


def test_the_padding_of_rows_that_make_no_step_is_not_negative() -> None:
    runner = slot_runner_of("vae")
    samples = tuple(Sample(StartState(0, 0, NO_LABEL, picture(k))) for k in range(3))
    codes = runner.rows(Request("m", samples, 1, codes_only=True))
    assert runner.launch([*codes, *rows_of(runner, 3, steps=1)]).size == 3 + 4


def test_only_steps_that_add_noise_compute_it(ddpm: SlotRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    step = ddpm.family.step

    def watched(rows: Rows) -> torch.Tensor:
        computed.append(rows.noisy)
        return step(rows)

    monkeypatch.setattr(ddpm.family, "step", watched)
    for sampler in ("ddim", "dpm++2m", "ddpm"):
        ddpm.advance(rows_of(ddpm, 2, sampler=sampler))
    assert computed == [False, False, True]


def test_a_step_of_rows_that_go_on_sends_nothing(ddpm: SlotRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    to_device = slot_runner.to_device
    monkeypatch.setattr(slot_runner, "to_device", lambda *args: sent.append(args[0].size) or to_device(*args))
    rows = rows_of(ddpm, 8, steps=6)
    ddpm.advance(rows)
    sent.clear()
    ddpm.advance(rows)
    ddpm.advance(rows)
    assert sent == []
    ddpm.advance(rows[:3])
    assert sent == [4]  # the list of their slots, padded
    ddpm.advance(rows[:3])
    assert sent == [4]


def test_a_launch_returns_before_its_results_are_read(ddpm: SlotRunner) -> None:
    expected = finish(ddpm, rows_of(ddpm, 3)), finish(ddpm, rows_of(ddpm, 2, 5, steps=2))
    first, second = rows_of(ddpm, 3), rows_of(ddpm, 2, 5, steps=2)
    launches = [ddpm.launch(rows) for rows in (first, first, second, [*first, *second])]
    results = [launch.collect().rows for launch in launches]
    assert [[result is None for result in each] for each in results[:3]] == [[True] * 3, [True] * 3, [True] * 2]
    images = [image.tobytes() for image in results[3] if isinstance(image, np.ndarray)]
    assert (images[:3], images[3:]) == expected


def test_only_the_row_with_a_faulty_image_fails(ddpm: SlotRunner) -> None:
    expected = finish(ddpm, rows_of(ddpm, 3))
    faulty = torch.full((1, 28, 28), torch.nan)
    rows = rows_of(ddpm, 3)
    (bad,) = rows_of(ddpm, 1, edit=Edit(faulty, 1.0))
    for _ in range(3):
        results = ddpm.launch([rows[0], bad, *rows[1:]]).collect().rows
    assert isinstance(results[1], FloatingPointError)
    assert [image.tobytes() for image in (results[0], *results[2:]) if isinstance(image, np.ndarray)] == expected


def test_a_code_that_is_not_finite_fails_alone() -> None:
    runner = slot_runner_of("vae")
    image = torch.full((1, 28, 28), torch.nan)
    samples = tuple(Sample(StartState(0, 0, NO_LABEL, x)) for x in (image, picture(0)))
    bad, good = runner.launch(runner.rows(Request("m", samples, 1, codes_only=True))).collect().rows
    assert isinstance(bad, FloatingPointError)
    assert isinstance(good, np.ndarray)


def test_no_row_has_advanced_after_an_error(ddpm: SlotRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finish(ddpm, rows_of(ddpm, 20))
    rows = rows_of(ddpm, 20)
    ddpm.advance(rows)
    monkeypatch.setattr(ddpm, "copy", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ddpm.launch(rows)
    monkeypatch.undo()
    assert {row.step for row in rows} == {1}
    assert finish(ddpm, rows) == expected


def test_a_lack_of_memory_is_reported_and_rows_go_on(ddpm: SlotRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finish(ddpm, rows_of(ddpm, 20))
    rows, calls = rows_of(ddpm, 20), []
    run_tile = ddpm._run_tile

    def limited(tile: list[Row]) -> None:
        calls.append(tile)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        run_tile(tile)

    monkeypatch.setattr(ddpm, "_run_tile", limited)
    monkeypatch.setattr(ddpm, "most_rows", ddpm.most_rows)
    for _ in range(2):  # the second time at once
        with pytest.raises(BatchTooLarge, match="batch of 20"):
            ddpm.launch(rows)
    assert len(calls) == 2
    assert finish(ddpm, rows[:10]) + finish(ddpm, rows[10:]) == expected


def test_a_slot_is_free_again_after_its_row_has_ended_or_was_dropped(ddpm: SlotRunner) -> None:
    gc.collect()
    free = len(ddpm.free)
    rows = rows_of(ddpm, 6)
    ddpm.advance(rows)
    assert len(ddpm.free) == free - 6
    del rows[4:]
    assert len(ddpm.free) == free - 4
    finish(ddpm, rows)
    assert len(ddpm.free) == free


def test_a_request_with_more_steps_than_the_slots_hold_is_refused() -> None:
    runner = slot_runner_of("flow")
    with pytest.raises(ValueError, match="300 steps; the most are 238"):
        rows_of(runner, 1, steps=300)


def test_service_makes_no_new_recordings_of_steps(ddpm: SlotRunner) -> None:
    known = set(ddpm.replay.recordings)
    run(ddpm, requests_of(ddpm), np.random.default_rng(2), 32)
    assert set(ddpm.replay.recordings) == known


def test_images_of_one_step_are_one_recording_and_send_their_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, called = slot_runner_of("cgan"), []
    call = runner.call
    monkeypatch.setattr(runner, "call", lambda function, *inputs: called.append(function) or call(function, *inputs))
    monkeypatch.setattr(runner, "replay", lambda function, *_, **__: called.append(function))
    samples = tuple(Sample(StartState(1, i, i)) for i in range(3))
    images = runner.advance(runner.rows(Request("m", samples, 1)))
    assert called == [slot_runner._sampled_images]
    assert len(runner.free) == runner.slots.capacity
    monkeypatch.undo()
    runner.samples_directly = False
    assert np.array_equal(np.stack(images), np.stack(runner.advance(runner.rows(Request("m", samples, 1)))))


def test_images_of_one_step_use_slots_where_one_recording_changes_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = slot_runner._sampled_images
    monkeypatch.setattr(
        slot_runner, "_sampled_images", lambda *inputs: (255 - sampled(*inputs)[0], sampled(*inputs)[1])
    )
    runner = slot_runner_of("gan")
    assert not runner.samples_directly
    expected = Runner(small("gan").for_sampling(), CPU, 16)
    images = [each.advance(rows_of(each, 3, steps=1)) for each in (expected, runner)]
    assert np.array_equal(*images)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["ddpm", "flow", "vae"])
def test_a_cuda_graph_can_contain_a_step(name: str) -> None:
    family = small(name).for_sampling()
    gpu = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in family.modules():
            for tensors in (module._parameters, module._buffers):
                fakes = {key: torch.empty_like(x, device=gpu) for key, x in tensors.items() if x is not None}
                tensors.update(fakes)
        slots = Slots(family, gpu, 9, 5)
        at = torch.empty(4, dtype=torch.int64, device=gpu)
        with KernelsOnly():
            slots.step(at, guided=True, noisy=True)
            slots.undo(at)
            images, finite = slots.decode(at)
    assert (images.shape, finite.shape) == ((4, 28, 28), (4,))


class Imitated:
    """Instead of a runner, one that takes any device and may fail to warm up."""

    error: Exception | None = None

    def __init__(self, family: Family, device: torch.device, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size

    def warm_up(self) -> None:
        if self.error is not None:
            raise self.error


class ImitatedSlots(Imitated):
    pass


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_on_which_slots_do_not_work_has_the_plain_runner(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalog, "Runner", Imitated)
    monkeypatch.setattr(catalog, "SlotRunner", ImitatedSlots)
    monkeypatch.setattr(ImitatedSlots, "error", None if works else RuntimeError("no such kernel"))
    runner = catalog._warm_runner(small("gan"), torch.device("cuda"), 512, catalog.Runner)
    assert (type(runner), runner.max_batch_size) == ((ImitatedSlots, 512) if works else (Imitated, 128))
    logged = [] if works else ["gan runs without slots, in smaller batches: RuntimeError('no such kernel')"]
    assert [record.message for record in caplog.records] == logged


@pytest.mark.gpu
@pytest.mark.parametrize("name", families.names())
def test_a_gpu_gives_rows_the_same_images_in_any_company(name: str) -> None:
    gpu = torch.device("cuda")
    runners = [SlotRunner(small(name).for_sampling().to(gpu), gpu, 16, tile_rows=8) for _ in range(2)]
    for runner in runners:
        runner.warm_up()
    results = [run(each, requests_of(each), np.random.default_rng(seed), 16) for seed, each in enumerate(runners)]
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one["image"], other["image"])
        assert one["previews"] == other["previews"]
