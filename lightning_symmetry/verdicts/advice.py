"""Findings in words: what happens, why, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lightning_symmetry.verdicts.report import Cause, CopyGroup, Finding, Origin, SymmetryReport
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_RANDOM_INIT = "Initialise with e.g. torch.nn.init.kaiming_uniform_."


def messages(findings: Sequence[Finding], report: SymmetryReport) -> list[str]:
    """One message for all findings that can be told in one."""
    texts = []
    for alike in alike_findings(findings, report):
        first, units = alike[0], describe_units(alike, report)
        comma = "," if units.endswith(("}", "...")) else ""
        who = f"{units}:" if first.modules else f"{first.layer}: {units}{comma}"
        texts.append(f"{who} {what(first, len(alike))} {why(first)}")
    return texts


def copies_text(group: CopyGroup) -> str:
    """What to know of modules that are copies, if there is nothing to warn of."""
    return (
        f"{group.describe()} start as exact copies of one another. That is how copy.deepcopy and "
        "nn.TransformerEncoder make them; to start them apart, initialise each anew."
    )


def alike_findings(findings: Sequence[Finding], report: SymmetryReport) -> list[list[Finding]]:
    """Findings put together if they differ in their units only, in the order of the layers."""

    def kind(finding: Finding) -> tuple[object, ...]:
        past = (finding.first_step, finding.broken_step is not None, finding.broken_step or 0)
        return (finding.layer, finding.verdict, finding.cause, str(finding.value), finding.origin, *past)

    order = {name: i for i, name in enumerate(report.layers)}
    ordered = sorted(findings, key=lambda finding: (order.get(finding.layer, len(order)), kind(finding), finding.units))
    return [list(alike) for _, alike in groupby(ordered, key=kind)]


def describe_units(alike: Sequence[Finding], report: SymmetryReport) -> str:
    """The units of alike findings in a few words."""
    if alike[0].modules:
        return CopyGroup(alike[0].modules, alike[0].verdict).describe()
    layer = report.layers.get(alike[0].layer)
    return describe_groups([finding.units for finding in alike], layer.num_units if layer else None)


def what(finding: Finding, num_groups: int = 1) -> str:
    """What happens to the units of a finding, as a sentence without its subject."""
    since = f"{finding.verdict} since step {finding.first_step}"
    if finding.modules:
        return f"these modules are copies in weights and gradients ({since}): they train as one."
    as_units = f"{num_groups} unit{'s' if num_groups > 1 else ''}"
    return finding.verdict.traits.effect.format(since=since, as_units=as_units)


def why(finding: Finding) -> str:
    """The likely cause of a finding and the way out, in full sentences."""
    if finding.modules:
        return "Initialise each anew, for example with torch.nn.Module.reset_parameters, or keep only one of them."
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
        is_frozen = finding.verdict is Verdict.FROZEN
        blocked = ", and zero weights in the layers after it let no gradient through" if is_frozen else ""
        return f"Every weight is 0: zero initialisation{blocked}. {_RANDOM_INIT}"
    if finding.cause is Cause.CONSTANT:
        return f"Every weight is {_number(finding)}: constant initialisation. {_RANDOM_INIT}"
    if finding.cause is Cause.DEAD:
        if finding.value is not None and finding.value < 0:
            dead = "a negative constant, so the units are dead behind a ReLU and never open."
            return f"Every weight is {_number(finding)}: {dead} {_RANDOM_INIT}"
        weights = "Their rows are copies" if finding.value is None else f"Every weight is {_number(finding)}"
        return (
            f"{weights}, and no gradient reaches them: dead behind a ReLU, saturated, or cut off by zero weights "
            f"after them. {_RANDOM_INIT}"
        )
    return (
        "Their rows are copies of one another: tiled, copied or padded weights. "
        "Add noise to the copies, or leave them out: the layer needs only one of each."
    )


def _number(finding: Finding) -> str:
    return f"{finding.value:.6g}"
