"""Merging the units of one layer, in place, without checking the outputs of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.merging.coupling import Coupled, Graph
from lightning_symmetry.merging.edits import Edit, Equal
from lightning_symmetry.merging.verification import Inputs, NotMergedError

Signed = tuple[int, int]
"""A unit, and the sign of its output relative to the first unit of its set."""


class Step(NamedTuple):
    """The merge of units of one layer."""

    edits: tuple[Edit, ...]  # the edits of all tensors
    gone: dict[str, tuple[int, ...]]  # removed units by layer: this one, and those that write to the same channels
    reasons: tuple[str, ...]  # why some of the units were not merged
    equal: tuple[Equal, ...]  # the slices that are equal if the merged units are
    knows_all_readers: bool  # whether a symbolic trace of both modes has found all layers that read the units
    num_units: int  # number of units of the layer before the merge


def merge_units(
    model: nn.Module, inputs: Inputs, name: str, groups: Sequence[Sequence[Signed]], labels: Sequence[int]
) -> Step:
    """Merge units of one layer of a model, in place.

    All floating point parameters must require a gradient. The model is put into evaluation mode, and edited parameters
    are replaced by new ones that require a gradient. Reasons name the units by ``labels``, their original indices. If
    none of the units can be merged, a NotMergedError is raised, and the model may be left half edited.
    """
    graph = Graph(model, inputs)
    module = model.get_submodule(name)
    units = [unit for group in groups for unit, _ in group]
    num_units = graph.num_units(module)
    coupled = graph.coupled(module, units)
    results = [split(group, coupled, labels) for group in groups]
    sets = [members for of_group, _ in results for members in of_group]
    reasons = [reason for _, why_not_all in results for reason in why_not_all]
    if not sets:
        raise NotMergedError("; ".join(dict.fromkeys(reasons)))
    edits = [
        Edit.of(key, part.dim, tensor.shape[part.dim], _sets_of_places(each, sets), is_reader=each.is_reader)
        for each in coupled
        for key, (part, tensor) in each.tensors.items()
    ]
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    with torch.no_grad():
        for edit in edits:
            if edit.added:
                tensors[edit.name].copy_(edit.fold(tensors[edit.name]))
    gone = [unit for members in sets for unit, _ in members[1:]]
    graph.remove(module, gone)
    of_layers = {
        each.name: tuple(sorted(place for unit in gone for place in each.places[unit]))
        for each in coupled
        if each.is_layer
    }
    equal = tuple(one for each in coupled if not each.is_reader for one in _equal(each, sets))
    return Step(tuple(edits), of_layers, tuple(dict.fromkeys(reasons)), equal, graph.knows_all_readers, num_units)


def split(
    units: Sequence[Signed], coupled: Sequence[Coupled], labels: Sequence[int]
) -> tuple[list[list[Signed]], list[str]]:
    """Split units into sets that agree in all coupled tensors. Readers may differ: their weights are added up.

    Return the sets of two or more units, and a reason for each module in which units differ.
    """
    sets, reasons = [list(units)], []
    for index, each in enumerate(coupled):
        parts = [part for members in sets for part in _split_by(members, each)]
        if len(parts) > len(sets):
            separated = ", ".join(str(labels[part[0][0]]) for part in parts)
            also = "writes to the same channels and " if each.is_layer and index else ""
            differs = "does not read all of them alike" if each.is_reader else f"{also}holds different numbers for them"
            reasons.append(f"units {separated}: `{each.name}` ({each.kind}) {differs}")
        sets = parts
    return [members for members in sets if len(members) > 1], reasons


def _split_by(members: Sequence[Signed], coupled: Coupled) -> Iterable[list[Signed]]:
    parts: dict[Signed, list[Signed]] = {}  # by the first member
    for member in members:
        first = next((first for first in parts if _agree(member, first, coupled)), member)
        parts.setdefault(first, []).append(member)
    return parts.values()


def _agree(a: Signed, b: Signed, coupled: Coupled) -> bool:
    if len(coupled.places[a[0]]) != len(coupled.places[b[0]]):
        return False
    if coupled.is_reader:
        return True
    rows = (coupled.row(*signed).cpu() for signed in (a, b))
    x, y = (row.to(torch.complex128 if row.is_complex() else torch.float64) for row in rows)
    dtype = next(tensor.dtype.to_real() for _, tensor in coupled.tensors.values())
    largest = torch.maximum(torch.linalg.vector_norm(x), torch.linalg.vector_norm(y))
    return bool(torch.linalg.vector_norm(x - y) <= TOLERANCES.get(dtype, 0.0) * largest)


def _equal(coupled: Coupled, sets: Sequence[Sequence[Signed]]) -> Iterator[Equal]:
    """Yield, for each coupled tensor, the slices that are equal if the units of each set are."""
    for name, (part, _) in coupled.tensors.items():
        pairs = [
            (place, first, sign * first_sign if part.is_odd else 1)
            for (first, first_sign), *others in _sets_of_places(coupled, sets)
            for place, sign in others
        ]
        yield Equal(name, part.dim, tuple(pairs))


def _sets_of_places(coupled: Coupled, sets: Sequence[Sequence[Signed]]) -> list[tuple[Signed, ...]]:
    # A unit may have several slices, such as a column for each pixel of a channel; slices of the same pixel form a set.
    return [
        places
        for members in sets
        for places in zip(*([(place, sign) for place in coupled.places[unit]] for unit, sign in members), strict=True)
    ]
