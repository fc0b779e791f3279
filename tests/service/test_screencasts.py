"""A film of what a user does in each view, in a real browser.

Each test asserts what its film shows. With DRAWBRIDGE_SCREENSHOTS, which is how docs/playground was written, it writes
the film.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.remote.webelement import WebElement

from harness.screencast import Screencast
from harness.server import Server
from tests.service.test_live_lab import Lab
from tests.service.test_playground import HOST, SCREENSHOTS, Page, browser, encoders, server
from tests.service.test_playground import pytestmark as needs_chromium

__all__ = ["browser", "encoders", "server"]

pytestmark = [needs_chromium, pytest.mark.slow]

WIDTH, HEIGHT, SCALE = 1080, 700, 5 / 6
"""CSS pixels of the window, and pixels of the film for each."""
END = 2000
"""Milliseconds that the last frame is shown for."""


class Film(Screencast):
    """A film of one view."""

    def __init__(self, page: Page, name: str) -> None:
        super().__init__(page.browser, SCALE, (0.6 * WIDTH, 0.8 * HEIGHT))
        self.page, self.name = page, name

    def slide(self, selector: str, *shares: float) -> None:
        """Drag the thumb of a slider through shares of its length."""
        width = self.page.one(selector).rect["width"]
        self.drag(selector, *((width * (share - 0.5), 0) for share in shares))

    def button(self, text: str) -> WebElement:
        """The button with this text."""
        return next(button for button in self.page.all("button") if button.text == text)

    def end(self) -> None:
        """Show the end for a while, and write the film beside the screenshots."""
        self.hold(END)
        assert not self.page.all("#notice:not([hidden]), #error:not([hidden])")
        if SCREENSHOTS:  # on a slow machine a film may be longer
            assert 3 <= self.seconds <= 8, self.seconds
            self.save(Path(SCREENSHOTS) / f"{self.name}.webp")


@pytest.fixture
def film(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Film]:
    """The film that a test is named after."""
    page = Page(browser, server.url.replace("127.0.0.1", HOST))
    with page.window(WIDTH, HEIGHT, deviceScaleFactor=SCALE):
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        yield Film(page, request.node.name.removeprefix("test_").replace("_", "-"))
    page.check_console()


def sources(page: Page) -> list[str]:
    """The addresses of the generated images."""
    script = "return [...document.querySelectorAll(':is(.grid, .axes) img')].map(({ src }) => src)"
    return [*page.run(script)]


def test_generate(film: Film) -> None:
    page = film.page
    page.open("view=generate&model=ddpm&label=7&n=10&seed=3")
    page.wait_for_status("10 images in")
    sevens = sources(page)
    film.hold(700)
    film.click("input[name=label][value='4'] + *")
    film.watch(lambda: page.loaded_images(".grid img[alt='generated digit 4']:not(.pending)") == 10)
    assert not {*sources(page)} & {*sevens}
    film.end()


def test_emoji(film: Film) -> None:
    page = film.page
    page.open("view=generate&model=emoji&label=smileys&n=10&seed=3")
    page.wait_for_status("10 images in")
    film.hold(700)
    film.click("input[name=label][value=food] + *")
    film.watch(lambda: page.loaded_images(".grid img[alt='generated “food”']:not(.pending)") == 10)
    film.end()


def test_steps(film: Film) -> None:
    page = film.page
    page.open("view=generate&model=ddpm&label=7&n=5&seed=3&steps=20")
    page.wait(lambda: page.loaded_images("figure img") == 2)
    page.run("document.querySelector('main .card summary').scrollIntoView()")
    film.hold(700)
    film.slide("#step", 0.5, 0)
    assert page.one("output[for=step]").text == "1 of 20"
    film.slide("#step", 0, 1)
    assert page.one("output[for=step]").text == "20 of 20"
    film.end()


def test_formulas(film: Film) -> None:
    page = film.page
    page.open("view=generate&model=ddpm&label=7&n=5&seed=3&formulas=open")
    page.wait(lambda: page.loaded_images("figure img") == 2 and page.all("details.formulas [data-symbol]"))
    page.run("document.querySelector('details.formulas').scrollIntoView()")
    film.hold(700)
    for symbol in ("x_0", "ε", "x_θ"):
        film.click(f"details.formulas [data-symbol='{symbol}']")
        film.hold(900)
    film.end()


def test_interpolate(film: Film) -> None:
    page = film.page
    page.open("view=interpolate&model=cgan&label=3&label=8&seed=4")
    page.wait_for_interpolation()
    film.hold(700)
    film.slide("#frame", 0, 1)
    assert page.one("#frame").get_property("value") == "32"
    film.end()


def test_latent(film: Film) -> None:
    page = film.page
    page.open("view=latent&model=vae&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    before = page.one(".large").get_attribute("src")
    film.hold(700)
    film.drag(".latent-plane", (0, 0), (90, -80), (60, 110), (-110, 90), (-60, -100))
    page.wait(lambda: page.one(".large").get_attribute("src") != before)
    film.end()


def test_reconstruct(film: Film, encoders: dict[str, bool]) -> None:
    page = film.page
    page.open("view=reconstruct")
    film.hold(500)
    film.drag(".drawing-pad", (-55, -75), (50, -75), (0, 5), (-15, 85))
    film.click("button.primary")
    film.watch(lambda: page.loaded_images(".cards .large") == len(encoders))
    film.end()


def test_complete(film: Film) -> None:
    page = film.page
    page.open("view=complete&model=flow&image=3&n=10&seed=1")
    page.wait_for_status("10 images in")
    film.hold(500)
    film.click(film.button("Mask by rectangle"))
    film.drag(".mask", (-130, 10), (130, 130))
    film.watch(lambda: page.loaded_images(".grid img[alt^=completion]:not(.pending)") == 10)
    film.end()


def test_compare(film: Film) -> None:
    page = film.page
    page.open("view=compare&models=cgan&models=gmm&label=7&n=16&seed=3")
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    film.hold(700)
    film.click("input[name=models][value=ddpm]")
    film.watch(lambda: page.loaded_images(".cards img") == 3)
    film.hold(700)
    film.click("input[name=label][value='2'] + *")
    film.watch(lambda: page.loaded_images(".cards img[alt*='digit 2']") == 3)
    film.end()


def test_grid(film: Film) -> None:
    page = film.page
    values = "rows=guidance&rows-values=1;+2;+4&columns=steps&columns-values=1;+2;+4;+8"
    page.open(f"view=grid&model=flow&{values}&label=7&seed=3")
    page.wait_for_status("12 images")
    sevens = {*sources(page)}
    film.hold(700)
    film.click("input[name=label][value='2'] + *")
    film.watch(lambda: page.loaded_images(".axes img") == 12 and not sevens & {*sources(page)})
    film.end()


def test_film(film: Film) -> None:
    page = film.page
    page.open("view=film&model=cgan&updates=0")
    page.one("#frame")
    film.hold(700)
    film.click(".player button")
    film.watch(lambda: page.one(".player button").text == "Play")
    film.end()


def test_present(film: Film) -> None:
    page = film.page
    page.open("view=generate&model=cgan&label=7&n=16&seed=3")
    page.wait_for_status("16 images in")
    film.hold(700)
    present, share = page.all(".page-tools button")[::-1]
    film.click(present)
    page.wait(lambda: page.run("return document.documentElement.classList.contains('presenting')"))
    film.hold(900)
    film.click(share)
    page.one("#share")
    film.end()


def test_live_lab(film: Film) -> None:
    lab = Lab(film.browser, film.page.url)
    lab.open("data=ring&deviation=0.15&model=gan&momentum=0.9&b.model=wgan_gp&b.momentum=0.9")
    film.hold(700)
    film.click(".transport button")
    for update in range(0, 400, 20):
        lab.wait_until_after(update)
        film.hold(200)
    film.click(".transport button")
    lab.wait(lambda: lab.is_still)
    film.end()


def test_lab(film: Film) -> None:
    page = film.page
    film.browser.get(f"{page.url}/lab")
    film.hold(700)
    film.click("a[href='#gan_field']")
    page.wait(lambda: page.run("return scrollY > 0"))
    film.hold(1000)
    page.run("document.querySelector('img[src=\"gan_field.webp\"]').scrollIntoView({ block: 'center' })")
    end = time.monotonic() + 3
    film.watch(lambda: time.monotonic() > end)
    film.end()
