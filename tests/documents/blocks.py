"""The blocks of a page, and what is done with each, by its language."""

from __future__ import annotations

import doctest
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from sybil import Document, Example, Region
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer
from sybil.typing import Evaluator

from tests.documents.commands import run_commands

if TYPE_CHECKING:
    from tests.documents.pages import Page

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# A fence with its language, after which there may be options, such as a title.
_fences = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\s{]*)[^\n]*\n"))
# Python that readers do not see: the set-up that a block needs, and what is to hold after it.
_hidden = DirectiveInHTMLCommentLexer("invisible-code(-block)?", "(?P<language>python)")
_sessions = DocTestStringParser(DocTestEvaluator(_FLAGS))


def find_blocks(document: Document) -> Iterator[Region]:
    """Every fenced block, and every hidden one, with what runs it; of a session with prompts, every command."""
    for region in chain(_fences(document), _hidden(document)):
        source = region.lexemes["source"]
        if source.startswith(">>>"):
            for command in _sessions(source, document.path):
                command.adjust(region, source)
                yield command
        else:
            region.parsed = source
            region.evaluator = RUNNERS.get(region.lexemes["language"], refuse)
            yield region


def find_skips(document: Document) -> Iterable[Region]:
    """The comments that skip a block; each must give a reason, ``<!--- skip: next "reason" -->``."""
    for region in SkipParser()(document):
        action, reason = region.parsed
        if action != "end" and not reason:
            region.evaluator = lambda example: "A block is skipped here; say why in the comment."
        yield region


def refuse(example: Example) -> str:
    """Fail, since nobody knows how to run such a block."""
    return f"Nothing runs a block of the language {example.region.lexemes['language']!r}; see {__name__}.RUNNERS."


def compare(example: Example) -> str | None:
    """Check that the blocks above said what this one shows; ``...`` stands for anything.

    With ``UPDATE_GOLDEN=1`` a block that quotes a single message gets its current wording.
    """
    said = cast("Page", example.document).said
    if doctest.OutputChecker().check_output(f"...{example.parsed}\n...", f"{said}\n.", _FLAGS):
        return None
    if os.environ.get("UPDATE_GOLDEN") and _quote_again(example, said):
        return None
    return f"Nothing above says this:\n{example.parsed}\nWhat was said is:\n{said}"


def _quote_again(example: Example, said: str) -> bool:
    """Write the current wording of a message into its page; return whether the block quotes a single message."""
    quote = str(example.parsed).strip("\n")
    code = re.search(r"\[SYM\d{3}\]$", quote)
    line = next((line for line in said.splitlines() if code and line.endswith(code[0])), None)
    if line is None or "\n" in quote:
        return False
    message = re.sub(r"^.*?(?=SymmetryWarning: )", "", line)
    page = Path(example.path)
    page.write_text(page.read_text(encoding="utf-8").replace(quote, message), encoding="utf-8")
    return True


def keep(example: Example) -> None:
    """Hand the text to the hidden blocks below, as the variable ``text``."""
    example.namespace["text"] = str(example.parsed)


def load_yaml(example: Example) -> None:
    """Read the document, and make an object of everything that has a ``class_path``, as a ``LightningCLI`` does."""
    _make(yaml.safe_load(example.parsed))


def _make(value: Any) -> None:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _make(part)
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        getattr(import_module(module), name)(**value.get("init_args", {}))


def load_json(example: Example) -> None:
    """Read the document."""
    json.loads(example.parsed)


def load_toml(example: Example) -> None:
    """Read the document."""
    tomllib.loads(example.parsed)


RUNNERS: dict[str, Evaluator] = {
    "python": PythonEvaluator(),
    "bash": run_commands,
    "text": compare,
    "markdown": keep,
    "yaml": load_yaml,
    "toml": load_toml,
    "json": load_json,
}
