"""Brute force in float64: the definition of a group, without regard to speed."""

from __future__ import annotations

import torch
from torch import Tensor


def brute_force_groups(rows: Tensor, tolerance: float) -> list[tuple[int, ...]]:
    """Group rows: each joins the first representative with which it agrees, or becomes one."""
    matrix = rows.to(torch.float64)
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(matrix):
        if not bool(row.isfinite().all()):
            continue
        for first, members in groups.items():
            if agree(row, matrix[first], tolerance):
                members.append(i)
                break
        else:
            groups[i] = [i]
    return [tuple(members) for members in groups.values() if len(members) > 1]


def agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return the relative L2 distance."""
    scale = float(max(a.abs().max(), b.abs().max())) if a.numel() else 0.0
    if scale == 0:
        return True
    a, b = a / scale, b / scale
    return float((a - b).norm()) <= tolerance * max(float(a.norm()), float(b.norm()))


def brute_force_mirrors(rows: Tensor, tolerance: float) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return sets of rows that agree up to sign, each with the rows that are the negative of the first.

    The first row of each group of equal rows represents it. Each joins the first whose negative it is.
    """
    matrix = rows.to(torch.float64)
    groups = {group[0]: group for group in brute_force_groups(rows, tolerance)}
    grouped = {row for group in groups.values() for row in group}
    is_usable = matrix.isfinite().all(dim=1) & (matrix != 0).any(dim=1)
    heads = [row for row in range(len(matrix)) if is_usable[row] and (row in groups or row not in grouped)]
    joined: dict[int, int] = {}
    for second in heads:
        for first in heads:
            if (
                first < second
                and joined.get(first, first) == first
                and agree(matrix[second], -matrix[first], tolerance)
            ):
                joined[first], joined[second] = first, first
                break
    found = []
    for first in sorted({first for row, first in joined.items() if row != first}):
        rows_of_first = groups.get(first, (first,))
        negative = [row for head, home in joined.items() if home == first != head for row in groups.get(head, (head,))]
        found.append((tuple(sorted([*rows_of_first, *negative])), tuple(sorted(negative))))
    return found


def brute_force_directions(rows: Tensor, cosine: float) -> int:
    """Group rows: each joins the first representative with this cosine similarity or its negative, or becomes one."""
    matrix = rows.to(torch.float64)
    unit = matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    representatives: list[Tensor] = []
    for row in unit:
        if not any(abs(float(row @ other)) >= cosine for other in representatives):
            representatives.append(row)
    return len(representatives)
