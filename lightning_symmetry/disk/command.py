"""The command ``lightning-symmetry scan``: scans checkpoints one by one, and prints the result of each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TextIO

from lightning_symmetry.brief import printable
from lightning_symmetry.disk.checkpoints import CheckpointError, NoModelError
from lightning_symmetry.disk.folders import checkpoints_at
from lightning_symmetry.disk.models import Model
from lightning_symmetry.disk.scanning import Follow, Scan, scan_checkpoint
from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.verdicts.advice import alike_findings, describe_units
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import plain_table, shorten
from lightning_symmetry.verdicts.text import percent_below, summarise
from lightning_symmetry.verdicts.verdict import Verdict

CLEAN, FOUND, UNREADABLE = 0, 1, 2
"""Exit statuses; for several checkpoints the highest, which is the worst."""

_MAX_LINES = 20
_MAX_NAMES = 3
_HEAD = ("units", "working", "seen", "found")
_WIDTHS = (10, 10, 4, 32)  # of these columns; the path comes last, in full


def run(
    paths: Sequence[Path],
    *,
    as_json: bool,
    fail_on: Collection[Verdict],
    model: str | None = None,
    with_details: bool = False,
) -> int:
    """Scan checkpoints, print the results, and return the exit status; ``UNREADABLE`` if nothing was scanned.

    Prints the layers of a single checkpoint; of several, a row each and totals.

    Args:
        paths: files, or folders, all of whose checkpoints are scanned.
        as_json: whether to print an object per checkpoint, with its ``path`` and the fields of
            :func:`~lightning_symmetry.outputs.findings.findings_json`, or with its ``path`` and ``error``.
        fail_on: the verdicts that count as findings.
        model: the model's class or factory, as ``package.module:Class``.
        with_details: whether to print the layers of several checkpoints instead of rows.
    """
    try:
        factory = None if model is None else import_model(model)
    except Exception as error:  # importing a module can raise anything
        _complain(f"argument --model: {type(error).__name__}: {error}")
        return UNREADABLE
    found = list(_found(paths))
    with_rows = not as_json and not with_details and sum(each.error is None for each in found) > 1
    scanning = _Scanning(factory, fail_on, as_json=as_json, with_rows=with_rows)
    if with_rows:
        _print_row(_HEAD, "checkpoint")
        _print_row(["-" * width for width in _WIDTHS], "-" * len("checkpoint"))
    for each in found:
        scanning.scan(each)
    if with_rows:
        scanning.print_totals()
    return scanning.status


def import_model(name: str) -> Model:
    """Import a model's class or factory, also from the current directory.

    Raise a ValueError for a name of another form, and an ImportError or AttributeError for one that does not exist.

    Example:
        >>> import_model("torch.nn:Identity")
        <class 'torch.nn.modules.linear.Identity'>
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"Expected package.module:Class but got {name!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    factory: object = import_module(module)  # `pkgutil.resolve_name` refuses files whose names are no identifiers
    for step in attribute.split("."):
        factory = getattr(factory, step)
    return factory  # type: ignore[return-value] # `fill` checks it


class _Entry(NamedTuple):
    """A checkpoint to scan, or a path without any."""

    path: Path
    is_named: bool  # whether the user gave this path, and not a folder above it
    error: Exception | None = None


def _found(paths: Sequence[Path]) -> Iterator[_Entry]:
    for path in paths:
        try:
            yield from [_Entry(file, file == path) for file in checkpoints_at(path)]
        except (OSError, ValueError) as error:
            yield _Entry(path, True, error)


class _Scanning:
    """Scans checkpoints, prints the results, and counts them."""

    def __init__(self, model: Model | None, fail_on: Collection[Verdict], *, as_json: bool, with_rows: bool) -> None:
        self._model, self._fail_on = model, set(fail_on)
        self._as_json, self._with_rows = as_json, with_rows
        self._statuses: Counter[int] = Counter()
        self._passed_over: list[str] = []

    @property
    def status(self) -> int:
        """The exit status so far; ``UNREADABLE`` until something was scanned."""
        return max(self._statuses, default=UNREADABLE)

    def scan(self, each: _Entry) -> None:
        """Scan a checkpoint and print the result."""
        path = str(each.path)
        if each.error is not None:
            self._unreadable(path, str(each.error))
            return
        try:
            seen = scan_checkpoint(each.path, self._model, _progress(each.path))
        except Exception as error:  # uncaught, it would make Python exit with 1, the status of a finding
            if isinstance(error, NoModelError) and not each.is_named:
                self._pass_over(path)
                return
            if not isinstance(error, CheckpointError | OSError | ModuleNotFoundError | TypeError):
                traceback.print_exc()
            self._unreadable(path, str(error))
            return
        report = seen.report
        if not report.layers and report.coverage == 1 and not each.is_named:
            self._pass_over(path)
            return
        is_found = bool(found_verdicts(seen) & self._fail_on)
        self._statuses[FOUND if is_found else CLEAN if report.layers else UNREADABLE] += 1
        if self._as_json:
            _print(json.dumps({"path": path, **json.loads(findings_json(seen.findings, report))}))
        elif self._with_rows:
            _print_row(as_row(seen), path)
        else:
            _print(as_text(seen))
        if not report.layers:
            _complain(f"no layer of {path!r} was scanned")

    def print_totals(self) -> None:
        """Print how many checkpoints there were of each kind."""
        words = {CLEAN: "clean", FOUND: "with findings", UNREADABLE: "that could not be scanned"}
        counts = [f"{self._statuses[status]} {what}" for status, what in words.items() if self._statuses[status]]
        total = _count(sum(self._statuses.values()), "checkpoint")
        _print(f"\n{': '.join(filter(None, (total, ', '.join(counts))))} (--details shows the layers)")
        if self._passed_over:
            _print(f"Passed over {_count(len(self._passed_over), 'file')} without weights: {_some(self._passed_over)}")

    def _unreadable(self, path: str, error: str) -> None:
        self._statuses[UNREADABLE] += 1
        if self._with_rows:
            _print_row(("-", "-", "-", "could not be scanned"), path)
        _complain(error)
        if self._as_json:
            _print(json.dumps({"path": path, "error": error}))

    def _pass_over(self, path: str) -> None:
        self._passed_over.append(path)
        if not self._with_rows:
            _complain(f"passed over {path!r}, which holds no weights")


def _print_row(cells: Sequence[str], path: str) -> None:
    *numbers, found = (cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    _print("  ".join([*numbers, found.strip().ljust(_WIDTHS[-1]), printable(path)]))


def _print(text: str) -> None:
    _write(text, sys.stdout)


def _complain(text: str) -> None:
    _write(printable(f"lightning-symmetry scan: {text}"), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    """Print text, with escapes for characters that the stream cannot encode.

    A closed pipe is ignored. If writing fails otherwise, as to a full disk, the program exits with ``UNREADABLE``.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    fitting = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(fitting, file=stream, flush=True)
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # so that later writes, also when Python exits, do not fail again
            os.dup2(nowhere.fileno(), stream.fileno())
        # A program such as `head` closes the pipe early. The scan continues, because its exit status still counts.
        if not isinstance(error, BrokenPipeError):
            _complain(f"the results cannot be written: {error}")
            raise SystemExit(UNREADABLE) from error


def found_verdicts(seen: Scan) -> set[Verdict]:
    """Return the verdicts of all groups and copies in a checkpoint, and of its monitor's findings that still hold."""
    of_units = {group.verdict for layer in seen.report.distinct_layers for group in layer.groups}
    of_modules = {group.verdict for group in seen.report.copies}
    return of_units | of_modules | {finding.verdict for finding in seen.findings if finding.broken_step is None}


def as_row(seen: Scan) -> tuple[str, str, str, str]:
    """Return the cells of a table row: units, working units, share of the weights that was scanned, findings."""
    report = seen.report
    with_groups = [layer for layer in report.counted_layers if layer.groups]
    units = Counter(group.verdict for layer in with_groups for group in layer.groups for _ in group.units)
    layers = Counter(verdict for layer in with_groups for verdict in {group.verdict for group in layer.groups})
    found = [
        f"{verdict}: {units[verdict]:,} units in {_count(layers[verdict], 'layer')}"
        for verdict in Verdict
        if units[verdict]
    ]
    if report.copies:
        found.append(_count(len(report.copies), "set") + " of modules that are copies")
    holding = Counter(finding.verdict for finding in seen.findings if finding.broken_step is None)
    found += [f"SymmetryMonitor: {_count(number, f'{verdict} group')}" for verdict, number in holding.items()]
    share = "100%" if report.coverage == 1 else f"{percent_below(report.coverage)}%"
    if not report.layers:
        return "-", "-", share, "no layer could be scanned"
    return f"{report.num_units:,}", f"{report.working_units:,}", share, "; ".join(found) or "nothing"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def as_text(seen: Scan) -> str:
    """Return the result as text, with long lists cut."""
    report = seen.report
    names: dict[str, list[str]] = {}  # of modules, by the reason why they were left out
    for name, reason in report.skipped.items():
        names.setdefault(reason, []).append(name)
    not_inspected = [f"not inspected: {_some(several)} ({reason})" for reason, several in names.items()]
    lines = [
        *_shortened([f"copies: {group.describe()} ({group.verdict})" for group in report.copies], "sets of copies"),
        *_shortened(not_inspected, "reasons"),
        *_shortened(_dated(seen.findings, report), "findings"),
    ]
    head = [str(seen.path), f"Symmetry at step {report.step}: {report.totals()}"]
    return "\n".join([*map(printable, head), *_table(report), *map(printable, lines)]) + "\n"


def _table(report: SymmetryReport) -> list[str]:
    """Return a table of the layers with groups, those with the most redundant units first, and notes on the groups."""
    with_groups = [layer for layer in report.distinct_layers if layer.groups]
    if not with_groups:
        return []
    with_groups.sort(key=lambda layer: -layer.redundant_units)
    rows = [
        (_some([layer.name, *layer.also], " = "), str(layer.num_units), str(layer.working_units), summarise(layer))
        for layer in with_groups[:_MAX_LINES]
    ]
    lines = [plain_table(("layer", "units", "working", "groups"), rows)]
    rest, others = len(with_groups) - _MAX_LINES, len(report.distinct_layers) - len(with_groups)
    if rest > 0:
        lines.append(f"and {rest} more layers with groups; --json lists all of them")
    if others:
        lines.append(f"and {_count(others, 'layer')} without groups")
    # The usual note on duplicates refers to later checks, which a file does not have.
    notes = [note for note in report.notes() if not note.startswith(f"{Verdict.DUPLICATE}:")]
    duplicates = "duplicate: units with equal weights; a file has no gradients to show whether they train as one"
    return [*lines, duplicates, *map(printable, notes)]


def _dated(findings: Sequence[Finding], report: SymmetryReport) -> list[str]:
    """Return a line for each finding of a monitor, with its steps."""
    lines = []
    for alike in alike_findings(findings, report):
        first = alike[0]
        who = ("" if first.modules else f"{first.layer}: ") + describe_units(alike, report)
        seen = max(finding.last_step for finding in alike)
        until = f"last seen at step {seen}" if first.broken_step is None else f"gone at step {first.broken_step}"
        lines.append(f"SymmetryMonitor: {who}, {first.verdict} since step {first.first_step}, {until}")
    return lines


def _shortened(lines: Sequence[str], what: str) -> list[str]:
    rest = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *[f"and {rest} more {what}; --json lists all of them"] * (rest > 0)]


def _some(names: Sequence[str], between: str = ", ") -> str:
    rest = len(names) - _MAX_NAMES
    shown = [shorten(printable(name)) for name in names[:_MAX_NAMES]]
    return between.join(shown) + (f" and {rest} more" if rest > 0 else "")


def _progress(path: Path) -> Follow:
    """Return a function that shows a progress bar, if stderr is a terminal and Rich is installed."""
    if not sys.stderr.isatty():
        return iter
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import track
    except ModuleNotFoundError:
        return iter
    console = Console(stderr=True)
    return lambda layers: track(layers, description=escape(printable(path.name)), console=console, transient=True)
