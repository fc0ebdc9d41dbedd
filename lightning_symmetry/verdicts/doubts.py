"""Why nothing can be concluded of parts of a model: what separates "healthy" from "nobody has looked"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_NAMES = 3


def undecided_layers(layers: Iterable[LayerDiagnosis]) -> list[str]:
    """A sentence for each layer with equal units whose gradients say nothing so far."""
    sentences = []
    for layer in layers:
        # Slices of a parameter may go unused for ever, as the positions do that no text is long enough for.
        is_open = not layer.slices_of
        groups = [group.units for group in layer.groups if is_open and group.verdict is Verdict.DUPLICATE]
        if groups:
            who = f"{layer.name}: {describe_groups(groups, layer.num_units)} are equal"
            sentences.append(f"{who}, and their gradients say nothing so far; more optimizer steps will tell")
    return sentences


def too_few_checks(num_checks: Mapping[str, int], needed: int) -> list[str]:
    """A sentence if there are layers whose gradients too few checks have seen.

    Args:
        num_checks: by layer, how many checks have seen a gradient of it that is not zero.
        needed: how many checks it takes until all verdicts can be reached.
    """
    if num_checks and not any(num_checks.values()):
        return ["no check has seen a gradient other than zero"]
    # Layers that no gradient ever reaches, such as experts that are not used, wait for nothing.
    few = [name for name, number in num_checks.items() if 0 < number < needed]
    if not few:
        return []
    fewest = min(num_checks[name] for name in few)
    checks = f"{fewest} check{'s' if fewest > 1 else ''}"
    return [f"{_names(few)}: only {checks} of the {needed} that it takes; more optimizer steps will tell"]


def may_be_dead(layers: Iterable[LayerDiagnosis], dead_share: float) -> list[str]:
    """A sentence for each layer so many of whose units may turn out to be dead that the user would be warned.

    Args:
        layers: the layers.
        dead_share: the share of dead units of which the user is warned.
    """
    return [
        f"{layer.name}: {layer.idle_units} of {layer.num_units} units have had gradients of exactly zero at the last "
        "checks; it takes 50 steps to call them dead"
        for layer in layers
        if layer.idle_units > layer.dead_units and layer.idle_units >= dead_share * layer.num_units
    ]


def not_looked_at(unread: Mapping[str, str]) -> list[str]:
    """A sentence for each module that holds weights which nobody looks at.

    Args:
        unread: by name of the module, the reason.
    """
    return [
        f"{name} was not looked at: {reason}; to leave it out on purpose, name it in `exclude`"
        for name, reason in unread.items()
    ]


def _names(names: Sequence[str]) -> str:
    """Some names in a few words.

    >>> _names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more layers'
    """
    shown = ", ".join(names[:_MAX_NAMES])
    rest = len(names) - _MAX_NAMES
    return shown if rest <= 0 else f"{shown} and {rest} more layer{'s' if rest > 1 else ''}"
