"""The command line of the benchmarks, and the benchmarks that need no service."""

import importlib
import random
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from benchmarks import capacity_model, gpu, training_step
from harness.expected import mixed_requests, random_urls
from training.loop import Hardware

NAMES = ("batch_invariance", "bulk", "cache", "capacity_model", "classroom", "cluster", "compare", "encoding", "engine",
         "gpu", "reload", "same_minutes", "serve", "training_step")  # fmt: skip
ROOT = Path(__file__).parent.parent
COSTS = {"dcgan": (0.25, 0.002), "ddpm": (1.5, 0.012)}
"""Milliseconds of a step, and of each of its rows."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("nope",), ("overhead",), ("peers",)])
def test_an_unknown_benchmark_is_an_error_that_lists_the_known_ones(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == f"error: name one of {', '.join(NAMES)}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_documents_its_command(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks {name}" in (module.__doc__ or "")
    assert f"python -m benchmarks {name}" in (ROOT / "docs" / "benchmarks.md").read_text()
    assert callable(module.main)


@pytest.mark.parametrize("rate", [500, 3000])
def test_gan_requests_do_not_wait_for_the_unet_and_every_request_finishes(rate: float) -> None:
    result = capacity_model.simulate(rate, COSTS, seconds=2)
    assert result.finished / 2 == pytest.approx(rate, rel=0.1)
    gan = sorted(result.latencies["dcgan"])
    fixed, row = COSTS["ddpm"]
    assert gan[int(0.99 * len(gan))] < 3 * (fixed + row * capacity_model.BATCH_SIZE) / 1000, (
        "three of the largest steps"
    )
    assert min(result.latencies["ddpm"]) > capacity_model.MODELS["ddpm"] * fixed / 1000


def test_images_per_second_of_iterations_are_counted_over_the_time_that_they_take() -> None:
    started_at = time.perf_counter()
    rate = training_step.images_per_second("gan", 16, Hardware(torch.device("cpu")), seconds=0.2)
    least = training_step.WARM_UP * 16  # images, in less than the time of the whole call
    assert rate > least / (time.perf_counter() - started_at)


def test_a_table_has_called_and_recorded_iterations_of_both_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def images_per_second(name: str, batch: int, hardware: Hardware, precision: str) -> float:
        measured.append((name, batch, hardware.record is not None, precision))
        return 1234.5 if hardware.record else 99.0

    monkeypatch.setattr(training_step, "images_per_second", images_per_second)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    training_step.print_iterations(torch.device("cuda", 0), "bf16")
    assert measured[:4] == [("ddpm", batch, recorded, "bf16") for batch in (128, 512) for recorded in (False, True)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["ddpm", "128", "99", "1,234", "36,000"]
    assert lines[3].split() == ["ddpm", "512", "99", "1,234"]
    assert len(lines) == 2 + 2 * len(training_step.TARGETS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_speed_on_a_gpu_needs_one() -> None:
    done = run("training_step", "--device", "cuda")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr


@pytest.mark.slow
def test_the_capacity_model_measures_the_service_and_prints_its_tables() -> None:
    done = run("capacity_model", "--rates", "500", "--seconds", "0.3", "--fleet", "1")
    assert done.returncode == 0, done.stderr
    for heading in ("offered/s", "CPU microseconds of one request", "requests/s that each part could do"):
        assert heading in done.stdout


@pytest.mark.slow
def test_a_comparison_of_this_checkout_with_itself_prints_every_form_of_request() -> None:
    flags = ("--clients", "2", "--seconds", "0.2", "--rounds", "1")
    done = run("compare", "--before", str(ROOT), "--set", "http_processes=1", *flags)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[w, form, "2"] for w in ("W1", "W2") for form in ("query", "JSON", "proxied")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_says_in_one_line_that_there_is_none() -> None:
    done = run("gpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: device cuda is not available")
    assert done.stderr.count("\n") == 1


def test_tables_replace_those_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    for tables in ("| a |", "| b |"):
        gpu.write(page, tables)
    rest = page.read_text().partition(gpu.MARKERS[0])[2]
    assert rest.startswith(f"\n| b |\n{gpu.MARKERS[1]}")
    assert "| a |" not in page.read_text()


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_can_be_tried_on_a_cpu() -> None:
    parts = ("promise", "dataset")
    done = run("gpu", "--device", "cpu", "--requests", "40", "--images", "100", "--only", *parts)
    assert done.returncode == 0, done.stderr
    assert "| with four HTTP processes | 10 | 0 |" in done.stdout
    assert "- 100 labelled digits of `ddpm`:" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_measures_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WORKLOADS", {"W1": ("dcgan", 1, (1, 4)), "W2": ("ddpm", 2, (1,))})
    monkeypatch.setattr(gpu, "PEERS_ON_A_GPU", ("naive",))
    header, _, ours, naive, *rest = gpu.load(torch.device("cpu"), seconds=0.5)
    assert header == "| requests/s | W1, 1 | W1, 4 | W2, 1 |"
    for row, name in ((ours, "Drawbridge"), (naive, "naive")):
        assert row.startswith(f"| {name} | ")
        assert all(int(cell.replace(",", "")) > 0 for cell in row.strip("|").split("|")[1:])
    assert [line.partition(":")[0] for line in rest if line][:2] == ["- Median of one client", "- W3"]


def test_random_requests_stay_within_what_a_model_takes() -> None:
    model = {"name": "m", "encodes": False, "takes": {"steps": {"minimum": 1, "maximum": 3}}}
    urls = [
        *random_urls([model], random.Random(0), 20),
        *(request.url for request in mixed_requests([model], random.Random(0), 20)),
    ]
    steps = {int(parse_qs(urlsplit(url).query)["steps"][0]) for url in urls}
    assert steps == {1, 2, 3}
