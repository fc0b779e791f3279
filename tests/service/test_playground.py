"""The playground in a real browser; needs Debian's packages chromium and chromium-driver."""

import base64
import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

from harness.browser import INSTALLED, chromium
from harness.server import ROOT, Server
from models import store
from service.auth import keys
from tests.conftest import manifest_of, small
from tests.serving import serving

SCREENSHOTS = os.environ.get("DRAWBRIDGE_SCREENSHOTS")
"""Directory for screenshots, and for the films of `test_screencasts.py`; docs/playground was written this way."""

HOST = "drawbridge.test"
"""Another name of this machine for the browser, whose pages may do less than those of localhost."""

VIEWS = ("generate", "interpolate", "latent", "reconstruct", "complete", "compare", "grid")
WINDOWS = ((390, 844), (768, 1024), (1280, 720))
"""Sizes of windows in CSS pixels: a phone, a tablet, a laptop."""

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "weights", max_batch_size=16) as running:
        yield running


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A service that requires a key, with few models, two of them of one family; and the key."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    key = keys.add(file, "lab", {})
    weights = tmp_path_factory.mktemp("weights")
    for name, target in {"cgan": "cgan", "gan": "gan", "vae": "vae", "vae_twin": "vae"}.items():
        (weights / name).symlink_to(ROOT / "weights" / target)
    with serving(weights, max_batch_size=16, keys=file) as running:
        yield running, key


PICTURES = ("pizza", "ice cream", "çay")
KINDS = (*(f"kind {i}" for i in range(997)), "salt & pepper", "Zebra", "zebra")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with models of digits, of colour pictures with PICTURES, and of flat grey ones with KINDS."""
    weights = tmp_path_factory.mktemp("pictures")
    for name in ("cgan", "gan", "vae"):
        (weights / name).symlink_to(ROOT / "weights" / name)
    for name, family, shape, classes, data in (
        ("pictures", "cgan", (3, 32, 32), PICTURES, "photos/pictures"),
        ("pictures_flow", "flow", (3, 32, 32), PICTURES, "photos/pictures"),
        ("pictures_vae", "vae", (3, 32, 32), (), "photos/pictures"),
        ("kinds", "cgan", (1, 16, 32), KINDS, "kinds.npz"),
    ):
        model = small(family, shape, len(classes) or 10).for_sampling()
        manifest = dataclasses.replace(
            manifest_of(model, classes), dataset={"name": data, "digest": hashlib.sha256(data.encode()).hexdigest()},
            uploads="picture", defaults={"steps": 2} if family == "flow" else {},
        )  # fmt: skip
        store.save(weights / name, model, manifest, b"")
    with serving(weights, max_batch_size=16) as running:
        yield running


@pytest.fixture
def picture_page(browser: Any, pictures: Server) -> Iterator["Page"]:
    opened = Page(browser, pictures.url)
    yield opened
    opened.check_console()


@pytest.fixture(scope="module")
def encoders(server: Server) -> dict[str, bool]:
    """The models of digits with an encoder, and whether each takes many steps."""
    models = [
        model for model in httpx.get(f"{server.url}/models", timeout=60).json()["models"] if model["uploads"] == "digit"
    ]
    return {model["name"]: "steps" in model["takes"] for model in models if model["encodes"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = "--window-size=1280,1000", f"--host-resolver-rules=MAP {HOST} 127.0.0.1"
    with chromium(*arguments, logs=("browser", "performance")) as driver:
        yield driver


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

    def wait_for_interpolation(self) -> None:
        """Wait for the current frame and the strip of every fourth of 33 frames."""
        self.wait(lambda: self.loaded_images(".large, .strip img") == 1 + 9, "frames")

    def bottom(self, selector: str) -> float:
        """Pixels from the top of the window to the lower edge of the first element that matches."""
        return float(self.run("return document.querySelector(arguments[0]).getBoundingClientRect().bottom", selector))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def submit(self) -> None:
        self.run("document.querySelector('form').requestSubmit()")

    def set(self, selector: str, value: str) -> None:
        """Give a field a value, as a user does who leaves it then."""
        self.run(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
            "field.dispatchEvent(new Event('change', {bubbles: true}))",
            selector,
            value,
        )

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def open_view(self, view: str) -> None:
        """Open a view through the menu."""
        self.click(f"nav a[href='?view={view}']")
        self.wait(lambda: self.all(f"nav a[href='?view={view}'][aria-current]"))

    @property
    def address(self) -> dict[str, list[str]]:
        """The settings in the page address."""
        return parse_qs(urlsplit(self.browser.current_url).query)

    def requests(self) -> list[str]:
        """Paths of the ended requests to the service since the page was loaded, in the order of their start."""
        entries = self.run(
            "return performance.getEntriesByType('resource').filter((entry) => entry.initiatorType === 'fetch')"
            ".sort((a, b) => a.startTime - b.startTime).map(({ name }) => name)"
        )
        return [name.removeprefix(f"{self.url}/") for name in entries]

    def draw_seven(self) -> None:
        canvas = self.one(".drawing-pad")
        pen = ActionChains(self.browser, duration=20).move_to_element_with_offset(canvas, -50, -80).click_and_hold()
        pen.move_by_offset(100, 0).move_by_offset(-50, 80).move_by_offset(-10, 80).release().perform()

    def drop(self, content: str, name: str, target: str = ".cards") -> None:
        """Drop a file, whose content is in base64, by default on the results."""
        self.run(
            "const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
            "transfer.items.add(new File([bytes], arguments[1]));"
            "const event = new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});"
            "document.querySelector(arguments[2]).dispatchEvent(event)",
            content,
            name,
            target,
        )

    @contextmanager
    def window(self, width: int, height: int, **metrics: Any) -> Iterator[None]:
        """A window of this size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False, **metrics}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

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

    def unnamed_controls(self) -> list[str]:
        """The controls and images that have no name for screen readers."""
        controls: list[str] = self.run(
            "const controls = 'main :is(input:not([type=hidden]), select, button, img, canvas, progress)';"
            "return [...document.querySelectorAll(controls)].filter("
            "(tag) => !tag.labels?.length && !tag.ariaLabel && !tag.textContent.trim() && !tag.hasAttribute('alt'))"
            ".map((tag) => tag.outerHTML)"
        )
        return controls

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        """The images that match, once all are final; their sources are data URLs."""
        self.wait(lambda: not self.all(".pending"))
        sources = [image.get_attribute("src") for image in self.all(selector)]
        files = (io.BytesIO(base64.b64decode(source.partition(",")[2])) for source in sources)
        return np.stack([np.asarray(Image.open(file)) for file in files])

    def press(self, text: str) -> None:
        """Click the button with this text."""
        next(button for button in self.all("button") if button.text == text).click()

    def drag_mask(self, start: tuple[int, int], by: tuple[int, int]) -> None:
        """Draw on the mask with the chosen tool, from an offset to its middle in CSS pixels."""
        pen = ActionChains(self.browser, duration=20).move_to_element_with_offset(self.one(".mask"), *start)
        pen.click_and_hold().move_by_offset(*by).release().perform()

    def enter_key(self, key: str) -> None:
        """Submit the key form, which reloads the page."""
        field = self.one("#key")
        field.send_keys(key, Keys.ENTER)
        self.wait(lambda: staleness_of(field)(self.browser), "the reloaded page")

    def wait_for_key_form(self, key: str | None = None) -> None:
        """Wait for the key form with the service's message about `key`."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        message = httpx.get(f"{self.url}/models", headers=headers, timeout=60).json()["detail"]
        self.wait(lambda: self.one("#key-reason").text == message, message)

    def expect_error(self, path: str, status: str) -> None:
        error = f"Failed to load resource: the server responded with a status of {status}"
        self.expected_errors.append(f"{self.url}/{path} - {error}")

    def expect_unauthorized(self, path: str) -> None:
        self.expect_error(path, "401 (Unauthorized)")

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
    page.open("view=generate&model=ddpm&label=7&n=4&seed=3&steps=150")
    page.wait(lambda: page.loaded_images(".grid img.pending"), "previews")
    page.wait_for_status("4 images in")
    assert page.loaded_images(".grid img:not(.pending)") == 4
    assert page.alt_texts(".grid img") == ["generated digit 7"] * 4
    first = page.one(".grid img").get_attribute("src")
    assert "seed=3" in page.browser.current_url
    page.browser.refresh()
    page.wait_for_status("4 images in")
    assert page.one(".grid img").get_attribute("src") == first
    link = page.one("a[download='ddpm-7.npz']").get_attribute("href")
    assert np.load(io.BytesIO(httpx.get(link, timeout=60).content))["labels"].tolist() == [7] * 4


def test_a_slider_shows_each_step_of_the_sampler_beside_what_the_model_predicts(page: Page) -> None:
    page.open("view=generate&model=ddpm&label=7&n=3&seed=3&steps=12")
    page.wait(lambda: page.loaded_images("figure img") == 2)
    assert page.one("output[for=step]").text == "6 of 12"
    page.wait(lambda: page.requests()[-1].endswith("&n=1&first=0&previews=true&guesses=true"))
    state, guess = page.pixels("figure img")
    assert roughness(guess) < roughness(state) / 2, "the image is noise still; the prediction is a digit"
    page.one("#step").send_keys(Keys.HOME)
    assert page.one("output[for=step]").text == "1 of 12"
    assert roughness(page.pixels("figure img")[0]) > roughness(state)
    page.one("#step").send_keys(Keys.END)
    state, guess = page.pixels("figure img")
    assert (state == guess).all()
    assert (state == page.pixels(".grid img")[0]).all(), "the last step is the image of the draw"
    page.all(".grid img")[2].click()
    page.wait(lambda: page.requests()[-1].endswith("&first=2&previews=true&guesses=true"))
    page.wait(lambda: (page.pixels("figure img")[0] == page.pixels(".grid img")[2]).all())
    assert page.one("output[for=denoised]").text == "3"
    sent = len(page.requests())
    page.click("main .card summary")
    page.set("#seed-0", "4")
    page.wait(lambda: page.address["seed"] == ["4"] and len(page.requests()) == sent + 1)
    page.wait_for_status("3 images in")
    assert not page.one("figure").is_displayed()
    assert len(page.requests()) == sent + 1, "a closed panel requests nothing"
    page.click("main .card summary")
    page.wait(lambda: page.one("figure").is_displayed())
    assert (page.pixels("figure img")[0] == page.pixels(".grid img")[2]).all()


def roughness(image: NDArray[np.uint8]) -> float:
    """The mean difference between neighbouring pixels."""
    return float(np.abs(np.diff(image.astype(float))).mean())


def test_a_dropped_png_of_the_service_is_drawn_again(page: Page) -> None:
    seed = 2**62 + 1
    query = f"model=ddpm&label=7&n=3&seed={seed}&first=5&steps=3&sampler=ddim&guidance=1.2"
    grid = httpx.get(f"{page.url}/generate?{query}", timeout=60).content
    arrays = np.load(io.BytesIO(httpx.get(f"{page.url}/generate?{query}&format=npz", timeout=60).content))
    page.open("view=latent&model=vae&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    page.drop(base64.b64encode(grid).decode(), "sevens.png", "main")
    page.wait_for_status("3 images in")
    assert (page.pixels(".grid img") == arrays["images"]).all()
    assert page.address == {"view": ["generate"]} | parse_qs(query)
    assert not page.one("#notice").is_displayed()
    old = re.sub(rb'"digest":"[0-9a-f]{8}', b'"digest":"00000000', grid)
    page.drop(base64.b64encode(old).decode(), "old.png", "header")
    page.wait(lambda: "old.png was drawn by another version of ddpm" in page.one("#notice").text)
    page.drop(base64.b64encode(grid.replace(b"ddpm@", b"mdpd@")).decode(), "other.png", "header")
    page.wait(lambda: "other.png was drawn by mdpd, which the service does not have" in page.one("#error").text)
    page.drop(base64.b64encode(grid.replace(b'"model"', b'"motel"')).decode(), "bad.png", "header")
    page.wait(lambda: "bad.png: the recipe is damaged" in page.one("#error").text)
    plain = io.BytesIO()
    Image.new("L", (28, 28)).save(plain, "png")
    page.drop(base64.b64encode(plain.getvalue()).decode(), "plain.png", "header")
    page.wait(lambda: "plain.png has no recipe" in page.one("#error").text)
    page.drop(base64.b64encode(b"text").decode(), "notes.txt", "header")
    page.wait(lambda: "notes.txt is not a PNG" in page.one("#error").text)


def test_the_form_has_the_controls_that_the_model_takes(page: Page) -> None:
    page.open("view=generate&model=gan&n=1")
    page.wait_for_status("1 image in")
    assert not page.all("#steps, #guidance, #sampler, .labels")
    page.set("#model", "flow")
    page.wait(lambda: page.all("#guidance") and page.all("#steps") and len(page.all(".labels input")) == 12)
    assert page.address["model"] == ["flow"]


def test_cancelling_a_request_frees_the_service(page: Page) -> None:
    page.open("view=generate&model=ddpm&n=64&seed=1&steps=100")
    page.wait(lambda: page.loaded_images(".grid img.pending[src]"))
    page.wait(lambda: not page.one("form .row button:last-child").get_property("disabled"))
    page.click("form > .row:last-child button:last-child")
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
    assert page.one(".result .small").text == "The request failed."
    page.run("window.fetch = window.original")
    page.submit()
    page.wait(lambda: not page.one("#error").is_displayed())


def test_the_slider_shows_every_frame_of_an_interpolation(page: Page) -> None:
    page.open("view=interpolate&model=cgan&label=3&label=8&seed=5")
    page.wait_for_interpolation()
    start = page.one(".large").get_attribute("src")
    slider = page.one("#frame")
    for _ in range(16):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert page.one("output[for=frame]").text == "16"
    assert page.one(".large").get_attribute("src") != start
    gif = page.one("a[download='cgan-3-8.gif']").get_attribute("href")
    assert httpx.get(gif, timeout=60).content[:3] == b"GIF"


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


def test_a_drawn_digit_takes_one_request_per_encoder_and_a_second_digit_one_more_each(
    page: Page, encoders: dict[str, bool]
) -> None:
    page.open("view=reconstruct")
    page.draw_seven()
    page.submit()
    page.wait(lambda: page.loaded_images(".cards .large") == len(encoders))
    assert [title.text.partition(":")[0] for title in page.all(".cards h2")] == list(encoders)
    page.wait(lambda: len(page.requests()) == 1 + len(encoders), "the list of models, and one request per encoder")
    models = [path.partition("model=")[2].partition("&")[0] for path in page.requests()[1:]]
    assert sorted(models) == sorted(encoders)
    assert [encoders[model] for model in models] == sorted(encoders.values()), "models of many steps are last"
    before = len(page.requests())
    page.click("input[name=to][value='3']")
    page.wait(lambda: page.loaded_images(".cards .strip") == len(encoders))
    page.wait(lambda: len(page.requests()) == before + 1 + len(encoders), "one sample, and one request per encoder")
    assert page.address["to"] == ["3"]
    page.screenshot("reconstruct")
    page.click("input[name=to][value='']")
    assert page.all(".cards .strip") == []


def test_an_empty_drawing_is_reported_without_a_request(page: Page) -> None:
    page.open("view=reconstruct&to=3")
    page.one(".drawing-pad")
    page.submit()
    page.wait(lambda: "There is no image yet" in page.one("#error").text)
    assert page.all(".cards > *") == []
    assert page.requests() == ["models"]
    page.draw_seven()
    page.click("form .row button[type=button]")
    page.submit()
    page.wait(lambda: "There is no image yet" in page.one("#error").text)


def test_an_image_is_uploaded_by_the_file_field_or_dropped(page: Page, tmp_path: Path) -> None:
    picture = Image.new("L", (200, 120), 255)
    picture.paste(0, (90, 20, 110, 100))
    picture.save(tmp_path / "one.png")
    page.open("view=reconstruct")
    page.one("#file").send_keys(str(tmp_path / "one.png"))
    first = page.one("img[alt$='by ae']").get_attribute("src")
    pixel = "return document.querySelector('canvas').getContext('2d').getImageData(arguments[0], 140, 1, 1).data[0]"
    assert [page.run(pixel, x) for x in (20, 140)] == [255, 0], "the pad shows the picture"
    page.open("view=reconstruct")
    page.one(".cards")
    page.drop(base64.b64encode((tmp_path / "one.png").read_bytes()).decode(), "one.png")
    assert page.one("img[alt$='by ae']").get_attribute("src") == first
    assert page.run("return document.querySelector('#file').files[0].name") == "one.png"
    page.draw_seven()
    assert page.run(pixel, 20) == 0, "a drawing replaces the picture"
    assert page.run("return document.querySelector('#file').value") == ""


def test_an_unreadable_upload_shows_the_error_of_the_service_after_one_request(page: Page) -> None:
    page.open("view=reconstruct&to=3")
    page.one(".cards")
    page.expect_error("reconstruct?model=ae&format=json", "422 (Unprocessable Entity)")
    page.drop(base64.b64encode(b"no picture").decode(), "notes.txt")
    page.wait(lambda: "the file is not a readable" in page.one("#error").text)
    assert page.all(".cards > *") == []
    assert len(page.requests()) == 2, "the list of models, and the first reconstruction"


def test_the_error_of_one_model_is_shown_in_its_card(page: Page) -> None:
    page.open("view=reconstruct")
    page.draw_seven()
    page.run(
        "const original = window.fetch; window.fetch = (url, options) => url.includes('model=vae') ? Promise.resolve("
        "new Response(JSON.stringify({detail: 'generation failed'}), {status: 500})) : original(url, options);"
    )
    page.submit()
    page.wait(lambda: page.all(".cards .fault") and page.loaded_images(".cards .large") >= 3)
    assert [card.text for card in page.all(".cards .fault")] == ["generation failed"]


def test_a_masked_half_is_completed_in_several_ways_and_the_address_reproduces_them(page: Page) -> None:
    page.open("view=complete&model=flow&image=3&mask=0,14,28,14&n=9&seed=1")
    page.wait_for_status("9 images in")
    assert not page.one("#notice").is_displayed()
    assert page.alt_texts(".grid img") == [f"completion {i + 1}" for i in range(9)]
    completions = page.pixels(".grid img")
    source = httpx.get(f"{page.url}/generate?model=flow&seed=3", timeout=60).content
    with Image.open(io.BytesIO(source)) as image:
        assert all((pixels[:14] == np.asarray(image)[:14]).all() for pixels in completions), "the known half stays"
    assert len({pixels.tobytes() for pixels in completions}) == 9
    page.browser.refresh()
    page.wait_for_status("9 images in")
    assert np.array_equal(page.pixels(".grid img"), completions)
    page.click("input[name=label][value='2']")
    page.wait(lambda: page.alt_texts(".grid img") == [f"completion {i + 1}: digit 2" for i in range(9)])
    page.wait_for_status("9 images in")
    assert page.address["label"] == ["2"]

    def have_guidance() -> list[bool]:
        return ["guidance=" in path for path in page.requests() if path.startswith("inpaint")]

    page.wait(lambda: have_guidance() == [False, True], "without a label, guidance costs and does nothing")


def test_a_drawing_is_varied_as_a_whole_and_completed_where_it_is_masked(page: Page) -> None:
    page.open("view=complete&model=flow&n=2&seed=1&steps=2&strength=0.3")
    page.wait_for_status("There is no image yet. Draw a digit")
    page.wait(lambda: page.requests() == ["models", "models/flow"])
    page.draw_seven()
    page.one("button.primary").click()
    page.wait(lambda: page.alt_texts(".grid img") == ["variation 1", "variation 2"])
    assert page.one("button.primary").text == "Vary"
    page.wait_for_status("2 images in")
    page.wait(lambda: "strength=0.3&seed=1&steps=2&polarity=light-on-dark" in page.requests()[-1])
    page.press("Mask by rectangle")
    page.drag_mask((-70, -70), (140, 70))
    page.wait(lambda: page.alt_texts(".grid img") == ["completion 1", "completion 2"])
    assert (page.address["mask"], page.one("button.primary").text) == (["7,7,14,7"], "Complete")
    first = page.pixels(".grid img")[0]
    assert not page.one("#strength").is_displayed()
    assert "strength" not in page.address
    page.press("Mask by pen")
    page.drag_mask((0, 100), (0, 5))
    page.wait(lambda: "mask" not in page.address and not (page.pixels(".grid img")[0][22:25, 13:15] == 0).all())
    page.press("Mask lower half")
    page.wait(lambda: page.address.get("mask") == ["0,14,28,14"])
    page.wait(lambda: sum(path.startswith("inpaint?model=flow") for path in page.requests()) == 3, "a third completion")
    page.wait_for_status("2 images in")
    completed = page.pixels(".grid img")[0]
    page.set("#model", "ddpm")
    page.wait(lambda: page.address["model"] == ["ddpm"])
    page.wait(lambda: page.requests()[-1].startswith("inpaint?model=ddpm"), "a completion by the other model")
    page.wait_for_status("2 images in")
    assert page.run("return document.activeElement.id") == "model"
    other = page.pixels(".grid img")[0]
    assert (other[:14] == completed[:14]).all(), "another model completes the same drawing"
    assert not (other == completed).all()
    assert not (first == completed).all()
    page.press("Clear mask")
    page.wait(lambda: page.alt_texts(".grid img") == ["variation 1", "variation 2"])
    page.press("Clear image")
    page.wait_for_status("There is no image yet")


@pytest.mark.slow
def test_a_picture_is_uploaded_masked_and_completed(picture_page: Page, tmp_path: Path) -> None:
    page = picture_page
    picture = Image.new("RGB", (96, 64), (200, 30, 30))
    picture.paste((20, 40, 220), (48, 0, 96, 64))
    picture.save(tmp_path / "two.png")
    page.open("view=complete&model=pictures_flow&n=2&seed=1&steps=2")
    page.wait_for_status("There is no image yet. Choose a file")
    assert [button.text for button in page.all("[aria-label=Tool] button")] == ["Mask by pen", "Mask by rectangle"]
    page.one("#file").send_keys(str(tmp_path / "two.png"))
    page.wait(lambda: page.alt_texts(".grid img") == ["variation 1", "variation 2"])
    page.press("Mask lower half")
    page.wait(lambda: page.alt_texts(".grid img") == ["completion 1", "completion 2"])
    top = page.pixels(".grid img")[0][:16]
    assert (top[:, :12] == (200, 30, 30)).all(), "the picture is cropped and not squeezed"
    assert (top[:, 20:] == (20, 40, 220)).all()
    page.press("Generate an image")
    page.wait(lambda: "image" in page.address and page.all(".picture-zone img[alt*='generated from seed']"))
    page.wait_for_status("2 images in")


def test_the_mask_of_an_image_of_another_size_is_dropped(page: Page) -> None:
    page.open("view=complete&model=flow&image=3&mask=0,14,28,14&n=1&seed=1&steps=2")
    page.wait(lambda: page.alt_texts(".grid img") == ["completion 1"])
    page.set("#model", "emoji")
    page.wait(lambda: page.address["model"] == ["emoji"] and page.alt_texts(".grid img") == ["variation 1"])
    assert (page.address["image"], "mask" in page.address) == (["3"], False)


def test_models_are_compared_side_by_side(page: Page) -> None:
    page.open("view=compare&models=pca&models=gan&models=cgan&models=flow&label=7&n=9&seed=2")
    page.wait(lambda: page.loaded_images(".cards img") == 4)
    assert {title.text for title in page.all(".cards h2")} >= {"cgan: Conditional GAN", "flow: Rectified flow"}
    assert "label accuracy" in page.one(".cards dl").text
    page.click("input[name=models][value=flow]")
    page.wait(lambda: len(page.all(".cards > *")) == 3)
    assert page.address["models"] == ["cgan", "gan", "pca"]
    page.click("input[name=models][value=flow]")
    page.wait(lambda: page.loaded_images(".cards img") == 4)


def test_a_grid_has_one_seed_under_two_parameters_and_can_be_downloaded(page: Page, tmp_path: Path) -> None:
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    query = "model=flow&rows=guidance&rows-values=1;+3&columns=steps&columns-values=1;+2;+4&label=7&seed=3"
    page.open(f"view=grid&{query}")
    page.wait_for_status("6 images")
    assert not page.one("#notice").is_displayed()
    assert page.address == {"view": ["grid"], "sampler": ["heun"]} | parse_qs(query)
    assert page.alt_texts(".axes img")[:2] == ["guidance 1, 1 step", "guidance 1, 2 steps"]
    heights = page.run(
        "const row = document.querySelector('.axes').rows[2].cloneNode(true);"
        "for (const cell of row.querySelectorAll('td')) { cell.replaceChildren(); cell.className = 'waiting'; }"
        "document.querySelector('.axes').append(row);"
        "const heights = [...document.querySelector('.axes').rows].slice(1).map(({ offsetHeight }) => offsetHeight);"
        "row.remove();"
        "return heights"
    )
    assert max(heights) - min(heights) <= 1, "the table does not move while its images arrive"
    page.press("Download PNG")
    target = tmp_path / "flow-guidance-steps.png"
    page.wait(target.exists)
    with Image.open(target) as image:
        grid = np.asarray(image.convert("L"))
    assert grid.shape == (28 + 2 * 116, 120 + 3 * 116)
    cell = httpx.get(f"{page.url}/generate?model=flow&label=7&seed=3&guidance=3&steps=2", timeout=60).content
    assert (grid[28 + 116 : 256 : 4, 120 + 116 : 348 : 4] == np.asarray(Image.open(io.BytesIO(cell)))).all()
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "default"})


@pytest.mark.slow
def test_the_axes_of_a_grid_can_be_any_two_parameters(page: Page) -> None:
    page.open("view=grid&model=ddpm&rows=sampler&columns=seed&columns-values=5;6&steps=2&label=7")
    page.wait_for_status("6 images")
    assert page.alt_texts(".axes img")[-1] == "ddpm, seed 6"
    assert not page.one("#seed-0").is_displayed()
    page.set("#columns", "label")
    page.wait_for_status("30 images")
    assert page.address["columns-values"] == ["0; 1; 2; 3; 4; 5; 6; 7; 8; 9"]
    sent = len(page.requests())
    page.set("#columns-values", "3; 12")
    assert page.one("#columns-problem").text == "12: no such class"
    page.set("#columns-values", "3; 8")
    page.wait_for_status("6 images")
    page.wait(lambda: len(page.requests()) == sent + 6)
    page.set("#rows", "model")
    page.set("#rows-values", "gan; cgan")
    page.wait(lambda: [cell.text for cell in page.all(".axes td")] == ["", "takes no label", "takes no label", "", ""])
    page.wait(lambda: page.loaded_images(".axes img") == 2)
    page.open("view=grid&model=gan&rows=steps&columns-values=1;x")
    page.wait(lambda: "rows=steps (not one of model, seed)" in page.one("#notice").text)
    assert "columns-values=1;x (1: not one of " in page.one("#notice").text


def test_the_page_loads_nothing_from_other_hosts_and_fits_a_phone_in_dark_mode(page: Page, server: Server) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    with page.window(390, 844, deviceScaleFactor=2, mobile=True):
        page.open("view=generate&model=ddpm&label=5&n=16&seed=8")
        page.wait_for_status("16 images in")
        assert page.run("return document.documentElement.scrollWidth") == 390, "the page scrolls sideways"
        assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 28)"
        assert page.bottom(".grid img") < 844, "the first results are on the screen"
        assert len({link.location["y"] for link in page.all("nav[aria-label=Views] a")}) <= 2, "the menu is two lines"
        menu = page.one("nav[aria-label=Views]")
        assert menu.get_property("scrollWidth") <= menu.get_property("clientWidth")
        page.screenshot("phone")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    addresses = page.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert all(address.startswith((server.url, "data:", "blob:")) for address in addresses)
    policy = httpx.get(server.url, timeout=60).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_buttons_of_the_page_are_beside_the_links_to_other_pages_at_every_width(page: Page) -> None:
    page.open("view=film&model=cgan&updates=0")
    page.one(".page-tools button")
    for width in range(360, 1480, 20):
        with page.window(width, 800, mobile=width < 500):
            links, *buttons = page.run(
                "return [...document.querySelectorAll('nav:last-of-type, .page-tools button')].map((element) => {"
                "  const { left, right, top, bottom } = element.getBoundingClientRect();"
                "  return [left, right, (top + bottom) / 2]; })"
            )
            assert all(left >= links[1] and abs(middle - links[2]) < 8 for left, _, middle in buttons), width
            assert buttons[-1][1] > width - 40, width


def test_the_keyboard_opens_every_view_and_every_control_has_a_name(page: Page) -> None:
    page.open("view=generate&model=cgan&n=1&seed=1")
    page.wait_for_status("1 image in")
    for view in (*VIEWS[1:], VIEWS[0]):
        page.one(f"nav a[href='?view={view}']").send_keys(Keys.ENTER)
        page.wait(lambda view=view: page.one("nav a[aria-current]").get_attribute("href").endswith(f"view={view}"))
        assert page.run("return document.activeElement.id") == "view"
        page.wait(lambda: page.all("form"))
        assert page.unnamed_controls() == []


def test_the_keyboard_changes_settings_and_the_focus_stays(page: Page) -> None:
    page.open("view=generate&model=cgan&n=1&seed=1&label=7")
    page.wait_for_status("1 image in")
    page.one("input[name=label]:checked").send_keys(Keys.ARROW_LEFT)
    page.wait(lambda: page.alt_texts(".grid img") == ["generated digit 6"])
    page.one("#n").send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.alt_texts(".grid img") == ["generated digit 6"] * 2)
    page.one("#model").send_keys(Keys.ARROW_DOWN)
    page.wait(lambda: page.address["model"] == ["dcgan"] and page.loaded_images(".grid img:not(.pending)") == 2)
    assert page.run("return document.activeElement.id") == "model"


def test_a_change_of_model_or_view_keeps_the_experiment_and_redraws(page: Page) -> None:
    page.open("view=generate&model=cgan&label=7&n=3&seed=11")
    page.wait_for_status("3 images in")
    first = page.one(".grid img").get_attribute("src")
    page.set("#model", "gan")
    page.wait(lambda: page.alt_texts(".grid img") == [f"generated image {i}" for i in (1, 2, 3)])
    assert page.address == {"view": ["generate"], "model": ["gan"], "n": ["3"], "seed": ["11"]}
    page.set("#model", "cgan")
    page.wait(lambda: page.alt_texts(".grid img") == ["generated digit 7"] * 3)
    assert page.one(".grid img").get_attribute("src") == first
    page.open_view("interpolate")
    page.wait_for_interpolation()
    assert page.address == {"view": ["interpolate"], "model": ["cgan"], "label": ["7", "8"], "seed": ["11"]}
    page.open_view("latent")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    assert page.address == {"view": ["latent"], "model": ["vae"], "seed": ["11"]}
    page.open_view("reconstruct")
    page.one(".drawing-pad")
    page.open_view("compare")
    page.wait(lambda: page.loaded_images(".cards img") == 5)
    assert page.address | {"models": []} == {
        "view": ["compare"], "models": [], "label": ["7"], "n": ["3"], "seed": ["11"]}  # fmt: skip
    page.open_view("generate")
    page.wait(lambda: page.alt_texts(".grid img") == ["generated digit 7"] * 3)
    assert page.one(".grid img").get_attribute("src") == first
    page.browser.back()
    page.wait(lambda: page.loaded_images(".cards img") == 5)
    assert page.address["seed"] == ["11"]


def test_chosen_sampling_settings_are_kept_and_defaults_are_those_of_the_model(page: Page) -> None:
    page.open("view=generate&model=ddpm&n=1&seed=1&steps=3")
    page.wait_for_status("1 image in")
    assert page.address["guidance"] == ["1.4"]
    page.set("#model", "flow")
    page.wait(lambda: page.address["model"] == ["flow"])
    settings = {name: page.address[name] for name in ("steps", "sampler", "guidance")}
    assert settings == {"steps": ["3"], "sampler": ["heun"], "guidance": ["1.2"]}


def test_what_the_user_changes_is_redrawn(page: Page) -> None:
    page.open("view=generate&model=cgan&n=2&seed=1")
    page.wait_for_status("2 images in")
    page.click("input[name=label][value='5']")
    page.wait(lambda: page.alt_texts(".grid img") == ["generated digit 5"] * 2)
    page.set("#seed-0", "9")
    page.wait(lambda: page.address["seed"] == ["9"])
    page.set("#seed-0", "-1")
    page.set("#model", "ddpm")
    page.wait(lambda: page.address["model"] == ["ddpm"])
    assert page.address["seed"] == ["9"], "an invalid value is not remembered"
    page.set("#model", "cgan")
    page.wait(lambda: page.address["model"] == ["cgan"])
    page.click("[aria-label='Random seed']")
    page.wait(lambda: page.address["seed"] != ["9"])
    page.open_view("interpolate")
    page.wait_for_interpolation()
    end = page.all(".strip img")[-1].get_attribute("src")
    page.click("input[name=label-1][value='0']")
    page.wait(lambda: page.address["label"] == ["5", "0"] and page.all(".strip img")[-1].get_attribute("src") != end)
    page.open_view("latent")
    page.wait(lambda: page.loaded_images(".latent-plane img") == 1)
    plane = page.one(".latent-plane img").get_attribute("src")
    page.set("#seed-0", "12")
    page.wait(lambda: page.one(".latent-plane img").get_attribute("src") != plane)


def test_an_address_that_is_wrong_is_reported_in_one_line(page: Page) -> None:
    seed = f"not a whole number from 0 to {2**63 - 1}"
    wrong = {
        "model=nope": "model=nope (no such model in this view)",
        "view=nope": "view=nope (no such view)",
        "model=cgan&seed=abc": f"seed=abc ({seed})",
        f"model=cgan&seed={2**63}": f"seed={2**63} ({seed})",
        "model=cgan&n=65": "n=65 (not a whole number from 1 to 64)",
        "model=cgan&label=12": "label=12 (not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)",
        "model=cgan&label=1&label=2": "label=2 (not a setting of this view and model)",
        "model=gan&label=7&steps=3": "label=7 (not a setting of this view and model); "
        "steps=3 (not a setting of this view and model)",
        "model=flow&n=1&steps=999&sampler=ddim&guidance=x": "steps=999 (not a multiple of 1 from 1 to 200); "
        "sampler=ddim (not one of heun, euler); guidance=x (not a multiple of 0.1 from 0 to 10)",
        "view=latent&model=cgan": "model=cgan (no such model in this view)",
        "view=interpolate&model=cgan&label=3&label=x": "label=x (not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)",
        "view=compare&models=pca&models=nope&n=1": "models=nope (no such model)",
        "view=reconstruct&to=x": "to=x (not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)",
    }
    for query, problems in wrong.items():
        page.open(query)
        page.wait(lambda problems=problems: page.one("#notice").text == f"Ignored in the page address: {problems}.")
    page.open("model=cgan&label=12&n=1")
    page.wait_for_status("1 image in")
    assert page.one("#notice").is_displayed(), "the notice stays beside the images"
    assert "label" not in page.address, "the address reproduces what the page shows"
    page.click("input[name=label][value='5']")
    page.wait(lambda: not page.one("#notice").is_displayed())


@pytest.mark.parametrize(
    "query",
    [
        "",
        "view=interpolate&model=vae&seed=1&seed=2&end=2",
        f"model=cgan&seed={2**63 - 1}",
        "model=flow&n=1&steps=150&sampler=euler&guidance=1",
        "view=compare&models=pca",
    ],
)
def test_an_address_that_is_right_is_followed_without_a_notice(page: Page, query: str) -> None:
    page.open(query)
    page.wait(lambda: page.loaded_images(".grid img:not(.pending), .strip img, .cards img"))
    assert not page.one("#notice").is_displayed()
    given = parse_qs(query)
    assert {name: page.address[name] for name in given.keys() - {"end"}} == {
        name: texts for name, texts in given.items() if name != "end"
    }


def test_the_page_is_never_wider_than_the_window(page: Page) -> None:
    queries = {"generate": "model=ddpm&steps=1&n=4", "interpolate": "model=flow&steps=1", "compare": "model=nope" * 9}
    for view in VIEWS:
        page.open(f"view={view}&{queries.get(view, '')}")
        images = ".grid img:not(.pending), .strip img, .latent-plane img, .cards img, .axes img"
        page.wait(lambda images=images: page.loaded_images(images) or page.all(".drawing-pad"))
        if view == "reconstruct":
            page.draw_seven()
            page.submit()
        if view == "generate":
            page.wait(lambda: page.all("main pre") and page.all(".formulas article"), "code samples and formulas")
        page.run("for (const panel of document.querySelectorAll('details')) panel.open = true")
        page.run("document.querySelector('#error').hidden = false;"
                 "document.querySelector('#error').textContent = 'long'.repeat(200)")  # fmt: skip
        for width, height in WINDOWS:
            with page.window(width, height):
                assert page.run("return document.documentElement.scrollWidth") <= width, (view, width)
                if view == "reconstruct":
                    page.submit()
                    page.wait(lambda height=height: page.bottom(".cards .large") <= height, "the first result")
                if view == "latent":
                    assert page.bottom(".large") <= height, "the decoded image is on the screen"


def test_models_of_one_family_have_different_titles(secured_page: Page, secured: tuple[Server, str]) -> None:
    page = secured_page
    page.open("view=compare&models=vae&models=vae_twin&n=1&seed=1")
    page.enter_key(secured[1])
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    titles = ["vae: Variational auto-encoder", "vae_twin: Variational auto-encoder"]
    assert [title.text for title in page.all(".cards h2")] == titles
    page.open_view("reconstruct")
    page.draw_seven()
    page.submit()
    page.wait(lambda: page.loaded_images(".cards .large") == 2)
    assert [title.text for title in page.all(".cards h2")] == titles


def test_addresses_from_before_views_and_labels_were_renamed_still_open(page: Page) -> None:
    page.open("view=walk&model=cgan&digit=3&digit=8&seed=5")
    page.wait_for_interpolation()
    assert page.one("nav a[aria-current]").text == "Interpolate"
    assert page.address == {"view": ["interpolate"], "model": ["cgan"], "label": ["3", "8"], "seed": ["5"]}
    assert not page.one("#notice").is_displayed()


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab(secured_page: Page, secured: tuple[Server, str]) -> None:
    page, key = secured_page, secured[1]
    page.open("view=generate&model=cgan&label=7&n=2&seed=3")
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
    page.open("view=generate&model=cgan&label=7&n=2&seed=3")
    page.enter_key(secured[1])
    page.one("a[download='cgan-7.npz']").click()
    page.wait((tmp_path / "cgan-7.npz").exists)
    assert np.load(tmp_path / "cgan-7.npz")["labels"].tolist() == [7] * 2
    assert "Bearer KEY" in page.run("return document.querySelector('pre').textContent")
    page.open("view=interpolate&model=cgan&label=3&label=8&seed=5")
    page.wait_for_interpolation()
    page.one("a[download='cgan-3-8.gif']").click()
    page.wait((tmp_path / "cgan-3-8.gif").exists)
    assert (tmp_path / "cgan-3-8.gif").read_bytes()[:3] == b"GIF"
    page.open("view=compare&models=gan&models=cgan&n=4&seed=2")
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    page.open("view=latent&model=vae&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)


def test_the_page_asks_for_a_key_again_after_the_old_one_is_rejected(
    secured_page: Page, secured: tuple[Server, str]
) -> None:
    page = secured_page
    page.expect_unauthorized("interpolate?model=cgan&label=3&label=8&seed=5&frames=33&format=json")
    page.open("view=interpolate&model=cgan&label=3&label=8&seed=5")
    page.enter_key(secured[1])
    page.wait_for_interpolation()
    page.run("sessionStorage.setItem('drawbridge-key', 'db_withdrawn')")
    page.submit()
    page.wait_for_key_form("db_withdrawn")
    page.enter_key(secured[1])
    page.wait_for_interpolation()


def test_labels_are_buttons_with_the_names_of_the_classes(picture_page: Page) -> None:
    page = picture_page
    page.open("model=pictures_flow&label=PIZZA&n=2&seed=1")
    page.wait_for_status("2 images in")
    assert page.alt_texts(".grid img") == ["generated “pizza”"] * 2
    assert page.address["label"] == ["pizza"]
    assert [label.text for label in page.all(".labels label")] == [*PICTURES, "any", "none"]
    page.one("input[name=label]:checked").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.wait(lambda: page.alt_texts(".grid img") == ["generated “çay”"] * 2)
    link = page.one("a[download='pictures_flow-çay.npz']").get_attribute("href")
    arrays = np.load(io.BytesIO(httpx.get(link, timeout=60).content))
    assert (arrays["images"].shape, arrays["labels"].tolist()) == ((2, 32, 32, 3), [2, 2])
    assert "pictures_flow-çay.png" in page.run("return document.querySelector('pre').textContent")
    page.click("input[name=label][value=none]")
    page.wait(lambda: page.alt_texts(".grid img") == ["generated image 1", "generated image 2"])
    assert page.address["label"] == ["none"]
    page.set("#model", "pictures")
    page.wait(lambda: page.address["model"] == ["pictures"] and page.loaded_images(".grid img:not(.pending)") == 2)
    assert "label" not in page.address, "this model always takes a label"
    page.open("model=pictures&label=ice%20cream&n=1&seed=1")
    page.wait_for_status("1 image in")
    assert page.all("a[download='pictures-ice_cream.zip']")


def test_images_have_the_colours_and_the_shape_of_the_model(picture_page: Page) -> None:
    page = picture_page
    page.open("model=pictures&label=pizza&n=1&seed=1")
    page.wait_for_status("1 image in")
    content = base64.b64decode(page.one(".grid img").get_attribute("src").partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
    page.open("model=kinds&n=4&seed=1")
    page.wait_for_status("4 images in")
    box = page.one(".grid img").rect
    assert box["width"] == pytest.approx(2 * box["height"], abs=1)
    assert page.run("return getComputedStyle(document.querySelector('.grid img')).imageRendering") == "pixelated"


def test_many_classes_are_searched_by_name(picture_page: Page) -> None:
    page = picture_page
    page.open("model=kinds&n=1&seed=1")
    page.wait_for_status("1 image in")
    field = page.one("input[name=label]")
    assert field.get_attribute("placeholder") == "any of 1000 classes"
    assert len(page.all("datalist option")) == len(KINDS)
    field.send_keys("Salt & Pepper", Keys.ENTER)
    page.wait(lambda: page.alt_texts(".grid img") == ["generated “salt & pepper”"])
    assert (field.get_property("value"), page.address["label"]) == ("salt & pepper", ["salt & pepper"])
    assert page.all("a[download='kinds-salt_pepper.png']")
    sent = len(page.requests())
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "ZEBRA", Keys.ENTER)
    message = page.one(f"#{field.get_attribute('aria-describedby')}")
    page.wait(lambda: message.text.startswith("ZEBRA: no such class; the nearest are: Zebra, zebra"))
    assert page.run("return document.querySelector('input[name=label]').validity.customError")
    assert (len(page.requests()), page.address["label"]) == (sent, ["salt & pepper"])
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "zebra", Keys.ENTER)
    page.wait(lambda: page.alt_texts(".grid img") == ["generated “zebra”"])
    assert message.text == ""
    page.click("fieldset .row button")
    page.wait(lambda: "label" not in page.address)
    page.open("model=kinds&label=quux&n=1")
    page.wait(lambda: "label=quux (none of the 1000 classes)" in page.one("#notice").text)


def test_the_ends_of_an_interpolation_are_labels_by_name(picture_page: Page) -> None:
    page = picture_page
    page.open("view=interpolate&model=pictures&seed=1")
    page.wait_for_interpolation()
    assert page.address["label"] == ["pizza", "ice cream"]
    assert page.alt_texts(".large") == ["the current frame, from “pizza” to “ice cream”"]
    page.click("input[name=label-1][value='çay']")
    page.wait(lambda: page.all("a[download='pictures-pizza-çay.gif']"))
    page.set("#model", "kinds")
    page.wait(lambda: page.address.get("label") == ["kind 0", "kind 1"])
    page.wait_for_interpolation()
    page.set("#label-1", "salt & pepper")
    page.wait(lambda: page.all("a[download='kinds-kind_0-salt_pepper.gif']"))
    assert page.address["label"] == ["kind 0", "salt & pepper"]


@pytest.mark.parametrize("model", ["pictures_vae", "pictures_flow"])
def test_the_plane_of_a_model_of_pictures_is_decoded(picture_page: Page, model: str) -> None:
    page = picture_page
    page.open(f"view=latent&model={model}&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    before = page.one(".large").get_attribute("src")
    page.one(".latent-plane").send_keys(Keys.ARROW_LEFT * 10)  # one step changes hardly a pixel of an untrained model
    page.wait(lambda: page.one(".large").get_attribute("src") != before)


def test_another_view_keeps_the_data(picture_page: Page) -> None:
    page = picture_page
    page.open("model=pictures&n=1&seed=4")
    page.wait_for_status("1 image in")
    groups = [group.get_attribute("label") for group in page.all("#model optgroup")]
    assert groups == ["mnist: 28 × 28, grey", "kinds: 16 × 32, grey", "pictures: 32 × 32, colour"]
    page.open_view("latent")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    assert page.address["model"] == ["pictures_flow"]
    page.open_view("reconstruct")
    assert page.run("return document.querySelector('#data').value") == "pictures"
    page.open_view("compare")
    page.wait(lambda: page.loaded_images(".cards img"))
    assert page.address["models"] == ["pictures", "pictures_flow", "pictures_vae"]


def test_pictures_are_uploaded_and_digits_are_drawn(picture_page: Page, tmp_path: Path) -> None:
    page = picture_page
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    page.open("view=reconstruct")
    page.one(".drawing-pad")
    page.set("#data", "pictures")
    page.wait(lambda: page.all(".picture-zone") and not page.all(".drawing-pad"))
    assert page.run("return document.activeElement.id") == "data"
    assert page.address == {"view": ["reconstruct"], "data": ["pictures"]}
    page.submit()
    page.wait(lambda: "There is no image yet. Choose a file" in page.one("#error").text)
    page.one("#file").send_keys(str(tmp_path / "red.png"))
    page.wait(lambda: page.loaded_images(".cards .large") == 2)
    assert page.alt_texts(".picture-zone img") == ["your image, red.png"]
    assert [title.text.partition(":")[0] for title in page.all(".cards h2")] == ["pictures_flow", "pictures_vae"]
    page.click("input[name=to][value='çay']")
    page.wait(lambda: page.loaded_images(".cards .strip") == 2)
    assert page.alt_texts(".cards .strip") == ["images from your image to “çay”"] * 2
    assert page.address == {"view": ["reconstruct"], "data": ["pictures"], "to": ["çay"]}
    page.browser.refresh()
    page.one(".picture-zone")
    page.drop(base64.b64encode((tmp_path / "red.png").read_bytes()).decode(), "red.png")
    page.wait(lambda: page.loaded_images(".cards .strip") == 2)
    page.click("form .row button[type=button]")
    assert page.all(".picture-zone img") == []


def test_a_comparison_across_data_says_so(picture_page: Page) -> None:
    page = picture_page
    page.open("view=compare&models=cgan&models=gan&n=1&seed=2&label=7")
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    assert not page.one(".result > .fault").is_displayed()
    assert page.alt_texts(".cards img") == ["1 samples of cgan: digit 7", "1 samples of gan"]
    assert [note.text for note in page.all(".cards .note")] == ["Takes no label: images of any class."]
    page.click("input[name=models][value=pictures]")
    page.wait(lambda: page.loaded_images(".cards img") == 3)
    warning = page.one(".result > .fault")
    assert "trained on different data (mnist, pictures)" in warning.text
    assert [title.text for title in page.all(".result > .result > h2")] == [
        "mnist: 28 × 28, grey", "pictures: 32 × 32, colour"]  # fmt: skip
    assert page.all(".cards .note")[-1].text == "Has no class 7: images of any class."
    page.set("input[name=label]", "pizza")
    page.wait(lambda: page.address["label"] == ["pizza"] and page.loaded_images(".cards img") == 3)
    assert page.alt_texts(".cards img")[-1] == "1 samples of pictures: “pizza”"
    assert "Trained on pictures: 32 × 32, colour, 3 classes." in page.all(".cards .card")[-1].text
    page.click("input[name=models][value=cgan]")
    page.click("input[name=models][value=gan]")
    page.wait(lambda: page.loaded_images(".cards img") == 1 and not warning.is_displayed())
    assert [label.text for label in page.all(".labels label")] == [*PICTURES, "any"]
    assert page.run("return document.querySelector('input[name=label]:checked').value") == "pizza"


def test_pages_of_pictures_fit_a_phone_and_every_control_has_a_name(picture_page: Page) -> None:
    page = picture_page
    queries = (
        "model=pictures_flow&n=4",
        "model=kinds&n=4",
        "view=interpolate&model=kinds",
        "view=latent&model=pictures_vae",
        "view=reconstruct&data=pictures",
        "view=compare&models=cgan&models=kinds&models=pictures&n=1&label=pizza",
    )
    for query in queries:
        with page.window(390, 844, deviceScaleFactor=2, mobile=True):
            page.open(query)
            page.wait(lambda: page.loaded_images(".grid img:not(.pending), .strip img, .latent-plane img, .cards img")
                      or page.all(".picture-zone"))  # fmt: skip
            page.run("for (const panel of document.querySelectorAll('details')) panel.open = true")
            assert page.run("return document.documentElement.scrollWidth") == 390, query
            assert page.unnamed_controls() == []


def test_emoji_are_generated_uploaded_and_compared_by_the_names_of_their_classes(page: Page, tmp_path: Path) -> None:
    page.open("view=generate&model=emoji&label=food&n=16&seed=3")
    page.wait_for_status("16 images in")
    assert page.alt_texts(".grid img") == ["generated “food”"] * 16
    page.open("view=interpolate&model=emoji&label=smileys&label=food&seed=5")
    page.wait_for_interpolation()
    page.open("view=latent&model=emoji&seed=4")
    page.wait(lambda: page.loaded_images(".latent-plane img, .large") == 2)
    draw_smiley().save(tmp_path / "smiley.png")
    page.open("view=reconstruct&data=emoji&to=food")
    page.one("#file").send_keys(str(tmp_path / "smiley.png"))
    page.wait(lambda: page.loaded_images(".cards .strip"))
    page.open("view=compare&models=emoji&models=flow&label=food&n=9&seed=2")
    page.wait(lambda: page.loaded_images(".cards img") == 2)
    assert page.one(".cards .note").text == "Has no class food: images of any class."


def draw_smiley() -> Image.Image:
    """A yellow face on white, 128x128."""
    picture = Image.new("RGB", (512, 512), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((24, 24, 488, 488), "#fcc21b")
    for left in (150, 310):
        pen.ellipse((left, 150, left + 56, 240), "#2f2f2f")
    pen.chord((120, 200, 392, 420), 10, 170, "#2f2f2f")
    return picture.resize((128, 128))


def test_the_films_of_two_committed_models_are_shown_side_by_side(page: Page) -> None:
    page.open("view=film&model=cgan&beside=ddpm&updates=200")
    page.one("#frame")
    captions = ["After 200 updates, 12,800 images", "After 200 updates, 51,200 images"]
    assert [caption.text for caption in page.all(".films .moment")] == captions
