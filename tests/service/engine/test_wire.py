"""Messages between an HTTP process and an engine process."""

from pathlib import Path

import pytest
import torch

from service.engine.request import (
    DeadlineExceeded,
    DeadlineUnattainable,
    Edit,
    EngineError,
    ModelUnloaded,
    PoisonRequest,
    QueueFull,
    Request,
    Sample,
    ShuttingDown,
    StartState,
)
from service.engine.running import SIZE, RunningRequests
from service.engine.wire import pack_error, pack_frame, pack_request, unpack_error, unpack_request


def test_requests_survive_the_wire() -> None:
    image, code = torch.rand(1, 28, 28) * 2 - 1, torch.randn(8)
    mask = torch.rand(1, 28, 28) > 0.5
    start = StartState(2**53, 3, 7, image)
    edit = Request(
        "ddpm@1", (Sample(start), Sample(start, StartState(1, 2, -1, code=code), 0.5, False)), 20, "ddim", 1.5
    )
    edit = edit._replace(edit=Edit(image, 0.5, mask), priority="bulk", timeout=1.5, previews=True, guesses=True)
    again = unpack_request(pack_request(edit))
    assert repr(again) == repr(edit)
    assert again.edit is not None
    assert torch.equal(again.edit.image, image)
    assert again.edit.mask is not None
    assert torch.equal(again.edit.mask, mask)
    assert again.samples[0].start.image is again.samples[1].start.image, "what samples share is sent once"
    assert len(pack_frame(pack_request(edit))) < 2 * image.nbytes


@pytest.mark.parametrize(
    "error",
    [
        QueueFull(3), DeadlineUnattainable(4.5, 2.0), ModelUnloaded(), ShuttingDown("later"), PoisonRequest(),
        DeadlineExceeded("late"), EngineError("broken"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_survive_the_wire(error: EngineError) -> None:
    again = unpack_error(pack_error(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_running_requests_can_be_read_after_the_process(tmp_path: Path) -> None:
    with (tmp_path / "running").open("w+b") as file:
        file.truncate(SIZE)
        writer, reader = RunningRequests(file.fileno()), RunningRequests(file.fileno())
        writer.set_running({1 << 40, 5, 6})
        writer.set_submitted(7)
        assert reader.read() == {1 << 40, 5, 6, 7}
        writer.set_running({5})
        writer.set_submitted(0)
        assert reader.read() == {5}
        writer.close()
        reader.close()
