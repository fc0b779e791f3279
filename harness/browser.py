"""A headless Chromium; it needs Debian's packages chromium and chromium-driver."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
INSTALLED = bool(BROWSER and DRIVER)
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--disable-background-networking")  # fmt: skip


@contextmanager
def chromium(
    *arguments: str, load_strategy: str = "normal", logs: tuple[str, ...] = (), script_timeout: float = 30
) -> Iterator[webdriver.Chrome]:
    """Run Chromium with more `arguments`; `logs` are kinds of its log that the driver keeps, in full."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    options.page_load_strategy = load_strategy
    for argument in (*ARGUMENTS, *arguments):
        options.add_argument(argument)
    if logs:
        options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_script_timeout(script_timeout)
    try:
        yield driver
    finally:
        driver.quit()
