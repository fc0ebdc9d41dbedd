"""The conclusions about groups of units, layers and whole modules, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lightning_symmetry.verdicts.codes import CODE_OF_STOP, Code
from lightning_symmetry.verdicts.stops import GradientStop, StopKind
from lightning_symmetry.verdicts.tables import abbreviate, describe_groups, shorten
from lightning_symmetry.verdicts.verdict import Verdict

# The value of `Finding.kept_by` for outputs of the model.
THE_LOSS = "the loss"


class Cause(StrEnum):
    """How a group came about, as far as its weights and gradients show."""

    ZERO = "zero"  # every weight is 0
    CONSTANT = "constant"  # every weight is the same number
    COPIED = "copied"  # the rows are copies of one another
    MIRRORED = "mirrored"  # the rows are copies of one another, some with the other sign
    DEAD = "dead"  # no gradient although the weights are not zero, as behind a ReLU that is always closed
    LOW_BIAS = "low bias"  # dead: the bias lies far below zero
    NEGATIVE = "negative weights"  # dead: no weight is positive, so that nonnegative inputs keep a ReLU closed
    SATURATED = "saturated"  # dead: weights or bias so large that the slope of a sigmoid or tanh is zero
    CUT_OFF = "cut off"  # dead: all units of the layer, with rows that look healthy


class Origin(StrEnum):
    """How a group entered the records."""

    START = "start"  # it existed before the first update
    FIRST_LOOK = "first look"  # it existed at the first check of this layer, some updates later
    COLLAPSE = "collapse"  # the units were distinct at an earlier check


class Reason(StrEnum):
    """Why a verdict was given."""

    EQUAL_FROM_START = "equal from the start"  # equal gradients, in a group that existed before the first update
    EQUAL_AGAIN = "equal again"  # equal gradients at `patience` checks in a row
    ZERO_AGAIN = "zero again"  # gradients of exactly zero at `patience` checks in a row
    ROUNDING_AGAIN = "rounding again"  # gradients no larger than rounding errors at `patience` checks in a row
    DIFFERENT = "different"  # different gradients
    MOVED_AS_ONE = "moved as one"  # the weights are still equal after they have moved far
    PARALLEL_AGAIN = "parallel again"  # equal gradients of different weights at `patience` checks in a row
    PRUNED = "pruned"  # rows of zeros without gradients, in a layer whose other rows are not zero
    UNDECIDED = "undecided"  # no evidence so far


@dataclass(frozen=True)
class UnitGroup:
    """A maximal set of two or more units of one layer whose rows or gradient rows agree, or dead or idle units.

    Attributes:
        units: sorted indices of the units.
        verdict: the verdict on them.
        cause: pattern of their weights when the group was first seen.
        value: the number that every weight equalled, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first; None after a single look.
        origin: how the group entered the records.
        reason: why the verdict in the first warning was given; :attr:`Reason.PRUNED` for rows that are zero on
            purpose, which need no warning.
        mirrored: the units whose row is the negative of the first unit's.
        num_watched: number of optimizer steps in a row at which the gradients of all units were exactly zero.
        stop: where their gradient stops; None if it does not, or if no step was traced.
        follows: name of the layer that stops it, if that is another layer with zero gradients; else empty.
        kept_by: what keeps them equal, as in :class:`Finding`.
    """

    units: tuple[int, ...]
    verdict: Verdict
    cause: Cause
    value: float | None = None
    first_step: int | None = None
    origin: Origin = Origin.START
    reason: Reason = Reason.UNDECIDED
    mirrored: tuple[int, ...] = ()
    num_watched: int = 0
    stop: GradientStop | None = None
    follows: str = ""
    kept_by: str = ""

    @property
    def code(self) -> str:
        """The code of the diagnosis, such as ``"SYM101"``; empty if there is none."""
        return _code_of(self)

    def __repr__(self) -> str:
        return f"<UnitGroup {self.verdict}, {self.cause}: {describe_groups([self.units], None)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; :meth:`SymmetryReport.to_dict` explains the fields."""
        return {
            "units": list(self.units),
            "verdict": str(self.verdict),
            "cause": str(self.cause),
            "value": self.value,
            "first_step": self.first_step,
            "mirrored": list(self.mirrored),
            "stop": None if self.stop is None else self.stop.to_dict(),
            "follows": self.follows,
            "kept_by": self.kept_by,
        }


@dataclass(frozen=True)
class LayerDiagnosis:
    """The state of one layer.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        num_units: number of units.
        fan_in: number of weights that feed one unit, without the bias.
        dead: sorted indices of the dead units: those with weights of their own whose gradient was exactly zero at
            ``patience`` checks in a row, and at more than 50 steps in a row. After a single look: those whose gradient
            is zero.
        groups: disjoint groups of units, sorted.
        also: names of layers that share the weight; the report has this diagnosis under each.
        died_at: for each dead unit, the optimizer step of the check since which its gradient has been zero; empty after
            a single look.
        woke_at: by unit that was dead and trains again, the optimizer step of the check that found this.
        idle_units: number of units whose gradient was exactly zero at ``patience`` checks in a row, over however few
            steps; some of them may not be dead.
        orientations: number of directions, up to sign, among the rows of the living units, which are neither dead nor
            zero; rows share a direction if the absolute value of their cosine similarity is 0.999 or more. Small
            initialisation makes units condense onto few directions early in the training (Zhou et al. 2022, arXiv
            2105.11686). Directions are counted at checks 1, 8, 16 and 32 of the layer, then at every 64th, and at
            every fourth while the layer is condensed. None for layers of more than 16,384 units.
        slices_of: name of the parameter, if these units are its slices because no adapter knows it; else empty.
        crowded_units: number of units whose weights nearly agree with those of too many others to compare them all.
        crowd_radius: the relative L2 distance from one of these units within which the weights of all of them lie.
    """

    name: str
    num_units: int
    fan_in: int
    dead: tuple[int, ...] = ()
    groups: list[UnitGroup] = field(default_factory=list)
    also: tuple[str, ...] = ()
    died_at: tuple[int, ...] = ()
    woke_at: dict[int, int] = field(default_factory=dict)
    idle_units: int = 0
    orientations: int | None = None
    slices_of: str = ""
    crowded_units: int = 0
    crowd_radius: float = 0.0

    @property
    def dead_units(self) -> int:
        """Number of dead units."""
        return len(self.dead)

    @property
    def is_condensed(self) -> bool:
        """Whether there are at most half as many directions as distinct living units; never a reason to warn.

        Layers with one or two weights per unit do not count: there are few directions in a plane.
        """
        if not self.orientations or self.fan_in <= 2:  # no directions if no unit is alive
            return False
        return 2 * self.orientations <= self.effective_width - self.dead_units

    @property
    def redundant_units(self) -> int:
        """Number of units that are equal to another one, not counting one of each group."""
        return sum(len(group.units) - 1 for group in self.groups if group.verdict.traits.is_redundant)

    @property
    def effective_width(self) -> int:
        """Number of distinct units: ``num_units - redundant_units``."""
        return self.num_units - self.redundant_units

    @property
    def working_units(self) -> int:
        """Number of units that are neither redundant nor dead; of equal units one counts, if any of them is alive.

        Example:
            >>> pair = UnitGroup((0, 1), Verdict.LOCKED, Cause.COPIED)
            >>> LayerDiagnosis("fc", 8, 4, dead=(2, 3), groups=[pair]).working_units
            5
        """
        if not self.dead:
            return self.effective_width
        dead = set(self.dead)
        equal = [group.units for group in self.groups if group.verdict.traits.is_redundant]
        # Units that are both redundant and dead. If a group has a living unit, the one that is not redundant is alive.
        counted_twice = sum(min(len(dead.intersection(units)), len(units) - 1) for units in equal)
        return self.effective_width - len(dead) + counted_twice

    def count(self, verdict: Verdict) -> int:
        """Return the number of units with this verdict, including dead units that are too few for a warning."""
        if verdict is Verdict.DEAD:
            return self.dead_units
        return sum(len(group.units) for group in self.groups if group.verdict is verdict)

    def __repr__(self) -> str:
        counts = {verdict: self.count(verdict) for verdict in Verdict}
        of_groups = "".join(f", {number:,} {verdict}" for verdict, number in counts.items() if number)
        working = f"{self.working_units:,} of {self.num_units:,} units working"
        return f"<LayerDiagnosis {shorten(self.name)}: {working}{of_groups}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; :meth:`SymmetryReport.to_dict` explains the fields."""
        return {
            "num_units": self.num_units,
            "fan_in": self.fan_in,
            "effective_width": self.effective_width,
            "working_units": self.working_units,
            "redundant_units": self.redundant_units,
            "dead_units": self.dead_units,
            "dead": list(self.dead),
            "orientations": self.orientations,
            "crowded_units": self.crowded_units,
            "crowd_radius": self.crowd_radius,
            "groups": [group.to_dict() for group in self.groups],
        }


@dataclass(frozen=True)
class CopyGroup:
    """Modules that are exact copies of one another.

    Attributes:
        modules: their names.
        verdict: the verdict on them; ``LOCKED`` if their gradients are equal too.
        first_step: optimizer step of the check that saw them first; None after a single look.
    """

    modules: tuple[str, ...]
    verdict: Verdict
    first_step: int | None = None

    def __repr__(self) -> str:
        return f"<CopyGroup {self.verdict}: {len(self.modules):,} modules, {shorten(self.describe())}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; :meth:`SymmetryReport.to_dict` explains the fields."""
        return {"modules": list(self.modules), "verdict": str(self.verdict)}

    def describe(self) -> str:
        """Return the names of the modules in a few words."""
        return abbreviate(self.modules)


@dataclass(frozen=True)
class Finding:
    """A group that the user was warned of.

    Attributes:
        layer: name of the layer; for copies, the names of all modules that were copies at first.
        units: sorted indices of the units in the warning; for copies, the positions of the modules in this list.
        verdict: the first verdict with a warning; the current one is in the report.
        cause: pattern of the weights when the group was first seen.
        value: the number that every weight equalled, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first.
        last_step: optimizer step of the last check that saw it.
        broken_step: optimizer step of the check at which the group was gone; None while it holds.
        origin: how the group entered the records.
        modules: names of whole modules that are copies of one another; empty for units of a layer.
        reason: why ``verdict`` was given.
        mirrored: the units whose row is the negative of the first unit's.
        num_watched: number of optimizer steps in a row before the warning at which the gradients of all units were
            exactly zero.
        stop: where the gradient of frozen and dead units stops, measured by tracing one step; None if no step was
            traced.
        follows: name of the layer with zero gradients that causes this finding; empty for a root.
        kept_by: what keeps units equal that train as one: the name of the layer that reads them with equal weights, or
            ``"the loss"`` for outputs of the model; empty if unknown.
    """

    layer: str
    units: tuple[int, ...]
    verdict: Verdict
    cause: Cause
    value: float | None
    first_step: int
    last_step: int
    broken_step: int | None
    origin: Origin
    modules: tuple[str, ...] = ()
    reason: Reason = Reason.UNDECIDED
    mirrored: tuple[int, ...] = ()
    num_watched: int = 0
    stop: GradientStop | None = None
    follows: str = ""
    kept_by: str = ""

    @property
    def code(self) -> str:
        """The code of the finding, such as ``"SYM101"``; ``docs/codes/`` has a page on each.

        Example:
            >>> group = UnitGroup((0, 1), Verdict.LOCKED, Cause.CONSTANT, value=0.5)
            >>> group.code
            'SYM101'
        """
        return Code.COPIED_MODULES.value if self.modules else _code_of(self)

    def __repr__(self) -> str:
        what = f"{len(self.modules):,} modules" if self.modules else describe_groups([self.units], None)
        until = "" if self.broken_step is None else f", broken at step {self.broken_step}"
        return f"<Finding in {shorten(self.layer)}: {self.verdict} since step {self.first_step}{until}; {what}>"


def finding_of(
    group: UnitGroup, layer: str, last_step: int, broken_step: int | None = None, modules: tuple[str, ...] = ()
) -> Finding:
    """Return the finding about a group of units, or of modules."""
    first_step = last_step if group.first_step is None else group.first_step
    values = {**vars(group), "first_step": first_step, "modules": modules}
    return Finding(layer=layer, last_step=last_step, broken_step=broken_step, **values)


def gradients_cancel(group: UnitGroup | Finding) -> bool:
    """Return whether the rows are zeros whose gradients cancel, since everything downstream treats the units alike."""
    return group.verdict is Verdict.FROZEN and group.cause is Cause.ZERO and group.reason is Reason.ROUNDING_AGAIN


def _code_of(group: UnitGroup | Finding) -> str:
    """Return the code of a diagnosis; empty for verdicts without one."""
    if group.verdict in (Verdict.FROZEN, Verdict.DEAD, Verdict.IDLE):
        return _code_without_gradient(group).value
    if group.verdict is Verdict.LOCKSTEP:
        return Code.LOCKSTEP.value
    if group.verdict is not Verdict.LOCKED:
        return ""
    if group.origin is Origin.COLLAPSE:
        return Code.COLLAPSED.value
    if group.cause is Cause.MIRRORED:
        return Code.MIRRORED_ROWS.value
    if group.cause is Cause.ZERO:
        return Code.ZERO_INIT.value
    return (Code.COPIED_ROWS if group.value is None else Code.CONSTANT_INIT).value


def _code_without_gradient(group: UnitGroup | Finding) -> Code:
    kind = StopKind.UNKNOWN if group.stop is None else group.stop.kind
    if group.stop is not None and group.stop.is_by_design:
        return Code.NO_CHOICE if kind is StopKind.ONE_VALUE else Code.NO_INPUT
    if kind is StopKind.UNKNOWN and group.reason is Reason.ROUNDING_AGAIN:
        kind = StopKind.ROUNDING
    return Code.ZERO_INIT if kind is StopKind.ROUNDING and gradients_cancel(group) else CODE_OF_STOP[kind]


def under_all_names(diagnoses: Iterable[LayerDiagnosis]) -> dict[str, LayerDiagnosis]:
    """Map names to layers; layers that share a weight are under each of their names."""
    return {name: layer for layer in diagnoses for name in (layer.name, *layer.also)}


def worst_first(layers: Iterable[LayerDiagnosis]) -> list[LayerDiagnosis]:
    """Sort stably: layers to warn of, then others with groups, then those without.

    Example:
        >>> pair = UnitGroup((0, 1), Verdict.DUPLICATE, Cause.COPIED)
        >>> layers = [LayerDiagnosis("a", 4, 8), LayerDiagnosis("b", 4, 8, groups=[pair])]
        >>> [layer.name for layer in worst_first(layers)]
        ['b', 'a']
    """

    def rank(layer: LayerDiagnosis) -> tuple[bool, bool]:
        return not any(group.verdict.is_warning for group in layer.groups), not layer.groups

    return sorted(layers, key=rank)
