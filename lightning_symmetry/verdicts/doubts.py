"""Why nothing can be concluded about parts of a model: the difference between "healthy" and "not checked"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from enum import StrEnum

from lightning_symmetry.units.progress import Progress
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, Reason
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_NAMES = 3


class Untrained(StrEnum):
    """Why a layer or parameter whose numbers are finite does not train."""

    NO_OPTIMIZER = "no optimizer updates it"
    NO_GRADIENT = "no gradient has reached it"
    UNMOVED = "it has not moved"


def untrained_parts(
    names: Iterable[tuple[str, Sequence[Progress]]], updated: Set[int], patience: int
) -> dict[str, str]:
    """Return why layers do not train, by name; by name of the parameter if only some parameters of a layer do not.

    Args:
        names: by name of a layer, or of a parameter that belongs to no layer, the progress of its parameters.
        updated: identities (``id``) of the parameters that any optimizer updates.
        patience: number of checks without a gradient, or a movement, after which a parameter counts as untrained.
    """
    reasons: dict[str, str] = {}
    every = list(names)
    vectors = [one for _, several in every for one in several if one.parameter.dim() < 2]
    have_vectors_moved = any(one.has_moved for one in vectors)
    for name, several in every:
        found = {one.name: _why_untrained(one, updated, patience) for one in several if one.is_wanted}
        if len(set(found.values())) == 1:
            found = {name: next(iter(found.values()))}
        # The gradient of a vector may be too small to move it, as for a bias whose effect a norm removes, or for the
        # gate of a branch that starts closed.
        is_small = have_vectors_moved and all(one.parameter.dim() < 2 for one in several)
        if is_small or any(one.has_moved for one in several):
            found = {each: reason for each, reason in found.items() if reason != Untrained.UNMOVED}
        reasons |= {each: str(reason) for each, reason in found.items() if reason}
    return reasons


def _why_untrained(seen: Progress, updated: Set[int], patience: int) -> str:
    if seen.not_finite_since is not None:
        return f"not finite since step {seen.not_finite_since}"
    if seen.is_moved_by_others:
        return ""
    if id(seen.parameter) not in updated:
        return Untrained.NO_OPTIMIZER
    if seen.num_checks >= patience and not seen.had_gradient:
        return Untrained.NO_GRADIENT
    if seen.num_checks_since >= max(patience, 2) and not seen.has_moved:
        return Untrained.UNMOVED
    return ""


def untrained_reasons(untrained: Mapping[str, str]) -> list[str]:
    """Return a text for each layer or parameter that does not train.

    >>> untrained_reasons({"head": "no optimizer updates it"})
    ['head does not train: no optimizer updates it']
    """
    return [f"{name} does not train: {reason}" for name, reason in untrained.items()]


def untrained_text(untrained: Mapping[str, str]) -> str:
    """Return one line of text that lists what has not trained, by reason.

    >>> untrained_text({"a": "it has not moved", "b": "it has not moved", "head": "no optimizer updates it"})
    'it has not moved: a, b; no optimizer updates it: head'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in untrained.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{reason}: {_names(names, '')}" for reason, names in by_reason.items())


def undecided_layers(layers: Iterable[LayerDiagnosis]) -> list[str]:
    """Return a text for each layer with equal units whose gradients are inconclusive so far."""
    sentences = []
    for layer in layers:
        # Slices of a parameter are omitted: they may never be used, such as positions beyond the longest text.
        undecided = [] if layer.slices_of else [group for group in layer.groups if group.verdict is Verdict.DUPLICATE]
        groups = [group.units for group in undecided if group.reason is not Reason.PRUNED]
        if groups:
            who = f"{layer.name}: {describe_groups(groups, layer.num_units)} are equal"
            sentences.append(f"{who}, and their gradients are inconclusive so far; more optimizer steps will tell")
    return sentences


def crowded_layers(layers: Iterable[LayerDiagnosis]) -> list[str]:
    """Return a text for each layer with too many units of nearly equal weights to compare them all.

    >>> crowded_layers([LayerDiagnosis("fc", 2048, 512, crowded_units=2048, crowd_radius=3.4e-5)])
    ["fc: too many near rows to compare: 2,048 of 2,048 units, whose weights lie within 3.4e-05 of the first one's"]
    """
    return [
        f"{layer.name}: too many near rows to compare: {layer.crowded_units:,} of {layer.num_units:,} units, whose "
        f"weights lie within {layer.crowd_radius:.2g} of the first one's"
        for layer in layers
        if layer.crowded_units
    ]


def too_few_checks(num_checks: Mapping[str, int], needed: int) -> list[str]:
    """Return a text if some layers have had gradients at too few checks.

    ``num_checks`` counts for each layer the checks with a gradient other than zero. After ``needed`` such checks every
    verdict is possible.
    """
    if num_checks and not any(num_checks.values()):
        return ["no check has seen a gradient other than zero"]
    # Layers that have had no gradient, such as unused experts, are omitted.
    few = [name for name, number in num_checks.items() if 0 < number < needed]
    if not few:
        return []
    fewest = min(num_checks[name] for name in few)
    checks = f"{fewest} check{'s' if fewest > 1 else ''}"
    return [f"{_names(few)}: only {checks} of the {needed} that it takes; more optimizer steps will tell"]


def may_be_dead(layers: Iterable[LayerDiagnosis], dead_share: float) -> list[str]:
    """Return a text for each layer in which the share of units that may be dead reaches ``dead_share``."""
    return [
        f"{layer.name}: {layer.idle_units} of {layer.num_units} units have had gradients of exactly zero at the last "
        "checks; it takes 50 steps in a row to call them dead"
        for layer in layers
        if layer.idle_units > layer.dead_units and layer.idle_units >= dead_share * layer.num_units
    ]


def not_looked_at(unread: Mapping[str, str]) -> list[str]:
    """Return a text for each module with weights that were not checked, given the reasons by name."""
    return [
        f"{name} was not looked at: {reason}; to leave it out on purpose, name it in `exclude`"
        for name, reason in unread.items()
    ]


def _names(names: Sequence[str], kind: str = " layer") -> str:
    """Return the first three names and the number of others.

    >>> _names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more layers'
    """
    shown = ", ".join(names[:_MAX_NAMES])
    rest = len(names) - _MAX_NAMES
    return shown if rest <= 0 else f"{shown} and {rest} more{kind}{'s' if kind and rest > 1 else ''}"
