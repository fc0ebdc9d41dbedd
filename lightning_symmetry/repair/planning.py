"""Plans of a repair: which units to change according to a report, how, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import dropwhile, islice, takewhile

from lightning_symmetry.units.layers import Incoming, Layer
from lightning_symmetry.verdicts.diagnoses import Cause, LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.stops import StopKind
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

ZERO_ON_PURPOSE = (
    "their weights are zero, which may be on purpose, as in a pruned layer or in the second factor of a low-rank "
    "adapter, and a single check cannot show that they fail to train; pass the report of a training, `monitor.report`"
)
# If the gradient of dead units stops for one of these reasons, their outputs are the constant of a closed activation.
# If it stops for another one, the units may have any output.
_CLOSED = (StopKind.CLOSED, StopKind.SATURATED, StopKind.UNKNOWN)


class Drawing(StrEnum):
    """How new rows are drawn."""

    FRESH = "fresh"  # by the default initialisation of the layer type
    AT_SCALE = "at scale"  # in a random direction, with the norm of the old row
    NOISE = "noise"  # as the old row plus a little noise


@dataclass(frozen=True)
class Plan:
    """A planned change of some units of a layer."""

    layer: Layer
    units: tuple[int, ...]  # sorted indices
    drawing: Drawing  # how their new rows are drawn
    reason: str  # why, to follow "because"
    clear_outgoing: bool = False  # whether to zero the weights that read these units


@dataclass(frozen=True)
class Left:
    """Units named by the report that are not changed."""

    layer: str  # name of the layer, or of a whole module
    units: tuple[int, ...]  # sorted indices; empty for a whole module
    reason: str  # why, as a clause

    def __str__(self) -> str:
        """Return the units and the reason as a sentence.

        >>> print(Left("fc1", (1, 2), "its weights are frozen (`requires_grad=False`)"))
        fc1: 2 units, {1, 2}, were left as they are: its weights are frozen (`requires_grad=False`).
        """
        verb, each = ("were", "they are") if len(self.units) > 1 else ("was", "it is")
        return f"{name_units(self.layer, self.units)} {verb} left as {each}: {self.reason}."


def name_units(layer: str, units: tuple[int, ...]) -> str:
    """Return the subject of a sentence about some units, or about the whole layer if ``units`` is empty.

    >>> name_units("fc1", (1, 2)), name_units("fc1", (1,)), name_units("fc1", ())
    ('fc1: 2 units, {1, 2},', 'fc1: unit 1,', 'fc1')
    """
    if not units:
        return layer
    return f"{layer}: {f'unit {units[0]}' if len(units) == 1 else describe_groups([units], None)},"


def plans_for(
    report: SymmetryReport, layers: Mapping[str, Layer], *, only_noise: bool
) -> tuple[list[Plan], list[Left]]:
    """Return the planned changes of a model, in the order of its layers, and the units that are not changed."""
    plans: dict[str, list[Plan]] = {name: [] for name in layers}
    left: list[Left] = []
    drawn: set[int] = set()  # `id`s of weights that are drawn completely; tied weights are drawn once
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
                left.append(Left(layer.name, planned.units, "its weights are frozen (`requires_grad=False`)"))
        of_all_units = any(len(plan.units) == layer.num_units for plan in plans[layer.name])
        if of_all_units and all(share == 1 for _, share in layer.shares()):
            drawn.update(map(id, layer.tensors[0].originals))
    for diagnosis in filter(_is_blocked, report.distinct_layers):
        for blocking in _blocking(diagnosis.name, layers):
            if not plans[blocking.name] and is_trained(blocking.tensors[0]):
                every_unit = tuple(range(blocking.num_units))
                reason = f"their weights were zero, and blocked the gradient of {diagnosis.name}"
                plans[blocking.name] = [Plan(blocking, every_unit, Drawing.FRESH, reason)]
    return [plan for several in plans.values() for plan in several], left


def is_trained(tensor: Incoming) -> bool:
    """Return whether all parameters of a tensor require a gradient."""
    return all(original.requires_grad for original in tensor.originals)


def _plans_for_layer(layer: Layer, diagnosis: LayerDiagnosis, *, only_noise: bool) -> Iterator[Plan | Left]:
    to_be_broken = [group for group in diagnosis.groups if is_to_be_broken(group.verdict, group.first_step)]
    if zero := [group for group in to_be_broken if group.value == 0 and group.verdict is Verdict.DUPLICATE]:
        yield Left(layer.name, tuple(sorted(unit for group in zero for unit in group.units)), ZERO_ON_PURPOSE)
        to_be_broken = [group for group in to_be_broken if group not in zero]
    for group in filter(_is_constant, to_be_broken):
        drawing = Drawing.NOISE if only_noise else Drawing.FRESH
        yield Plan(layer, group.units, drawing, f"all of their weights were {group.value:.6g}")
    if copied := [group for group in to_be_broken if not _is_constant(group)]:
        what = "copies, some with the other sign," if any(group.mirrored for group in copied) else "copies"
        whose = f"{len(copied)} other units" if len(copied) > 1 else f"unit {copied[0].units[0]}"
        others = tuple(sorted(unit for group in copied for unit in group.units[1:]))
        drawing = Drawing.NOISE if only_noise else Drawing.AT_SCALE
        yield Plan(layer, others, drawing, f"they were {what} of {whose}")
    grouped = {unit for group in diagnosis.groups if group.verdict is not Verdict.DEAD for unit in group.units}
    dead = tuple(unit for unit in diagnosis.dead if unit not in grouped)
    # After a single check, `dead` means zero gradients of one batch, which proves nothing.
    if not dead or not diagnosis.died_at or _is_blocked(diagnosis):
        return
    groups = [group for group in diagnosis.groups if group.verdict is Verdict.DEAD]
    elsewhere = next((group.stop for group in groups if group.stop and group.stop.kind not in _CLOSED), None)
    if root := next((group.follows for group in groups if group.follows), ""):
        yield Left(layer.name, dead, f"layer {root} stops their gradient; they may train as soon as {root} does")
    elif elsewhere is not None:
        yield Left(layer.name, dead, f"their gradient stops where nothing shows that they output zero ({elsewhere})")
    else:
        yield Plan(layer, dead, Drawing.FRESH, "they were dead", clear_outgoing=True)


def is_to_be_broken(verdict: Verdict, first_step: int | None) -> bool:
    """Return whether to separate units or modules of this verdict.

    Duplicates are separated only after a single check, which leaves ``first_step`` None: one check cannot show whether
    they are locked, and the user has asked for the repair.
    """
    if verdict is Verdict.DUPLICATE:
        return first_step is None
    return verdict in (Verdict.LOCKED, Verdict.FROZEN)


def _is_constant(group: UnitGroup) -> bool:
    """Return whether all weights of a group are one number, so that nothing is worth keeping."""
    return group.value is not None and group.cause in (Cause.ZERO, Cause.CONSTANT, Cause.DEAD)


def _is_blocked(diagnosis: LayerDiagnosis) -> bool:
    """Return whether another layer blocks this layer's gradient."""
    return any(
        group.verdict is Verdict.FROZEN or (group.verdict is Verdict.DEAD and group.cause is Cause.CUT_OFF)
        for group in diagnosis.groups
    )


def _blocking(name: str, layers: Mapping[str, Layer]) -> list[Layer]:
    """Return the layers directly after one, in the order of the model, up to the first whose weights are not zero."""
    following = islice(dropwhile(lambda layer: layer.name != name, layers.values()), 1, None)
    return list(takewhile(lambda layer: not layer.tensors[0].weights.detach().any(), following))
