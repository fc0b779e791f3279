"""Many pages of the playground at once, in a real browser; needs Debian's packages chromium and chromium-driver."""

import httpx
import pytest

from benchmarks.classroom import ADDRESS, Pages, awake_chromium
from harness.server import Server
from tests.service.test_playground import pytestmark
from tests.service.test_present import server

__all__ = ["pytestmark", "server"]

IMAGES = "Promise.resolve([...document.querySelectorAll('.grid img')].map(({ src }) => src))"
CHANGE = """
const before = document.querySelector(".grid img"), field = document.querySelector("#seed-0");
field.value = %d;
field.dispatchEvent(new Event("change", { bubbles: true }));
window.changed = shown(before);
"""


def images(server: Server, seed: int) -> list[str]:
    """The addresses of the images that the service generates alone."""
    params = {"model": "cgan", "label": 7, "n": 16, "seed": seed, "format": "json"}
    response = httpx.post(f"{server.url}/generate", params=params, timeout=30).raise_for_status()
    return [f"data:image/png;base64,{image['png']}" for image in response.json()["images"]]


@pytest.mark.parametrize("count", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_pages_that_draw_at_once_show_the_images_of_their_seeds(server: Server, count: int) -> None:
    with awake_chromium() as browser:
        pages = Pages(browser, count)
        pages.open(f"{server.url}/?{ADDRESS}")
        assert pages.results(IMAGES) == [images(server, 3)] * count
        for page, _ in enumerate(pages.windows()):
            browser.execute_script(CHANGE % page)
        pages.results("changed")
        assert pages.results(IMAGES) == [images(server, page) for page in range(count)]
        for _ in pages.windows():
            assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
