"""What training does so that neither host nor GPU waits for the other, on a CPU."""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.training.disk import file_size_limit
from training import checkpoint, numerics, transfer
from training.checkpoint import NotFinite, Writer
from training.cli import main
from training.log import LINES, Log
from training.transfer import HostCopy

GPU = torch.device("cuda", 0)
COMMAND = ["fit", "gan", "--data", "digits", "--device", "cpu", "--batch", "32", "--epochs", "0.3", "--every", "200"]


@pytest.fixture
def _saved_in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a CPU save as those on a GPU."""
    monkeypatch.setattr(checkpoint, "Writer", lambda **_: Writer(in_background=True))


class TestWriter:
    def test_saves_the_state_of_the_call_and_returns_before_it_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        may_write, save = threading.Event(), checkpoint.save

        def wait_and_save(path: Path, state: dict[str, Any]) -> None:
            assert may_write.wait(10)
            save(path, state)

        monkeypatch.setattr(checkpoint, "save", wait_and_save)
        state = {"net": {"weight": torch.zeros(3)}, "groups": [{"lr": 0.5}], "images": 7}
        with Writer(in_background=True) as writer:
            writer.save(tmp_path / "x.pt", state)
            state["net"]["weight"].fill_(1)  # type: ignore[index]
            assert not (tmp_path / "x.pt").exists()
            may_write.set()
        saved = checkpoint.load(tmp_path / "x.pt")
        assert saved["net"]["weight"].tolist() == [0, 0, 0]
        assert (saved["groups"], saved["images"]) == ([{"lr": 0.5}], 7)

    def test_raises_the_error_of_the_thread_at_the_next_save_or_at_the_end(self, tmp_path: Path) -> None:
        with Writer(in_background=True) as writer:
            writer.save(tmp_path / "nowhere" / "x.pt", {})
            with pytest.raises(FileNotFoundError):
                writer.save(tmp_path / "x.pt", {})
        with pytest.raises(FileNotFoundError), Writer(in_background=True) as writer:
            writer.save(tmp_path / "nowhere" / "x.pt", {})

    def test_an_error_of_the_run_is_not_replaced_by_one_of_the_thread(self, tmp_path: Path) -> None:
        def run() -> None:
            with Writer(in_background=True) as writer:
                writer.save(tmp_path / "nowhere" / "x.pt", {})
                raise NotFinite("loss")

        with pytest.raises(NotFinite):
            run()

    @pytest.mark.usefixtures("_saved_in_background")
    def test_a_run_that_it_saves_is_the_same_run_and_can_be_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert main([*COMMAND, "--run", str(tmp_path / "straight")]) == 0
        with monkeypatch.context() as patch:
            reasons = iter([None] * 4 + ["SIGTERM"])
            patch.setattr("training.fitting.stop_reason", lambda *_: partial(next, reasons))
            assert main([*COMMAND, "--run", str(tmp_path / "split")]) == 130
        assert checkpoint.load(tmp_path / "split" / checkpoint.LATEST)["images"] == 5 * 32
        assert main([*COMMAND, "--run", str(tmp_path / "split")]) == 0
        straight, split = (checkpoint.load(tmp_path / name / checkpoint.LATEST) for name in ("straight", "split"))
        assert straight["images"] == split["images"] >= 0.3 * 1497
        assert all(torch.equal(value, split["average"][name]) for name, value in straight["average"].items())

    @pytest.mark.usefixtures("_saved_in_background")
    def test_a_full_disk_ends_the_run_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with file_size_limit(100_000):
            assert main([*COMMAND, "--run", str(tmp_path)]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: File too large: ")


class TestLog:
    @pytest.fixture
    def arrive(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """Copies to the host are not there until the test calls this."""
        ready: list[bool] = []
        monkeypatch.setattr(HostCopy, "is_ready", lambda _: bool(ready))
        return lambda: ready.append(True)

    @pytest.mark.usefixtures("arrive")
    def test_lines_wait_for_the_device_and_keep_their_order(self, tmp_path: Path) -> None:
        with Log(tmp_path, 100, 10) as log:
            for k in range(1, 7):
                log.progress(5 * k, {"loss": torch.tensor(float(k)), "w1": torch.tensor(0.5)})
            assert not (tmp_path / LINES).exists()
            log.flush()
            log.samples(30, 0.25, None)
        lines = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
        assert [line["images"] for line in lines] == [10, 20, 30, 30]
        assert [line.get("loss") for line in lines] == [1.5, 3.5, 5.5, None]
        assert lines[0]["w1"] == 0.5

    def test_a_later_iteration_writes_the_lines_that_have_arrived(
        self, tmp_path: Path, arrive: Callable[[], None]
    ) -> None:
        with Log(tmp_path, 100, 10) as log:
            log.progress(10, {"loss": torch.tensor(1.0)})
            assert not (tmp_path / LINES).exists()
            arrive()
            log.progress(15, {"loss": torch.tensor(3.0)})
            assert [json.loads(line)["loss"] for line in (tmp_path / LINES).read_text().splitlines()] == [1.0]

    @pytest.mark.usefixtures("arrive")
    def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(self, tmp_path: Path) -> None:
        with Log(tmp_path, 100, 10) as log:
            log.progress(10, {"loss": torch.tensor(float("nan"))})
            log.progress(20, {"loss": torch.tensor(1.0)})
            with pytest.raises(NotFinite, match="loss is nan after 10 images"):
                log.flush()


@pytest.mark.parametrize(("free", "device"), [(1 << 20, "cuda"), (3_000, "cpu")])
def test_images_stay_on_the_host_where_the_gpu_lacks_room(
    free: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 30))
    with FakeTensorMode():
        images, labels = torch.zeros(100, 10, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
        resident = transfer.resident(images, labels, GPU)
        assert [tensor.device.type for tensor in resident] == [device] * 2
        on_cpu = transfer.resident(images, labels, torch.device("cpu"))
    assert on_cpu[0] is images
    assert on_cpu[1] is labels


def test_a_gpu_trains_with_kernels_that_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    monkeypatch.setattr(numerics, "use_reproducible_kernels", lambda: used.append(True))
    fused = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    before = [is_enabled() for is_enabled in fused]
    with numerics.reproducible(torch.device("cpu")):
        assert not used
        assert [is_enabled() for is_enabled in fused] == before
    with numerics.reproducible(GPU):
        assert used
        assert [is_enabled() for is_enabled in fused] == [False, False]
    assert [is_enabled() for is_enabled in fused] == before
