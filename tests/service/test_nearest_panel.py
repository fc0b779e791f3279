"""The playground's panel "Nearest training images", in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from selenium.webdriver.common.keys import Keys

from harness.server import ROOT, Server
from models import nearest, store
from models.pixels import channels_first
from tests.service.conftest import arrays
from tests.service.test_playground import Page, browser, page, pytestmark  # noqa: F401
from tests.serving import serving, wait_for

QUERY = "view=generate&model=cgan&label=7&n=4&seed=3"
PANEL = "details:has(.neighbours)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with an index of samples of `cgan`, of which image 2 of seed 3 is none; `emoji_cgan` has no index."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("cgan", "emoji_cgan"):
        (root / name).symlink_to(ROOT / "weights" / name)
    with serving(root, max_batch_size=16, weights_poll_interval=0.2) as running:
        query = {"model": "cgan", "label": 7, "seed": 3, "n": 50, "format": "npz"}
        write_index(root, arrays(httpx.get(f"{running.url}/generate", params=query, timeout=60)))
        wait_for(lambda: bool(httpx.get(f"{running.url}/models/cgan", timeout=60).json()["nearest"]))
        yield running


def write_index(root: Path, drawn: dict[str, np.ndarray]) -> None:
    """Write an index of these images but the one numbered 2 for the data of `cgan`."""
    manifest = store.read_manifest(root / "cgan")
    images, labels = channels_first(torch.from_numpy(drawn["images"])), torch.from_numpy(drawn["labels"])
    kept = torch.arange(len(images)) != 2
    digest = manifest.dataset["digest"]
    content = nearest.build(
        images[kept], labels[kept], torch.arange(100.0) * 50, 1.0,
        name="own", digest=digest, classes=manifest.classes, attribution="Drawn by the model",
    )  # fmt: skip
    store.write_atomic(nearest.path(root, "own", digest), content)


def wait_for_neighbours(page: Page, sentence: str) -> None:  # noqa: F811
    page.wait(lambda: sentence in page.one(f"{PANEL} p").text, sentence)
    page.wait(lambda: page.loaded_images(".neighbours img") == 6, "the sample and five training images")


def test_the_panel_says_whether_a_sample_is_a_copy(page: Page) -> None:  # noqa: F811
    page.open(QUERY)
    page.wait_for_status("4 images in")
    assert not [path for path in page.requests() if "nearest" in path], "a closed panel requests nothing"
    assert "nearest" not in page.address
    page.click(f"{PANEL} summary")
    wait_for_neighbours(page, "Copied: it equals training image 0 in every pixel.")
    assert page.address["nearest"] == ["1"]
    sample, *found = page.pixels(".neighbours img")
    assert (sample == page.pixels(".grid img")[0]).all()
    assert (sample == found[0]).all()
    captions = [caption.text for caption in page.all(".neighbours figcaption")]
    assert captions[:2] == ["the sample", "no. 0, 7, distance 0"]
    assert page.one(f"{PANEL} p.small").text.endswith("Training images: Drawn by the model")

    page.all(".grid img")[2].click()
    wait_for_neighbours(page, "Not copied: it is nearer to training image")
    assert (page.pixels(".neighbours img")[0] == page.pixels(".grid img")[2]).all()
    assert page.address["nearest"] == ["3"]
    page.browser.refresh()
    wait_for_neighbours(page, "Not copied")
    assert page.one("output[for=nearest]").text == "3"
    page.one("#nearest").send_keys(Keys.ARROW_RIGHT)
    wait_for_neighbours(page, "Copied: it equals training image 2")
    assert page.unnamed_controls() == []
    page.screenshot("nearest")

    page.set("#n", "2")
    page.wait_for_status("2 images in")
    wait_for_neighbours(page, "Copied: it equals training image 1")
    page.wait(lambda: page.address["nearest"] == ["2"])
    page.click(f"{PANEL} summary")
    page.wait(lambda: "nearest" not in page.address)


def test_a_new_draw_is_compared_again_while_the_panel_is_open(page: Page) -> None:  # noqa: F811
    page.open(f"{QUERY}&nearest=1")
    wait_for_neighbours(page, "Copied: it equals training image 0")
    page.set("#seed-0", "4")
    wait_for_neighbours(page, "Not copied")
    assert not page.one("#notice").is_displayed()


def test_an_error_of_the_search_is_shown(page: Page) -> None:  # noqa: F811
    page.open(QUERY)
    page.wait_for_status("4 images in")
    page.run(
        "const original = window.fetch; window.fetch = (address, options) => String(address) === 'nearest' ? "
        "Promise.resolve(new Response(JSON.stringify({detail: 'too many searches'}), {status: 429})) "
        ": original(address, options)"
    )
    page.click(f"{PANEL} summary")
    page.wait(lambda: "too many searches" in page.one("#error").text)
    assert not page.one(".neighbours").is_displayed()


def test_a_model_without_an_index_has_no_panel(page: Page) -> None:  # noqa: F811
    page.open("view=generate&model=emoji_cgan&n=1&seed=1&nearest=1")
    page.wait_for_status("1 image in")
    assert not page.all(PANEL)
    assert "nearest=1 (not a setting of this view and model)" in page.one("#notice").text


def test_the_panel_is_as_wide_as_a_phone(page: Page) -> None:  # noqa: F811
    with page.window(390, 844):
        page.open(f"{QUERY}&nearest=3")
        wait_for_neighbours(page, "Not copied")
        assert page.run("return document.documentElement.scrollWidth") <= 390
