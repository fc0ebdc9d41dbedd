"""Findings in words: what happens, why, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lightning_symmetry.diagnosis import SymmetryReport, Verdict, describe_groups
from lightning_symmetry.evidence import Cause
from lightning_symmetry.history import Finding, Origin

_RANDOM_INIT = "Initialise with e.g. torch.nn.init.kaiming_uniform_."


def messages(findings: Sequence[Finding], report: SymmetryReport) -> list[str]:
    """One message for all findings of one layer that share verdict, cause and origin."""

    def kind(finding: Finding) -> tuple[str, ...]:
        return (finding.layer, finding.verdict, finding.cause, str(finding.value), finding.origin)

    order = {name: i for i, name in enumerate(report.layers)}
    ordered = sorted(findings, key=lambda finding: (order.get(finding.layer, 0), kind(finding), finding.units))
    return [_message(list(alike), report) for _, alike in groupby(ordered, key=kind)]


def _message(findings: Sequence[Finding], report: SymmetryReport) -> str:
    first = findings[0]
    groups = [finding.units for finding in findings]
    units = describe_groups(groups, report.layers[first.layer].num_units)
    comma = "," if units.endswith(("}", "...")) else ""
    return f"{first.layer}: {units}{comma} {what(first, len(groups))} {why(first)}"


def what(finding: Finding, num_groups: int = 1) -> str:
    """What happens to the units of a finding, as a sentence without its subject."""
    since = f"{finding.verdict} since step {finding.first_step}"
    if finding.verdict is Verdict.FROZEN:
        return f"have equal weights and exactly zero gradients ({since}): they do not train at all."
    if finding.verdict is Verdict.LOCKSTEP:
        return f"have different weights but identical gradients ({since}): they move in parallel."
    trains = f"they train as {num_groups} unit{'s' if num_groups > 1 else ''}"
    return f"are identical in weights and gradients ({since}): {trains}."


def why(finding: Finding) -> str:
    """The likely cause of a finding and the way out, in full sentences."""
    if finding.verdict is Verdict.LOCKSTEP:
        return (
            "Whatever follows them treats them alike: a loss that sums the outputs, or equal outgoing weights. "
            "Make their outgoing weights differ."
        )
    if finding.origin is Origin.COLLAPSE:
        return (
            f"They were distinct before step {finding.first_step}: they collapsed onto one another during training. "
            "A smaller learning rate, less weight decay or less gradient noise counters this."
        )
    if finding.cause is Cause.ZERO:
        blocked = ", and zero weights in the layers after it let no gradient through" if _is_frozen(finding) else ""
        return f"Every weight is 0: zero initialisation{blocked}. {_RANDOM_INIT}"
    if finding.cause is Cause.CONSTANT:
        return f"Every weight is {_number(finding)}: constant initialisation. {_RANDOM_INIT}"
    if finding.cause is Cause.DEAD:
        weights = "" if finding.value is None else f"Every weight is {_number(finding)}: "
        if finding.value is not None and finding.value < 0:
            return f"{weights}a negative constant, so the units are dead behind a ReLU and never open. {_RANDOM_INIT}"
        return (
            f"{weights}{'no' if weights else 'No'} gradient reaches them: they are dead behind a ReLU, or cut off by "
            f"zero weights after them. {_RANDOM_INIT}"
        )
    return (
        "Their rows are copies of one another: tiled, copied or padded weights. "
        "Add noise to the copies, or leave them out: the layer needs only one of each."
    )


def _is_frozen(finding: Finding) -> bool:
    return finding.verdict is Verdict.FROZEN


def _number(finding: Finding) -> str:
    return f"{finding.value:.6g}"
