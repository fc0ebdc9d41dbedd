"""By a report, which units of a model are to be changed, how, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import dropwhile, islice, takewhile

from lightning_symmetry.units.layers import Incoming, Layer
from lightning_symmetry.verdicts.diagnoses import Cause, LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.stops import StopKind
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

_FROZEN = "its weights are frozen (`requires_grad=False`)"
ZERO_ON_PURPOSE = (
    "their weights are zero, which may be on purpose, as in a pruned layer or in the second factor of a low-rank "
    "adapter, and a single look does not show that they fail to train; pass the report of a training"
)
# Where the gradient of dead units stops if their outputs are the constant of an activation that is shut. In all other
# places the units may put out anything: only their gradient is missing.
_SHUT = (StopKind.CLOSED, StopKind.SATURATED, StopKind.UNKNOWN)


class Drawing(StrEnum):
    """How new numbers are made."""

    FRESH = "fresh"  # as the layer type initialises them by default
    AT_SCALE = "at scale"  # in a random direction, as long as what is replaced
    NOISE = "noise"  # what is there, with a little noise


@dataclass(frozen=True)
class Plan:
    """What is to happen to some units of a layer.

    Attributes:
        layer: the layer.
        units: sorted indices.
        drawing: how their new numbers are made.
        reason: why, in words that follow "because".
        clear_outgoing: whether the weights that read these units become zero.
    """

    layer: Layer
    units: tuple[int, ...]
    drawing: Drawing
    reason: str
    clear_outgoing: bool = False


@dataclass(frozen=True)
class Left:
    """Units that are left as they are, though the report names them.

    Attributes:
        layer: name of the layer, or of a whole module.
        units: sorted indices; empty for a whole module.
        reason: why, as a clause.
    """

    layer: str
    units: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        """Return a sentence.

        >>> print(Left("fc1", (1, 2), "its weights are frozen (`requires_grad=False`)"))
        fc1: 2 units, {1, 2}, were left as they are: its weights are frozen (`requires_grad=False`).
        """
        several = f"unit {self.units[0]}" if len(self.units) == 1 else describe_groups([self.units], None)
        units = f": {several}," if self.units else ""
        verb = "was" if len(self.units) <= 1 else "were"
        each = "it is" if len(self.units) <= 1 else "they are"
        return f"{self.layer}{units} {verb} left as {each}: {self.reason}."


def plans_for(
    report: SymmetryReport, layers: Mapping[str, Layer], *, only_noise: bool
) -> tuple[list[Plan], list[Left]]:
    """Return what is to happen to the units of a model, in the order of its layers, and which units are left.

    Args:
        report: what is known of them.
        layers: the layers of the model, by name, in their order.
        only_noise: whether copies get noise rather than rows that are drawn anew.
    """
    plans: dict[str, list[Plan]] = {name: [] for name in layers}
    left: list[Left] = []
    drawn: set[int] = set()  # identities of weights of which every number is new: tied ones are drawn once
    for diagnosis in report.distinct_layers:
        layer = layers.get(diagnosis.name)
        if layer is None or not drawn.isdisjoint(map(id, layer.tensors[0].originals)):
            continue
        for planned in _plans_for_layer(layer, diagnosis, only_noise=only_noise):
            if isinstance(planned, Left):
                left.append(planned)
            elif is_trained(layer.tensors[0]):
                plans[layer.name].append(planned)
            else:
                left.append(Left(layer.name, planned.units, _FROZEN))
        of_all_units = any(len(plan.units) == layer.num_units for plan in plans[layer.name])
        if of_all_units and all(share == 1 for _, share in layer.shares()):
            drawn.update(map(id, layer.tensors[0].originals))
    for diagnosis in filter(_is_cut_off, report.distinct_layers):
        for blocking in _blocking(diagnosis.name, layers):
            if not plans[blocking.name] and is_trained(blocking.tensors[0]):
                every_unit = tuple(range(blocking.num_units))
                reason = f"their weights were zero, and let no gradient through to {diagnosis.name}"
                plans[blocking.name] = [Plan(blocking, every_unit, Drawing.FRESH, reason)]
    return [plan for several in plans.values() for plan in several], left


def is_trained(tensor: Incoming) -> bool:
    """Return whether every parameter that a tensor is made of requires a gradient."""
    return all(original.requires_grad for original in tensor.originals)


def _plans_for_layer(layer: Layer, diagnosis: LayerDiagnosis, *, only_noise: bool) -> Iterator[Plan | Left]:
    to_be_broken = [group for group in diagnosis.groups if is_to_be_broken(group.verdict, group.first_step)]
    if zero := [group for group in to_be_broken if group.value == 0 and group.verdict is Verdict.DUPLICATE]:
        yield Left(layer.name, tuple(sorted(unit for group in zero for unit in group.units)), ZERO_ON_PURPOSE)
        to_be_broken = [group for group in to_be_broken if group not in zero]
    for group in filter(_holds_nothing, to_be_broken):
        drawing = Drawing.NOISE if only_noise else Drawing.FRESH
        yield Plan(layer, group.units, drawing, f"all of their weights were {group.value:.6g}")
    if copied := [group for group in to_be_broken if not _holds_nothing(group)]:
        others = tuple(sorted(unit for group in copied for unit in group.units[1:]))
        yield Plan(layer, others, Drawing.NOISE if only_noise else Drawing.AT_SCALE, _reason_of_copies(copied))
    grouped = {unit for group in diagnosis.groups if group.verdict is not Verdict.DEAD for unit in group.units}
    dead = tuple(unit for unit in diagnosis.dead if unit not in grouped)
    # A single look shows zero gradients of one batch, which is no death.
    if not dead or not diagnosis.died_at or _is_cut_off(diagnosis):
        return
    groups = [group for group in diagnosis.groups if group.verdict is Verdict.DEAD]
    elsewhere = next((group.stop for group in groups if group.stop and group.stop.kind not in _SHUT), None)
    if root := next((group.follows for group in groups if group.follows), ""):
        yield Left(layer.name, dead, f"layer {root} stops their gradient; they may train as soon as that one does")
    elif elsewhere is not None:
        yield Left(layer.name, dead, f"their gradient stops where nothing shows that they put out zero ({elsewhere})")
    else:
        yield Plan(layer, dead, Drawing.FRESH, "they were dead", clear_outgoing=True)


def _reason_of_copies(groups: Sequence[UnitGroup]) -> str:
    what = "copies, some with the other sign," if any(group.mirrored for group in groups) else "copies"
    [first, *others] = [group.units[0] for group in groups]
    return f"they were {what} of {f'{len(groups)} other units' if others else f'unit {first}'}"


def is_to_be_broken(verdict: Verdict, first_step: int | None) -> bool:
    """Whether units, or modules, of this verdict are to be parted.

    Args:
        verdict: what became of them.
        first_step: when they were seen first; None after a single look, which can prove nothing: what is equal there
            is then parted on request.
    """
    if verdict is Verdict.DUPLICATE:
        return first_step is None
    return verdict in (Verdict.LOCKED, Verdict.FROZEN)


def _holds_nothing(group: UnitGroup) -> bool:
    """Whether the rows of a group are a single number each, of which nothing is worth keeping."""
    return group.value is not None and group.cause in (Cause.ZERO, Cause.CONSTANT, Cause.DEAD)


def _is_cut_off(diagnosis: LayerDiagnosis) -> bool:
    """Whether it is what follows a layer that lets no gradient through to it."""
    return any(
        group.verdict is Verdict.FROZEN or (group.verdict is Verdict.DEAD and group.cause is Cause.CUT_OFF)
        for group in diagnosis.groups
    )


def _blocking(name: str, layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers right after one, in the order of the model, whose weights are all zero; none if it is unknown."""
    behind = dropwhile(lambda layer: layer.name != name, layers.values())
    return list(takewhile(lambda layer: not layer.tensors[0].weights.detach().any(), islice(behind, 1, None)))
