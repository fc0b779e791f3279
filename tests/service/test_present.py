"""Presentation mode and the QR code in a real browser; needs Debian's packages chromium and chromium-driver."""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segno
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from harness.server import ROOT, Server
from service.api.pages import PLAYGROUND
from tests.service.test_playground import HOST, Page, browser, encoders, page, pytestmark  # noqa: F401
from tests.serving import serving

GENERATED = "view=generate&model=cgan&label=7&n=16&seed=3"
RESULTS = {
    GENERATED: ".grid img:not(.pending)",
    "view=generate&model=ddpm&label=7&n=4&seed=3&steps=4": "figure img",
    "view=interpolate&model=cgan&label=3&label=8&seed=5": ".large, .strip img",
    "view=latent&model=vae&seed=4": ".latent-plane img, .large",
    "view=complete&model=flow&n=2&seed=1&steps=4&image=3&mask=0,14,28,14": ".grid img:not(.pending)",
    "view=compare&models=gan&models=cgan&n=4&seed=2": ".cards img",
    "view=grid&model=cgan&rows=label&rows-values=3;+8&columns=seed&columns-values=1;+2;+3": ".axes img",
}
"""What each view shows, by the address that shows it."""
SETTINGS = "#model, #seed-0, #n, nav a"
"""Controls that a presentation hides."""
QUIET_ZONE = 4


class PresentedPage(Page):
    """A page, and what presentations and their QR code are about."""

    @property
    def is_presenting(self) -> bool:
        return bool(self.run("return document.documentElement.classList.contains('presenting')"))

    def press_key(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def visible(self, selector: str) -> int:
        """The number of elements that match and are on the screen."""
        return sum(element.is_displayed() for element in self.all(selector))

    def is_whole(self) -> bool:
        """True if the window shows all of the page."""
        root = "document.documentElement"
        return bool(self.run(f"return {root}.scrollHeight <= innerHeight && {root}.scrollWidth <= innerWidth"))

    def wait_for_results(self, query: str) -> None:
        self.wait(lambda: self.loaded_images(RESULTS[query]), query)
        self.wait(self.is_whole, f"the whole page of {query}")

    def button(self, name: str) -> Any:
        return self.one(f".page-tools button[aria-label^='{name}']")

    def shared_address(self) -> str:
        """The address beside the QR code, once it is shown."""
        self.wait(lambda: self.visible("#share .address"))
        return str(self.one("#share .address").text)

    def modules(self) -> NDArray[np.bool_]:
        """The modules of the QR code, dark or not, from its picture on the screen."""
        canvas = self.one("#share canvas")
        size = int(canvas.get_attribute("width"))
        with Image.open(io.BytesIO(canvas.screenshot_as_png)) as picture:
            pixels = np.asarray(picture.convert("L"))
        rows, columns = (((np.arange(size) + 0.5) * length / size).astype(int) for length in pixels.shape)
        return pixels[np.ix_(rows, columns)] < 128


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with the models that the tests name: it starts faster than one with all of them."""
    weights = tmp_path_factory.mktemp("weights")
    for name in ("cgan", "ddpm", "flow", "gan", "vae"):
        (weights / name).symlink_to(ROOT / "weights" / name)
    with serving(weights, max_batch_size=16) as running:
        yield running


@pytest.fixture
def shown(browser: Any, server: Server) -> Iterator[PresentedPage]:  # noqa: F811
    """The playground under a host name that is not this machine's own."""
    opened = PresentedPage(browser, server.url.replace("127.0.0.1", HOST))
    with opened.window(1280, 720):
        yield opened
    opened.check_console()


def full(address: str) -> str:
    """`address`, which ends with a seed, with more digits, so that it fills its QR code.

    Encoders differ in how they fill the rest of a code. Without a rest, all of them draw the same modules.
    """

    def version(text: str) -> int:
        return int(segno.make(text, error="m", boost_error=False, micro=False).version)

    while version(f"{address}1") == version(address):
        address += "1"
    return address


def holds(modules: NDArray[np.bool_], text: str) -> bool:
    """True if the QR code holds exactly this text, which fills it; with any of the eight masks."""
    codes = (segno.make(text, error="m", boost_error=False, micro=False, mask=mask) for mask in range(8))
    return any(np.array_equal(modules, np.array([*code.matrix_iter(border=QUIET_ZONE)]) > 0) for code in codes)


@pytest.mark.parametrize("query", RESULTS)
def test_a_presentation_shows_the_results_of_a_view_large_and_without_controls(
    shown: PresentedPage, query: str
) -> None:
    shown.open(f"{query}&present=1")
    shown.wait_for_results(query)
    assert shown.visible(SETTINGS) == 0
    assert shown.visible(RESULTS[query]) == len(shown.all(RESULTS[query]))
    assert shown.run("return parseFloat(getComputedStyle(document.body).fontSize)") > 20
    assert not shown.one("#notice").is_displayed()
    assert shown.address["present"] == ["1"]
    assert query.partition("&")[0] in shown.browser.current_url
    large = shown.bottom(RESULTS[query].partition(",")[0])
    with shown.window(1000, 600):
        shown.wait(lambda: shown.bottom(RESULTS[query].partition(",")[0]) < large)
        shown.wait(shown.is_whole, "the whole page in a smaller window")


@pytest.mark.slow
def test_a_digit_can_be_drawn_while_presenting(shown: PresentedPage, encoders: dict[str, bool]) -> None:  # noqa: F811
    shown.open("view=reconstruct&present=1")
    shown.draw_seven()
    shown.one("form button.primary").click()
    shown.wait(lambda: shown.loaded_images(".cards .large") == len(encoders))
    shown.wait(shown.is_whole)
    assert shown.visible("#file, .labels, nav a") == 0
    assert shown.address == {"view": ["reconstruct"], "present": ["1"]}


def test_keys_and_a_button_present_and_the_caption_says_what_is_shown(shown: PresentedPage) -> None:
    shown.open(GENERATED)
    shown.wait_for_status("16 images in")
    images = shown.pixels(".grid img")
    field = shown.one("#seed-0")
    field.click()
    shown.press_key("p")
    assert not shown.is_presenting, "a key in a field is for the field"
    shown.one("h1").click()
    shown.press_key("p")
    shown.wait(lambda: shown.is_presenting)
    assert shown.one(".caption").text == "cgan · label 7 · seed 3"
    shown.wait_for_results(GENERATED)
    assert (shown.pixels(".grid img") == images).all()
    shown.browser.refresh()
    shown.wait_for_results(GENERATED)
    assert shown.visible(SETTINGS) == 0
    shown.press_key(Keys.ESCAPE)
    shown.wait(lambda: shown.visible(SETTINGS))
    assert "present" not in shown.address
    button = shown.button("Show the results large")
    assert button.get_attribute("title") == "Show the results large and without controls (P)"
    button.click()
    shown.wait(lambda: shown.address.get("present") == ["1"] and shown.run("return !!document.fullscreenElement"))
    shown.run("return document.exitFullscreen()")
    shown.wait(lambda: not shown.is_presenting, "the end of the full screen")
    assert shown.visible(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["() => Promise.reject(new TypeError('denied'))", "undefined"])
def test_a_browser_without_full_screen_presents_in_its_window(shown: PresentedPage, refusal: str) -> None:
    shown.open(GENERATED)
    shown.wait_for_status("16 images in")
    shown.run(f"document.documentElement.requestFullscreen = {refusal}")
    shown.button("Show the results large").click()
    shown.wait_for_results(GENERATED)
    assert shown.address["present"] == ["1"]
    shown.button("Show the controls").click()
    shown.wait(lambda: shown.visible(SETTINGS))


def test_the_qr_code_holds_the_address_of_the_view(shown: PresentedPage) -> None:
    address = full(f"{shown.url}/?{GENERATED}")
    shown.browser.get(address)
    shown.wait_for_status("16 images in")
    shown.button("The address").click()
    assert shown.shared_address() == address
    assert holds(shown.modules(), address)
    assert not holds(shown.modules(), address.replace("seed=3", "seed=4"))
    assert shown.visible("#share .fault") == 0, "a phone can open the address"
    assert shown.run("return document.querySelector('#share').matches(':modal')")
    shown.press_key(Keys.ESCAPE)
    shown.wait(lambda: not shown.visible("#share"))
    shown.press_key("q")
    shown.wait(lambda: shown.visible("#share"))
    copy = shown.one("#share button")
    copy.click()
    copy.click()
    shown.wait(lambda: copy.text == "Copied")
    shown.wait(lambda: copy.text == "Copy address")
    shown.one("#share button + button").click()
    shown.run("document.querySelector('main').append(document.createElement('textarea'))")
    shown.one("main > textarea").send_keys(Keys.CONTROL, "v")
    assert shown.one("main > textarea").get_property("value") == address


@pytest.mark.slow
def test_the_code_samples_are_copied_without_the_clipboard_of_secure_pages(shown: PresentedPage) -> None:
    shown.open(GENERATED)
    shown.wait_for_status("16 images in")
    assert shown.run("return navigator.clipboard === undefined"), "the page of a class has no clipboard"
    shown.one("details:has(pre)").click()
    sample = shown.one("pre")
    shown.one("pre + button").click()
    shown.wait(lambda: shown.one("pre + button").text == "Copied")
    shown.run("document.querySelector('main').append(document.createElement('textarea'))")
    shown.one("main > textarea").send_keys(Keys.CONTROL, "v")
    assert shown.one("main > textarea").get_property("value") == sample.text


@pytest.mark.slow
def test_in_a_presentation_the_code_stays_in_a_corner_and_follows_the_address(shown: PresentedPage) -> None:
    address = full(f"{shown.url}/?{GENERATED}")
    shown.browser.get(f"{address}&present=1")
    shown.wait_for_results(GENERATED)
    shown.button("The address").click()
    assert shown.shared_address() == address, "those who follow it get the controls"
    assert holds(shown.modules(), address)
    shown.wait(shown.is_whole)
    code, grid = shown.one("#share").rect, shown.one(".grid").rect
    assert grid["x"] + grid["width"] <= code["x"], "the code covers no image"
    other = address.replace("seed=3", "seed=4")
    shown.set("#seed-0", other.rpartition("=")[2])
    shown.wait(lambda: shown.shared_address() == other and holds(shown.modules(), other))
    shown.press_key(Keys.ESCAPE)
    shown.wait(lambda: not shown.is_presenting and not shown.visible("#share"))
    with shown.window(390, 844, deviceScaleFactor=2, mobile=True):
        shown.browser.get(f"{address}&present=1")
        shown.wait(lambda: shown.loaded_images(RESULTS[GENERATED]))
        shown.press_key("q")
        shown.wait(lambda: shown.shared_address() == address and holds(shown.modules(), address))
        assert shown.run("return document.documentElement.scrollWidth") == 390


def test_the_address_of_this_machine_alone_names_the_command_for_a_class(page: Page, server: Server) -> None:  # noqa: F811
    local = PresentedPage(page.browser, server.url)
    local.open(GENERATED)
    local.button("The address").click()
    assert local.shared_address().startswith("http://127.0.0.1:")
    message = local.browser.find_element(By.CSS_SELECTOR, "#share .fault").text
    assert "works on this computer only" in message
    assert "make class" in message
    assert "drawbridge serve --class" in message


@pytest.mark.slow
def test_an_address_too_long_for_a_qr_code_can_be_copied(shown: PresentedPage) -> None:
    shown.open(f"view=reconstruct&x={'a' * 2500}")
    shown.wait(lambda: shown.all(".drawing-pad"))
    shown.button("The address").click()
    assert shown.shared_address().endswith("aaa")
    assert shown.visible("#share canvas") == 0
    assert "too long for a QR code" in shown.one("#share").text
    shown.press_key(Keys.ESCAPE)
    shown.open_view("generate")
    shown.wait_for_status("images in")
    shown.button("The address").click()
    assert "view=generate" in shown.shared_address()
    assert shown.visible("#share canvas") == 1
    assert "too long" not in shown.one("#share").text


@pytest.mark.slow
def test_a_wrong_presentation_is_reported(shown: PresentedPage) -> None:
    shown.open(f"{GENERATED}&present=yes")
    shown.wait_for_status("16 images in")
    assert shown.one("#notice").text == "Ignored in the page address: present=yes (not one of 1)."
    assert shown.visible(SETTINGS)
    assert "present" not in shown.address


@pytest.mark.slow
def test_the_live_lab_is_presented_with_its_player(shown: PresentedPage) -> None:
    shown.browser.get(
        f"{shown.url}/lab/live?data=ring&count=200&model=gan&b.model=gan&b.hidden=32-32&hidden=32-32&present=1"
    )
    shown.wait(lambda: shown.visible("canvas.plane") == 2)
    shown.wait(shown.is_whole)
    assert shown.visible(".settings, #preset, nav a") == 0
    shown.wait(lambda: shown.one(".update").text == "update 0")
    shown.press_key(" ")
    shown.wait(lambda: "update 0" not in shown.one(".update").text)
    shown.press_key(" ")
    shown.wait(lambda: "at" in shown.address)
    assert shown.address["present"] == ["1"]
    shown.press_key("q")
    assert shown.shared_address() == shown.browser.current_url.replace("&present=1", "")
    shown.press_key(Keys.ESCAPE)
    shown.wait(lambda: shown.visible("#preset") and "present" not in shown.address)


def test_vendored_files_are_unmodified() -> None:
    folder = PLAYGROUND / "vendor"
    rows = re.findall(r"\| (\S+) \| .* \| \S+ (\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text())
    assert {name for row in rows for name in row[:2]} | {"README.md"} == {path.name for path in folder.iterdir()}
    for name, licence, digest in rows:
        assert hashlib.sha256(Path(folder / name).read_bytes()).hexdigest() == digest
        assert "Permission is hereby granted" in (folder / licence).read_text()
