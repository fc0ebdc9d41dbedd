"""Findings in words: where, what was seen, what it means, and what to do, if possible as a line of code that runs.

The place where a gradient stops is named only if it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby

from lightning_symmetry.verdicts.access import Access, line_for
from lightning_symmetry.verdicts.codes import Code
from lightning_symmetry.verdicts.diagnoses import (
    THE_LOSS,
    Cause,
    CopyGroup,
    Finding,
    LayerDiagnosis,
    Origin,
    Reason,
    UnitGroup,
    gradients_cancel,
)
from lightning_symmetry.verdicts.heads import CopiedHeads, copied_heads
from lightning_symmetry.verdicts.model_diagnosis import ModelDiagnosis
from lightning_symmetry.verdicts.stops import GradientStop, StopKind
from lightning_symmetry.verdicts.tables import ONLY_UNIT, abbreviate, describe_groups, match_texts
from lightning_symmetry.verdicts.verdict import Verdict

# If more layers than this have findings of one kind, they share a message.
_MAX_ALIKE = 3
_MAX_MESSAGES = 10

_RANDOM = "torch.nn.init.kaiming_uniform_({})"
_NOISE = "{0}.data += 0.02 * torch.randn_like({0})"

# Findings with these codes may be about whole heads.
_CODES_OF_COPIES = (Code.COPIED_ROWS, Code.COLLAPSED)

# What was seen where a gradient stops: the end of a sentence that has named the place.
_STOPPED = {
    StopKind.CLOSED: "which is closed",
    StopKind.SATURATED: "which is saturated",
    StopKind.ZERO_WEIGHTS: "whose weights for these units are zero",
    StopKind.FLAT: "which has no slope",
    StopKind.ONE_VALUE: "whose output is constant, since it goes over a single number",
    StopKind.DROPPED: "which multiplies by zero",
    StopKind.UNREAD: "since nobody reads the outputs",
    StopKind.LOSS: "since the loss gives no gradient",
    StopKind.DETACHED: "since the loss cannot be reached from there",
    StopKind.ROUNDING: "which passes back nothing but rounding errors",
}

_WAYS_OUT = {
    StopKind.FLAT: "Use a straight-through estimator, or move this operation out of the path to the loss.",
    StopKind.ONE_VALUE: "Apply it to more than one number, or remove it.",
    StopKind.DROPPED: "Use a dropout probability below 1, and check the mask.",
    StopKind.ERASED: "Call zero_grad() after step(), not between backward() and step().",
    StopKind.ROUNDING: "Train in float32, or scale the loss, as torch.amp.GradScaler does.",
    StopKind.VANISHED: "Shorten its way, by residual connections or fewer layers, or use torch.nn.ReLU.",
    StopKind.UNREAD: "Nothing is wrong with these units: read their outputs, or leave them out.",
    StopKind.LOSS: "Nothing is wrong with these units: check why the loss gives no gradient.",
    StopKind.DETACHED: "Nothing is wrong with these units: let the loss depend on them.",
}

_WHY_IDLE = {
    Code.UNREAD: "since nobody reads their outputs",
    Code.LOSS: "since the loss gives none",
    Code.DETACHED: "since the loss cannot be reached from them",
    Code.NO_CHOICE: "since there is a single one to choose from",
    Code.NO_INPUT: "since their inputs are zero",
}

_ADVICE_ON_IDLE = {
    Code.UNREAD: "If that is on purpose, nothing is wrong; else read them.",
    Code.DETACHED: "If that is on purpose, nothing is wrong; else let the loss depend on them.",
    Code.NO_INPUT: "If they are meant to be zero, nothing is wrong.",
}


@dataclass(frozen=True)
class _Topic:
    """Findings that share a message."""

    layers: list[list[Finding]]  # the findings, one list per layer
    followers: list[Finding] = field(default_factory=list)  # their consequences, which the message mentions too
    # By attention module, the copied heads that the units form; empty if they form no whole heads.
    heads: Mapping[str, Sequence[CopiedHeads]] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        return list(chain.from_iterable(self.layers))

    @cached_property
    def groups_of_heads(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """The groups of units of all heads: pairs of a layer's name and units."""
        return frozenset(group for heads in self.heads.values() for each in heads for group in each.groups)


def messages(findings: Sequence[Finding], report: ModelDiagnosis) -> list[str]:
    """Return the findings in words, in the order of the layers. The message on a root also mentions its consequences.

    More than three layers with alike findings share a message. Units that form whole heads of attention are described
    by head. After ten messages a last one counts the findings that are left.
    """
    if not findings:  # at nearly all checks
        return []
    roots, followers = _roots_and_followers(findings)
    topics, roots = _topics_of_heads(roots, report)
    by_kind: dict[object, list[list[Finding]]] = {}
    for alike in alike_findings(roots, report):
        # Each set of copied modules gets its own message. Layers of different constants share one with their range.
        first = replace(alike[0], value=None) if alike[0].cause is Cause.CONSTANT else alike[0]
        key = first.layer if first.modules else (*_kind(first), _is_whole_layer(alike, report))
        by_kind.setdefault(key, []).append(alike)
    shared: list[list[list[Finding]]] = []
    for layers in by_kind.values():
        shared += [layers] if len(layers) > _MAX_ALIKE else [[alike] for alike in layers]
    position = _position(report)
    shared.sort(key=lambda layers: position(layers[0][0].layer))
    for layers in shared:
        # If a layer has several messages, only the first one mentions the consequences.
        names = [alike[0].layer for alike in layers if _has_no_gradient(alike[0])]
        topics.append(_Topic(layers, [each for name in names for each in followers.pop(name, [])]))
    topics.sort(key=lambda topic: position(topic.layers[0][0].layer))
    texts = [_message(topic, report) for topic in topics[:_MAX_MESSAGES]]
    if len(topics) > _MAX_MESSAGES:
        rest = sum(len(topic.layers) for topic in topics[_MAX_MESSAGES:])
        texts.append(f"and {rest} more finding{'s' if rest > 1 else ''}: `findings` lists all of them.")
    return texts


def _topics_of_heads(findings: Sequence[Finding], report: ModelDiagnosis) -> tuple[list[_Topic], list[Finding]]:
    """Return the topics about whole heads that are copies, and the findings that are not about such heads.

    Heads count as copies if all of their query, key and value weights are equal, at least one group of these units
    trains as one, and no such group is known to have different gradients.
    """
    by_kind: dict[object, list[_Topic]] = {}
    covered: set[tuple[str, tuple[str, tuple[int, ...]]]] = set()
    for code in _CODES_OF_COPIES if report.heads else ():
        news = {_place(finding) for finding in findings if finding.code == code}
        locked = [finding for finding in report.findings if finding.code == code] if news else []
        units = {name: _copied_units(report, name, code) for name in report.heads} if news else {}
        for module, several in groupby(copied_heads(report.heads, units), key=lambda each: each.module):
            topic = _Topic([], heads={module: [each for each in several if not news.isdisjoint(each.groups)]})
            every = [finding for finding in locked if _place(finding) in topic.groups_of_heads]
            if every:
                covered |= {(code, place) for place in topic.groups_of_heads}
                topic.layers.extend([each for each in every if each.layer == name] for name in _layers(every))
                heads = tuple((each.heads, each.roles) for each in topic.heads[module])
                kind = (code, heads, min(each.first_step for each in every), len(every) == len(topic.groups_of_heads))
                by_kind.setdefault(kind, []).append(topic)
    topics: list[_Topic] = []
    for alike in by_kind.values():
        if len(alike) > _MAX_ALIKE:
            layers = [each for topic in alike for each in topic.layers]
            alike = [_Topic(layers, heads={name: heads for topic in alike for name, heads in topic.heads.items()})]
        topics += alike
    return topics, [finding for finding in findings if (finding.code, _place(finding)) not in covered]


def _copied_units(report: ModelDiagnosis, layer: str, code: Code) -> list[tuple[int, ...]]:
    """Return the groups of copies in a layer that have this code, or no verdict yet."""
    groups = report.layers[layer].groups if layer in report.layers else []
    return [
        group.units
        for group in groups
        if not group.mirrored
        and (group.code == code or (group.verdict is Verdict.DUPLICATE and group.cause is Cause.COPIED))
    ]


def _place(finding: Finding) -> tuple[str, tuple[int, ...]]:
    return finding.layer, finding.units


def _roots_and_followers(findings: Sequence[Finding]) -> tuple[list[Finding], dict[str, list[Finding]]]:
    """Return the root findings, and the consequences of each root by the name of its layer."""
    without_gradient = [finding for finding in findings if _has_no_gradient(finding)]
    present = {finding.layer for finding in without_gradient}
    leads_to = {finding.layer: finding.follows for finding in without_gradient if finding.follows in present}
    roots: list[Finding] = []
    followers: dict[str, list[Finding]] = {}
    for finding in findings:
        root = finding.layer
        passed = {root}
        while root in leads_to and finding.follows and leads_to[root] not in passed:
            root = leads_to[root]
            passed.add(root)
        if root == finding.layer or root in leads_to:  # a cycle has no root
            roots.append(finding)
        else:
            followers.setdefault(root, []).append(finding)
    return roots, followers


def _has_no_gradient(finding: Finding) -> bool:
    return finding.verdict in (Verdict.DEAD, Verdict.FROZEN)


def idle_texts(layers: Iterable[LayerDiagnosis]) -> list[str]:
    """Return why idle units get no gradient: a text per reason.

    Example:
        >>> from lightning_symmetry.verdicts.stops import GradientStop
        >>> stop = GradientStop(StopKind.UNREAD, "slice after fc")
        >>> layer = LayerDiagnosis("fc", 6, 3, groups=[UnitGroup((4, 5), Verdict.IDLE, Cause.DEAD, stop=stop)])
        >>> print(*idle_texts([layer]))
        fc: 2 of 6 units, {4, 5}, get no gradient, since nobody reads their outputs (at slice after fc). If that is
        on purpose, nothing is wrong; else read them. [SYM401]
    """
    alike: dict[GradientStop | None, list[tuple[LayerDiagnosis, UnitGroup]]] = {}
    for layer in layers:
        for group in layer.groups:
            if group.verdict is Verdict.IDLE:
                alike.setdefault(group.stop, []).append((layer, group))
    texts = []
    for several in alike.values():
        layer, group = several[0]
        names = list(dict.fromkeys(layer.name for layer, _ in several))
        if len(names) == 1:
            units = describe_groups([group.units for _, group in several], layer.num_units)
            who = f"{layer.name}: {units}{_comma_after(units)}"
        else:
            units = f"{sum(len(group.units) for _, group in several)} units"
            who = f"{abbreviate(names)} ({len(names)} layers): {units}"
        verb = "gets" if units == ONLY_UNIT else "get"
        advice = _ADVICE_ON_IDLE.get(Code(group.code), "Nothing is wrong with these units.")
        code = f" [{group.code}]" if group.stop is not None and group.stop.is_idle else ""
        texts.append(f"{who} {verb} no gradient, {_why_idle(group)}. {advice}{code}")
    return texts


def _why_idle(group: UnitGroup) -> str:
    """Return why idle units have no gradient and where it stops, as the end of a sentence."""
    stop = group.stop
    if stop is None or group.code not in _WHY_IDLE:
        return "for a reason that was not measured"
    place = ": ".join(filter(None, (f"at {stop.at}" if stop.at else "", stop.detail)))
    return f"{_WHY_IDLE[Code(group.code)]}{f' ({place})' if place else ''}"


def _message(topic: _Topic, report: ModelDiagnosis) -> str:
    first, every = topic.layers[0][0], topic.findings
    if topic.heads:
        return _heads_message(topic, report)
    reason = why(every, report, topic.followers)
    if len(topic.layers) > 1:
        names = _layers(every)
        who = f"{abbreviate(names)} ({len(names)} layers):" if len(names) > 1 else f"{names[0]}:"
        if _is_whole_layer(topic.layers[0], report):
            return f"{who} all units of each layer {what(every)} {reason}"
        num_units = sum(len(finding.units) for finding in every)
        return f"{who} {num_units} units in {len(every)} groups {what(every)} {reason}"
    units = describe_units(topic.layers[0], report)
    who = f"{first.layer}: {units}{_comma_after(units)}"
    if first.modules:
        who = f"{units}: these {'parameters' if _are_parameters(first, report) else 'modules'}"
    seen = _singular(what(every)) if units == ONLY_UNIT else what(every)
    return f"{who} {seen} {reason}"


def _comma_after(units: str) -> str:
    """Return a comma if a description ends with a list of units, else nothing."""
    return "," if units.endswith(("}", "...")) else ""


def sentence(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return what happens to the units of alike findings in one layer, as a full sentence."""
    is_one = describe_units(alike, report) == ONLY_UNIT
    return f"It {_singular(what(alike))}" if is_one else f"They {what(alike)}"


def _singular(effect: str) -> str:
    """Rewrite a sentence about dead units for a single unit.

    >>> _singular("have gradients of exactly zero, though weights of their own: they do not train.")
    'has gradients of exactly zero, though weights of its own: it does not train.'
    """
    effect = effect.replace("have ", "has ", 1).replace("of their own", "of its own", 1)
    return effect.replace("they do not", "it does not", 1)


def _heads_message(topic: _Topic, report: ModelDiagnosis) -> str:
    """Return the message on heads of attention that are copies."""
    every, groups = topic.findings, topic.groups_of_heads
    modules, heads = list(topic.heads), next(iter(topic.heads.values()))
    names = [name for name in report.layers if name in {layer for layer, _ in groups}]
    who, where = f"{modules[0]}:", ", ".join(names)
    if len(modules) > 1:
        who = f"{modules[0]}, {modules[1]}, ..., {modules[-1]} ({len(modules)} attention modules): in each,"
        where = f"{abbreviate(names)}; {len(names)} layers"
    have_keys = any(len(each.roles) > 1 for each in heads)  # else they read the same keys and values
    share = "" if have_keys else ", and they share keys and values"
    roles = f"{'queries, keys and values' if have_keys else 'queries'} ({where})"
    effect = every[0].verdict.traits.effect
    since = f"{every[0].verdict} since step {min(finding.first_step for finding in every)}"
    if len(every) == len(groups):
        seen = f"Their {roles} {effect.format(since=since, as_units=_counted(len(heads), 'head'))}"
    else:
        number = _counted(len(groups), "group")
        seen = (
            f"Of the {number} of equal units in their {roles} {len(every)} "
            f"{effect.format(since=since, as_units=_counted(len(every), 'unit'))} "
            "The gradients of the others are inconclusive so far."
        )
    numbers, verbs = [each.heads for each in heads], ("is a copy of", "are copies of")
    copied = ", ".join(match_texts(numbers, "head", verbs, of_runs=", one by one"))
    reason = why(every, report, keep="one of them" if len(heads) == 1 else "one of each")
    return f"{who} {copied}{share}. {seen} {reason}"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number > 1 else ''}"


def _slices_text(finding: Finding, report: ModelDiagnosis) -> str:
    """Return a note on units that are slices of a parameter; empty for others."""
    layer = report.layers.get(finding.layer)
    if layer is None or not layer.slices_of:
        return ""
    return f"No adapter knows {layer.slices_of}, so its slices were compared: declare the units with `register_layer`."


def _is_whole_layer(alike: Sequence[Finding], report: ModelDiagnosis) -> bool:
    """Return whether there is a single finding, and it covers all units of its layer."""
    layer = report.layers.get(alike[0].layer)
    return layer is not None and len(alike) == 1 and len(alike[0].units) == layer.num_units


def _kind(finding: Finding) -> tuple[object, ...]:
    """Return a key that findings of one kind share, whatever the place where their gradients stop."""
    past = (finding.first_step, finding.broken_step is not None, finding.broken_step or 0)
    kind = "" if finding.stop is None else str(finding.stop.kind)
    is_rounding = finding.reason is Reason.ROUNDING_AGAIN
    seen = (finding.verdict, finding.cause, str(finding.value), finding.origin, is_rounding)
    return (*seen, *past, kind, finding.follows)


def copies_text(group: CopyGroup) -> str:
    """Return a note on modules that are copies but need no warning."""
    return (
        f"{group.describe()} start as exact copies of one another. copy.deepcopy, nn.TransformerEncoder and equal "
        "seeds make such copies; to start them apart, initialise each anew."
    )


def equal_ranks_text(ranks: tuple[int, int], step: int) -> str:
    """Return the warning about two ranks that have the same weights and compute the same gradients."""
    first, second = sorted(ranks)
    return (
        f"ranks {first} and {second} hold the same weights, and the gradients of step {step} that each computed itself "
        "are equal: with equal optimizers they train as one. If each holds a part of the model, both drew the same "
        "numbers: seed them apart while the parts are made, torch.manual_seed(seed + torch.distributed.get_rank()). If "
        "each holds the whole model, both were given the same data: give each its own, "
        "DataLoader(dataset, sampler=DistributedSampler(dataset))."
    )


def alike_findings(findings: Sequence[Finding], report: ModelDiagnosis) -> list[list[Finding]]:
    """Group findings that differ only in their units, in the order of the layers."""

    def kind(finding: Finding) -> tuple[object, ...]:
        return (finding.layer, *_kind(finding), "" if finding.stop is None else finding.stop.at)

    position = _position(report)
    ordered = sorted(findings, key=lambda finding: (position(finding.layer), kind(finding), finding.units))
    return [list(alike) for _, alike in groupby(ordered, key=kind)]


def _position(report: ModelDiagnosis) -> Callable[[str], int]:
    """Return a function that maps names of layers to their positions in the report; unknown names come last."""
    order = {name: i for i, name in enumerate(report.layers)}
    return lambda name: order.get(name, len(order))


def describe_units(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Describe the units of alike findings in a few words."""
    if alike[0].modules:
        return CopyGroup(alike[0].modules, alike[0].verdict).describe()
    layer = report.layers.get(alike[0].layer)
    units = [finding.units for finding in alike]
    return describe_groups(units, layer.num_units if layer else None, _which_heads(alike, report))


def _which_heads(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return which heads match, in words; empty unless the units of alike findings form whole heads of one kind."""
    several = report.heads.get(alike[0].layer, ())
    if len(several) != 1 or len(alike) == 1:
        return ""
    whole = several[0].whole([finding.units for finding in alike])
    if not whole or sum(map(len, whole.values())) < len(alike):
        return ""
    return ", ".join([*match_texts(list(whole), "head"), "unit by unit"])


def what(alike: Sequence[Finding]) -> str:
    """Return what happens to the units of alike findings, as sentences without a subject."""
    finding, is_silent = alike[0], _has_no_gradient(alike[0])
    effect = finding.verdict.traits.effect
    if finding.modules:
        effect = "are copies in weights and gradients ({since}): they train as one."
    elif is_silent and (_has_vanished(finding) or finding.reason is Reason.ROUNDING_AGAIN):
        zero = "vanishing gradients" if _has_vanished(finding) else "gradients that are zero but for rounding"
        is_dead = finding.verdict is Verdict.DEAD
        effect = f"have {zero}, though weights of their own" if is_dead else f"have equal weights and {zero}"
        effect += " ({since}): they do not train."
    elif finding.mirrored:
        effect = "are equal up to sign in weights and gradients ({since}): they train as {as_units}."
    since = f"{finding.verdict} since step {finding.first_step}"
    text = effect.format(since=since, as_units=_counted(len(alike), "unit"))
    num_watched = min(each.num_watched for each in alike)
    watched = f" That was so in all of the {num_watched} steps watched." if num_watched and is_silent else ""
    return text + watched


def _has_vanished(finding: Finding) -> bool:
    return finding.stop is not None and finding.stop.kind is StopKind.VANISHED


def why(
    alike: Sequence[Finding],
    report: ModelDiagnosis,
    followers: Sequence[Finding] = (),
    keep: str = "one of each if they are hidden units",
) -> str:
    """Return the cause of alike findings, as far as it was measured, what to do, and the code, in full sentences.

    ``followers`` are the consequences of these findings. ``keep`` says which of several copies to keep.
    """
    first = alike[0]
    if first.modules:
        sentences = _why_copies(first, report)
    elif first.verdict is Verdict.LOCKSTEP:
        sentences = _why_parallel(alike, report)
    elif _has_no_gradient(first) and not gradients_cancel(first):
        sentences = _why_no_gradient(alike, followers, report)
    else:
        sentences = _why_as_one(alike, report, keep)
    return " ".join(filter(None, [*sentences, _slices_text(first, report), f"[{first.code}]"]))


def _why_parallel(alike: Sequence[Finding], report: ModelDiagnosis) -> list[str]:
    """Return why units move in parallel, and what to do."""
    kept_by, kept = alike[0].kept_by, _kept(alike)
    if not kept:
        return [
            "Everything downstream treats them alike, such as a loss that sums the outputs, or equal weights in the "
            "layer that reads them.",
            "Use a loss that distinguishes them, or, if a layer reads them, initialise that one at random.",
        ]
    if kept_by == THE_LOSS:
        return [kept, "Use a loss in which each of them counts differently: a sum does not distinguish them."]
    line = line_for(_RANDOM, _weights([kept_by], report), each="weight")
    return [kept, _with_line(f"Initialise {kept_by} at random", line)]


def _kept(alike: Sequence[Finding]) -> str:
    """Return what keeps units equal; empty if that is unknown, or not the same for all."""
    finding = alike[0]
    if len({each.kept_by for each in alike}) > 1 or not finding.kept_by:
        return ""
    if finding.kept_by == THE_LOSS:
        return "They are outputs of the model, and the loss treats them alike."
    sign = " up to sign" if finding.mirrored else ""
    return f"{finding.kept_by} reads them alike: its weights for them are equal{sign}."


def _why_as_one(alike: Sequence[Finding], report: ModelDiagnosis, keep: str) -> list[str]:
    """Return why units train as one, and what to do; ``keep`` says which of the copies to keep."""
    first = alike[0]
    if gradients_cancel(first):
        cause = (
            "Every weight is 0: zero initialisation, and everything downstream treats these units alike, so that their "
            "gradients cancel out."
        )
        return [cause, _draw_anew(alike, report)]
    if first.origin is Origin.COLLAPSE:
        return [
            f"They were distinct before step {first.first_step}: they collapsed onto one another during training.",
            "A smaller learning rate, less weight decay or less gradient noise counters this.",
        ]
    if first.cause is Cause.MIRRORED:
        cause = (
            "Some of their rows are mirror images, the negatives, of others: behind an odd or even activation, such as "
            "tanh, they stay so."
        )
        return [cause, _kept(alike), _draw_anew(alike, report)]
    if first.value is not None or first.cause is Cause.ZERO:
        kind = "zero" if first.cause is Cause.ZERO else "constant"
        return [f"{_numbers(alike)}: {kind} initialisation.", _kept(alike), _draw_anew(alike, report)]
    copied = "Their rows are copies of one another: tiled, copied or padded weights."
    return [copied, _kept(alike), _add_noise(alike, report, keep)]


def _are_parameters(finding: Finding, report: ModelDiagnosis) -> bool:
    """Return whether the copies of a finding are single parameters rather than modules."""
    accesses = [_access(name, report) for name in finding.modules]
    return all(access.weights and not access.module for access in accesses)


def _why_copies(finding: Finding, report: ModelDiagnosis) -> list[str]:
    """Return what to do about whole modules, or single parameters, that are copies."""
    if _are_parameters(finding, report):
        line = line_for("torch.nn.init.normal_({}, std=0.02)", _weights(finding.modules, report), each="weight")
        return [_with_line("Initialise each of them at random", line)]
    others = [_access(name, report).module for name in finding.modules[1:]]
    line = ""
    if all(others) and len(others) <= _MAX_ALIKE:
        several = others[0] if len(others) == 1 else f"torch.nn.ModuleList([{', '.join(others)}])"
        line = f"for weight in {several}.parameters(): weight.data += 0.02 * torch.randn_like(weight)"
    noise = f" Or add noise to the others: `{line}`." if line else ""
    return [f"Build each of them anew instead of copying one, or keep only one of them.{noise}"]


def _why_no_gradient(alike: Sequence[Finding], followers: Sequence[Finding], report: ModelDiagnosis) -> list[str]:
    """Return where the gradient of units stops, what their own rows show, and what to do."""
    first = alike[0]
    died = f"They trained until step {first.first_step}." if first.origin is Origin.COLLAPSE else ""
    followed = _followers_text(followers, report)
    if first.follows:
        source = f"This follows from {first.follows}, which lets no gradient through: fix {first.follows} first."
        return [died, source, followed, _vary(alike, report)]
    of_followers = _vary(followers, report, of_followers=True)
    return [died, _where(alike), followed, _observed(alike), *_ways_out(alike, report), of_followers]


def _where(alike: Sequence[Finding]) -> str:
    """Return where the gradient of these units stops, with the measurement."""
    stops = [finding.stop for finding in alike if finding.stop is not None]
    if not stops or stops[0].kind is StopKind.UNKNOWN:
        detail = f" ({stops[0].detail})" if stops and stops[0].detail else ""
        return f"Where the gradient stops was not measured{detail}."
    details = list(dict.fromkeys(stop.detail for stop in stops if stop.detail))
    detail = f": {'for example, ' if len(details) > 1 else ''}{details[0]}" if details else ""
    if stops[0].kind is StopKind.ERASED:
        return f"A gradient reached them, and was zero when the optimizer stepped{detail}."
    if stops[0].kind is StopKind.VANISHED:
        return f"The gradient that reaches them is too small for its dtype{detail}."
    places = list(dict.fromkeys(stop.at for stop in stops if stop.at))
    at = f" at {abbreviate(places)}" if places else ""
    # For an activation the detail is only the range of its inputs, so the kind of stop is named too.
    if not detail or stops[0].kind in (StopKind.CLOSED, StopKind.SATURATED):
        detail = f", {_STOPPED[stops[0].kind]}{detail}"
    return f"The gradient stops{at}{detail}."


def _observed(alike: Sequence[Finding]) -> str:
    """Return what the rows of units without a gradient show; empty if they show nothing."""
    finding = alike[0]
    if finding.verdict is Verdict.FROZEN:
        if finding.value is not None or finding.cause is Cause.ZERO:
            return f"{_numbers(alike)}."
        if finding.mirrored:
            return "Their rows are equal up to sign."
        return "Their rows are copies of one another."
    if finding.reason is Reason.ROUNDING_AGAIN and finding.stop is None:
        return "The model has a norm over a single number, which passes back nothing but rounding errors."
    now = " now" if finding.origin is Origin.COLLAPSE else ""
    return {
        Cause.LOW_BIAS: f"Their biases lie far below zero{now}.",
        Cause.NEGATIVE: f"None of their weights is positive{now}.",
        Cause.SATURATED: f"Their weights or biases are large{now}.",
    }.get(finding.cause, "")


def _ways_out(alike: Sequence[Finding], report: ModelDiagnosis) -> list[str]:
    """Return what to do about units whose gradient stops."""
    first = alike[0]
    vary = _vary(alike, report)
    kind = StopKind.UNKNOWN if first.stop is None else first.stop.kind
    if kind is StopKind.CLOSED:
        # Drawing constant rows anew also opens the activation.
        return [vary] if vary and first.value is not None else [_open(alike, report), vary]
    if kind is StopKind.SATURATED:
        return [_scale_down(alike, report), vary]
    if kind is StopKind.ZERO_WEIGHTS:
        return [_fill(alike, report), vary]
    return [_WAYS_OUT.get(kind, ""), vary]


def _open(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    first = alike[0]
    with_slope = "an activation with a slope everywhere, such as torch.nn.LeakyReLU"
    if first.origin is Origin.COLLAPSE:
        return f"Use a smaller learning rate, or {with_slope}."
    if first.cause is Cause.LOW_BIAS:
        biases = [_access(name, report).biases for name in _layers(alike)]
        line = line_for("torch.nn.init.zeros_({})", list(chain.from_iterable(biases)), each="bias")
        return _with_line("Start the biases at 0", line if all(biases) else "")
    if first.cause is Cause.NEGATIVE:
        return _draw_anew(alike, report)
    if first.cause is Cause.SATURATED:
        return _scale_down(alike, report)
    return f"Start the biases at 0, centre or scale what goes in, or use {with_slope}."


def _scale_down(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return how to bring the inputs of an activation into the range where it has a slope."""
    if alike[0].cause is not Cause.SATURATED:
        return "Scale what goes in, or use smaller weights."
    return _with_line("Use smaller weights and biases, or scale what goes in", _reset_line(_layers(alike), report))


def _fill(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    places = list(dict.fromkeys(finding.stop.at for finding in alike if finding.stop is not None))
    line = _reset_line(places, report) or line_for(_RANDOM, _weights(places, report), each="weight")
    return _with_line(f"Initialise {abbreviate(places)}, or give it weights other than zero", line)


def _vary(alike: Sequence[Finding], report: ModelDiagnosis, *, of_followers: bool = False) -> str:
    """Return how to make the equal ones among these units differ; empty if none are equal."""
    equal = [finding for finding in alike if finding.verdict is Verdict.FROZEN]
    if not equal:
        return ""
    if all(finding.value is None and finding.cause is not Cause.ZERO for finding in equal):
        line = line_for(_NOISE, _weights(_layers(equal), report), each="weight")  # copied rows are worth keeping
    else:
        line = _line_to_draw(equal, report)
    if of_followers:
        names = abbreviate(_layers(equal))
        return _with_line(f"The units of {names} are equal, too, and need weights that differ", line)
    return f"Give these units weights that differ{f', e.g. `{line}`' if line else ''}."


def _followers_text(followers: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return which layers get no gradient as a consequence; empty if there are none."""
    names = sorted(_layers(followers), key=_position(report))
    if not names:
        return ""
    rest = len(names) - 1
    more = f" and {rest} more layer{'s' if rest > 1 else ''} get" if rest else " gets"
    return f"{names[0]}{more} no gradient for this reason."


def _draw_anew(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return how to initialise layers at random."""
    line = _line_to_draw(alike, report)
    example = f"at random, e.g. `{line}`" if line else "the weights at random, e.g. with torch.nn.init.kaiming_uniform_"
    return f"Initialise {example}."


def _line_to_draw(alike: Sequence[Finding], report: ModelDiagnosis) -> str:
    """Return a line of code that draws the weights of layers anew; empty if it is unknown how code reaches them."""
    names = _layers(alike)
    weights = _weights(names, report)
    reset = _reset_line(names, report) if len(weights) > len(names) else ""
    return reset or line_for(_RANDOM, weights, each="weight")


def _reset_line(names: Sequence[str], report: ModelDiagnosis) -> str:
    """Return a line of code that initialises modules as torch does; empty if that is impossible for one of them."""
    accesses = [_access(name, report) for name in names]
    if not all(access.can_reset and access.module for access in accesses):
        return ""
    return line_for("{}.reset_parameters()", [access.module for access in accesses], each="module")


def _add_noise(alike: Sequence[Finding], report: ModelDiagnosis, keep: str) -> str:
    line = line_for(_NOISE, _weights(_layers(alike), report), each="weight")
    return f"Add noise to the copies{f', e.g. `{line}`' if line else ''}, or keep only {keep}."


def _weights(names: Sequence[str], report: ModelDiagnosis) -> list[str]:
    """Return expressions for the weights of some layers; empty if those of any layer are unknown."""
    weights = [_access(name, report).weights for name in names]
    return list(chain.from_iterable(weights)) if all(weights) else []


def _with_line(text: str, line: str) -> str:
    """Return a sentence, with a line of code if there is one."""
    return f"{text}: `{line}`." if line else f"{text}."


def _layers(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.layer for finding in findings))


def _access(name: str, report: ModelDiagnosis) -> Access:
    return report.access.get(name, Access())


def _numbers(alike: Sequence[Finding]) -> str:
    """Return the constant of each unit, as a number or a range."""
    values = sorted({finding.value or 0.0 for finding in alike})
    low, high = f"{values[0]:.6g}", f"{values[-1]:.6g}"
    return f"Every weight is {low}" if low == high else f"The weights of each are one number, from {low} to {high}"
