"""The playground's panel "How it works" in a real browser; needs Debian's packages chromium and chromium-driver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from harness.server import ROOT, Server
from tests.service.test_playground import WINDOWS, Page, browser, pytestmark  # noqa: F401
from tests.serving import serving

MODELS = ("ddpm", "kde", "pca", "vae", "wgan_gp")
PANEL = "details.formulas"
QUERY = "view=generate&model={}&n=1&seed=3"


class Formulas(Page):
    """The panel "How it works" of the playground."""

    def open_panel(self, model: str) -> None:
        """Open the page of a model, with the panel open."""
        steps = "&steps=2" if model == "ddpm" else ""
        self.open(f"{QUERY.format(model)}{steps}&formulas=open")
        self.wait_for_page(model)

    def wait_for_page(self, family: str) -> None:
        """Wait until the page about a family is in the panel."""
        self.wait(lambda: f"models/families/{family}.py" in self.one(f"{PANEL} footer").text, family)
        self.wait_for_status("1 image in")

    @property
    def lines(self) -> list[str]:
        """The line below the formulas of each section, the last below the algorithm; the hint is left out."""
        lines = [line.get_property("textContent") for line in self.all(f"{PANEL} .meaning")]
        return ["" if line.startswith("Touch a symbol") else line for line in lines]

    @property
    def chosen(self) -> list[str]:
        """The section of each symbol that is marked, by its heading."""
        marked = "return [...document.querySelectorAll('.formulas .chosen')].map("
        return list(self.run(marked + "(symbol) => symbol.closest('section').querySelector('h3').textContent)"))

    @property
    def focused(self) -> str | None:
        """The symbol with the focus."""
        symbol: str | None = self.run("return document.activeElement.dataset.symbol ?? null")
        return symbol

    def symbol(self, name: str, section: int = 1) -> Any:
        """The first of a name in a section, in the middle of the window."""
        found = self.one(f"{PANEL} section:nth-of-type({section}) [data-symbol='{name}']")
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weights = tmp_path_factory.mktemp("weights")
    for name in MODELS:
        (weights / name).symlink_to(ROOT / "weights" / name)
    with serving(weights) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Formulas]:  # noqa: F811
    opened = Formulas(browser, server.url)
    yield opened
    opened.check_console()


def test_the_panel_begins_closed_and_the_address_remembers_that_it_is_open(page: Formulas) -> None:
    page.open(QUERY.format("kde"))
    page.wait_for_status("1 image in")
    summary = page.one(f"{PANEL} summary")
    page.wait(summary.is_displayed)
    assert not page.one(f"{PANEL} math").is_displayed()
    assert "formulas" not in page.address
    summary.click()
    page.wait(lambda: page.address.get("formulas") == ["open"])
    assert page.one(f"{PANEL} math").is_displayed()
    page.set("#seed-0", "4")
    page.wait(lambda: page.address["seed"] == ["4"])
    assert page.address["formulas"] == ["open"]
    page.browser.refresh()
    page.wait_for_page("kde")
    assert page.one(f"{PANEL} math").is_displayed()
    assert not page.one("#notice").is_displayed()
    page.set("#model", "vae")
    page.wait_for_page("vae")
    assert page.one(f"{PANEL} math").is_displayed(), "another model keeps it open"
    page.one(f"{PANEL} summary").click()
    page.wait(lambda: "formulas" not in page.address)
    page.open(f"{QUERY.format('kde')}&formulas=wide")
    page.wait(lambda: "formulas=wide (not one of open)" in page.one("#notice").text)


@pytest.mark.slow
def test_the_arrow_keys_move_between_the_symbols_of_a_formula_and_escape_closes_the_meaning(page: Formulas) -> None:
    page.open_panel("kde")
    assert page.one(f"{PANEL} .meaning").text.startswith("Touch a symbol")
    page.run("document.querySelector('.formulas summary').focus()")
    press = lambda *keys: ActionChains(page.browser).send_keys(*keys).perform()  # noqa: E731
    press(Keys.TAB)
    assert page.focused == "p"
    assert page.lines[0] == "p: the estimated density: how likely a point is"
    press(Keys.ARROW_RIGHT)
    assert (page.focused, page.lines[0]) == ("x", "x: a point: the principal components of an image")
    press(Keys.END)
    assert page.focused == "I"
    press(Keys.ARROW_RIGHT)
    assert page.focused == "I", "there is none further right"
    press(Keys.HOME, Keys.ARROW_LEFT)
    assert page.focused == "p"
    press(Keys.ESCAPE)
    assert page.lines == [""] * 4
    assert page.chosen == []
    press(Keys.ARROW_RIGHT, Keys.TAB)
    assert page.focused == "h", "the tabulator goes to the next formula"
    assert page.lines[0] == ""
    assert page.lines[1].startswith("h: bandwidth")
    press(Keys.SHIFT + Keys.TAB)
    assert page.focused == "x", "a formula keeps its place"


@pytest.mark.slow
def test_a_presentation_shows_the_panel_and_ends_with_the_second_escape(page: Formulas) -> None:
    page.open(f"{QUERY.format('kde')}&present=1")
    page.wait(lambda: page.loaded_images(".grid img") == 1)
    width = page.one(".grid img").size["width"]
    page.open(f"{QUERY.format('kde')}&formulas=open&present=1")
    page.wait(lambda: page.loaded_images(".grid img") == 1 and page.all(f"{PANEL} math"))
    page.wait(lambda: page.one(".grid img").size["width"] == width, "an image as large as without the panel")
    symbol = page.symbol("h")
    assert symbol.is_displayed()
    position = page.run("return scrollY")
    assert position > 100, "the formulas are below the window"
    symbol.click()
    page.run("dispatchEvent(new Event('resize'))")
    assert page.run("return scrollY") == position, "images of another size do not move the page"
    assert page.lines[0].startswith("h: bandwidth")
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    assert (page.lines[0], page.address["present"]) == ("", ["1"])
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    page.wait(lambda: "present" not in page.address)
    assert page.address["formulas"] == ["open"]


@pytest.mark.slow
def test_a_symbol_is_explained_by_a_touch_beside_it_and_marked_wherever_it_occurs(page: Formulas) -> None:
    page.open_panel("kde")
    symbol = page.symbol("h")
    page.run("window.addEventListener('pointerover', (event) => event.stopImmediatePropagation(), true)")  # as a touch
    ActionChains(page.browser, duration=0).move_to_element_with_offset(symbol, 2, 16).click().perform()
    assert page.focused == "h"
    assert page.lines[0].startswith("h: bandwidth")
    assert page.chosen == ["Density", "Bandwidth", "Bandwidth", "Sampling", "Algorithm", "Algorithm"]
    ActionChains(page.browser, duration=0).move_to_element_with_offset(symbol, 400, 0).click().perform()
    assert page.lines == [""] * 4, "that was far from any symbol"
    page.symbol("s", section=4).click()
    assert page.lines[:3] == [""] * 3
    assert page.lines[3].startswith("s: scale of the noise"), "the algorithm has a line of its own"
    assert page.run(
        "return [...document.querySelectorAll('.formulas .meaning')].every((line) => line.ariaLive === 'polite')"
    )


def test_the_mouse_explains_a_symbol_for_as_long_as_it_is_over_it(page: Formulas) -> None:
    page.open_panel("kde")
    move = ActionChains(page.browser, duration=0).move_to_element
    move(page.symbol("N")).perform()
    assert page.lines[0].startswith("N: the number of kernels")
    page.symbol("h").click()
    move(page.symbol("ε", section=3)).perform()
    assert page.lines[2].startswith("ε: noise")
    assert page.chosen == ["Sampling", "Sampling", "Algorithm", "Algorithm"]
    move(page.one("h1")).perform()
    assert page.lines[2] == ""
    assert page.lines[0].startswith("h: bandwidth"), "the focus is there"
    assert page.chosen == ["Density", "Bandwidth", "Bandwidth", "Sampling", "Algorithm", "Algorithm"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ddpm", "vae", "wgan_gp"])
def test_the_formulas_are_drawn_and_fit_every_window(page: Formulas, model: str) -> None:
    page.open_panel(model)
    layout = page.run(
        "return [...document.querySelectorAll('.formulas math')].map((formula) => {"
        "  const { width, height } = formula.getBoundingClientRect();"
        "  return [getComputedStyle(formula).display, width > 5 && height > 5];"
        "})"
    )
    assert {kind for kind, _ in layout} == {"block math", "math"}, "the browser draws MathML"
    assert all(visible for _, visible in layout)
    for numerator, denominator in page.run(
        "return [...document.querySelectorAll('.formulas mfrac')].map((fraction) =>"
        "[...fraction.children].map((child) => child.getBoundingClientRect().top))"
    ):
        assert numerator < denominator
    for width, height in WINDOWS:
        with page.window(width, height):
            assert page.run("return document.documentElement.scrollWidth <= innerWidth"), width
            frames = page.run(
                "return [...document.querySelectorAll('.formulas .frame')].map((frame) =>"
                "[frame.scrollWidth, frame.clientWidth, getComputedStyle(frame).overflowX])"
            )
            assert all(content <= frame or overflow == "auto" for content, frame, overflow in frames), width


def test_a_family_without_a_page_has_no_panel_and_no_error(page: Formulas) -> None:
    """The page asks the service about a family `own`, which is what its list of models says here."""
    script = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": (
        "const original = window.fetch; window.fetch = async (url, options) => {"
        "  const response = await original(url, options);"
        "  if (url !== 'models') return response;"
        "  const list = (await response.text()).replaceAll('\"family\":\"pca\"', '\"family\":\"own\"');"
        "  return new Response(list, response);"
        "};"
    )})["identifier"]  # fmt: skip
    try:
        page.open(f"{QUERY.format('pca')}&formulas=open")
        page.wait_for_status("1 image in")
        page.wait(lambda: "playground/formulas/own.html" in page.requests())
        assert not page.one(PANEL).is_displayed()
        assert not page.one("#notice").is_displayed()
        assert not page.one("#error").is_displayed()
        page.set("#model", "kde")
        page.wait_for_page("kde")
        assert page.one(f"{PANEL} math").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


def test_pages_are_requested_once_and_from_the_service_alone(page: Formulas) -> None:
    page.open_panel("kde")
    page.set("#model", "vae")
    page.wait_for_page("vae")
    page.set("#model", "kde")
    page.wait_for_page("kde")
    pages = [path for path in page.requests() if "formulas" in path]
    assert pages == ["playground/formulas/kde.html", "playground/formulas/vae.html"]
    assert (ROOT / "service" / Path(pages[0])).is_file()
