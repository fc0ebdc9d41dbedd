"""Crowds of rows that nearly agree: their distances are few tolerances, so projections do not distinguish them.

An example: the rows of a layer that was filled with one number and has trained for a while under dropout. Here one row
of the crowd is subtracted from all others, which leaves numbers about as large as the distances in question. From
these, matrix products compute all distances.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import CPU, Indices
from lightning_symmetry.matrices.question import Question

_BLOCK = 1 << 10  # rows whose distances from all others are computed at once


def settle_by_distances(question: Question, members: Indices) -> dict[int, int]:
    """Map each row of a crowd to its representative, if it has one, by the distances of all pairs.

    In the order of their indices, each row joins the first representative with which it agrees, or becomes one itself.

    Args:
        question: the matrix, which is on this process, and the tolerance.
        members: the rows of the crowd, ``(m,)``, sorted; none of them is zero.
    """
    rows = question.rows
    assert isinstance(rows, DenseRows)
    sizes = question.sketch.norms[members].astype(np.float64)
    scale = float(sizes.max())  # rows are divided by it, as squares could leave the range of the dtype
    numbers = rows.fetch(members)
    norms = torch.from_numpy(sizes / scale).to(numbers.device, numbers.dtype)
    representative: dict[int, int] = {}
    left = torch.arange(len(members), device=numbers.device)
    while len(left) > 1:
        head = left[:_BLOCK]
        agree = _agree(question, members, numbers, scale, norms, head, left).triu_(1).to(CPU).numpy()  # each pair once
        place = left.to(CPU).numpy()
        is_taken = np.zeros(len(place), dtype=np.bool_)
        for i in np.flatnonzero(agree.any(axis=1)):
            if not is_taken[i]:
                joins = agree[i] & ~is_taken
                representative.update(dict.fromkeys(members[place[joins]].tolist(), int(members[place[i]])))
                is_taken |= joins
        is_taken[: len(head)] = True
        left = left[torch.from_numpy(~is_taken).to(left.device)]
    return representative


def _agree(
    question: Question, members: Indices, numbers: Tensor, scale: float, norms: Tensor, head: Tensor, left: Tensor
) -> Tensor:
    """Return which of some rows agree with which others, ``(len(head), len(left))``."""
    limits = (question.tolerance * torch.maximum(norms[head][:, None], norms[left])).square()
    for dtype in (numbers.dtype, torch.float64):
        some, others = ((numbers[part].to(dtype) - numbers[:1].to(dtype)) / scale for part in (head, left))
        squares = others.square().sum(dim=1)
        distances = torch.addmm(squares[None], some, others.T, alpha=-2).add_(some.square().sum(dim=1, keepdim=True))
        # |a - b|^2 = |a|^2 - 2 a b + |b|^2 loses the more digits, the larger a and b are.
        error = 8 * torch.finfo(dtype).eps * others.shape[1] ** 0.5 * float(squares.max())
        if error <= 0.1 * float(limits.min()):
            break
    distances -= limits
    agree = distances <= 0
    unsure = torch.nonzero((distances.abs_() <= error).triu_(1)).to(CPU).numpy()
    if len(unsure):
        some_rows, other_rows = members[head.to(CPU).numpy()[unsure[:, 0]]], members[left.to(CPU).numpy()[unsure[:, 1]]]
        answers = torch.from_numpy(question.agree(other_rows, some_rows)).to(agree.device)
        agree[tuple(torch.from_numpy(unsure.T).to(agree.device))] = answers
    return agree
