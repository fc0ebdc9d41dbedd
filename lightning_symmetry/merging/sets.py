"""Which units of a group can become one: those that agree in everything that has numbers for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.merging.coupling import Coupled

Signed = tuple[int, int]
"""A unit, and the sign with which its output is that of the first unit of its set."""


def split(
    units: Sequence[Signed], coupled: Sequence[Coupled], labels: Sequence[int]
) -> tuple[list[list[Signed]], list[str]]:
    """Split units into sets that agree in all that is coupled to them, readers aside, whose numbers are added up.

    Args:
        units: the units of a group, with their signs.
        coupled: what has numbers for them.
        labels: what the units of the layer are called.

    Returns:
        The sets of two or more units, and for each thing in which units differ, a reason that says so.
    """
    sets, reasons = [list(units)], []
    for index, each in enumerate(coupled):
        parts = [part for members in sets for part in _split_by(members, each)]
        if len(parts) > len(sets):
            separated = ", ".join(str(labels[part[0][0]]) for part in parts)
            also = "puts out the same channels and " if each.is_layer and index else ""
            differs = "does not read all of them alike" if each.is_reader else f"{also}holds different numbers for them"
            reasons.append(f"units {separated}: `{each.name}` ({each.kind}) {differs}")
        sets = parts
    return [members for members in sets if len(members) > 1], reasons


def _split_by(members: Sequence[Signed], coupled: Coupled) -> Iterable[list[Signed]]:
    parts: list[list[Signed]] = []
    for member in members:
        home = next((part for part in parts if _agree(member, part[0], coupled)), None)
        if home is None:
            parts.append([member])
        else:
            home.append(member)
    return parts


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
