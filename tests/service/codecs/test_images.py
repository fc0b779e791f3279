"""Encoders of images: PNG in grey and in colour, the folders of a zip, and what containers say about labels."""

import io
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from service.codecs import formats
from service.codecs.folders import folder_names
from service.codecs.formats import ANIMATION_FORMATS, IMAGE_FORMATS, ImageBatch
from service.codecs.png import png

FORMATS = {format_.name: format_ for format_ in IMAGE_FORMATS}
ANIMATIONS = {format_.name: format_ for format_ in ANIMATION_FORMATS}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (48, 64), (8, 8, 3), (48, 64, 3), (128, 128, 3)])
def test_a_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    for image in (noise(*shape), noise(*shape)[::-1], np.zeros(shape, np.uint8)):
        with Image.open(io.BytesIO(png(image))) as file:
            assert file.mode == ("L" if len(shape) == 2 else "RGB")
            assert np.array_equal(np.asarray(file), image)


def test_a_png_is_compressed_without_filters() -> None:
    for image in (noise(28, 28), noise(32, 32, 3)):
        lines = b"".join(b"\0" + row.tobytes() for row in image)
        assert png(image)[41:-16] == zlib.compress(lines, 1)


def test_frames_of_a_colour_animation_keep_their_colours() -> None:
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    batch = ImageBatch(colors[:, None, None].repeat(8, 1).repeat(12, 2), np.full(3, -1), {})
    for name in ("gif", "webp"):
        with Image.open(io.BytesIO(ANIMATIONS[name].encode(batch))) as file:
            shown = []
            for frame in (0, 1, 2, 1):
                file.seek(frame)
                shown.append(file.convert("RGB").getpixel((5, 5)))
        assert shown == [tuple(colors[i].tolist()) for i in (0, 1, 2, 1)]


def test_containers_of_a_model_without_labels_have_no_classes() -> None:
    batch = ImageBatch(noise(2, 8, 8, 3), np.full(2, -1), {"model": "x"})
    arrays = np.load(io.BytesIO(FORMATS["npz"].encode(batch)))
    assert sorted(arrays) == ["images", "labels"]
    with zipfile.ZipFile(io.BytesIO(FORMATS["zip"].encode(batch))) as file:
        assert file.namelist() == ["00000.png", "00001.png"]


def test_images_without_a_label_are_beside_the_folders() -> None:
    batch = ImageBatch(noise(3, 8, 8), np.array([1, -1, 0]), {"model": "x"}, classes=("00001.png", "b"))
    arrays = np.load(io.BytesIO(FORMATS["npz"].encode(batch)))
    assert (arrays["labels"].tolist(), arrays["classes"].tolist()) == ([1, -1, 0], ["00001.png", "b"])
    with zipfile.ZipFile(io.BytesIO(FORMATS["zip"].encode(batch))) as file:
        assert file.namelist() == ["b/00000.png", "00001.png", "00001.png_/00002.png"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("pizza", "pizza"),
        ("hot dog", "hot dog"),
        ("Übung 猫 🍕", "Übung 猫 🍕"),
        ('a/b\\c:d*e?f"g<h>i|j\0k\nl', "a_b_c_d_e_f_g_h_i_j_k_l"),
        ("..", "__"),
        (".hidden", "_hidden"),
        ("etc.", "etc_"),
        ("  spaces  ", "spaces"),
        ("", "_"),
        (" ", "_"),
        ("nul", "nul_"),
        ("Com1.txt", "Com1.txt_"),
        ("console", "console"),
        ("\ud800", "_"),
    ],
)
def test_folders_have_names_that_every_file_system_takes(name: str, folder: str) -> None:
    assert folder_names([name]) == [folder]


def test_folders_have_distinct_names_of_limited_length() -> None:
    long = "猫" * 1000
    classes = ["a", "A", "a", "a (2)", "é", unicodedata.normalize("NFD", "é"), "x/y", "x:y", long, f"{long}!", "", "_"]
    names = folder_names(classes)
    assert names[:6] == ["a", "A (2)", "a (3)", "a (2) (2)", "é", "é (2)"]
    assert len({name.casefold() for name in names}) == len(classes)
    assert max(len(name.encode()) for name in names) < 255


def test_a_format_whose_bytes_changed_has_another_revision() -> None:
    assert {format_.name: format_.revision for format_ in formats.IMAGE_FORMATS} == {
        "png": 2, "webp": 1, "zip": 3, "npz": 2, "json": 3, "events": 3,
    }  # fmt: skip
