"""The view "Film" of the playground in a real browser; needs Debian's packages chromium and chromium-driver."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from harness.server import Server
from models import store
from models.film import Film
from tests.conftest import manifest_of, small
from tests.service.test_playground import Page, browser, pytestmark  # noqa: F401
from tests.serving import serving

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
UPDATES = {"cgan": (0, 10, 100, 1000, 5000), "gan": (0, 10, 20, 100, 9000)}
GREYS = (10, 60, 120, 180, 240)
"""Of the frames of every film, in their order."""


def film_of(name: str) -> Film:
    """Five frames of ten samples of 28x28, in rows of `across`, each of one grey."""
    across = 1 if name == "cgan" else 2
    sheet = np.zeros((-(-len(GREYS) // across) * 28, across * 280), np.uint8)
    for number, grey in enumerate(GREYS):
        top, left = number // across * 28, number % across * 280
        sheet[top : top + 28, left : left + 280] = grey
    image = io.BytesIO()
    Image.fromarray(sheet).save(image, "WEBP", lossless=True)
    frames = tuple({"updates": updates, "images": 64 * updates} for updates in UPDATES[name])
    return Film(image.getvalue(), across, 280, 28, 10, 1, frames, same_run=name == "cgan")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with films of cgan and gan, and with a model that has none."""
    weights = tmp_path_factory.mktemp("filmed")
    for name in ("cgan", "gan", "pca"):
        family = small(name).for_sampling()
        classes = tuple("0123456789") if name == "cgan" else ()
        store.save(
            weights / name, family, manifest_of(family, classes), b"", film_of(name) if name in UPDATES else None
        )
    with serving(weights) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:  # noqa: F811
    opened = Page(browser, server.url)
    yield opened
    opened.check_console()


def greys(page: Page) -> list[int]:
    """The grey of each film's frame."""
    return list(page.run(
        "return [...document.querySelectorAll('.films canvas')]"
        ".map((canvas) => canvas.getContext('2d').getImageData(140, 14, 1, 1).data[0])"
    ))  # fmt: skip


def captions(page: Page) -> list[str]:
    return [caption.text for caption in page.all(".films .moment")]


@contextmanager
def media(page: Page, name: str, value: str) -> Iterator[None]:
    """Let the browser report a preference of its user."""
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value}]})
    try:
        yield
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_address_names_a_model_and_a_frame(page: Page) -> None:
    page.open("view=film&model=cgan&updates=100")
    page.one("#frame")
    assert captions(page) == ["After 100 updates, 6,400 images"]
    assert greys(page) == [120]
    assert page.one(".player button").text == "Play", "a shared frame stands still"
    assert "a column for each digit" in page.one(".films .small").text
    assert not page.one("#notice").is_displayed()
    page.open("view=film&model=gan&updates=99")
    page.one("#frame")
    assert captions(page) == ["After 20 updates, 1,280 images"]
    assert greys(page) == [120]
    assert "another run by the same recipe, up to its update 100" in page.one(".films .small").text


def test_the_keyboard_scrubs_and_the_address_follows(page: Page) -> None:
    page.open("view=film&model=cgan&updates=10")
    frame = page.one("#frame")
    frame.send_keys(Keys.ARROW_RIGHT)
    assert (captions(page), greys(page)) == (["After 100 updates, 6,400 images"], [120])
    assert page.address == {"view": ["film"], "model": ["cgan"], "updates": ["100"]}
    frame.send_keys(Keys.END)
    assert captions(page) == ["The served weights, after 5,000 updates, 320,000 images"]
    assert frame.get_attribute("aria-valuetext") == captions(page)[0]
    assert page.one(".films canvas").get_attribute("aria-label") == f"Samples of cgan. {captions(page)[0]}"
    assert greys(page) == [240]
    frame.send_keys(Keys.HOME)
    assert (captions(page), greys(page)) == (["After 0 updates, 0 images"], [10])
    page.browser.refresh()
    page.one("#frame")
    assert captions(page) == ["After 0 updates, 0 images"]


@pytest.mark.slow
def test_a_film_plays_to_its_end_and_again(page: Page) -> None:
    page.open("view=film&model=cgan")
    page.wait(lambda: page.one(".player button").text == "Pause", "it plays when the view opens")
    assert "updates" not in page.address
    page.wait(lambda: greys(page) == [240])
    page.wait(lambda: page.one(".player button").text == "Play")
    assert page.address["updates"] == ["5000"]
    page.press("Play")
    assert greys(page)[0] < 240
    page.wait(lambda: greys(page) == [60])
    page.press("Pause")
    stood = greys(page)
    assert page.one("#status").get_property("textContent") == captions(page)[0]
    page.run("return new Promise((resolve) => setTimeout(resolve, 700))")
    assert greys(page) == stood


@pytest.mark.slow
def test_with_reduced_motion_a_film_waits_for_its_button(page: Page) -> None:
    with media(page, "prefers-reduced-motion", "reduce"):
        page.open("view=film&model=cgan")
        page.one("#frame")
        page.run("return new Promise((resolve) => setTimeout(resolve, 700))")
        assert (captions(page), greys(page)) == (["After 0 updates, 0 images"], [10])
        page.press("Play")
        page.wait(lambda: greys(page)[0] > 10)


@pytest.mark.slow
def test_two_films_play_side_by_side_by_their_updates(page: Page) -> None:
    page.open("view=film&model=cgan&updates=100")
    page.one("#frame")
    page.set("#beside", "gan")
    page.wait(lambda: len(page.all(".films canvas")) == 2 and page.all("#frame"))
    assert page.run("return document.activeElement.id") == "beside"
    assert captions(page) == ["After 100 updates, 6,400 images"] * 2
    assert greys(page) == [120, 180]
    assert page.address == {"view": ["film"], "model": ["cgan"], "beside": ["gan"], "updates": ["100"]}
    frame = page.one("#frame")
    frame.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert captions(page) == ["After 10 updates, 640 images", "After 20 updates, 1,280 images"]
    frame.send_keys(Keys.END)
    assert greys(page) == [240, 240]
    page.set("#model", "gan")
    page.wait(lambda: len(page.all(".films canvas")) == 1 and page.all("#frame"))
    assert page.address == {"view": ["film"], "model": ["gan"], "updates": ["9000"]}


def test_the_image_is_fetched_by_its_digest(page: Page) -> None:
    page.open("view=film&model=cgan&updates=0")
    page.one("#frame")
    models, about, image = page.requests()
    assert (models, about) == ("models", "models/cgan/film")
    assert image == f"models/cgan/film.webp?digest={film_of('cgan').digest}"


@pytest.mark.slow
def test_the_menu_leads_to_the_films_and_every_control_has_a_name(page: Page) -> None:
    page.open("view=generate&model=cgan&n=1&seed=1")
    page.wait_for_status("1 image in")
    page.open_view("film")
    page.one("#frame")
    assert page.unnamed_controls() == []
    assert [option.get_attribute("value") for option in page.all("#model option")] == ["cgan", "gan"]
    page.open("view=film&model=pca")
    page.wait(lambda: "model=pca (no such model in this view)" in page.one("#notice").text)


@pytest.mark.slow
def test_a_presented_film_still_plays_and_fits_the_window(page: Page) -> None:
    page.open("view=film&model=cgan&updates=0&present=1")
    page.one("#frame")
    assert page.bottom(".player") <= page.run("return innerHeight")
    page.press("Play")
    page.wait(lambda: greys(page)[0] > 10)


@pytest.mark.slow
def test_a_film_fits_the_window_of_a_phone(page: Page) -> None:
    with page.window(**PHONE):
        page.open("view=film&model=cgan&beside=gan&updates=100")
        page.one("#frame")
        assert page.run("return document.documentElement.scrollWidth") <= PHONE["width"]
        page.open("view=film&model=cgan&updates=100")
        page.one("#frame")
        assert page.bottom(".player") <= PHONE["height"]


def test_a_service_without_films_says_so(page: Page) -> None:
    without = "const json = Response.prototype.json; Response.prototype.json = async function () {"
    without += (
        "const body = await json.call(this); body.models?.forEach((model) => (model.film = null)); return body };"
    )
    script = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": without})
    page.open("view=film")
    page.wait(lambda: "No served model has a film" in page.one("main").text)
    page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
