"""The documentation site, read as files and browsed through in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browsing import Page as Browser
from tests.browsing import open_browser
from tests.serving import serving, wait_for
from tests.site import pages

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(file.relative_to(SITE).as_posix() for file in SITE.rglob("*.html"))
WIDTHS = (400, 900, 1400)  # a telephone, half a screen, a laptop

pytestmark = pytest.mark.skipif(not PAGES, reason="there is no site yet; `make docs` builds it")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(SITE) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@cache
def page(name: str) -> pages.Page:
    return pages.read(SITE / name)


def target_of(address: str, name: str) -> tuple[str, str]:
    """The file below the site that an address on a page leads to, and the place within it."""
    parts = urlsplit(address)
    path = unquote(parts.path)
    if not path:
        return name, unquote(parts.fragment)
    file = SITE / path.lstrip("/") if path.startswith("/") else (SITE / name).parent / path
    return str(file.resolve().relative_to(SITE.resolve())), unquote(parts.fragment)


def is_elsewhere(address: str) -> bool:
    """Whether an address leads to another host, or is no address of a file at all."""
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


@pytest.mark.parametrize("name", PAGES)
def test_every_internal_link_and_anchor_leads_somewhere(name: str) -> None:
    broken = []
    for address in page(name).links + page(name).parts:
        if is_elsewhere(address):
            continue
        file, anchor = target_of(address, name)
        exists = (SITE / file).is_file()
        if not exists or (anchor and file.endswith(".html") and anchor not in page(file).anchors):
            broken.append(address)
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_of_files_of_the_site_only(name: str) -> None:
    assert [part for part in page(name).parts if is_elsewhere(part) and not part.startswith("data:")] == []


def test_styles_load_nothing_from_other_hosts() -> None:
    styles = [file.read_text(encoding="utf-8") for file in SITE.rglob("*.css")]
    assert styles
    loaded = [address for style in styles for address in re.findall(r"(?:url\(|@import\s)\s*[\"']?([^\"')\s]+)", style)]
    assert [address for address in loaded if is_elsewhere(address) and not address.startswith("data:")] == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_left_of_what_only_tests_or_other_tools_read(name: str) -> None:
    assert not any("invisible-code" in comment for comment in page(name).comments)
    text = re.sub(r"<code>[^<]*</code>", "", (SITE / name).read_text(encoding="utf-8"))
    assert re.findall(r"&lt;BLANKLINE&gt;|# doctest:|:(?:class|func|meth):`", text) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_errors_requests_elsewhere_or_horizontal_scrolling(
    name: str, url: str, browser: Browser
) -> None:
    browser.clear()
    browser.driver.get(url + name)
    wait_for(lambda: browser.run("return document.readyState") == "complete")
    for width in WIDTHS:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    requests = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [address for address in requests if not address.startswith((url, "data:"))] == []
    assert browser.errors() == []


def test_the_switch_leads_to_the_dark_theme_and_back(url: str, browser: Browser) -> None:
    browser.clear()
    browser.driver.get(url + "index.html")

    def scheme() -> str:
        name: str = browser.run("return document.body.dataset.mdColorScheme")
        return name

    seen = []
    for _ in range(3):
        browser.run("document.querySelector('[data-md-component=palette] label:not([hidden])').click()")
        seen.append(scheme())
    assert {"default", "slate"} <= set(seen)
    assert browser.errors() == []


def search(browser: Browser, url: str, query: str) -> list[str]:
    """The pages that a search in the header finds, best first, as names with their anchors."""
    browser.clear()
    browser.driver.get(url + "index.html")
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.press(query)

    def addresses() -> list[str]:
        script = "return [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)"
        found: list[str] = browser.run(script)
        return found

    results: list[str] = wait_for(addresses)
    while (now := addresses()) != results:  # the results of a part of the query
        results = now
    return [urlsplit(address).path.removeprefix("/") for address in results]


@pytest.mark.parametrize(
    ("query", "answers"),
    [
        ("vanishing", {"symptoms.html", "codes/sym302.html", "codes/sym308.html"}),
        ("freeze", {"symptoms.html"}),
        ("grad None", {"symptoms.html", "codes/sym403.html"}),
        ("layer not training", {"symptoms.html"}),
        ("requires_grad", {"symptoms.html"}),
        ("dead relu", {"codes/sym301.html"}),
        ("SYM301", {"codes/sym301.html"}),
    ],
)
def test_what_people_type_leads_to_the_answer(query: str, answers: set[str], url: str, browser: Browser) -> None:
    pages = list(dict.fromkeys(search(browser, url, query)))
    assert answers & set(pages[:3]), pages
    assert browser.errors() == []
