"""Our own client, and the command line that stands on it."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from drawbridge import dataset
from drawbridge.cli import main, shown
from drawbridge.client import AsyncClient, Client, Samples, ServiceError, Unreachable
from harness.server import ROOT, Server, environment
from tests.serving import serving


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def plain(server: Server, **query: Any) -> np.ndarray:
    answer = httpx.post(f"{server.url}/generate", params={**query, "format": "npz"})
    return np.load(io.BytesIO(answer.content))["images"]


def test_it_draws_arrays_and_pictures(client: Client, server: Server) -> None:
    drawn = client.generate("cgan", digit=7, n=20, seed=4)
    assert np.array_equal(drawn.arrays, plain(server, model="cgan", digit=7, n=20, seed=4))
    assert drawn.labels.tolist() == [7] * 20
    assert [picture.size for picture in drawn.pictures()] == [(28, 28)] * 20
    again = client.generate("cgan", digit=7, n=20, seed=drawn.seed)
    assert (again.url, again.digest) == (drawn.url, drawn.digest)
    assert client.generate("gan").seed != client.generate("gan").seed
    assert {"cgan", "gan"} <= {model["name"] for model in client.models()}


async def test_the_other_may_be_awaited(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        drawn = await client.generate("flow", digit=[1, 2], n=4, seed=1, steps=3)
        assert drawn.labels.tolist() == [1, 2, 1, 2]
        kinds = [event.kind async for event in client.stream("gan", n=2)]
        assert kinds == ["start", "progress", "image", "image", "end"]
        with pytest.raises(ServiceError, match="no model"):
            await client.generate("nope")


def test_a_stream_shows_images_under_way(client: Client, server: Server) -> None:
    events = list(client.stream("ddpm", digit=3, steps=5, seed=2, previews=True))
    assert {event.kind for event in events} == {"start", "progress", "preview", "image", "end"}
    (image,) = (event for event in events if event.kind == "image")
    assert np.array_equal(image.array(), plain(server, model="ddpm", digit=3, steps=5, seed=2)[0])


def test_what_is_wrong_is_told_once(client: Client) -> None:
    with pytest.raises(ServiceError, match="draws 0 to 9") as raised:
        client.generate("cgan", digit=12)
    assert raised.value.status == 422
    assert raised.value.problem["title"] == "Invalid parameter"
    with pytest.raises(ServiceError, match="cannot be told"):
        list(client.stream("gan", digit=1))


def canned(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[Any]]:
    """A service that gives the answers one after another, and what it was asked."""
    left, asked = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    return httpx.MockTransport(answer), asked


def npz() -> httpx.Response:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((1, 28, 28), np.uint8), labels=np.array([-1]))
    headers = {"x-seed": "1", "x-model-digest": "d", "content-location": "/generate?"}
    return httpx.Response(200, content=buffer.getvalue(), headers=headers)


def busy(seconds: str) -> httpx.Response:
    return httpx.Response(429, json={"detail": "full"}, headers={"Retry-After": seconds})


def test_it_comes_again_when_it_is_told_to_with_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    transport, asked = canned(busy("7"), httpx.ConnectError("no"), busy("100000"), httpx.Response(503), npz())
    with Client() as client:
        client.http = httpx.Client(base_url="http://there", transport=transport)
        client.generate("gan")
    assert slept == [7, 0.5, 30, 2]
    assert len({request["seed"] for request in asked}) == 1


@pytest.mark.parametrize(("answer", "kind"), [(busy("0"), ServiceError), (httpx.ConnectError("refused"), Unreachable)])
async def test_it_gives_up_some_time(answer: Any, kind: type[Exception]) -> None:
    transport, asked = canned(*[answer] * 3)
    async with AsyncClient("http://there", transport=transport, retries=2) as client:
        with pytest.raises(kind):
            await client.generate("gan")
    assert len(asked) == 3


def test_a_stream_that_breaks_off_is_told(server: Server) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b'event: start\ndata: {"n": 1}\n\n'))
    with Client(server.url) as client:
        client.http = httpx.Client(base_url="http://there", transport=transport)
        with pytest.raises(Unreachable, match="broke off"):
            list(client.stream("gan"))


# -- the command line --------------------------------------------------------------------------------------------------


def command(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT, env=environment(**settings), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_draw_gives_the_same_here_as_from_a_service(server: Server, weights: Path, tmp_path: Path) -> None:
    asked = ["cgan", "--digit", "3", "--digit", "5", "-n", "4", "--seed", "6"]
    here = command("draw", *asked, "-o", str(tmp_path / "here.npz"), weights=weights, max_batch_size=8)
    assert here.returncode == 0, here.stderr
    assert main(["draw", *asked, "-o", str(tmp_path / "there.npz"), "--url", server.url]) == 0
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert np.array_equal(one["images"], two["images"])
    assert one["labels"].tolist() == two["labels"].tolist() == [3, 5, 3, 5]
    for name in ("four.png", "four.webp"):
        assert main(["draw", *asked, "-o", str(tmp_path / name), "--url", server.url]) == 0
        with Image.open(tmp_path / name) as image:
            assert image.size == (56, 56)


def test_a_terminal_shows_it() -> None:
    drawn = Samples(np.full((3, 28, 28), 255, np.uint8), np.zeros(3, np.int64), 0, "", "")
    lines = shown(drawn, 60).split("\n")
    assert len(lines) == 28  # two rows of images, two pixels a line
    assert lines[0].count("▀") == 56
    assert "38;5;255m" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["draw", "cgan"], "name a file with -o"),
        (["draw", "cgan", "-o", "x.bmp"], "call it .png"),
        (["draw", "nope", "-o", "x.png"], "no model 'nope'; there are: acgan"),
        (["draw", "cgan", "--digit", "12", "-o", "x.png"], "draws 0 to 9"),
        (["dataset", "gan", "-o", "x.npz"], "cannot be told which digit"),
        (["dataset", "cgan", "--per-digit", "0", "-o", "x.npz"], "1 at least"),
        (["nothing"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line_and_2(
    arguments: list[str], said: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    url = [] if arguments == ["nothing"] else ["--url", server.url]
    assert main([*arguments, *url]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_one_line_and_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["draw", "cgan", "-o", str(tmp_path / "x.png"), "--url", "http://127.0.0.1:9"]) == 2
    assert "does not answer" in capsys.readouterr().err


def test_a_data_set_that_was_interrupted_twice_is_the_one_drawn_at_once(server: Server, tmp_path: Path) -> None:
    asked = ["dataset", "gmm", "--per-digit", "1200", "--seed", "3", "--url", server.url]
    broken, whole = tmp_path / "broken.npz", tmp_path / "whole.npz"
    parts = tmp_path / "broken.npz.parts"
    kept: dict[str, int] = {}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *asked, "-o", str(broken)],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(list(parts.glob("*[0-9].npz"))) <= len(kept) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "images are kept in" in error
        assert "Traceback" not in error
        before, kept = kept, {path.name: path.stat().st_mtime_ns for path in parts.glob("*[0-9].npz")}
        assert len(before) < len(kept) < 12
        assert before.items() <= kept.items()
    assert main([*asked, "-o", str(broken)]) == 0
    assert main([*asked, "-o", str(whole)]) == 0
    assert broken.read_bytes() == whole.read_bytes()
    with np.load(whole) as held:
        assert np.bincount(held["labels"]).tolist() == [1200] * 10
        assert np.array_equal(held["images"][:5], plain(server, model="gmm", digit=list(range(10)), n=5, seed=3))
    assert not parts.exists()
    assert main([*asked, "-o", str(whole)]) == 2  # is there already


def test_a_data_set_is_not_gone_on_with_by_other_settings(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dataset.Dataset(tmp_path / "x.npz", "npz")
    made.begin({"model": "cgan"}, 100)
    assert main(["dataset", "cgan", "--per-digit", "10", "-o", str(tmp_path / "x.npz"), "--url", server.url]) == 2
    assert "begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["idx", "png"])
def test_data_sets_load_as_torchvision_has_them(server: Server, tmp_path: Path, form: str) -> None:
    output = tmp_path / "digits"
    asked = ["dataset", "flow", "--steps", "2", "--per-digit", "12", "--url", server.url]
    asked += ["--format", form, "-o", str(output)]
    assert main(asked) == 0
    held = datasets.MNIST(str(output)) if form == "idx" else datasets.ImageFolder(str(output))
    assert len(held) == 120
    drawn = plain(server, model="flow", steps=2, digit=list(range(10)), n=120, seed=0)
    labels = [label for _, label in held]
    assert np.bincount(labels).tolist() == [12] * 10
    first, label = held[0]
    assert label == (0 if form == "png" else labels[0])
    assert np.array_equal(np.asarray(first.convert("L")), drawn[0])
    assert not Path(f"{output}.parts").exists()
