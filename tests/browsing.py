"""A headless Chromium."""

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


# The tab is a frame of TensorBoard's page. These empty it, and load it again after the address has changed.
_LOAD = """
    const frame = document.querySelector('iframe[src*="name=symmetry"]');
    const load = (url, then) => {
      frame.addEventListener('load', then, {once: true});
      frame.contentWindow.location.replace(url);
    };
"""
_EMPTY_FRAME = _LOAD + "load('about:blank', arguments[0]);"
_RELOAD_FRAME = (
    _LOAD
    + """
    const [hash, done] = arguments;
    load('about:blank', () => {
      history.replaceState(history.state, '', hash);
      load(frame.src, done);
    });
"""
)
_POLL_SOON = "const slow = window.setInterval; window.setInterval = (f, ms) => slow(f, Math.min(ms, 300));"


class Page:
    """The Symmetry tab in a browser.

    Args:
        driver: the browser.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._server: Server | None = None  # the one that was opened last
        self._errors: list[str] = []  # of a page that was left

    def clear(self) -> None:
        """Leave the page of the previous test, and discard its console messages."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")
        self.errors()

    def rest(self) -> None:
        """Clear the tab, but keep TensorBoard's page if it is still served: loading it takes longer than most tests."""
        if self._server is None or not self._shows(self._server):
            self.clear()
            return
        self.driver.switch_to.default_content()
        self.driver.execute_async_script(_EMPTY_FRAME)
        self.errors()

    def open(self, server: Server, link: Mapping[str, str | int] | None = None, *, dark: bool = False) -> None:
        """Open the tab inside TensorBoard, at the target of a link."""
        parts = "".join(f"&p.symmetry.{key}={quote(str(value), safe='')}" for key, value in (link or {}).items())
        self._server = server
        if self._shows(server) and not dark:
            self.driver.switch_to.default_content()
            self.driver.execute_async_script(_RELOAD_FRAME, f"#symmetry{parts}")
            self._enter()
        else:
            self.open_url(f"{server.url}/{'?darkMode=true' if dark else ''}#symmetry{parts}")

    def open_url(self, url: str) -> None:
        """Open an address of TensorBoard with the tab selected."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")  # otherwise only the hash would change
        self.driver.get(url)
        self._enter()

    def _shows(self, server: Server) -> bool:
        """Whether the bright page of a server that runs is open."""
        return server.process.poll() is None and self.driver.current_url.startswith(f"{server.url}/#")

    def _enter(self) -> None:
        frame = wait_for(lambda: self.driver.find_elements(By.CSS_SELECTOR, 'iframe[src*="name=symmetry"]'))
        self.driver.switch_to.frame(frame[0])
        self.wait("main > *")

    @contextmanager
    def asking_often(self) -> Iterator[None]:
        """Let pages that are opened meanwhile ask for news more often than every three seconds.

        At the end the page is left, since it would complain of a server that ends before it.
        """
        added = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _POLL_SOON})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
            errors = self.errors()
            self.clear()
            self._errors = errors

    def address(self) -> str:
        """Return the browser's address."""
        address: str = self.run("return window.top.location.href")
        return address

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the tab's frame."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        """Return all elements that currently match a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, selector: str, text: str = "") -> WebElement:
        """Wait for an element that matches a selector and contains ``text``, and return it."""

        def look() -> WebElement | None:
            try:
                return next((element for element in self.all(selector) if text in element.text), None)
            except StaleElementReferenceException:  # redrawn in the meantime
                return None

        found: WebElement = wait_for(look)
        return found

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that match a selector, visible or not."""
        texts: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
        )
        return texts

    def text(self, selector: str) -> str:
        """Wait for an element that matches a selector, and return its text."""
        found: list[str] = wait_for(lambda: self.texts(selector))
        return found[0]

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def hover(self, element: WebElement, x: float, y: float) -> None:
        """Move the pointer to a position in an element, relative to its upper left corner."""
        size = element.size
        actions = ActionChains(self.driver)
        actions.move_to_element_with_offset(
            element, round(x - size["width"] / 2), round(y - size["height"] / 2)
        ).perform()

    def pixels(self, canvas: WebElement, places: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
        """Return the colours of a canvas at positions in CSS pixels."""
        script = (
            "const [canvas, places] = arguments, context = canvas.getContext('2d');"
            "const ratio = canvas.width / canvas.getBoundingClientRect().width;"
            "return places.map(([x, y]) => [...context.getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3))"
        )
        return [tuple(colour) for colour in self.run(script, canvas, places)]

    def errors(self) -> list[str]:
        """Return the console's errors since the last call."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        errors = self._errors + [entry["message"] for entry in log if entry["level"] == "SEVERE"]
        self._errors = []
        return errors


@contextmanager
def open_browser(profile: Path, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """Start Chromium; if it is missing, skip the test, or fail if a browser is required."""
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
