"""Films of a browser's window, with the pointer of a user who clicks and drags in it."""

import io
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw
from selenium import webdriver
from selenium.webdriver.remote.webelement import WebElement

MOVE_FRAMES, MOVE_INTERVAL = 6, 50
"""Frames of a movement of the pointer, and milliseconds between them."""
PRESS_TIME = 250
"""Milliseconds that a click is marked for."""
DRAG_SPEED = 12
"""CSS pixels between two frames of a drag, which are `MOVE_INTERVAL` apart."""
ARROW = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12))
"""The pointer's outline, in pixels from its tip."""
CENTRE = """
const element = typeof arguments[0] === "string" ? document.querySelector(arguments[0]) : arguments[0];
element.scrollIntoView({ block: "nearest" });
const { x, y, width, height } = element.getBoundingClientRect();
return [x + width / 2, y + height / 2];
"""

Point = tuple[float, float]
Target = str | WebElement
"""An element, or a selector whose first match it is."""


class Screencast:
    """What the window shows, frame by frame. How long a frame lasts does not depend on the speed of this machine.

    Pictures have `scale` pixels per CSS pixel, as the window's device scale factor.
    """

    def __init__(self, browser: webdriver.Chrome, scale: float = 1, pointer: Point = (0, 0)) -> None:
        self.browser, self.scale = browser, scale
        self.frames: list[tuple[Image.Image, int]] = []
        """Pictures with the milliseconds that they are shown for."""
        self.pointer = pointer
        """Where the pointer is, in CSS pixels of the window."""
        self.is_pressed = False
        self.screen = Image.new("RGB", (1, 1))

    def hold(self, milliseconds: int) -> None:
        """Show the window as it is now for so long."""
        self._look()
        self._show(milliseconds)

    def watch(self, until: Callable[[], object], interval: int = 100, seconds: float = 60) -> None:
        """Show every change of the window for `interval` milliseconds, until a condition is true."""
        end = time.monotonic() + seconds
        is_over = False
        while not is_over:
            start, before = time.monotonic(), self.screen
            is_over = bool(until())  # then the next look is the last one
            self._look()
            if self.screen != before:
                self._show(interval)
            if time.monotonic() > end:
                raise TimeoutError(f"the window did not get there within {seconds:g} s")
            time.sleep(max(0.0, start + interval / 1000 - time.monotonic()))

    def move(self, target: Target, dx: float = 0, dy: float = 0) -> None:
        """Move the pointer to the centre of an element, or `dx` and `dy` CSS pixels from it."""
        x, y = self.browser.execute_script(CENTRE, target)
        self._look()
        start, end = self.pointer, (x + dx, y + dy)
        for frame in range(1, MOVE_FRAMES + 1):
            share = frame / MOVE_FRAMES
            share = share * share * (3 - 2 * share)  # slow at both ends, as a hand is
            self.pointer = tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))
            self._show(MOVE_INTERVAL)
        self._mouse("mouseMoved")

    def click(self, target: Target, dx: float = 0, dy: float = 0) -> None:
        """Click an element."""
        self.move(target, dx, dy)
        self.is_pressed = True
        self.hold(PRESS_TIME)
        self._mouse("mousePressed")
        self._mouse("mouseReleased")
        self.is_pressed = False

    def drag(self, target: Target, *offsets: Point) -> None:
        """Drag along a line through points, in CSS pixels from the centre of an element."""
        self.move(target, *offsets[0])
        x, y = self.browser.execute_script(CENTRE, target)
        self.is_pressed = True
        self._mouse("mousePressed")
        for (x0, y0), (x1, y1) in pairwise(offsets):
            count = max(1, round(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / DRAG_SPEED))
            for share in (step / count for step in range(1, count + 1)):
                self.pointer = x + x0 + share * (x1 - x0), y + y0 + share * (y1 - y0)
                self._mouse("mouseMoved")
                self.hold(MOVE_INTERVAL)
        self._mouse("mouseReleased")
        self.is_pressed = False

    @property
    def seconds(self) -> float:
        """How long the film is."""
        return sum(milliseconds for _, milliseconds in self.frames) / 1000

    def save(self, path: Path) -> None:
        """Write the film as an animated WebP."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures, durations = zip(*self.frames, strict=True)
        first, *others = pictures
        first.save(
            path, save_all=True, append_images=others, duration=[*durations], loop=0, quality=60, method=4,
            minimize_size=True, allow_mixed=True,
        )  # fmt: skip

    def _look(self) -> None:
        with Image.open(io.BytesIO(self.browser.get_screenshot_as_png())) as picture:
            self.screen = picture.convert("RGB")

    def _show(self, milliseconds: int) -> None:
        picture = self.screen.copy()
        pen, (x, y) = ImageDraw.Draw(picture), (self.scale * coordinate for coordinate in self.pointer)
        if self.is_pressed:
            pen.ellipse((x - 14, y - 14, x + 14, y + 14), outline="#d9480f", width=3)
        pen.polygon([(x + dx, y + dy) for dx, dy in ARROW], fill="black", outline="white")
        if self.frames and self.frames[-1][0] == picture:
            self.frames[-1] = picture, self.frames[-1][1] + milliseconds
        else:
            self.frames.append((picture, milliseconds))

    def _mouse(self, kind: str) -> None:
        x, y = self.pointer
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, "buttons": int(self.is_pressed)}
        if kind == "mouseMoved" and not self.is_pressed:
            event["button"] = "none"
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
