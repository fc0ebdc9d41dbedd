"""Brute force in float64: the definition of a group, written down without any thought of speed."""

from __future__ import annotations

import torch
from torch import Tensor


def brute_force_groups(rows: Tensor, tolerance: float) -> list[tuple[int, ...]]:
    """Each row joins the first representative with which it agrees, or becomes one."""
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
    """Relative L2 distance."""
    scale = float(max(a.abs().max(), b.abs().max())) if a.numel() else 0.0
    if scale == 0:
        return True
    a, b = a / scale, b / scale
    return float((a - b).norm()) <= tolerance * max(float(a.norm()), float(b.norm()))
