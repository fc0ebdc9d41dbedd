"""The command ``lightning-symmetry scan``: looks at checkpoints one by one, and says what it has seen of each."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path

from lightning_symmetry.disk.models import Model
from lightning_symmetry.disk.reading import CheckpointError
from lightning_symmetry.disk.scanning import Follow, Scan, checkpoints, scan_checkpoint
from lightning_symmetry.outputs.findings import findings_json
from lightning_symmetry.verdicts.advice import alike_findings, describe_units
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import plain_table
from lightning_symmetry.verdicts.text import summarise
from lightning_symmetry.verdicts.verdict import Verdict

CLEAN, FOUND, UNREADABLE = 0, 1, 2
"""Exit statuses; of several checkpoints the worst, the highest, counts."""

_MAX_LINES = 20
_MAX_NAMES = 3


def run(paths: Sequence[Path], *, as_json: bool, fail_on: Collection[Verdict], model: str | None = None) -> int:
    """Scan checkpoints, and print what was seen: of each a text, or a line of JSON.

    Args:
        paths: files, or folders, all of whose checkpoints are looked at.
        as_json: whether to print, for each checkpoint, an object with its ``path`` and the fields of
            :func:`~lightning_symmetry.outputs.findings.findings_json`, or with its ``path`` and ``error``.
        fail_on: the verdicts that count as findings.
        model: what makes the model, ``package.module:Class``.

    Returns:
        The exit status.
    """
    try:
        made_by = None if model is None else import_model(model)
    except Exception as error:  # a module can fail in any way when it is imported
        print(f"lightning-symmetry scan: argument --model: {type(error).__name__}: {error}", file=sys.stderr)
        return UNREADABLE
    return max((_scan_path(path, made_by, fail_on, as_json) for path in paths), default=CLEAN)


def import_model(name: str) -> Model:
    """What makes a model, by its name; modules in the current directory are found too.

    Args:
        name: ``package.module:Class``.

    Raises:
        ValueError: if the name has another form.
        ImportError: if there is no such module.
        AttributeError: if there is no such name in it.

    Example:
        >>> import_model("torch.nn:Identity")
        <class 'torch.nn.modules.linear.Identity'>
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"Expected package.module:Class but got {name!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    made_by: object = import_module(module)
    for step in attribute.split("."):
        made_by = getattr(made_by, step)
    return made_by  # type: ignore[return-value] # `fill` refuses what makes no model


def _scan_path(path: Path, model: Model | None, fail_on: Collection[Verdict], as_json: bool) -> int:
    try:
        files = checkpoints(path)
    except (CheckpointError, OSError) as error:
        return _say_unreadable(str(path), error, as_json)
    return max(_scan_one(file, model, fail_on, as_json) for file in files)


def _scan_one(path: Path, model: Model | None, fail_on: Collection[Verdict], as_json: bool) -> int:
    try:
        seen = scan_checkpoint(path, model, _progress(path))
    except (CheckpointError, OSError, ModuleNotFoundError, TypeError) as error:
        return _say_unreadable(str(path), error, as_json)
    except Exception as error:  # Python would exit with 1, which says that something was found
        traceback.print_exc()
        return _say_unreadable(str(path), error, as_json)
    print(as_line_of_json(seen) if as_json else as_text(seen), flush=True)
    return FOUND if found_verdicts(seen) & set(fail_on) else CLEAN


def _say_unreadable(path: str, error: Exception, as_json: bool) -> int:
    print(f"lightning-symmetry scan: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"path": path, "error": str(error)}), flush=True)
    return UNREADABLE


def found_verdicts(seen: Scan) -> set[Verdict]:
    """The verdicts of all groups and copies in a checkpoint, and of what its monitor has found and still holds."""
    report = seen.report
    of_units = {group.verdict for layer in report.distinct_layers for group in layer.groups}
    of_modules = {group.verdict for group in report.copies}
    return of_units | of_modules | {finding.verdict for finding in seen.findings if finding.broken_step is None}


def as_line_of_json(seen: Scan) -> str:
    """What was seen of a checkpoint, for other programs."""
    return json.dumps({"path": str(seen.path), **json.loads(findings_json(seen.findings, seen.report))})


def as_text(seen: Scan) -> str:
    """What was seen of a checkpoint, for people; of long lists the beginning."""
    report = seen.report
    lines = [
        str(seen.path),
        f"Symmetry at step {report.step}: {report.totals()}",
        *_table(report),
        *_shortened([f"copies: {group.describe()} ({group.verdict})" for group in report.copies], "sets of copies"),
        *_shortened(_not_inspected(report), "reasons"),
        *_shortened(_dated(seen.findings, report), "findings"),
    ]
    return "\n".join(lines) + "\n"


def _table(report: SymmetryReport) -> list[str]:
    """The layers with groups, those with the most redundant units first, and what to know of the groups."""
    with_groups = [layer for layer in report.distinct_layers if layer.groups]
    with_groups.sort(key=lambda layer: -layer.redundant_units)
    lines = [plain_table(("layer", "units", "working", "groups"), [_row(layer) for layer in with_groups[:_MAX_LINES]])]
    rest, others = len(with_groups) - _MAX_LINES, len(report.distinct_layers) - len(with_groups)
    if rest > 0:
        lines.append(f"and {rest} more layers with groups; --json lists all of them")
    if others:
        lines.append(f"and {others} layer{'s' if others > 1 else ''} without groups")
    return [*lines, *report.notes(), report.reasons[0]] if with_groups else []


def _row(layer: LayerDiagnosis) -> tuple[str, ...]:
    name = " = ".join([layer.name, *layer.also])
    return name, str(layer.num_units), str(layer.working_units), summarise(layer)


def _not_inspected(report: SymmetryReport) -> list[str]:
    """The modules that were left out, by the reason."""
    names: dict[str, list[str]] = {}
    for name, reason in report.skipped.items():
        names.setdefault(reason, []).append(name)
    return [f"not inspected: {_some(several)} ({reason})" for reason, several in names.items()]


def _dated(findings: Sequence[Finding], report: SymmetryReport) -> list[str]:
    """What a monitor has found, with the steps at which it did."""
    lines = []
    for alike in alike_findings(findings, report):
        first = alike[0]
        who = describe_units(alike, report) if first.modules else f"{first.layer}: {describe_units(alike, report)}"
        seen = max(finding.last_step for finding in alike)
        until = f"last seen at step {seen}" if first.broken_step is None else f"gone at step {first.broken_step}"
        lines.append(f"SymmetryMonitor: {who}, {first.verdict} since step {first.first_step}, {until}")
    return lines


def _shortened(lines: Sequence[str], what: str) -> list[str]:
    rest = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *([f"and {rest} more {what}; --json lists all of them"] if rest > 0 else [])]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _progress(path: Path) -> Follow:
    """Shows a bar while layers are looked at, if somebody is there to see it and Rich is installed."""
    if not sys.stderr.isatty():
        return iter
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return iter
    console = Console(stderr=True)
    return lambda layers: track(layers, description=path.name, console=console, transient=True)
