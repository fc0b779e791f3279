"""The playground in a real browser; needs Debian's packages chromium and chromium-driver."""

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
"""Directory for a screenshot of each view; docs/playground was written this way."""

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "weights", max_batch_size=16) as running:
        yield running


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A service that requires a key, and the key."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    key = keys.add(file, "lab", {})
    with serving(ROOT / "weights", max_batch_size=16, keys=file) as running:
        yield running, key


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
    opened.check_console()


@pytest.fixture
def secured_page(browser: Any, secured: tuple[Server, str], tmp_path: Path) -> Iterator["Page"]:
    """A page of the service that requires a key, before the key is entered. Downloads go to `tmp_path`."""
    opened = Page(browser, secured[0].url)
    opened.expect_unauthorized("models")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    yield opened
    opened.run("sessionStorage.clear()")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "default"})
    opened.check_console()


class Page:
    """The playground of the service at `url`, and the console errors that the test expects."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.expected_errors: list[str] = []

    def open(self, query: str) -> None:
        self.browser.get(f"{self.url}/?{query}")

    def one(self, selector: str) -> Any:
        """The first element that matches, once there is one."""
        return self.wait(lambda: self.browser.find_element(By.CSS_SELECTOR, selector), selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def wait(self, condition: Any, description: str = "") -> Any:
        """The first true value of `condition`. Fails after 60 seconds."""
        return WebDriverWait(self.browser, 60, 0.1, [Exception]).until(lambda _: condition(), description)

    def wait_for_status(self, text: str) -> None:
        self.wait(lambda: text in self.one(".result .small").text, text)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def submit(self) -> None:
        self.run("document.querySelector('form').requestSubmit()")

    def loaded_images(self, selector: str) -> int:
        """The number of images that match; 0 while any of them has not loaded."""
        return int(
            self.run(
                "const images = [...document.querySelectorAll(arguments[0])];"
                "return images.every((image) => image.complete && image.naturalWidth) ? images.length : 0",
                selector,
            )
        )

    def alt_texts(self, selector: str) -> list[str]:
        return [image.get_attribute("alt") for image in self.all(selector)]

    def enter_key(self, key: str) -> None:
        """Submit the key form, which reloads the page."""
        field = self.one("#key")
        field.send_keys(key, Keys.ENTER)
        self.wait(lambda: staleness_of(field)(self.browser), "the reloaded page")

    def wait_for_key_form(self, key: str | None = None) -> None:
        """Wait for the key form with the service's message about `key`."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        message = httpx.get(f"{self.url}/models", headers=headers).json()["detail"]
        self.wait(lambda: self.one("#key-reason").text == message, message)

    def expect_unauthorized(self, path: str) -> None:
        error = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        self.expected_errors.append(f"{self.url}/{path} - {error}")

    def check_console(self) -> None:
        """The browser has logged no error but the expected ones."""
        errors = [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]
        assert [error for error in errors if error not in self.expected_errors] == []

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            target = Path(SCREENSHOTS)
            target.mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(target / f"{name}.png"))
            with Image.open(target / f"{name}.png") as image:
                image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target / f"{name}.png", optimize=True)


def test_generated_images_appear_step_by_step_and_the_address_reproduces_them(page: Page) -> None:
    page.open("view=generate&model=ddpm&digit=7&n=4&seed=3&steps=40")
    page.wait(lambda: page.loaded_images(".grid img.pending"), "previews")
    page.wait_for_status("4 images in")
    assert page.loaded_images(".grid img:not(.pending)") == 4
    assert page.alt_texts(".grid img") == ["generated digit 7"] * 4
    first = page.one(".grid img").get_attribute("src")
    assert "seed=3" in page.browser.current_url
    page.browser.refresh()
    page.wait_for_status("4 images in")
    assert page.one(".grid img").get_attribute("src") == first
    link = page.one("a[download='digits.npz']").get_attribute("href")
    assert np.load(io.BytesIO(httpx.get(link).content))["labels"].tolist() == [7] * 4
    page.screenshot("generate")


def test_the_form_has_the_controls_that_the_model_takes(page: Page) -> None:
    page.open("view=generate&model=gan&n=1")
    page.wait_for_status("1 image in")
    assert not page.all("#steps, #guidance, #sampler, .digits")
    page.run(
        "const list = document.querySelector('#model'); list.value = arguments[0];"
        "list.dispatchEvent(new Event('change'))",
        "flow",
    )
    page.wait(lambda: page.all("#guidance") and page.all("#steps") and len(page.all(".digits input")) == 11)
    assert "model=flow" in page.browser.current_url


def test_cancelling_a_request_frees_the_service(page: Page) -> None:
    page.open("view=generate&model=ddpm&n=64&seed=1&steps=100")
    page.wait(lambda: page.loaded_images(".grid img.pending[src]"))
    page.wait(lambda: not page.one("form .row button:last-child").get_property("disabled"))
    page.run("document.querySelector('form > .row:last-child button:last-child').click()")
    page.wait_for_status("Cancelled")
    page.open("view=generate&model=gan&n=1")
    page.wait_for_status("1 image in")


def test_an_error_of_the_service_is_shown_until_the_next_request(page: Page) -> None:
    page.open("view=generate&model=cgan&n=1&seed=1")
    page.wait_for_status("1 image in")
    page.run(
        "window.original = window.fetch; window.fetch = () => Promise.resolve(new Response("
        "JSON.stringify({detail: 'the queue is full; try again in 3 s'}), {status: 429}));"
    )
    page.submit()
    page.wait(lambda: "the queue is full" in page.one("#error").text)
    page.run("window.fetch = window.original")
    page.submit()
    page.wait(lambda: not page.one("#error").is_displayed())


def test_the_slider_shows_every_frame_of_an_interpolation(page: Page) -> None:
    page.open("view=interpolate&model=cgan&digit=3&digit=8&seed=5")
    page.wait(lambda: page.loaded_images(".large, .strip") == 2)
    start = page.one(".large").get_attribute("src")
    slider = page.one("#frame")
    for _ in range(16):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert page.one("output[for=frame]").text == "16"
    assert page.one(".large").get_attribute("src") != start
    gif = page.one("a[download='interpolation.gif']").get_attribute("href")
    assert httpx.get(gif).content[:3] == b"GIF"
    page.screenshot("interpolate")


def test_every_point_of_the_latent_plane_is_decoded(page: Page) -> None:
    page.open("view=latent&model=vae&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    before = page.one(".large").get_attribute("src")
    pad = page.one(".latent-plane")
    ActionChains(page.browser).move_to_element(pad).click_and_hold().move_by_offset(90, -60).release().perform()
    page.wait(lambda: page.one(".large").get_attribute("src") != before)
    moved = page.one(".large").get_attribute("src")
    for _ in range(4):
        pad.send_keys(Keys.ARROW_LEFT)
    page.wait(lambda: page.one(".large").get_attribute("src") != moved)
    page.screenshot("latent")


def test_every_encoder_reconstructs_a_digit_drawn_by_hand(page: Page, server: Server) -> None:
    encoders = [model["name"] for model in httpx.get(f"{server.url}/models").json()["models"] if model["encodes"]]
    page.open("view=reconstruct&to=3")
    canvas = page.one(".drawing-pad")
    pen = ActionChains(page.browser, duration=20).move_to_element_with_offset(canvas, -50, -80).click_and_hold()
    pen.move_by_offset(100, 0).move_by_offset(-50, 80).move_by_offset(-10, 80).release().perform()  # a seven
    page.submit()
    page.wait(lambda: page.loaded_images(".cards .large, .cards .strip") == 2 * len(encoders))
    assert [title.text for title in page.all(".cards h2")] == encoders
    page.screenshot("reconstruct")


def test_models_are_compared_side_by_side(page: Page) -> None:
    page.open("view=compare&models=pca&models=gan&models=cgan&models=flow&digit=7&n=9&seed=2")
    page.wait(lambda: page.loaded_images(".cards img") == 4)
    assert {title.text for title in page.all(".cards h2")} >= {"Conditional GAN", "Rectified flow"}
    assert "label accuracy" in page.one(".cards dl").text
    page.screenshot("compare")


def test_the_page_loads_nothing_from_other_hosts_and_fits_a_phone_in_dark_mode(page: Page, server: Server) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.open("view=generate&model=flow&digit=5&n=9&seed=8")
        page.wait_for_status("9 images in")
        assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 28)"
        page.screenshot("phone")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    addresses = page.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert all(address.startswith((server.url, "data:", "blob:")) for address in addresses)
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_keyboard_opens_every_view_and_every_control_has_a_name(page: Page) -> None:
    page.open("view=generate&model=cgan&n=1&seed=1")
    page.wait_for_status("1 image in")
    for view in ("interpolate", "latent", "reconstruct", "compare", "generate"):
        page.one(f"nav a[href='?view={view}']").send_keys(Keys.ENTER)
        page.wait(lambda view=view: page.one("nav a[aria-current]").get_attribute("href").endswith(f"view={view}"))
        page.wait(lambda: page.all("form"))
        unnamed = page.run(
            "return [...document.querySelectorAll('main :is(input, select, button, img, canvas, progress)')].filter("
            "(tag) => !tag.labels?.length && !tag.ariaLabel && !tag.textContent.trim() && !tag.hasAttribute('alt'))"
            ".map((tag) => tag.outerHTML)"
        )
        assert unnamed == []


def test_addresses_from_before_the_views_were_renamed_still_open(page: Page) -> None:
    page.open("view=walk&model=cgan&digit=3&digit=8&seed=5")
    page.wait(lambda: page.loaded_images(".large, .strip") == 2)
    assert page.one("nav a[aria-current]").text == "Interpolate"


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab(secured_page: Page, secured: tuple[Server, str]) -> None:
    page, key = secured_page, secured[1]
    page.open("view=generate&model=cgan&digit=7&n=2&seed=3")
    field = page.one("#key")
    assert page.run("return document.activeElement.id") == "key"
    assert (field.accessible_name, field.get_attribute("type")) == ("API key", "password")
    assert field.get_attribute("aria-describedby") == "key-reason"
    page.wait_for_key_form()
    field.send_keys("dröb", Keys.ENTER)
    assert page.run("return document.querySelector('#key').validity.patternMismatch"), "a header cannot carry this key"
    field.clear()
    page.enter_key("db_guess")
    page.wait_for_key_form("db_guess")
    page.enter_key(key)
    page.wait_for_status("2 images in")
    assert page.alt_texts(".grid img") == ["generated digit 7"] * 2
    page.browser.refresh()
    page.wait_for_status("2 images in")
    assert page.run("return Object.values(sessionStorage)") == [key]
    assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
    assert key not in page.browser.current_url + page.browser.page_source


def test_images_and_downloads_are_fetched_with_the_key(
    secured_page: Page, secured: tuple[Server, str], tmp_path: Path
) -> None:
    page = secured_page
    page.open("view=generate&model=cgan&digit=7&n=2&seed=3")
    page.enter_key(secured[1])
    page.one("a[download='digits.npz']").click()
    page.wait((tmp_path / "digits.npz").exists)
    assert np.load(tmp_path / "digits.npz")["labels"].tolist() == [7] * 2
    assert "Bearer KEY" in page.run("return document.querySelector('pre').textContent")
    page.open("view=interpolate&model=cgan&digit=3&digit=8&seed=5")
    page.wait(lambda: page.loaded_images(".large, .strip") == 2)
    page.one("a[download='interpolation.gif']").click()
    page.wait((tmp_path / "interpolation.gif").exists)
    assert (tmp_path / "interpolation.gif").read_bytes()[:3] == b"GIF"
    page.open("view=compare&models=gan&models=cgan&n=4&seed=2")
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    page.open("view=latent&model=vae&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)


def test_the_page_asks_for_a_key_again_after_the_old_one_is_rejected(
    secured_page: Page, secured: tuple[Server, str]
) -> None:
    page = secured_page
    page.expect_unauthorized("interpolate?model=cgan&seed=5&digit=3&digit=8&frames=33&format=json")
    page.open("view=interpolate&model=cgan&digit=3&digit=8&seed=5")
    page.enter_key(secured[1])
    page.wait(lambda: page.loaded_images(".large, .strip") == 2)
    page.run("sessionStorage.setItem('drawbridge-key', 'db_withdrawn')")
    page.submit()
    page.wait_for_key_form("db_withdrawn")
    page.enter_key(secured[1])
    page.wait(lambda: page.loaded_images(".large, .strip") == 2)
