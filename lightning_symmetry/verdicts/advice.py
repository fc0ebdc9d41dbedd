"""Findings in words: what happens, why, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup, Finding, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_RANDOM_INIT = "Initialise with e.g. torch.nn.init.kaiming_uniform_."

_DEATHS = {
    Cause.LOW_BIAS: ": their biases lie far below zero now",
    Cause.NEGATIVE: ": none of their weights is positive now",
    Cause.SATURATED: ": their weights or biases are so large now that a sigmoid or tanh is saturated",
}

# Up to so many layers of which the same is to be said get a message each; more of them share one.
_MAX_ALIKE = 3
_MAX_MESSAGES = 10


def messages(findings: Sequence[Finding], report: ModelDiagnosis) -> list[str]:
    """The findings in words: one message for all that can be told in one, in the order of the layers.

    Layers of which the same is to be said share a message if there are more than three of them. After ten messages a
    last one counts the findings that are left.
    """
    stories: dict[object, list[list[Finding]]] = {}
    for alike in alike_findings(findings, report):
        # Each set of modules that are copies gets a message of its own.
        key = alike[0].layer if alike[0].modules else (*_story(alike[0]), _is_whole_layer(alike, report))
        stories.setdefault(key, []).append(alike)
    told: list[list[list[Finding]]] = []
    for story in stories.values():
        told += [story] if len(story) > _MAX_ALIKE else [[alike] for alike in story]
    order = {name: i for i, name in enumerate(report.layers)}
    told.sort(key=lambda story: order.get(story[0][0].layer, len(order)))
    texts = [_message(story, report) for story in told[:_MAX_MESSAGES]]
    if len(told) > _MAX_MESSAGES:
        rest = sum(len(alike) for story in told[_MAX_MESSAGES:] for alike in story)
        texts.append(f"and {rest} more finding{'s' if rest > 1 else ''}: `findings` lists all of them.")
    return texts


def _message(story: Sequence[Sequence[Finding]], report: ModelDiagnosis) -> str:
    """What is to be said of some layers, of each of which the same is to be said."""
    first, every = story[0][0], [finding for alike in story for finding in alike]
    if len(story) > 1:
        names = [alike[0].layer for alike in story]
        who = f"{names[0]}, {names[1]}, ..., {names[-1]} ({len(names)} layers):"
        num_groups = sum(map(len, story))
        if _is_whole_layer(story[0], report):
            return f"{who} all units of each layer {what(every)} {why(first)}"
        num_units = sum(len(finding.units) for finding in every)
        return f"{who} {num_units} units in {num_groups} groups {what(every)} {why(first)}"
    units = describe_units(story[0], report)
    comma = "," if units.endswith(("}", "...")) else ""
    who = f"{units}: these modules" if first.modules else f"{first.layer}: {units}{comma}"
    return f"{who} {what(every)} {why(first)}{_whose_slices(first, report)}"


def _whose_slices(finding: Finding, report: ModelDiagnosis) -> str:
    """What to know of units that are slices of a parameter; nothing of others."""
    layer = report.layers.get(finding.layer)
    if layer is None or not layer.slices_of:
        return ""
    return (
        f" No adapter knows {layer.slices_of}, so that its slices were compared; "
        "`register_layer` says what the units of a module are."
    )


def _is_whole_layer(alike: Sequence[Finding], report: ModelDiagnosis) -> bool:
    """Whether these findings are one, of all units of a layer."""
    layer = report.layers.get(alike[0].layer)
    return layer is not None and len(alike) == 1 and len(alike[0].units) == layer.num_units


def _story(finding: Finding) -> tuple[object, ...]:
    """The same for findings that differ in layer and units only."""
    past = (finding.first_step, finding.broken_step is not None, finding.broken_step or 0)
    return (finding.verdict, finding.cause, str(finding.value), finding.origin, finding.reason, *past)


def copies_text(group: CopyGroup) -> str:
    """What to know of modules that are copies, if there is nothing to warn of."""
    return (
        f"{group.describe()} start as exact copies of one another. That is how copy.deepcopy and "
        "nn.TransformerEncoder make them; to start them apart, initialise each anew."
    )


def idle_text(layer: str, group: UnitGroup, report: ModelDiagnosis) -> str:
    """What to know of units whose zero gradients are not their own doing."""
    units = describe_groups([group.units], report.layers[layer].num_units)
    return f"{layer}: {units} have no gradient: {group.stop}. Nothing is wrong with them."


def alike_findings(findings: Sequence[Finding], report: ModelDiagnosis) -> list[list[Finding]]:
    """Findings put together if they differ in their units only, in the order of the layers."""

    def kind(finding: Finding) -> tuple[object, ...]:
        return (finding.layer, *_story(finding))

    order = {name: i for i, name in enumerate(report.layers)}
    ordered = sorted(findings, key=lambda finding: (order.get(finding.layer, len(order)), kind(finding), finding.units))
    return [list(alike) for _, alike in groupby(ordered, key=kind)]


def describe_units(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """The units of alike findings in a few words."""
    if alike[0].modules:
        return CopyGroup(alike[0].modules, alike[0].verdict).describe()
    layer = report.layers.get(alike[0].layer)
    return describe_groups([finding.units for finding in alike], layer.num_units if layer else None)


def what(alike: Sequence[Finding]) -> str:
    """What happens to the units of alike findings, and for how long that was seen, in sentences without a subject."""
    return _effect(alike[0], len(alike)) + _watched(alike)


def _watched(alike: Sequence[Finding]) -> str:
    """For how long gradients of zero were seen; nothing of findings that rest on something else."""
    num_watched = min(finding.num_watched for finding in alike)
    if not num_watched or alike[0].verdict not in (Verdict.DEAD, Verdict.FROZEN):
        return ""
    return f" That was so in all of the {num_watched} steps watched."


def _effect(finding: Finding, num_groups: int) -> str:
    """What happens to the units of a finding, as a sentence without its subject."""
    since = f"{finding.verdict} since step {finding.first_step}"
    if finding.modules:
        return f"are copies in weights and gradients ({since}): they train as one."
    if finding.verdict is Verdict.FROZEN and finding.reason is Reason.ROUNDING_AGAIN:
        return f"have equal weights and gradients that are zero but for rounding ({since}): they do not train."
    if finding.verdict is Verdict.DEAD and finding.reason is Reason.ROUNDING_AGAIN:
        return (
            f"have gradients that are zero but for rounding, though weights of their own ({since}): they do not train."
        )
    if finding.mirrored:
        are = f"are equal up to sign in weights and gradients ({since})"
        return f"{are}: they train as {num_groups} unit{'s' if num_groups > 1 else ''}."
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
    if finding.verdict is Verdict.DEAD:
        return _why_dead(finding)
    if finding.origin is Origin.COLLAPSE:
        return (
            f"They were distinct before step {finding.first_step}: they collapsed onto one another during training. "
            "A smaller learning rate, less weight decay or less gradient noise counters this."
        )
    if finding.reason is Reason.ROUNDING_AGAIN:
        return (
            "Every weight is 0: zero initialisation, and what follows treats all of these units alike, so that their "
            f"gradients cancel out. {_RANDOM_INIT}"
        )
    if finding.cause is Cause.ZERO:
        blocked = "Behind a ReLU, or with zero weights before or after them, no gradient reaches such units. "
        is_frozen = finding.verdict is Verdict.FROZEN
        return f"Every weight is 0: zero initialisation. {blocked if is_frozen else ''}{_RANDOM_INIT}"
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
    if finding.cause is Cause.MIRRORED:
        return (
            "Some of their rows are mirror images, the negatives, of others: behind an odd or even activation, such as "
            f"tanh, they stay so. {_RANDOM_INIT}"
        )
    return (
        "Their rows are copies of one another: tiled, copied or padded weights. "
        "Add noise to the copies, or keep only one of each if they are hidden units."
    )


def _why_dead(finding: Finding) -> str:
    """The likely cause of dead units and the way out."""
    if finding.reason is Reason.ROUNDING_AGAIN:
        return (
            "The model has a norm over a single number, whose output is constant, so that it passes back nothing but "
            "rounding errors. Normalise over more than one number, or leave this norm out."
        )
    if finding.origin is Origin.COLLAPSE:
        cause = f"They trained until step {finding.first_step}, and died"
        way_out = "Use a smaller learning rate, a bias that starts at 0, or an activation with a slope everywhere"
        return f"{cause}{_DEATHS.get(finding.cause, '')}. {way_out}, such as torch.nn.LeakyReLU or torch.nn.GELU."
    if finding.cause is Cause.LOW_BIAS:
        return "Their biases lie so far below zero that a ReLU after them never opens. Start the biases at 0."
    if finding.cause is Cause.NEGATIVE:
        return (
            "None of their weights is positive: on inputs that are never negative, a ReLU after them never opens. "
            f"{_RANDOM_INIT}"
        )
    if finding.cause is Cause.SATURATED:
        return (
            "Their weights or biases are so large that a sigmoid or tanh after them is saturated, where it has no "
            "slope. Initialise with smaller ones, and scale the inputs."
        )
    if finding.cause is Cause.CUT_OFF:
        return (
            "Their weights look healthy, but no gradient reaches any of them: cut off by `detach`, or by zero weights "
            "or dead units in the layers before or after them. Mend those."
        )
    return (
        "No gradient reaches them: dead behind a ReLU, saturated behind a sigmoid or tanh, or cut off by zero weights "
        "after them. Initialise these units anew, centre the inputs, or use an activation with a slope everywhere, "
        "such as torch.nn.LeakyReLU."
    )


def _number(finding: Finding) -> str:
    return f"{finding.value:.6g}"
