"""Makes pages of files outside docs/, and mends what reads differently in a checkout and on the site.

The sources are written for whoever opens them on a forge or in an editor. There a link leads from a file to a file of
the repository, such as ``../CONTRIBUTING.md`` out of docs/; here it must lead to the page that is made of that file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lightning_symmetry import __version__

ROOT = Path(__file__).parents[2]
# Files of the repository that are pages of the site, and their names there.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "papers.md",
}
# Where a link to a file leads that is no page itself.
STAND_INS = {"README.md": "index.md"}

_LINK = re.compile(r"(?<=\]\()(?P<file>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_FENCE_WITH_PROMPTS = re.compile(r"^```python\n(?=>>> )(?P<code>.*?)\n*^```$", re.MULTILINE | re.DOTALL)
_FENCE_WITH_MESSAGE = re.compile(r"^```text\n(?=.*\[SYM\d{3}\]\n```$)", re.MULTILINE)
_FOR_TESTS = re.compile(r"^<!--- *(?:invisible-code|skip)\b.*?-->\n", re.MULTILINE | re.DOTALL)
_DOCTEST_FLAGS = re.compile(r" *# doctest:.*$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Hand the version to the header."""
    config.extra["release"] = __version__
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files into links between pages, mark prompts and messages, and drop what only tests read."""
    markdown = _FENCE_WITH_MESSAGE.sub("``` { .text .message }\n", _FOR_TESTS.sub("", markdown))
    return _with_links_to_pages(_with_prompts(markdown), page.file.src_uri, files)


def _with_links_to_pages(markdown: str, uri: str, files: Files) -> str:
    """Links whose target is a page, or a picture, of the site are written as they are seen from the page ``uri``."""
    sources = {page: source for source, page in PAGES.items()}
    folder = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def mended(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["file"]))
        target = PAGES.get(target) or STAND_INS.get(target) or target.removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return link[0]  # it leads elsewhere, or nowhere, of which the build warns
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") + (link["anchor"] or "")

    return _LINK.sub(mended, markdown)


def _with_prompts(markdown: str) -> str:
    """Sessions of the interpreter are highlighted as such, without what only doctest reads.

    That is its flags, its mark for an empty line, and the empty line that ends an output before the fence does.
    """

    def session(fence: re.Match[str]) -> str:
        code = _DOCTEST_FLAGS.sub("", fence["code"]).replace("<BLANKLINE>", "")
        return f"```pycon\n{code.rstrip()}\n```"

    return _FENCE_WITH_PROMPTS.sub(session, markdown)
