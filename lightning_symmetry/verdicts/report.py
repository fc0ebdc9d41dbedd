"""What is concluded of a model, as plain data: groups of units, layers, findings, the report of one step.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lightning_symmetry.brief import brief
from lightning_symmetry.verdicts.tables import describe_groups, plain_table
from lightning_symmetry.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

Status = Literal["healthy", "symmetric", "inconclusive"]
"""What a report comes to: nothing to warn of, something to warn of, or not enough seen to tell."""


class Cause(StrEnum):
    """How a group came to be, as far as its weights and gradients tell."""

    ZERO = "zero"  # every weight is 0
    CONSTANT = "constant"  # every weight is the same number
    COPIED = "copied"  # the rows are copies of one another
    MIRRORED = "mirrored"  # the rows are copies of one another, some with the other sign
    DEAD = "dead"  # no gradient although the weights are not zero, as behind a ReLU that never opens
    LOW_BIAS = "low bias"  # dead: the bias lies far below zero
    NEGATIVE = (
        "negative weights"  # dead: no weight is positive, so that inputs that are never negative do not open a ReLU
    )
    SATURATED = "saturated"  # dead: so large that a sigmoid or tanh has no slope
    CUT_OFF = "cut off"  # dead: all units of the layer, with rows that look healthy


class Origin(StrEnum):
    """How a group entered the records."""

    START = "start"  # it was there before the first update
    FIRST_LOOK = "first look"  # it was there when this layer was first looked at, some updates later
    COLLAPSE = "collapse"  # the units were distinct at an earlier check


class Reason(StrEnum):
    """Why a verdict was given."""

    EQUAL_FROM_START = "equal from the start"  # equal gradients, in a group that was there before the first update
    EQUAL_AGAIN = "equal again"  # equal gradients at `patience` checks in a row
    ZERO_AGAIN = "zero again"  # gradients of exactly zero at `patience` checks in a row
    ROUNDING_AGAIN = "rounding again"  # gradients no larger than rounding errors at `patience` checks in a row
    DIFFERENT = "different"  # different gradients
    MOVED_AS_ONE = "moved as one"  # the weights are still equal after they have moved far
    PARALLEL_AGAIN = "parallel again"  # equal gradients of different weights at `patience` checks in a row
    UNDECIDED = "undecided"  # nothing that was seen so far tells


@dataclass(frozen=True)
class UnitGroup:
    """A maximal set of two or more units of one layer whose rows agree, or units that are dead.

    Attributes:
        units: sorted indices of the units.
        verdict: what becomes of them.
        cause: what their weights looked like when the group was first seen.
        value: the number that every weight was, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first; None after a single look.
        origin: how the group entered the records.
        reason: why the verdict was given that was warned of first.
        mirrored: those of the units whose row is the negative of the first unit's.
    """

    units: tuple[int, ...]
    verdict: Verdict
    cause: Cause
    value: float | None = None
    first_step: int | None = None
    origin: Origin = Origin.START
    reason: Reason = Reason.UNDECIDED
    mirrored: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<UnitGroup {self.verdict}, {self.cause}: {describe_groups([self.units], None)}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; :meth:`SymmetryReport.to_dict` says what the fields mean."""
        return {
            "units": list(self.units),
            "verdict": str(self.verdict),
            "cause": str(self.cause),
            "value": self.value,
            "first_step": self.first_step,
            "mirrored": list(self.mirrored),
        }


@dataclass(frozen=True)
class LayerDiagnosis:
    """The state of one layer.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        num_units: number of units.
        fan_in: number of weights that feed one unit, without the bias.
        dead: sorted indices of the dead units: those with weights of their own whose gradient was exactly zero at
            ``patience`` checks in a row, over 50 steps or more. Of a single look: those whose gradient is zero.
        groups: disjoint groups of units, sorted.
        also: names of layers that share the weight; the report has this diagnosis under each.
        died_at: of each dead unit, the optimizer step of the first of these checks; empty after a single look.
        woke_at: of units that were dead and train again, the optimizer step of the check that saw it.
        idle_units: number of units whose gradient was exactly zero at ``patience`` checks in a row, over however many
            steps; not all of them need be dead.
        orientations: number of directions, up to sign, among the rows of the living units, those that are neither dead
            nor zero; rows whose cosine similarity is 0.999 or more in absolute value share one. Small initialisation
            makes units condense onto few directions early in the training (Zhou et al. 2022, arXiv 2105.11686). The
            number is that of the latest count: counted are looks 1, 8, 16 and 32 at the layer, then every 64th, and
            every fourth where the directions are at most half as many as the distinct living units. None for layers
            of more than 16,384 units.
        slices_of: name of the parameter, if these units are its slices because no adapter knows it; else empty.
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

    @property
    def dead_units(self) -> int:
        """Number of dead units."""
        return len(self.dead)

    @property
    def is_condensed(self) -> bool:
        """Whether there are at most half as many directions as distinct living units; never a reason to warn.

        Rows of one or two weights are never called so: there are few directions in a plane.
        """
        if not self.orientations or self.fan_in <= 2:  # there may be no living units
            return False
        return 2 * self.orientations <= self.effective_width - self.dead_units

    @property
    def redundant_units(self) -> int:
        """Number of units whose weights another unit of the layer has too, not counting one of each group."""
        return sum(len(group.units) - 1 for group in self.groups if group.verdict.traits.is_redundant)

    @property
    def effective_width(self) -> int:
        """Number of distinct units: ``num_units - redundant_units``."""
        return self.num_units - self.redundant_units

    def count(self, verdict: Verdict) -> int:
        """Number of units in groups of this verdict; of dead units all, also those too few to warn of."""
        if verdict is Verdict.DEAD:
            return self.dead_units
        return sum(len(group.units) for group in self.groups if group.verdict is verdict)

    def __repr__(self) -> str:
        counts = {verdict: self.count(verdict) for verdict in Verdict}
        of_groups = "".join(f", {number:,} {verdict}" for verdict, number in counts.items() if number)
        distinct = f"{self.effective_width:,} of {self.num_units:,} units distinct"
        return f"<LayerDiagnosis {shorten(self.name)}: {distinct}{of_groups}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; :meth:`SymmetryReport.to_dict` says what the fields mean."""
        return {
            "num_units": self.num_units,
            "fan_in": self.fan_in,
            "effective_width": self.effective_width,
            "redundant_units": self.redundant_units,
            "dead_units": self.dead_units,
            "dead": list(self.dead),
            "orientations": self.orientations,
            "groups": [group.to_dict() for group in self.groups],
        }


@dataclass(frozen=True)
class CopyGroup:
    """Modules that are exact copies of one another.

    Attributes:
        modules: their names.
        verdict: what becomes of them; ``LOCKED`` if their gradients are equal too.
        first_step: optimizer step of the check that saw them first; None after a single look.
    """

    modules: tuple[str, ...]
    verdict: Verdict
    first_step: int | None = None

    def __repr__(self) -> str:
        return f"<CopyGroup {self.verdict}: {len(self.modules):,} modules, {shorten(self.describe())}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; :meth:`SymmetryReport.to_dict` says what the fields mean."""
        return {"modules": list(self.modules), "verdict": str(self.verdict)}

    def describe(self) -> str:
        """The modules in a few words.

        >>> CopyGroup(("a.0", "a.1", "a.2", "a.3"), Verdict.LOCKED).describe()
        'a.0, a.1, ..., a.3'
        """
        names = self.modules if len(self.modules) <= 3 else (*self.modules[:2], "...", self.modules[-1])
        return ", ".join(names)


@dataclass(frozen=True)
class SymmetryReport:
    """The state of a model at one step.

    Attributes:
        step: completed optimizer steps at the time.
        layers: by layer name; layers that share a weight are one, under each of its names.
        skipped: by name, modules with parameters that were not inspected, and why.
        copies: whole modules that are equal.
        coverage: share of the model's weights, the numbers in parameters of two or more dimensions, that belong to
            these layers; between 0 and 1.
        reasons: why nothing can be concluded of parts of the model so far: too few optimizer steps, or layers that
            were not looked at; empty if all of it is decided.
        draw_heatmaps: draws heatmaps of layers with groups, for notebooks: PNG files by layer name, from the weights
            that the model has when it is called. None if there is no model at hand: a report that was copied or has
            come from another process has no such function.
    """

    step: int = 0
    layers: dict[str, LayerDiagnosis] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    copies: list[CopyGroup] = field(default_factory=list)
    coverage: float = 1.0
    reasons: list[str] = field(default_factory=list)
    draw_heatmaps: Callable[[], Mapping[str, bytes]] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # What draws the heatmaps refers to the model, which does not travel between processes.
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "draw_heatmaps"}

    @property
    def status(self) -> Status:
        """What the report comes to.

        ``"symmetric"`` if there is anything to warn of; else ``"inconclusive"`` if there are :attr:`reasons`, else
        ``"healthy"``.
        """
        if self._num_findings:
            return "symmetric"
        return "inconclusive" if self.reasons else "healthy"

    @property
    def _num_findings(self) -> int:
        """How many :attr:`findings` there are; in a wide layer it takes long to make all of them."""
        of_units = sum(group.verdict.is_warning for layer in self.distinct_layers for group in layer.groups)
        return of_units + sum(group.verdict.is_warning for group in self.copies)

    @property
    def findings(self) -> list[Finding]:
        """What there is to warn of at this step, in the order of the layers.

        The findings of a monitor or tracker tell more: also what has been found before and is gone.
        """
        of_units = [
            Finding(
                layer=layer.name,
                units=group.units,
                verdict=group.verdict,
                cause=group.cause,
                value=group.value,
                first_step=self.step if group.first_step is None else group.first_step,
                last_step=self.step,
                broken_step=None,
                origin=group.origin,
                reason=group.reason,
                mirrored=group.mirrored,
            )
            for layer in self.distinct_layers
            for group in layer.groups
            if group.verdict.is_warning
        ]
        of_modules = [
            Finding(
                layer=", ".join(group.modules),
                units=tuple(range(len(group.modules))),
                verdict=group.verdict,
                cause=Cause.COPIED,
                value=None,
                first_step=self.step if group.first_step is None else group.first_step,
                last_step=self.step,
                broken_step=None,
                origin=Origin.START,
                modules=group.modules,
            )
            for group in self.copies
            if group.verdict.is_warning
        ]
        return of_units + of_modules

    def messages(self) -> list[str]:
        """What there is to warn of at this step in words: what happens, why, and the way out.

        Example:
            >>> group = UnitGroup((0, 1, 2), Verdict.LOCKED, Cause.ZERO, first_step=0)
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 3, 8, groups=[group])})
            >>> print(*report.messages())
            fc: all 3 units are identical in weights and gradients (locked since step 0): they train as 1 unit. ...
        """
        from lightning_symmetry.verdicts.advice import messages  # which needs this module

        return messages(self.findings, self)

    @property
    def distinct_layers(self) -> list[LayerDiagnosis]:
        """The layers, those that share a weight once."""
        return [layer for name, layer in self.layers.items() if name == layer.name]

    @property
    def counted_layers(self) -> list[LayerDiagnosis]:
        """The layers that make up the totals: every weight counts once.

        A parameter that no adapter knows is looked at along each of its dimensions. Of these ways to look at it the one
        with the most redundant units counts, the first of them if there are several.
        """
        counted: dict[str, LayerDiagnosis] = {}
        for layer in self.distinct_layers:
            known = counted.setdefault(layer.slices_of or layer.name, layer)
            if layer.redundant_units > known.redundant_units:
                counted[layer.slices_of] = layer
        return list(counted.values())

    @property
    def num_units(self) -> int:
        """Number of units of all layers."""
        return self._totals[0]

    @property
    def redundant_units(self) -> int:
        """Number of redundant units of all layers."""
        return self._totals[1]

    @property
    def dead_units(self) -> int:
        """Number of dead units of all layers."""
        return self._totals[2]

    @cached_property
    def _totals(self) -> tuple[int, int, int]:
        """Numbers of units, of redundant and of dead ones; every check asks for them several times."""
        counted = self.counted_layers
        redundant, dead = sum(x.redundant_units for x in counted), sum(x.dead_units for x in counted)
        return sum(x.num_units for x in counted), redundant, dead

    @property
    def effective_width_fraction(self) -> float:
        """Share of the units that are distinct; 1 for a model without units."""
        return 1 - self.redundant_units / max(1, self.num_units)

    def metrics(self, layers: Iterable[str] | None = None) -> dict[str, float]:
        """The scalars of this report by tag: totals, and effective widths and orientations of layers.

        Args:
            layers: names of the layers; None: all. Names of layers that are not in the report are passed over.
        """
        names = self.layers if layers is None else layers
        scalars = {
            "symmetry/redundant_units": float(self.redundant_units),
            "symmetry/effective_width_fraction": self.effective_width_fraction,
            "symmetry/dead_units": float(self.dead_units),
        }
        for name in names:
            if name in self.layers and self.layers[name].name == name:
                scalars[f"symmetry/effective_width/{name}"] = float(self.layers[name].effective_width)
                orientations = self.layers[name].orientations
                if orientations is not None:
                    scalars[f"symmetry/orientations/{name}"] = float(orientations)
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON.

        Fields may be added; none changes its meaning while ``schema`` is 1.

        Returns:
            A dict with these fields:

            - ``schema``: 1.
            - ``step``: completed optimizer steps at the time.
            - ``num_units``, ``redundant_units``, ``dead_units``: of all layers, those that share a weight once, and
              those that are slices of one parameter once.
            - ``layers``: by layer name, also under each name of layers that share a weight, a dict with
              ``num_units``; ``fan_in``, the number of weights that feed one unit; ``effective_width``, the number of
              distinct units; ``redundant_units``, the others; ``dead``, the indices of the dead units, and
              ``dead_units``, their number; ``orientations``, the number of directions among the living units, null
              if they were not counted; and ``groups``.
            - ``layers.*.groups``: a list of dicts with ``units``, their indices; ``verdict`` (:class:`Verdict`);
              ``cause`` (:class:`Cause`); ``value``, the number that every weight was, null if they were not all
              one number; ``first_step``, the step of the check that saw the group first, null after a single look;
              ``mirrored``, those of the units whose row is the negative of the first unit's.
            - ``skipped``: by module name, why it was not inspected.
            - ``copies``: a list of dicts with ``modules``, the names of modules that are equal, and ``verdict``.
            - ``coverage``: share of the weights that were looked at, between 0 and 1.
            - ``status``: ``"healthy"``, ``"symmetric"`` or ``"inconclusive"``.
            - ``reasons``: a list of texts, why nothing can be concluded of parts of the model.

        Example:
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8)})
            >>> report.to_dict()["layers"]["fc"]["effective_width"]
            4
        """
        return {
            "schema": 1,
            "step": self.step,
            "num_units": self.num_units,
            "redundant_units": self.redundant_units,
            "dead_units": self.dead_units,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "skipped": dict(self.skipped),
            "copies": [group.to_dict() for group in self.copies],
            "coverage": self.coverage,
            "status": self.status,
            "reasons": list(self.reasons),
        }

    def to_dataframe(self) -> DataFrame:
        """The layers as a table of pandas.

        Returns:
            A row per layer, those that share a weight once. The index, ``layer``, is the name; the columns are
            ``units``, ``distinct`` and ``redundant``, then one per verdict with the number of its units, such as
            ``dead``, and ``groups``, the groups in words.

        Raises:
            ModuleNotFoundError: if pandas is not installed.

        Example:
            >>> group = UnitGroup((0, 1, 2), Verdict.LOCKED, Cause.ZERO, first_step=0)
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8, groups=[group])})
            >>> report.to_dataframe().loc["fc", ["units", "distinct", "locked"]].tolist()
            [4, 2, 3]
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`to_dataframe` expects pandas to be installed: pip install 'lightning-symmetry[plot]'"
            ) from error
        layers = self.distinct_layers
        columns: dict[str, list[int] | list[str]] = {
            "units": [layer.num_units for layer in layers],
            "distinct": [layer.effective_width for layer in layers],
            "redundant": [layer.redundant_units for layer in layers],
            **{str(verdict): [layer.count(verdict) for layer in layers] for verdict in Verdict},
            "groups": [summarise(layer) for layer in layers],
        }
        return pandas.DataFrame(columns, index=pandas.Index([layer.name for layer in layers], name="layer"))

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw a bar per layer: the share of its units that each verdict was given to.

        Layers to warn of come first, then others with groups. Of more than 40 layers the rest are counted only.

        Args:
            ax: where to draw; None: in a figure of its own.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.

        Example:
            >>> group = UnitGroup((0, 1, 2), Verdict.LOCKED, Cause.ZERO, first_step=0)
            >>> report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 4, 8, groups=[group])})
            >>> figure, axes = report.plot()
            >>> axes.get_xlabel()
            'share of the units'
        """
        from lightning_symmetry.verdicts.plotting import plot_report  # which needs this module

        return plot_report(self, ax)

    def _repr_html_(self) -> str:
        """What notebooks show: totals, a table of the layers, findings with advice, and heatmaps."""
        from lightning_symmetry.verdicts.html import report_html  # which needs this module

        return report_html(self, self.draw_heatmaps() if self.draw_heatmaps is not None else {})

    def __repr__(self) -> str:
        num_layers = len(self.counted_layers)
        num_findings = self._num_findings
        units = f"{self.num_units:,} units of {num_layers:,} layer{'s' if num_layers != 1 else ''}"
        said = f"all {units} are distinct"
        if not num_layers:
            said = "no layer was inspected"
        elif self.redundant_units:
            said = f"{self.redundant_units:,} of {units} are redundant"
        if num_findings and not self.redundant_units:  # units in lockstep, or whole modules
            said = f"{num_findings:,} finding{'s' if num_findings > 1 else ''}, {said}"
        return f"<SymmetryReport at step {self.step}: {self.status}; {said}>"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of a table for people: one row per layer."""
        head = ("layer", "units", "distinct", "dead", "groups")
        rows: list[tuple[str, ...]] = [
            (
                " = ".join([layer.name, *layer.also]),
                str(layer.num_units),
                str(layer.effective_width),
                str(layer.dead_units),
                summarise(layer),
            )
            for layer in self.distinct_layers
        ]
        return head, rows

    def __str__(self) -> str:
        head, rows = self.table()
        lines = [f"Symmetry at step {self.step}: {self.totals()}"]
        if rows:
            lines.append(plain_table(head, rows))
        lines += self.notes()
        lines += [f"copies: {group.describe()} ({group.verdict})" for group in self.copies]
        lines += [f"not inspected: {name} ({reason})" for name, reason in self.skipped.items()]
        if self.status == "inconclusive":
            rest = len(self.reasons) - 1
            more = f" (and {rest} more reason{'s' if rest > 1 else ''})" if rest else ""
            lines.append(f"inconclusive: {self.reasons[0]}{more}")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What to know of the verdicts in the table."""
        present = {group.verdict for layer in self.distinct_layers for group in layer.groups}
        told = [verdict for verdict in Verdict if verdict in present and verdict.traits.note]
        notes = [f"{verdict}: {verdict.traits.note}" for verdict in told]
        if any(layer.slices_of and layer.groups for layer in self.distinct_layers):
            notes.append(
                "[dim 0]: slices of a parameter along its dimension 0, which were compared because no adapter knows "
                "the module; `register_layer` says what its units are"
            )
        return notes

    def totals(self) -> str:
        """One line on the whole model."""
        num_layers = len(self.counted_layers)
        if not num_layers:
            return "no layer was inspected."
        layers = f"{num_layers} layer{'s' if num_layers != 1 else ''}"
        distinct = f"{self.num_units - self.redundant_units} of" if self.redundant_units else "all"
        seen = "" if self.coverage == 1 else f"; {_percent_below(self.coverage)} % of the weights were looked at"
        are = "is" if self.dead_units == 1 else "are"
        dead = f", but {self.dead_units} {are} dead" if self.dead_units else ""
        return f"{distinct} {self.num_units} units of {layers} are distinct{dead}{seen}."


@dataclass(frozen=True)
class Finding:
    """A group that the user was warned of.

    Attributes:
        layer: name of the layer; of copies, the names of all modules that were copies at first.
        units: sorted indices of the units when they were warned of; of copies, their places among these modules.
        verdict: the verdict that was warned of first; that of today is in the report.
        cause: what the weights looked like when the group was first seen.
        value: the number that every weight was, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first.
        last_step: optimizer step of the last check that saw it.
        broken_step: optimizer step of the check at which the group was gone; None while it holds.
        origin: how the group entered the records.
        modules: names of modules that are whole copies of one another; empty for units of a layer.
        reason: why the verdict was given that was warned of first.
        mirrored: those of the units whose row is the negative of the first unit's.
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

    def __repr__(self) -> str:
        what = f"{len(self.modules):,} modules" if self.modules else describe_groups([self.units], None)
        until = "" if self.broken_step is None else f", broken at step {self.broken_step}"
        return f"<Finding in {shorten(self.layer)}: {self.verdict} since step {self.first_step}{until}; {what}>"


def _percent_below(share: float) -> int:
    """A share below 1 in per cent, rounded down."""
    return min(99, math.floor(100 * share + 1e-9))  # 100 * 0.29 is slightly less than 29


def summarise(layer: LayerDiagnosis) -> str:
    """The groups of a layer in a few words, such as ``locked: 4 of 64 units in 2 groups, {0, 32}, {1, 33}``."""
    return "; ".join(f"{verdict}: {text}" for verdict, text in groups_in_words(layer).items())


def groups_in_words(layer: LayerDiagnosis) -> dict[Verdict, str]:
    """The groups of a layer in a few words, by verdict, the most serious one first.

    Example:
        >>> pair = UnitGroup((0, 1), Verdict.LOCKED, Cause.COPIED)
        >>> groups_in_words(LayerDiagnosis("fc", 4, 8, groups=[pair]))[Verdict.LOCKED]
        '2 of 4 units, {0, 1}'
    """
    units = {verdict: [group.units for group in layer.groups if group.verdict is verdict] for verdict in Verdict}
    return {verdict: describe_groups(groups, layer.num_units) for verdict, groups in units.items() if groups}


def under_all_names(diagnoses: Iterable[LayerDiagnosis]) -> dict[str, LayerDiagnosis]:
    """The layers of a report."""
    return {name: layer for layer in diagnoses for name in (layer.name, *layer.also)}


def worst_first(layers: Iterable[LayerDiagnosis]) -> list[LayerDiagnosis]:
    """Layers to warn of, then others with groups, then those without; each in the order that they had.

    Example:
        >>> pair = UnitGroup((0, 1), Verdict.DUPLICATE, Cause.COPIED)
        >>> layers = [LayerDiagnosis("a", 4, 8), LayerDiagnosis("b", 4, 8, groups=[pair])]
        >>> [layer.name for layer in worst_first(layers)]
        ['b', 'a']
    """

    def rank(layer: LayerDiagnosis) -> int:
        if any(group.verdict.is_warning for group in layer.groups):
            return 0
        return 1 if layer.groups else 2

    return sorted(layers, key=rank)


def shorten(name: str, length: int = 60) -> str:
    """A name that is cut at its beginning, which tells less than its end, if it is too long.

    Example:
        >>> shorten("encoder.layers.11.attention.output.dense", 28)
        '...attention.output.dense'
    """
    if len(name) <= length:
        return name
    tail = name[3 - length :]
    _, _, rest = tail.partition(".")
    # The rest of a step of a path can be taken for a whole one: 1.dense for 11.dense.
    return "..." + (rest if len(rest) > length // 2 else tail)


def check_report(report: object, widths: Mapping[str, int]) -> None:
    """Check that an argument of a user is a report of a model with these numbers of units, by name of the layer.

    Raises:
        TypeError: if it is no report.
        ValueError: if it is one of another model.
    """
    if not isinstance(report, SymmetryReport):
        raise TypeError(
            f"Expected argument `report` to be a SymmetryReport, as diagnose(model) gives it, but got {brief(report)}."
        )
    for layer in report.distinct_layers:
        if widths.get(layer.name) != layer.num_units:
            raise ValueError(
                f"Expected argument `report` to be a report of `model` but its layer {layer.name!r} with "
                f"{layer.num_units} units is none of the model's."
            )
