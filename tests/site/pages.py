"""A page of the site as its HTML says it, without a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_ADDRESSES = ("href", "src", "poster", "data")


@dataclass
class Page:
    """What other pages, and tests, have to know of a page.

    Attributes:
        anchors: what a link to a place within it may name.
        links: the addresses that its links lead to.
        parts: the addresses of what a browser loads to show it: scripts, styles, pictures, frames.
        comments: its comments, which only a reader of the source sees.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.page.anchors.update(found[name] for name in ("id", "name") if name in found)
        addresses = [found[name] for name in _ADDRESSES if name in found]
        is_navigation = tag == "a" or (tag == "link" and found.get("rel") in ("prev", "next", "canonical"))
        (self.page.links if is_navigation else self.page.parts).extend(addresses)

    def handle_comment(self, data: str) -> None:
        self.page.comments.append(data)


def read(file: Path) -> Page:
    """Read a page."""
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    return reader.page
