"""The cover of a report, above the page of the tab: the run, the date, and the findings in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from lightning_symmetry.tensorboard_plugin.folding import RunHistory

STYLE = """
.cover { max-width: 76em; padding: 16px 24px; font-size: 14px; overflow-wrap: anywhere; }
.cover h1 { margin: 0; font-size: 22px; }
.cover h2 { margin: 14px 0 2px; font-size: 15px; }
.cover p { margin: 4px 0; }
.cover ul { margin: 4px 0; padding-left: 1.4em; }
.cover li { margin: 4px 0; }
"""

_MAX_FINDINGS = 20
_MAX_RUNS = 10
# Default names of folders, which do not describe a run: those of any program, and those of this package only.
_ANY_DEFAULT = re.compile(r"symmetry([-_]\d+)*|lightning_logs|logs|runs|version_\d+|checkpoints|\.|/", re.IGNORECASE)
_OWN_DEFAULT = re.compile(r"symmetry([-_]\d+)*")


def run_name(folder: Path) -> str:
    """Return a name for a run: its folder's path from the last name that is no default, without a final ``symmetry``.

    Example:
        >>> run_name(Path("/home/me/digits/lightning_logs/version_3/symmetry"))
        'digits/lightning_logs/version_3'
        >>> run_name(Path("/home/me/runs/wide"))
        'wide'
    """
    parts = [*folder.parts]
    while len(parts) > 1 and _OWN_DEFAULT.fullmatch(parts[-1]):
        parts.pop()
    start = len(parts) - 1
    while start > 0 and _ANY_DEFAULT.fullmatch(parts[start]):
        start -= 1
    return "/".join(part for part in parts[start:] if part != "/") or folder.name


def cover(title: str, runs: Sequence[tuple[str, RunHistory]], command: str, now: datetime) -> str:
    """Return a heading, the date, the findings of each run in words, and next steps, as HTML.

    ``title`` names the run or the directory, ``runs`` are names and histories, and ``command`` updates the report.

    Example:
        >>> command = "lightning-symmetry report runs/digits"
        >>> page = cover("digits", [("digits", RunHistory())], command, datetime(2026, 1, 31, 9, 5))
        >>> "<h1>Symmetry report: digits</h1>" in page, "31 January 2026, 09:05" in page
        (True, True)
    """
    number = f"{len(runs)} runs: {_listed([name for name, _ in runs])}" if len(runs) > 1 else "1 run"
    found = [(name, history) for name, history in runs if any(history.findings.values())]
    others = [(name, history.steps) for name, history in runs if not any(history.findings.values())]
    results = [_findings(name if len(runs) > 1 else "", history) for name, history in found[:_MAX_RUNS]]
    if len(found) > _MAX_RUNS:
        results.append(f"<p>Findings in {len(found) - _MAX_RUNS} more runs are below.</p>")
    if quiet := [f"{name} up to step {steps[-1]:,}" for name, steps in others if steps]:
        results.append(f"<p>Nothing was found in {escape(_listed(quiet))}.</p>")
    if unreadable := [name for name, steps in others if not steps]:
        results.append(f"<p>No check of {escape(_listed(unreadable))} can be read.</p>")
    return f"""<header class="cover">
<h1>Symmetry report: {escape(title)}</h1>
<p>Written on {now.day} {now:%B %Y, %H:%M} by lightning-symmetry, of {escape(number)}. While the model was
trained, its layers were searched for units that train as one, and for units that do not train. Below the findings, each
layer can be opened.</p>
{chr(10).join(results)}
<h2>Next</h2>
<p>Each code in brackets, such as [SYM101], has a page of its own in the documentation: what was measured, what it
means, and what to do. To update this page, run
<code>{escape(command)}</code> on the machine of the run.</p>
</header>"""


def _findings(name: str, history: RunHistory) -> str:
    """Return the findings of a run as HTML. ``name`` is empty if there is only one run."""
    found = [(layer, finding) for layer, several in history.findings.items() for finding in several]
    of = f" in {escape(name)}" if name else ""
    items = []
    for layer, finding in found[:_MAX_FINDINGS]:
        ended = "" if finding.broken is None else f" It was gone at step {finding.broken:,}."
        text = f"{finding.who}. {finding.what} {finding.why}{ended}"
        items.append(f"<li><strong>{escape(layer)}</strong> ({escape(finding.verdict)}): {_with_code(text)}</li>")
    if len(found) > _MAX_FINDINGS:
        items.append(f"<li>and {len(found) - _MAX_FINDINGS} more, below</li>")
    return f"<h2>Findings{of} ({len(found)})</h2>\n<ul>{''.join(items)}</ul>"


def _with_code(text: str) -> str:
    """Return a text as HTML, with parts in backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _listed(names: list[str]) -> str:
    rest = len(names) - _MAX_RUNS
    return ", ".join([*names[:_MAX_RUNS], *([f"and {rest} more"] if rest > 0 else [])])
