"""Merging the units of one layer, in place, without a look at what the model computes then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_symmetry.merging.coupling import Coupled, Graph
from lightning_symmetry.merging.edits import Edit, Equal, edit_of_reader, edit_of_writer
from lightning_symmetry.merging.errors import NotMergedError
from lightning_symmetry.merging.sets import Signed, split
from lightning_symmetry.merging.verification import Inputs


@dataclass(frozen=True)
class Step:
    """What was done to merge units of one layer.

    Attributes:
        edits: what became of each tensor.
        gone: by the name of a module, the indices of the units that it lost; other layers than the one in question
            lose units if they write to the same channels.
        reasons: why some of the units were not merged.
        equal: which slices of which tensors are equal if the merged units are.
        readers_are_told: whether a symbolic trace of both modes has found all that reads the units.
        num_units: number of units of the layer before.
    """

    edits: tuple[Edit, ...]
    gone: dict[str, tuple[int, ...]]
    reasons: tuple[str, ...]
    equal: tuple[Equal, ...]
    readers_are_told: bool
    num_units: int


def merge_units(
    model: nn.Module, inputs: Inputs, name: str, groups: Sequence[Sequence[Signed]], labels: Sequence[int]
) -> Step:
    """Merge units of one layer of a model, in place.

    Args:
        model: the model; all of its floating point parameters have to require a gradient. Afterwards it is in
            evaluation mode, and some of its parameters are new ones that require a gradient.
        inputs: what it is called with.
        name: name of the layer in the model.
        groups: groups of units that have equal rows, up to the sign.
        labels: what the units of the layer are called where a reason names them.

    Raises:
        NotMergedError: if none of the units can be merged. The model is of no use then.
    """
    graph = Graph(model, inputs)
    module = model.get_submodule(name)
    units = [unit for group in groups for unit, _ in group]
    num_units = graph.num_units(module)
    coupled = graph.coupled(module, units)
    sets: list[list[Signed]] = []
    reasons: list[str] = []
    for group in groups:
        of_group, why_not_all = split(group, coupled, labels)
        sets += of_group
        reasons += why_not_all
    if not sets:
        raise NotMergedError("; ".join(dict.fromkeys(reasons)))
    edits = [edit for each in coupled for edit in _edits(each, sets)]
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
    return Step(tuple(edits), of_layers, tuple(dict.fromkeys(reasons)), equal, graph.readers_are_told, num_units)


def _edits(coupled: Coupled, sets: Sequence[Sequence[Signed]]) -> list[Edit]:
    """What happens to each tensor of something coupled if one unit of each set stays."""
    make = edit_of_reader if coupled.is_reader else edit_of_writer
    sets_of_places = _sets_of_places(coupled, sets)
    return [
        make(name, part.dim, tensor.shape[part.dim], sets_of_places) for name, (part, tensor) in coupled.tensors.items()
    ]


def _equal(coupled: Coupled, sets: Sequence[Sequence[Signed]]) -> Iterator[Equal]:
    """Which slices of the tensors of something coupled are equal if the units of each set are."""
    for name, (part, _) in coupled.tensors.items():
        pairs = [
            (place, first, sign * first_sign if part.is_odd else 1)
            for (first, first_sign), *others in _sets_of_places(coupled, sets)
            for place, sign in others
        ]
        yield Equal(name, part.dim, tuple(pairs))


def _sets_of_places(coupled: Coupled, sets: Sequence[Sequence[Signed]]) -> list[tuple[Signed, ...]]:
    # A unit may have several slices, such as a column for each pixel of a channel; those at the same place go together.
    return [
        places
        for members in sets
        for places in zip(*([(place, sign) for place in coupled.places[unit]] for unit, sign in members), strict=True)
    ]
