"""The live lab in a real browser; needs Debian's packages chromium and chromium-driver."""

import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from harness.server import ROOT
from service.api.pages import add_pages
from tests.service.test_playground import Page, browser, pytestmark  # noqa: F401

QUICK = "data=ring&count=200&model=gan&hidden=32-32&batch=16"
"""An experiment whose updates take few milliseconds."""
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
LIGHT = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


class Lab(Page):
    """The live lab of the service at `url`."""

    def open(self, query: str, update: int = 0) -> None:
        """Open the page, and wait until it shows `update`."""
        self.browser.get(f"{self.url}/lab/live?{query}{f'&at={update}' if update else ''}")
        for passed in range(50, update, 50):  # each may take as long as `wait` allows
            self.wait(lambda passed=passed: self.update >= passed, f"update {passed}")
        self.wait_for_update(update)

    @property
    def update(self) -> int:
        """The update that the timeline shows."""
        return int(self.one(".time output").text.partition(" ")[0].replace(",", ""))

    @property
    def button(self) -> str:
        """What the first button does: Play or Pause."""
        return str(self.one(".transport button").text)

    @property
    def is_still(self) -> bool:
        """True if nothing trains."""
        return bool(self.one(".panels").get_attribute("aria-busy") == "false")

    def pause(self) -> int:
        """Press Pause, and return the update at which training has stopped."""
        self.press("Pause")
        self.wait(lambda: self.is_still)
        assert self.button == "Play"
        return self.update

    def wait_for_update(self, update: int) -> None:
        """Wait until nothing trains, and every panel shows `update` or its end."""
        shown = re.compile(rf"update {update:,}|update [\d,]+, finished")
        self.wait(
            lambda: self.is_still and all(shown.fullmatch(text) for text in self.texts(".update")),
            f"{update}, not {self.texts('.update')}",
        )

    def wait_until_after(self, update: int) -> None:
        self.wait(lambda: self.update > update, f"an update after {update}")

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def pictures(self) -> list[str]:
        """What the planes show, as addresses of PNGs."""
        script = "return [...document.querySelectorAll('canvas.plane')].map((canvas) => canvas.toDataURL())"
        pictures: list[str] = self.run(script)
        return pictures

    def press(self, label: str) -> None:
        """Click the button of the transport whose name begins with `label`."""
        button = f".transport button[aria-label^='{label}']"
        self.one(button)  # named so with the next frame of the screen
        self.click(button)

    def seek(self, update: int) -> None:
        """Move the timeline."""
        self.set("#timeline", str(update))
        self.wait_for_update(update)

    def type(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def draw(self, *offsets: tuple[int, int]) -> None:
        """Draw a stroke on the first plane through points at these offsets from its middle."""
        start, *others = offsets
        pen = ActionChains(self.browser, duration=20).move_to_element_with_offset(self.one("canvas.plane"), *start)
        pen.click_and_hold()
        for (x0, y0), (x, y) in zip(offsets, others, strict=False):
            pen.move_by_offset(x - x0, y - y0)
        pen.release().perform()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a service that has the pages and no models."""
    app = FastAPI()
    add_pages(app, ROOT / "docs" / "lab")
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def lab(browser: Any, url: str) -> Iterator[Lab]:  # noqa: F811
    opened = Lab(browser, url)
    yield opened
    opened.check_console()


def test_an_experiment_is_played_paused_stepped_and_scrubbed_back(lab: Lab) -> None:
    lab.open(QUICK)
    first = lab.pictures()
    lab.press("Play")
    lab.wait_until_after(20)
    assert lab.button == "Pause"
    paused = lab.pause()
    lab.wait(lambda: lab.address["at"] == [str(paused)])
    seen = {paused: lab.pictures()}
    for update in (paused + 1, paused + 2):
        lab.press("One update forward")
        lab.wait_for_update(update)
        seen[update] = lab.pictures()
    assert len({*map(tuple, seen.values()), tuple(first)}) == 4
    assert lab.run("return Number(document.querySelector('#timeline').max)") == paused + 2
    for update in (paused, paused + 2, paused + 1):
        lab.seek(update)
        assert lab.pictures() == seen[update], f"update {update} of {list(seen)}"
    lab.press("One update back")
    lab.wait_for_update(paused)
    assert lab.pictures() == seen[paused]
    lab.press("Reset")
    lab.wait_for_update(0)
    assert lab.pictures() == first


def test_the_address_holds_the_experiment(lab: Lab) -> None:
    lab.open(f"{QUICK}&seed=5")
    lab.set("#lr", "0.002")
    lab.set("#modes", "5")
    lab.set("#speed", "max")
    lab.click("input[name=layer][value=arrows]")
    lab.press("One update forward")
    lab.wait_for_update(1)
    lab.wait(lambda: lab.address.get("at") == ["1"])
    texts = {name: text for name, (text,) in lab.address.items() if name != "layers"}
    assert texts == {
        "data": "ring", "count": "200", "modes": "5", "model": "gan", "hidden": "32-32", "batch": "16", "lr": "0.002",
        "seed": "5", "speed": "max", "at": "1",
    }  # fmt: skip
    assert "arrows" not in lab.address["layers"][0].split(",")
    pictures, address = lab.pictures(), lab.browser.current_url
    lab.browser.refresh()
    lab.wait_for_update(1)
    assert lab.pictures() == pictures
    assert lab.browser.current_url == address
    assert lab.run("return document.querySelector('#lr').value") == "0.002"
    assert not lab.one("#notice").is_displayed()


def test_an_address_that_is_wrong_is_reported(lab: Lab) -> None:
    wrong = {
        "data": ("rings", "not one of ring, grid, moons, spiral, two_gaussians, drawn"),
        "model": ("gam", "not one of gaussian, kde, gmm, pca, "),
        "b.model": ("kde2", "not one of gaussian, kde, gmm, pca, "),
        "lr": ("7", "not a number from 0.00001 to 0.1"),
        "batch": ("100", "not one of 16, 32, 64, "),
        "modes": ("2.5", "not a whole number from 2 to 16"),
        "bandwidth": ("1", "not a setting of this view and model"),
        "seed": ("-1", "not a whole number from 0 to 4294967295"),
        "speed": ("3", "not one of 2, 10, 60, max"),
        "layers": ("data,dots", "not none, and not a list of field, optimal, data, "),
        "at": ("soon", "not a whole number from 0 to 1000000"),
    }
    lab.open("&".join(f"{name}={text}" for name, (text, _) in wrong.items()))
    notice = lab.one("#notice").text
    assert notice.startswith("Ignored in the page address: ")
    for name, (text, problem) in wrong.items():
        assert f"{name}={text} ({problem}" in notice
    lab.browser.get(f"{lab.url}/lab/live?data=drawn&model=kde&points=ABC")
    problem = "points=ABC (not at most 400 points of four letters, digits, - or _ each)"
    lab.wait(lambda: problem in lab.one("#notice").text)


def test_a_preset_is_played_with_a_description(lab: Lab) -> None:
    lab.open("")
    assert lab.run("return document.querySelector('#preset').value") == "collapse"
    lab.set("#preset", "game")
    lab.wait_until_after(10)
    assert lab.texts(".panel h2") == ["The game V = xy, simultaneous", "The game V = xy, extragradient"]
    assert "(0, 0)" in lab.one(".lesson p").text
    lab.pause()
    lab.set("#eta", "0.2")
    lab.wait_for_update(0)
    assert lab.run("return document.querySelector('#preset').value") == ""
    assert lab.one(".lesson p").text == ""


def test_two_models_train_side_by_side_in_step(lab: Lab) -> None:
    lab.open(f"{QUICK}&b.model=wgan_gp&b.hidden=32-32&b.batch=16")
    lab.press("Play")
    lab.wait_until_after(5)
    update = lab.pause()
    lab.wait_for_update(update)
    assert lab.texts(".panel h2") == ["GAN", "WGAN-GP"]
    assert len(set(lab.pictures())) == 2
    labels = [canvas.get_attribute("aria-label") for canvas in lab.all(".plots canvas")]
    modes = re.compile(rf"modes by update: GAN \d, WGAN-GP \d at update {update}")
    assert [label for label in labels if modes.fullmatch(label)], labels
    lab.click("#compare")
    lab.wait(lambda: lab.texts(".panel h2") == ["GAN"] and "b.model" not in lab.address)
    lab.set("#model", "kde")
    lab.click("#compare")
    lab.wait(lambda: lab.texts(".panel h2") == ["Kernel density estimate", "GAN"])
    lab.wait_for_update(0)


def test_points_are_drawn_with_the_mouse_and_the_keyboard(lab: Lab) -> None:
    lab.browser.get(f"{lab.url}/lab/live?data=drawn&model=gmm&components=2")
    lab.wait(lambda: "Draw at least 3 points" in lab.one(".panel .fault").text)
    lab.draw((-100, -80), (-40, 60))
    lab.draw((60, 0), (100, 40))
    lab.wait_for_update(0)
    assert not lab.one(".panel .fault").is_displayed()
    lab.wait(lambda: "points" in lab.address)
    drawn = lab.address["points"][0]
    assert len(drawn) % 4 == 0
    assert len(drawn) > 40
    pictures = lab.pictures()
    lab.browser.refresh()
    lab.wait_for_update(0)
    assert lab.pictures() == pictures
    lab.run("document.querySelector('canvas.plane').focus()")
    lab.type(Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ENTER)
    lab.wait(lambda: len(lab.address["points"][0]) == len(drawn) + 16, "four points more")
    assert lab.address["points"][0].startswith(drawn)
    lab.click("button[aria-label='Undo the last stroke']")
    lab.wait(lambda: lab.address["points"] == [drawn])
    lab.click("button[aria-label='Clear all points']")
    lab.wait(lambda: "points" not in lab.address and lab.one(".panel .fault").is_displayed())


def test_the_keyboard_plays_and_moves_in_time(lab: Lab) -> None:
    lab.open(QUICK)
    lab.type(Keys.SPACE)
    lab.wait_until_after(5)
    lab.type(Keys.SPACE)
    lab.wait(lambda: lab.is_still)
    paused = lab.update
    lab.type(Keys.ARROW_RIGHT)
    lab.wait_for_update(paused + 1)
    lab.type(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    lab.wait_for_update(paused - 1)
    lab.one("#timeline").send_keys(Keys.ARROW_RIGHT)
    lab.wait_for_update(paused)
    lab.one("#seed").send_keys(Keys.ARROW_UP)
    assert lab.run("return document.querySelector('#seed').value") == "1"
    lab.wait_for_update(0)
    lab.run("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        lab.type(Keys.TAB)
        reached.add(lab.run("const tag = document.activeElement; return tag.id || tag.value || tag.innerText"))
    assert {"preset", "Play", "+1", "Reset", "speed", "timeline", "samples"} <= reached
    assert {"data", "seed", "compare", "model", "lr"} <= reached
    assert lab.unnamed_controls() == []


def test_the_page_fits_a_phone_in_dark_mode_and_loads_nothing_from_other_hosts(lab: Lab) -> None:
    lab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
    try:
        with lab.window(**PHONE):
            for query in ("", f"{QUICK}&notice=1", "data=drawn&model=kde"):
                lab.browser.get(f"{lab.url}/lab/live?{query}")
                lab.one("#seed")
                lab.run("for (const panel of document.querySelectorAll('details')) panel.open = true")
                assert lab.run("return document.documentElement.scrollWidth") == 390, query
                assert lab.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 28)"
            lab.open(QUICK)
            assert lab.bottom("canvas.plane") <= PHONE["height"], "the plane is on the first screen"
            red, green, blue = lab.run(
                "const canvas = document.querySelector('canvas.plane');"
                "return [...canvas.getContext('2d').getImageData(canvas.width / 2, 4, 1, 1).data].slice(0, 3)"
            )
            assert max(red, green, blue) < 200, "the plane is dark"
    finally:
        lab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", LIGHT)
    addresses = lab.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert len(addresses) > 10
    assert all(address.startswith((f"{lab.url}/playground/", "data:")) for address in addresses), addresses


def test_an_engine_that_does_not_load_is_reported(lab: Lab) -> None:
    replaced = "const Known = Worker; window.Worker = class extends Known { constructor() { super('missing.js'); } }"
    script = lab.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": replaced})
    try:
        lab.expect_error("lab/missing.js", "404 (Not Found)")
        lab.browser.get(f"{lab.url}/lab/live?{QUICK}")
        lab.wait(lambda: "the browser could not load it. Reload the page." in lab.one(".panel .fault").text)
        assert lab.button == "Play"
    finally:
        lab.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_the_pages_link_to_each_other(lab: Lab) -> None:
    lab.open(QUICK)
    lab.expect_error("models", "404 (Not Found)")  # of the playground: the service of this test has none
    for selector, title in (
        ("nav a[href='./']", "Drawbridge: the lab"),
        ("a[href='live']", "Drawbridge: the live lab"),
        ("nav a[href='../']", "Drawbridge"),
        ("nav a[href='lab/live']", "Drawbridge: the live lab"),
    ):
        lab.one(selector).click()
        lab.wait(lambda title=title: lab.browser.title == title, title)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "query", "update", "phone", "dark"),
    [
        ("live-lab-em", "data=spiral&model=gmm&components=6&b.model=gmm&b.components=20&speed=2", 20, False, False),
        ("live-lab-manifold", "data=spiral&model=pca&b.model=ae", 600, False, True),
        ("live-lab-phone", "data=two_gaussians&model=gan&layers=data,samples,field,optimal,arrows", 200, True, True),
    ],
)
def test_views_are_complete(lab: Lab, name: str, query: str, update: int, phone: bool, dark: bool) -> None:
    lab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK if dark else LIGHT)
    with lab.window(**(PHONE if phone else {"width": 1280, "height": 1000})):
        lab.open(query, update)
        assert lab.one(".lesson p").text, "a preset"
        assert all(canvas.size["height"] > 50 for canvas in lab.all("main canvas"))
        assert len(lab.all(".plots canvas")) >= 3
        lab.screenshot(name)
    lab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", LIGHT)


@pytest.mark.slow
def test_the_gan_of_the_first_preset_collapses_and_wgan_gp_does_not(lab: Lab) -> None:
    with lab.window(720, 1000):
        lab.open("data=ring&deviation=0.15&model=gan&momentum=0.9&b.model=wgan_gp&b.momentum=0.9", 400)
        assert "eight modes" in lab.one(".lesson p").text
        label = lab.one(".plots canvas[aria-label^='modes by update']").get_attribute("aria-label")
    gan, wgan = map(int, re.findall(r"(\d+)(?:,| at)", label))
    assert gan <= 4
    assert wgan >= 7


@pytest.mark.slow
def test_one_step_of_meanflow_reaches_the_ring_and_one_of_flow_does_not(lab: Lab) -> None:
    with lab.window(720, 1000):
        one_step = "model=flow&updates=2000&sampler=euler&steps=1&time=0"
        lab.open(f"data=ring&deviation=0.15&{one_step}&b.model=meanflow&speed=max", 500)
        assert "onto the ring" in lab.one(".lesson p").text
        label = lab.one(".plots canvas[aria-label^='W1 by update']").get_attribute("aria-label")
    flow, meanflow = (float(re.findall(rf"{title} ([\d.]+)", label)[0]) for title in ("Rectified flow", "MeanFlow"))
    assert flow > 1.8
    assert meanflow < 1.3


@pytest.mark.slow
def test_every_preset_trains_to_its_end_or_for_a_while(lab: Lab) -> None:
    lab.open("")
    names = lab.run("return [...document.querySelectorAll('#preset option')].map(({ value }) => value).filter(Boolean)")
    assert len(names) >= 10
    for name in names:
        lab.set("#preset", name)
        lab.wait(lambda: lab.update > 30 or "finished" in lab.texts(".update")[0], name)
        if lab.button == "Pause":
            lab.pause()
        assert len(re.findall(r"[.?!](?: |$)", lab.one(".lesson p").text)) == 2, name
        assert not any(fault.is_displayed() for fault in lab.all(".panel .fault")), name


@pytest.mark.slow
def test_the_address_of_a_preset_is_that_preset(lab: Lab) -> None:
    lab.open("data=moons&model=pca")
    for name in lab.run("return [...document.querySelectorAll('#preset option')].map(({ value }) => value)")[:-1]:
        before = {**lab.address, "at": []}
        lab.set("#preset", name)
        update = lab.pause()
        lab.wait(lambda before=before: {**lab.address, "at": []} != before, f"the address of {name}")
        lab.wait(lambda update=update: lab.address.get("at", ["0"]) == [str(update)], name)
        lab.browser.refresh()
        lab.wait_for_update(update)
        assert lab.run("return document.querySelector('#preset').value") == name
        assert not lab.one("#notice").is_displayed()


@pytest.mark.slow
def test_the_page_stays_responsive_while_it_trains(lab: Lab) -> None:
    lab.open("")
    lab.press("Play")
    lab.wait_until_after(20)
    gaps = lab.browser.execute_async_script(
        "const done = arguments[0], gaps = []; let last = performance.now(); const next = (now) => {"
        "gaps.push(now - last); last = now; gaps.length < 120 ? requestAnimationFrame(next) : done(gaps); };"
        "requestAnimationFrame(next)"
    )
    assert sorted(gaps)[len(gaps) // 2] < 100, "milliseconds between two frames of the screen"
