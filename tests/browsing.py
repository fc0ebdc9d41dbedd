"""A real Chromium without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.serving import Server, wait_for

REQUIRED = "SYMMETRY_REQUIRE_BROWSER"
"""Environment variable under which a missing browser is a failure."""
_FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
)


class Page:
    """The Symmetry tab in a browser.

    Args:
        driver: the browser.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def clear(self) -> None:
        """Leave the page of the test before, and forget what it may still have complained of."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")
        self.errors()

    def open(self, server: Server, link: Mapping[str, str | int] | None = None, *, dark: bool = False) -> None:
        """Open the tab inside TensorBoard, at what a link names."""
        parts = "".join(f"&p.symmetry.{key}={quote(str(value), safe='')}" for key, value in (link or {}).items())
        self.open_url(f"{server.url}/{'?darkMode=true' if dark else ''}#symmetry{parts}")

    def open_url(self, url: str) -> None:
        """Open an address of TensorBoard with the tab in front."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")  # else only the hash changes
        self.driver.get(url)
        frame = wait_for(lambda: self.driver.find_elements(By.CSS_SELECTOR, 'iframe[src*="name=symmetry"]'))
        self.driver.switch_to.frame(frame[0])
        self.wait("main > *")

    def address(self) -> str:
        """What the browser's address bar shows."""
        address: str = self.run("return window.top.location.href")
        return address

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the tab's frame."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        """All elements that a selector finds now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, selector: str, text: str = "") -> WebElement:
        """The first element that a selector finds, as soon as there is one whose text holds ``text``."""

        def look() -> WebElement | None:
            try:
                return next((element for element in self.all(selector) if text in element.text), None)
            except StaleElementReferenceException:  # drawn anew just now
                return None

        found: WebElement = wait_for(look)
        return found

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that a selector finds, whether they are in sight or not."""
        texts: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
        )
        return texts

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds, as soon as there is one."""
        found: list[str] = wait_for(lambda: self.texts(selector))
        return found[0]

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def hover(self, element: WebElement, x: float, y: float) -> None:
        """Move the pointer to a place of an element, counted from its upper left corner."""
        size = element.size
        actions = ActionChains(self.driver)
        actions.move_to_element_with_offset(
            element, round(x - size["width"] / 2), round(y - size["height"] / 2)
        ).perform()

    def pixels(self, canvas: WebElement, places: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
        """The colours of a canvas at places in CSS pixels."""
        script = (
            "const [canvas, places] = arguments, context = canvas.getContext('2d');"
            "const ratio = canvas.width / canvas.getBoundingClientRect().width;"
            "return places.map(([x, y]) => [...context.getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3))"
        )
        return [tuple(colour) for colour in self.run(script, canvas, places)]

    def errors(self) -> list[str]:
        """What the console has complained of since the last call."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


@contextmanager
def open_browser(profile: Path, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """Start Chromium; without it, the test that asks is skipped, or fails if a browser is required."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        message = f"{' and '.join(missing)} not found; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS, f"window-size={width},{height}", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Page(driver)
    finally:
        driver.quit()
