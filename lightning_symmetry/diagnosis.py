"""Verdicts, and the report that holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from torch import nn

from lightning_symmetry import adapters as adapters  # registers the layers of PyTorch
from lightning_symmetry.copies import Copies, copies_named, find_copies
from lightning_symmetry.evidence import Cause, Gradients, Look, Sighting, look
from lightning_symmetry.flattened import flattened_modules
from lightning_symmetry.grouping import check_tolerance
from lightning_symmetry.layers import Layer, find_layers, is_sharded
from lightning_symmetry.rows import Rows
from lightning_symmetry.team import Name, Shared, Team, attempt

FindLayers = Callable[[], tuple[list[Layer], dict[str, str]]]


class Verdict(StrEnum):
    """What becomes of a group of units.

    >>> Verdict.LOCKED == "locked"
    True
    """

    LOCKED = "locked"  # equal weights, equal gradients: they train as one unit
    FROZEN = "frozen"  # equal weights, zero gradients again and again: they do not train at all
    LOCKSTEP = "lockstep"  # different weights, equal gradients again and again: they move in parallel
    BREAKING = "breaking"  # equal weights, different gradients: the symmetry breaks by itself
    DUPLICATE = "duplicate"  # equal weights, and the gradients say nothing

    @property
    def is_warning(self) -> bool:
        """Whether the user should hear of it."""
        return self in (Verdict.LOCKED, Verdict.FROZEN, Verdict.LOCKSTEP)


@dataclass(frozen=True)
class UnitGroup:
    """A maximal set of two or more units of one layer whose rows agree.

    Attributes:
        units: sorted indices of the units.
        verdict: what becomes of them.
        cause: what their weights looked like when the group was first seen.
        value: the number that every weight was, for :attr:`Cause.CONSTANT`.
        first_step: optimizer step of the check that saw the group first; None after a single look.
    """

    units: tuple[int, ...]
    verdict: Verdict
    cause: Cause
    value: float | None = None
    first_step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"units": list(self.units), "verdict": str(self.verdict), "cause": str(self.cause), "value": self.value}


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
        return sum(len(group.units) - 1 for group in self.groups if group.verdict is not Verdict.LOCKSTEP)

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
    """

    modules: tuple[str, ...]
    verdict: Verdict

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
    """

    step: int = 0
    layers: dict[str, LayerDiagnosis] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    copies: list[CopyGroup] = field(default_factory=list)

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
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What to know of the verdicts in the table."""
        groups = [group for layer in self.distinct_layers for group in layer.groups]
        if not any(group.verdict is Verdict.DUPLICATE for group in groups):
            return []
        return [
            "duplicate: equal units whose gradients say nothing so far: none, zero, rounding noise, or too few checks. "
            "A few more steps will tell."
        ]

    def totals(self) -> str:
        """One line on the whole model."""
        num_layers = len(self.distinct_layers)
        if not num_layers:
            return "no layer was inspected."
        layers = f"{num_layers} layer{'s' if num_layers != 1 else ''}"
        if not self.redundant_units:
            return f"all {self.num_units} units of {layers} are distinct."
        return f"{self.num_units - self.redundant_units} of {self.num_units} units of {layers} are distinct."


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text; columns of numbers are flush right.

    >>> print(plain_table(("layer", "units"), [("fc1", "5"), ("conv.12", "64")]))
    layer    units
    -------  -----
    fc1          5
    conv.12     64
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = zip(row, widths, strict=True)
        padded = [c.rjust(w) if is_number_column(rows, i) else c.ljust(w) for i, (c, w) in enumerate(cells)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def is_number_column(rows: Sequence[Sequence[str]], i: int) -> bool:
    """Whether column ``i`` of a table holds nothing but numbers."""
    return all(re.fullmatch(r"[\d./%]+", row[i]) for row in rows)


def summarise(layer: LayerDiagnosis) -> str:
    """The groups of a layer in a few words, such as ``locked: 2 groups of 64 units, e.g. {0, 32}``."""
    parts = []
    for verdict in Verdict:
        groups = [group for group in layer.groups if group.verdict is verdict]
        if groups:
            parts.append(f"{verdict}: {describe_groups([group.units for group in groups], layer.num_units)}")
    return "; ".join(parts)


def describe_groups(groups: Sequence[tuple[int, ...]], num_units: int | None) -> str:
    """Groups of units in a few words.

    >>> describe_groups([(0, 1, 2, 3)], 4)
    'all 4 units'
    >>> describe_groups([(0, 4), (1, 5), (2, 6), (3, 7)], 8)
    'all 8 units in 4 groups, {0, 4}, {1, 5}, {2, 6}, ...'
    >>> describe_groups([tuple(range(20))], 64)
    '20 of 64 units, {0, 1, 2, 3, 4, 5, 6, 7, ...}'
    >>> describe_groups([(0, 1)], None)  # the layer is there no longer
    '2 units, {0, 1}'
    """
    total = sum(map(len, groups))
    text = f"all {num_units} units" if total == num_units else f"{total} of {num_units} units"
    if num_units is None:
        text = f"{total} units"
    if total == num_units and len(groups) == 1:
        return text
    if len(groups) > 1:
        text += f" in {len(groups)} groups"
    shown = [_set_text(group) for group in groups[:3]] + ["..."] * (len(groups) > 3)
    return f"{text}, {', '.join(shown)}"


def _set_text(units: Sequence[int]) -> str:
    shown = [str(unit) for unit in units[:8]] + ["..."] * (len(units) > 8)
    return "{" + ", ".join(shown) + "}"


def verdict_at_one_look(sighting: Sighting) -> Verdict:
    """What a single look can tell; zero gradients need several."""
    if sighting.gradients is Gradients.EQUAL:
        return Verdict.LOCKED
    return Verdict.BREAKING if sighting.gradients is Gradients.DIFFERENT else Verdict.DUPLICATE


def to_diagnosis(seen: Look, groups: Sequence[UnitGroup]) -> LayerDiagnosis:
    """A look, concluded."""
    layer = seen.layer
    ordered = sorted(groups, key=lambda group: group.units)
    return LayerDiagnosis(layer.name, layer.num_units, layer.fan_in, seen.dead_units, ordered, layer.also)


def copy_groups(found: Copies, diagnosis: LayerDiagnosis) -> list[CopyGroup]:
    """The copies that are still equal."""
    return [
        CopyGroup(tuple(found.row_names[unit] for unit in group.units), group.verdict)
        for group in diagnosis.groups
        if group.verdict is not Verdict.LOCKSTEP
    ]


def under_all_names(diagnoses: Iterable[LayerDiagnosis]) -> dict[str, LayerDiagnosis]:
    """The layers of a report."""
    return {name: layer for layer in diagnoses for name in (layer.name, *layer.also)}


def diagnose(
    model: nn.Module,
    *,
    tolerance: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> SymmetryReport:
    """Look once at any module, without a Trainer.

    Gradients are used where ``.grad`` is present: call it after ``backward()`` to tell groups that train as one unit
    (``LOCKED``) from those that break by themselves (``BREAKING``). ``FROZEN`` and ``LOCKSTEP`` take several looks and
    never come from here. Nothing in the model is changed. If the model is sharded, call this on all ranks.

    Args:
        model: the module.
        tolerance: relative L2 distance of rows that count as equal; None: by dtype, as in :func:`duplicate_groups`.
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
        exclude: patterns of layer names to leave out.

    Returns:
        The report, at step 0.

    Raises:
        TypeError: if ``model`` is no module or another argument is of the wrong type.
        ValueError: if ``tolerance`` is out of range.
        TeamError: on all ranks, if the model is sharded and something failed on any of them.

    Example:
        >>> import torch
        >>> from lightning_symmetry import diagnose
        >>> layer = torch.nn.Linear(3, 4)
        >>> _ = torch.nn.init.constant_(layer.weight, 0.5)
        >>> _ = torch.nn.init.zeros_(layer.bias)
        >>> print(diagnose(torch.nn.Sequential(layer)))
        Symmetry at step 0: 1 of 4 units of 1 layer are distinct.
        layer  units  distinct  dead  groups
        -----  -----  --------  ----  ----------------------
        0          4         1     0  duplicate: all 4 units
        duplicate: equal units whose gradients say nothing so far: ...
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module but got {model!r}.")
    check_tolerance(tolerance)
    check_patterns(include=include, exclude=exclude)
    find = attempt(find_layers, model, include, exclude)
    team = _team_of(model)
    examine = partial(_examine, model, find, tolerance, team)
    return examine() if team is None else team.run(examine, lambda report: None, rows_by_name(model, find, None))


def _examine(model: nn.Module, find: FindLayers, tolerance: float | None, team: Team | None) -> SymmetryReport:
    layers, skipped = find()
    found = find_copies(model, layers, team)
    diagnoses: dict[str, LayerDiagnosis] = {}
    for seen in look([*layers, *found], tolerance=tolerance, team=team):
        groups = [
            UnitGroup(sighting.units, verdict_at_one_look(sighting), sighting.cause, sighting.value)
            for sighting in seen.sightings
            if sighting.has_equal_weights
        ]
        diagnoses[seen.layer.name] = to_diagnosis(seen, groups)
    copies = [group for copy in found for group in copy_groups(copy, diagnoses[copy.name])]
    return SymmetryReport(0, under_all_names(diagnoses[layer.name] for layer in layers), skipped, copies)


def _team_of(model: nn.Module) -> Team | None:
    """The ranks that hold a model; None if it is all here."""
    flattened = (parameter for module in flattened_modules(model) for parameter in module.parameters())
    sharded = next((parameter for parameter in model.parameters() if is_sharded(parameter)), next(flattened, None))
    return None if sharded is None else Team(sharded.device)


def rows_by_name(model: nn.Module, find: FindLayers, trained: Set[int] | None) -> Callable[[Name], Shared | None]:
    """Finds a matrix of a model by what :func:`look` calls it on the first rank.

    Args:
        model: the model.
        find: its layers.
        trained: identities of the parameters whose gradients count; None: all.
    """
    by_name: dict[str, Layer] = {}

    def matrix(name: Name) -> Shared | None:
        part, *names = name
        if not by_name:
            by_name.update({layer.name: layer for layer in find()[0]})
        layer = copies_named(model, names) if len(names) > 1 else by_name.get(names[0])
        if layer is None:
            return None
        matrices: dict[str, Callable[[], Rows | None]] = {
            "weights": layer.weights,
            "gradients": partial(layer.gradients, trained),
            "recurrent": layer.recurrent_rows,
        }
        rows = matrices[part]()
        assert rows is None or isinstance(rows, Shared)
        return rows

    return matrix


def check_patterns(**arguments: Sequence[str] | None) -> None:
    """Refuse what is no sequence of patterns; a bare string is the usual slip."""
    for name, value in arguments.items():
        if value is None and name == "include":
            continue
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str | Mapping)
        if not is_sequence or not all(isinstance(pattern, str) for pattern in value or ()):
            raise TypeError(
                f"Expected argument `{name}` to be a sequence of patterns, e.g. ['fc*'], but got {value!r}."
            )
