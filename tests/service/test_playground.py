"""The playground in a real browser: Debian's chromium, where it is installed."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

from harness.server import ROOT, Server
from service.auth import keys
from tests.serving import serving

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = os.environ.get("DRAWBRIDGE_SCREENSHOTS")
"""A directory to write a picture of each view to, as those in docs/playground were."""

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "weights", max_batch_size=16) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A service that wants a key, and the key."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    secret = keys.add(file, "lab", {})
    with serving(ROOT / "weights", max_batch_size=16, keys=file) as running:
        yield running, secret


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1000",
                     "--disable-dev-shm-usage", "--disable-background-networking"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator["Page"]:
    opened = Page(browser, server.url)
    yield opened
    opened.told_nothing_else()


@pytest.fixture
def locked_page(browser: Any, locked: tuple[Server, str], tmp_path: Path) -> Iterator["Page"]:
    """A page of the service that wants a key, before one is given; what it downloads comes into `tmp_path`."""
    opened = Page(browser, locked[0].url)
    opened.expect_refusal("models")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    yield opened
    opened.run("sessionStorage.clear()")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "default"})
    opened.told_nothing_else()


class Page:
    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.expected: list[str] = []

    def expect_refusal(self, path: str) -> None:
        told = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        self.expected.append(f"{self.url}/{path} - {told}")

    def told_nothing_else(self) -> None:
        told = [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]
        assert [line for line in told if line not in self.expected] == []

    def show(self, key: str) -> None:
        """Give the service the key that it asks for."""
        field = self.one("#key")
        field.send_keys(key, Keys.ENTER)
        self.wait(lambda: staleness_of(field)(self.browser), "the page anew")

    def open(self, query: str) -> None:
        self.browser.get(f"{self.url}/?{query}")

    def one(self, selector: str) -> Any:
        return self.wait(lambda: self.browser.find_element(By.CSS_SELECTOR, selector), selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def wait(self, until: Any, what: str = "") -> Any:
        return WebDriverWait(self.browser, 60, 0.1, [Exception]).until(lambda _: until(), what)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def loaded(self, selector: str) -> int:
        """How many pictures there are, all of which show something."""
        return int(
            self.run(
                "const all = [...document.querySelectorAll(arguments[0])];"
                "return all.length && all.every((one) => one.complete && one.naturalWidth) ? all.length : 0",
                selector,
            )
        )

    def shoot(self, name: str) -> None:
        if SCREENSHOTS:
            target = Path(SCREENSHOTS)
            target.mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(target / f"{name}.png"))
            with Image.open(target / f"{name}.png") as image:
                image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target / f"{name}.png", optimize=True)


def test_a_draw_denoises_before_ones_eyes_and_its_address_holds_it(page: Page) -> None:
    page.open("view=draw&model=ddpm&digit=7&n=4&seed=3&steps=40")
    page.wait(lambda: page.loaded(".grid img.under-way"), "previews")
    page.wait(lambda: "4 images in" in page.one(".result .small").text, "the end")
    assert page.loaded(".grid img:not(.under-way)") == 4
    assert [image.get_attribute("alt") for image in page.all(".grid img")] == ["a drawn 7"] * 4
    first = page.one(".grid img").get_attribute("src")
    assert "seed=3" in page.browser.current_url
    page.browser.refresh()
    page.wait(lambda: "4 images in" in page.one(".result .small").text, "the same again")
    assert page.one(".grid img").get_attribute("src") == first
    link = page.one("a[download='digits.npz']").get_attribute("href")
    assert np.load(io.BytesIO(httpx.get(link).content))["labels"].tolist() == [7] * 4
    page.shoot("draw")


def test_controls_are_those_that_the_model_takes(page: Page) -> None:
    page.open("view=draw&model=gan&n=1")
    page.wait(lambda: "1 image in" in page.one(".result .small").text)
    assert not page.all("#steps, #guidance, #sampler, .digits")
    page.run(
        "const list = document.querySelector('#model'); list.value = arguments[0];"
        "list.dispatchEvent(new Event('change'))",
        "flow",
    )
    page.wait(lambda: page.all("#guidance") and page.all("#steps") and len(page.all(".digits input")) == 11)
    assert "model=flow" in page.browser.current_url


def test_a_cancelled_draw_says_so_and_frees_the_service(page: Page) -> None:
    page.open("view=draw&model=ddpm&n=64&seed=1&steps=100")
    page.wait(lambda: page.loaded(".grid img.under-way[src]"))
    page.wait(lambda: not page.one("form .row button:last-child").get_property("disabled"))
    page.run("document.querySelector('form > .row:last-child button:last-child').click()")
    page.wait(lambda: "Cancelled" in page.one(".result .small").text)
    page.open("view=draw&model=gan&n=1")
    page.wait(lambda: "1 image in" in page.one(".result .small").text)


def test_an_error_of_the_service_is_told(page: Page) -> None:
    page.open("view=draw&model=cgan&n=1&seed=1")
    page.wait(lambda: "1 image in" in page.one(".result .small").text)
    page.run(
        "window.original = window.fetch; window.fetch = () => Promise.resolve(new Response("
        "JSON.stringify({detail: 'the queue is full; try again in 3 s'}), {status: 429}));"
        "document.querySelector('form').requestSubmit()"
    )
    page.wait(lambda: "the queue is full" in page.one("#error").text)
    page.run("window.fetch = window.original; document.querySelector('form').requestSubmit()")
    page.wait(lambda: not page.one("#error").is_displayed())


def test_a_walk_follows_the_hand(page: Page) -> None:
    page.open("view=walk&model=cgan&digit=3&digit=8&seed=5")
    page.wait(lambda: page.loaded(".big, .strip") == 2)
    start = page.one(".big").get_attribute("src")
    slider = page.one("#place")
    for _ in range(16):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert page.one("output[for=place]").text == "16"
    assert page.one(".big").get_attribute("src") != start
    assert httpx.get(page.one("a[download='walk.gif']").get_attribute("href")).content[:3] == b"GIF"
    page.shoot("walk")


def test_every_point_of_the_plane_is_a_code(page: Page) -> None:
    page.open("view=plane&model=vae&seed=4")
    page.wait(lambda: page.loaded(".plane img, .big") == 2)
    before = page.one(".big").get_attribute("src")
    pad = page.one(".plane")
    ActionChains(page.browser).move_to_element(pad).click_and_hold().move_by_offset(90, -60).release().perform()
    page.wait(lambda: page.one(".big").get_attribute("src") != before)
    moved = page.one(".big").get_attribute("src")
    for _ in range(4):
        pad.send_keys(Keys.ARROW_LEFT)
    page.wait(lambda: page.one(".big").get_attribute("src") != moved)
    page.shoot("plane")


def test_a_digit_drawn_by_hand_comes_back_from_every_encoder(page: Page, server: Server) -> None:
    encoders = [model["name"] for model in httpx.get(f"{server.url}/models").json()["models"] if model["encodes"]]
    page.open("view=pen&to=3")
    paper = page.one(".pen")
    pen = ActionChains(page.browser, duration=20).move_to_element_with_offset(paper, -50, -80).click_and_hold()
    pen.move_by_offset(100, 0).move_by_offset(-50, 80).move_by_offset(-10, 80).release().perform()  # a seven
    page.run("document.querySelector('form').requestSubmit()")
    page.wait(lambda: page.loaded(".cards .big, .cards .strip") == 2 * len(encoders))
    assert [title.text for title in page.all(".cards h2")] == encoders
    page.shoot("pen")


def test_models_stand_side_by_side(page: Page) -> None:
    page.open("view=compare&models=pca&models=gan&models=cgan&models=flow&digit=7&n=9&seed=2")
    page.wait(lambda: page.loaded(".cards img") == 4)
    assert {title.text for title in page.all(".cards h2")} >= {"Conditional GAN", "Rectified flow"}
    page.shoot("compare")


def test_nothing_is_fetched_from_elsewhere_and_a_phone_and_the_dark_will_do(page: Page, server: Server) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.open("view=draw&model=flow&digit=5&n=9&seed=8")
        page.wait(lambda: "9 images in" in page.one(".result .small").text)
        assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 28)"
        page.shoot("phone")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    addresses = page.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert all(address.startswith((server.url, "data:", "blob:")) for address in addresses)
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_views_are_reached_by_keyboard_and_everything_has_a_name(page: Page) -> None:
    page.open("view=draw&model=cgan&n=1&seed=1")
    page.wait(lambda: "1 image in" in page.one(".result .small").text)
    for view in ("walk", "plane", "pen", "compare", "draw"):
        page.one(f"nav a[href='?view={view}']").send_keys(Keys.ENTER)
        page.wait(lambda view=view: page.one("nav a[aria-current]").get_attribute("href").endswith(f"view={view}"))
        page.wait(lambda: page.all("form"))
        nameless = page.run(
            "return [...document.querySelectorAll('main :is(input, select, button, img, canvas, progress)')].filter("
            "(one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim() && !one.hasAttribute('alt'))"
            ".map((one) => one.outerHTML)"
        )
        assert nameless == []


def test_a_key_is_asked_for_where_one_is_wanted(locked_page: Page, locked: tuple[Server, str]) -> None:
    page, secret = locked_page, locked[1]
    page.open("view=draw&model=cgan&digit=7&n=2&seed=3")
    field = page.one("#key")
    assert page.run("return document.activeElement.id") == "key"
    assert (field.accessible_name, field.get_attribute("type")) == ("Key", "password")
    assert "send a key" in page.one(f"#{field.get_attribute('aria-describedby')}").text
    field.send_keys("dröb", Keys.ENTER)
    assert page.run("return document.querySelector('#key').validity.patternMismatch"), "no header can carry it"
    field.clear()
    page.show("db_guess")
    page.wait(lambda: "no such key" in page.one("#why").text)
    page.show(secret)
    page.wait(lambda: "2 images in" in page.one(".result .small").text)
    assert [image.get_attribute("alt") for image in page.all(".grid img")] == ["a drawn 7"] * 2
    page.browser.refresh()
    page.wait(lambda: "2 images in" in page.one(".result .small").text, "the key is still known")
    assert page.run("return Object.values(sessionStorage)") == [secret]
    assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
    assert secret not in page.browser.current_url + page.browser.page_source


def test_what_the_browser_fetches_by_itself_comes_with_the_key(
    locked_page: Page, locked: tuple[Server, str], tmp_path: Path
) -> None:
    page = locked_page
    page.open("view=draw&model=cgan&digit=7&n=2&seed=3")
    page.show(locked[1])
    page.one("a[download='digits.npz']").click()
    page.wait((tmp_path / "digits.npz").exists)
    assert np.load(tmp_path / "digits.npz")["labels"].tolist() == [7] * 2
    assert "Bearer KEY" in page.run("return document.querySelector('pre').textContent")
    page.open("view=walk&model=cgan&digit=3&digit=8&seed=5")
    page.wait(lambda: page.loaded(".big, .strip") == 2)
    page.one("a[download='walk.gif']").click()
    page.wait((tmp_path / "walk.gif").exists)
    assert (tmp_path / "walk.gif").read_bytes()[:3] == b"GIF"
    page.open("view=compare&models=gan&models=cgan&n=4&seed=2")
    page.wait(lambda: page.loaded(".cards img") == 2)
    page.open("view=plane&model=vae&seed=4")
    page.wait(lambda: page.loaded(".plane img, .big") == 2)


def test_a_key_that_is_no_longer_known_is_asked_for_again(locked_page: Page, locked: tuple[Server, str]) -> None:
    page = locked_page
    page.expect_refusal("interpolate?model=cgan&seed=5&digit=3&digit=8&frames=33&format=json")
    page.open("view=walk&model=cgan&digit=3&digit=8&seed=5")
    page.show(locked[1])
    page.wait(lambda: page.loaded(".big, .strip") == 2)
    page.run("sessionStorage.setItem('drawbridge-key', 'db_withdrawn'); document.querySelector('form').requestSubmit()")
    page.wait(lambda: "no such key" in page.one("#why").text)
    page.show(locked[1])
    page.wait(lambda: page.loaded(".big, .strip") == 2)
