"""`drawbridge draw`."""

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from drawbridge import read_recipe, terminal
from drawbridge.cli import main
from harness.server import ROOT, Server, environment
from service.codecs.png import png

FOUR = ["cgan", "--digit", "3", "--digit", "5", "-n", "4", "--seed", "6"]


def test_weights_in_this_process_give_the_same_bytes_as_a_service(
    server: Server, weights: Path, tmp_path: Path
) -> None:
    local = subprocess.run(
        [sys.executable, "-m", "service", "draw", *FOUR, "-o", str(tmp_path / "local.npz")],
        cwd=ROOT, env=environment(weights=weights, max_batch_size=8), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert local.returncode == 0, local.stderr
    assert main(["draw", *FOUR, "-o", str(tmp_path / "remote.npz"), "--url", server.url]) == 0
    assert (tmp_path / "local.npz").read_bytes() == (tmp_path / "remote.npz").read_bytes()
    with np.load(tmp_path / "local.npz") as archive:
        assert archive["labels"].tolist() == [3, 5, 3, 5]


@pytest.mark.parametrize("name", ["four.png", "four.webp", "FOUR.PNG", "four.NPZ"])
def test_a_file_has_the_bytes_that_the_service_sends(name: str, server: Server, tmp_path: Path) -> None:
    assert main(["draw", *FOUR, "-o", str(tmp_path / name), "--url", server.url]) == 0
    query = {"model": "cgan", "digit": [3, 5], "n": 4, "seed": 6, "format": name[-4:].lower().strip(".")}
    content = (tmp_path / name).read_bytes()
    assert content == httpx.get(f"{server.url}/generate", params=query).content
    if not name.lower().endswith(".npz"):
        assert Image.open(io.BytesIO(content)).size == (56, 56)


def test_a_png_is_drawn_again_and_options_change_what_they_name(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four, again, one = (tmp_path / name for name in ("four.png", "again.png", "one.png"))
    assert main(["draw", *FOUR, "-o", str(four), "--url", server.url]) == 0
    assert main(["draw", "--like", str(four), "-o", str(again), "--url", server.url]) == 0
    assert again.read_bytes() == four.read_bytes()
    assert "again.png: 4 of cgan, seed 6" in capsys.readouterr().err
    assert main(["draw", "--like", str(four), "-n", "1", "--digit", "9", "-o", str(one), "--url", server.url]) == 0
    assert read_recipe(one) == {**read_recipe(four), "n": 1, "label": ["9"]}


def test_a_png_of_other_weights_is_refused_unless_a_model_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"model": "cgan@0123456789ab", "digest": "0123456789ab" + "0" * 52, "seed": 6, "first": 0, "n": 1}
    other, new = tmp_path / "other.png", tmp_path / "new.png"
    other.write_bytes(png(np.zeros((28, 28), np.uint8), json.dumps(recipe).encode()))
    assert main(["draw", "--like", str(other), "-o", str(new), "--url", server.url]) == 2
    error = capsys.readouterr().err
    assert "other.png was drawn with other weights: cgan has no version '0123456789ab'" in error
    assert f"`drawbridge draw cgan --like {other}` draws it with the weights that are there" in error
    assert error.count("\n") == 1
    assert not new.exists()
    assert main(["draw", "cgan", "--like", str(other), "-o", str(new), "--url", server.url]) == 0
    assert read_recipe(new)["seed"] == 6


def test_a_label_is_a_name_or_a_number(named_server: Server, tmp_path: Path) -> None:
    arguments = ["draw", "pictures", "--label", "ice cream", "--label", "çay", "-n", "3", "--seed", "6"]
    for name, labels in (
        ("names.npz", arguments),
        ("numbers.npz", ["1" if a == "ice cream" else a for a in arguments]),
    ):
        assert main([*labels, "-o", str(tmp_path / name), "--url", named_server.url]) == 0
    with np.load(tmp_path / "names.npz") as archive:
        assert archive["labels"].tolist() == [1, 2, 1]
        assert archive["images"].shape == (3, 24, 32, 3)
    assert (tmp_path / "names.npz").read_bytes() == (tmp_path / "numbers.npz").read_bytes()
    assert main([*arguments, "-o", str(tmp_path / "three.png"), "--url", named_server.url]) == 0
    with Image.open(tmp_path / "three.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 48))


def test_the_terminal_gets_two_rows_of_pixels_a_line_and_as_many_images_as_fit() -> None:
    white, black = [[b"\xff"] * 28] * 28, [[b"\x00"] * 28] * 28
    lines = terminal.render([white, black, white], 60).split("\n")
    assert len(lines) == 28
    assert lines[0].count("▀") == 56
    assert lines[0].startswith("\x1b[38;5;255m\x1b[48;5;255m▀")
    assert lines[0].endswith("\x1b[38;5;232m\x1b[48;5;232m▀\x1b[0m")
    assert lines[14].startswith("\x1b[38;5;255m")


def test_images_are_read_without_numpy_as_numpy_reads_them(server: Server, expected: Callable[..., np.ndarray]) -> None:
    npz = httpx.get(f"{server.url}/generate", params={"model": "gan", "n": 3, "seed": 1, "format": "npz"}).content
    images = np.array([[[value for (value,) in row] for row in image] for image in terminal.read_images(npz)])
    assert np.array_equal(images, expected(model="gan", n=3, seed=1))


def test_colours_are_read_as_numpy_reads_them_and_shown_with_24_bits() -> None:
    images, buffer = np.arange(2 * 4 * 2 * 3, dtype=np.uint8).reshape(2, 4, 2, 3), io.BytesIO()
    np.savez(buffer, images=images)
    read = terminal.read_images(buffer.getvalue())
    assert np.array_equal([[[list(pixel) for pixel in row] for row in image] for image in read], images)
    lines = terminal.render(read, 80).split("\n")
    assert lines[0].startswith("\x1b[38;2;0;1;2m\x1b[48;2;6;7;8m▀")
    assert [line.count("▀") for line in lines] == [4, 4]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 2, 2)),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 3, 4), np.uint8).T,
        np.zeros((2, 3, 4, 2), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=array)
    with pytest.raises(ValueError, match="does not read"):
        terminal.read_images(buffer.getvalue())


def test_without_a_file_the_terminal_shows_the_images(server: Server) -> None:
    parent, child = pty.openpty()
    with os.fdopen(parent, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "draw", "gan", "--url", server.url],
            cwd=ROOT, env=environment(), stdout=child, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(child)
        shown = b""
        while chunk := read(screen):
            shown += chunk
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert shown.decode().count("▀") == 28 * 14
    assert "1 of gan, seed" in error


def read(screen: io.FileIO) -> bytes:
    """The next output; empty after the process has closed its terminal, which Linux reports as an error."""
    try:
        return screen.read(65536) or b""
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cgan"], "name a file with -o"),
        (["-o", "x.png"], "name a model, such as cgan, or a PNG with --like"),
        (["--like", "nowhere.png", "-o", "x.png"], "No such file"),
        (["--like", __file__, "-o", "x.png"], "is not a PNG; only PNGs hold a recipe"),
        (["cgan", "-o", "x.bmp"], "must end in .png"),
        (["cgan", "-o", "x"], "must end in .png"),
        (["nope", "-o", "x.png"], "no model 'nope'; available models: acgan"),
        (["cgan", "--digit", "12", "-o", "x.png"], "digit: "),
        (["cgan", "-o", "nowhere/x.png"], "No such file"),
        (["cgan", "--digit", "seven", "-o", "x.png"], "invalid int value: 'seven'"),
        (["cgan", "--label", "seven", "-o", "x.png"], "cgan has no class 'seven'; its classes are: 0, 1"),
        (["cgan", "--label", "7", "--digit", "7", "-o", "x.png"], "digit: means the same as `label`"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["draw", *arguments, "--url", server.url]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "does not respond"),
        ("http://a:b", "--url http://a:b"),
        ("x", "protocol"),
        ("localhost:8000", "the protocol must be http:// or https://"),
    ],
)
def test_a_wrong_url_is_one_line_and_exit_status_2(
    url: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drawbridge.client.MAX_RETRY_DELAY", 0.0)
    assert main(["draw", "cgan", "-o", str(tmp_path / "x.png"), "--url", url]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
