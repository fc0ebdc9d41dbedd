"""What is concluded of a model, as plain data: groups of units, layers, findings, the report of one step.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from lightning_symmetry.verdicts.tables import describe_groups, plain_table
from lightning_symmetry.verdicts.verdict import Verdict


Status = Literal["healthy", "symmetric", "inconclusive"]
"""What a report comes to: nothing to warn of, something to warn of, or not enough seen to tell."""


class Cause(StrEnum):
    """How a group came to be, as far as its weights and gradients tell."""

    ZERO = "zero"  # every weight is 0
    CONSTANT = "constant"  # every weight is the same number
    COPIED = "copied"  # the rows are copies of one another
    DEAD = "dead"  # frozen although the weights are not zero, as behind a ReLU that never opens


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
    """A maximal set of two or more units of one layer whose rows agree.

    Attributes:
        units: sorted indices of the units.
        verdict: what becomes of them.
        cause: what their weights looked like when the group was first seen.
        value: the number that every weight was, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first; None after a single look.
        origin: how the group entered the records.
        reason: why the verdict was given that was warned of first.
    """

    units: tuple[int, ...]
    verdict: Verdict
    cause: Cause
    value: float | None = None
    first_step: int | None = None
    origin: Origin = Origin.START
    reason: Reason = Reason.UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "units": list(self.units),
            "verdict": str(self.verdict),
            "cause": str(self.cause),
            "value": self.value,
            "first_step": self.first_step,
        }


@dataclass(frozen=True)
class LayerDiagnosis:
    """The state of one layer.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        num_units: number of units.
        fan_in: number of weights that feed one unit, without the bias.
        dead_units: number of units with a zero gradient and weights of their own.
        groups: disjoint groups of units, sorted.
        also: names of layers that share the weight; the report has this diagnosis under each.
    """

    name: str
    num_units: int
    fan_in: int
    dead_units: int = 0
    groups: list[UnitGroup] = field(default_factory=list)
    also: tuple[str, ...] = ()

    @property
    def redundant_units(self) -> int:
        """Number of units whose weights another unit of the layer has too, not counting one of each group."""
        return sum(len(group.units) - 1 for group in self.groups if group.verdict.traits.is_redundant)

    @property
    def effective_width(self) -> int:
        """Number of distinct units: ``num_units - redundant_units``."""
        return self.num_units - self.redundant_units

    def count(self, verdict: Verdict) -> int:
        """Number of units in groups of this verdict."""
        return sum(len(group.units) for group in self.groups if group.verdict is verdict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "num_units": self.num_units,
            "fan_in": self.fan_in,
            "effective_width": self.effective_width,
            "redundant_units": self.redundant_units,
            "dead_units": self.dead_units,
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
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
    """

    step: int = 0
    layers: dict[str, LayerDiagnosis] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    copies: list[CopyGroup] = field(default_factory=list)
    coverage: float = 1.0
    reasons: list[str] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """What the report comes to.

        ``"symmetric"`` if there is anything to warn of; else ``"inconclusive"`` if there are :attr:`reasons`, else
        ``"healthy"``.
        """
        if self.findings:
            return "symmetric"
        return "inconclusive" if self.reasons else "healthy"

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
    def num_units(self) -> int:
        """Number of units of all layers."""
        return sum(layer.num_units for layer in self.distinct_layers)

    @property
    def redundant_units(self) -> int:
        """Number of redundant units of all layers."""
        return sum(layer.redundant_units for layer in self.distinct_layers)

    @property
    def effective_width_fraction(self) -> float:
        """Share of the units that are distinct; 1 for a model without units."""
        return 1 - self.redundant_units / max(1, self.num_units)

    def metrics(self) -> dict[str, float]:
        """The scalars of this report by TensorBoard tag."""
        scalars = {
            "symmetry/redundant_units": float(self.redundant_units),
            "symmetry/effective_width_fraction": self.effective_width_fraction,
        }
        for layer in self.distinct_layers:
            scalars[f"symmetry/effective_width/{layer.name}"] = float(layer.effective_width)
        return scalars

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "step": self.step,
            "num_units": self.num_units,
            "redundant_units": self.redundant_units,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "skipped": dict(self.skipped),
            "copies": [group.to_dict() for group in self.copies],
            "coverage": self.coverage,
            "status": self.status,
            "reasons": list(self.reasons),
        }

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
        return [f"{verdict}: {verdict.traits.note}" for verdict in told]

    def totals(self) -> str:
        """One line on the whole model."""
        num_layers = len(self.distinct_layers)
        if not num_layers:
            return "no layer was inspected."
        layers = f"{num_layers} layer{'s' if num_layers != 1 else ''}"
        distinct = f"{self.num_units - self.redundant_units} of" if self.redundant_units else "all"
        seen = "" if self.coverage == 1 else f"; {_percent_below(self.coverage)} % of the weights were looked at"
        return f"{distinct} {self.num_units} units of {layers} are distinct{seen}."


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


def _percent_below(share: float) -> int:
    """A share below 1 in per cent, rounded down."""
    return min(99, math.floor(100 * share + 1e-9))  # 100 * 0.29 is slightly less than 29


def summarise(layer: LayerDiagnosis) -> str:
    """The groups of a layer in a few words, such as ``locked: 2 groups of 64 units, e.g. {0, 32}``."""
    parts = []
    for verdict in Verdict:
        groups = [group for group in layer.groups if group.verdict is verdict]
        if groups:
            parts.append(f"{verdict}: {describe_groups([group.units for group in groups], layer.num_units)}")
    return "; ".join(parts)


def under_all_names(diagnoses: Iterable[LayerDiagnosis]) -> dict[str, LayerDiagnosis]:
    """The layers of a report."""
    return {name: layer for layer in diagnoses for name in (layer.name, *layer.also)}
