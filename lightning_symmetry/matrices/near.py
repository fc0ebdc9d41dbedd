"""Crowds of rows that nearly agree: their distances are some tolerances, so that no single projection tells them apart.

Such are the rows of a layer that was filled with one number and has trained for a while under dropout. Compared one by
one, ``n`` of them take ``n^2`` comparisons. Here a row of the crowd is subtracted from all others, which leaves numbers
about as large as the distances in question; of these a matrix product makes several projections at once, and where they
do not do, another one all distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import CPU, Indices, Mask
from lightning_symmetry.matrices.projections import near_vectors
from lightning_symmetry.matrices.question import Question

# Rows this far from the one that is subtracted, relative to their norms, lie outside of its crowd.
_NEAREST, _FARTHEST = 1e-3, 1e-2
_MAX_CROWDS = 8
_MAX_PAIRS_PER_ROW = 16
_BLOCK = 1 << 10  # rows whose distances from all others are computed at once
_MAX_ELEMENTS = 1 << 26  # of a crowd, which is copied
_BOUND_OF_SQUARES = 122.0  # chi-squared with 16 degrees of freedom exceeds it with a probability below 5e-14

Settle = Callable[[Indices], dict[int, int]]


def settle_crowds(
    question: Question,
    members: Indices,
    block: Indices,
    settle_pairs: Settle,
    max_rows: float = math.inf,
) -> tuple[dict[int, int], Mask]:
    """Find the representatives of rows that nearly agree with many others.

    In the order of their indices, each row joins the first representative with which it agrees, or becomes one itself.

    Args:
        question: the matrix, whose rows lie here, and the tolerance.
        members: rows that are not zero, ``(m,)``, sorted.
        block: of each member, ``(m,)``; members of different blocks never agree.
        settle_pairs: gives the representatives of rows, ``(2, p)`` being all pairs of them that may agree.
        max_rows: crowds of more rows than this are left if projections do not settle them.

    Returns:
        The representative of each row that has one, and whether a member was not settled, ``(m,)``.
    """
    rows, norms, tolerance = question.rows, question.sketch.norms, question.tolerance
    representative: dict[int, int] = {}
    is_left = np.ones(len(members), dtype=np.bool_)
    remaining = np.arange(len(members))  # of which no crowd has been looked at
    if not isinstance(rows, DenseRows):
        return representative, is_left
    for _ in range(_MAX_CROWDS):
        if len(remaining) < 2:
            break
        is_near = _crowd_of(question, members[remaining])
        if is_near is None:
            remaining = remaining[1:]
            continue
        crowd, remaining = remaining[is_near], remaining[~is_near]
        if len(crowd) * rows.width > _MAX_ELEMENTS:
            continue
        scale = float(norms[members[crowd]].max())  # divided by it, as squares could leave the range of the dtype
        offsets = rows.fetch(members[crowd])
        offsets = (offsets - offsets[:1]) / scale
        pairs = _pairs_within(offsets, tolerance, block[crowd], rows.width)
        if pairs is not None:
            representative |= settle_pairs(members[crowd][pairs])
        elif len(crowd) <= max_rows:
            representative |= _settle_by_distances(question, members[crowd], block[crowd], offsets, scale)
        else:
            continue
        is_left[crowd] = False
    return representative, is_left


def _crowd_of(question: Question, members: Indices) -> Mask | None:
    """Say which members lie near the first one, ``(m,)``: none of the others agrees with any of these.

    Returns:
        None if there is no such set, because members lie at all distances from the first one.
    """
    norms = question.sketch.norms[members]
    first = np.full(len(members), members[0])
    # Of rows that agree, the distances from a third one differ by their distance at the most.
    distance = question.rows.distances(members, first, np.full(len(members), norms.max()))
    ordered = np.sort(distance)
    bounds = ordered[(ordered >= _NEAREST) & (ordered <= _FARTHEST)]
    edge = np.concatenate([[_NEAREST], bounds, [_FARTHEST]])
    gaps = np.flatnonzero(np.diff(edge) > 2.01 * question.tolerance)
    if not len(gaps):
        return None
    is_near: Mask = distance <= edge[gaps[0]]
    is_near[0] = True
    return is_near


def _pairs_within(offsets: Tensor, reach: float, block: Indices, width: int) -> Indices | None:
    """Return all pairs ``(2, p)`` of rows that may lie within a reach, by projections; None if there are very many."""
    vectors = near_vectors(width, offsets.dtype, offsets.device)
    places = (offsets @ vectors.T).to(CPU)
    radius = _BOUND_OF_SQUARES * reach**2
    most = _MAX_PAIRS_PER_ROW * len(places)
    found, number = [], 0
    for start in range(0, len(places), _BLOCK):
        squares, error = _squared_distances(places[start : start + _BLOCK], places[start:])
        # Of each pair once: the first row comes before the second.
        near = torch.nonzero((squares <= radius + error).triu_(1))
        first, second = (near + torch.tensor([start, start])).T.numpy()
        is_pair = block[first] == block[second]
        found.append(np.stack([first[is_pair], second[is_pair]]))
        number += found[-1].shape[1]
        if number > most:
            return None
    return np.concatenate(found, axis=1)


def _squared_distances(some: Tensor, others: Tensor) -> tuple[Tensor, float]:
    """Return the squared distances of some rows from others, and how far rounding may take them off.

    Args:
        some: ``(b, d)``, all of them among the others.
        others: ``(m, d)``.
    """
    squares = others.square().sum(dim=1)
    distances = torch.addmm(squares[None], some, others.T, alpha=-2) + some.square().sum(dim=1, keepdim=True)
    return distances, 8 * torch.finfo(some.dtype).eps * math.sqrt(some.shape[1]) * float(squares.max())


def _settle_by_distances(
    question: Question, members: Indices, block: Indices, offsets: Tensor, scale: float
) -> dict[int, int]:
    """Find the representatives of the members of a crowd from all their distances.

    Args:
        question: the matrix and the tolerance.
        members: the rows of the crowd, ``(m,)``.
        block: of each member, ``(m,)``.
        offsets: the rows without one of them, divided by a scale, ``(m, d)``.
        scale: that scale.
    """
    relative = question.sketch.norms[members].astype(np.float64) / scale
    norms = torch.from_numpy(relative).to(offsets.device, offsets.dtype)
    blocks = torch.from_numpy(block).to(offsets.device)
    representative: dict[int, int] = {}
    left = torch.arange(len(members), device=offsets.device)
    while len(left) > 1:
        head = left[:_BLOCK]
        agree = _agree(question, members, offsets, norms, head, left) & (blocks[head][:, None] == blocks[left])
        near = agree.to(CPU).numpy()
        place = left.to(CPU).numpy()
        is_taken = np.zeros(len(place), dtype=np.bool_)
        for i in range(len(near)):
            if is_taken[i]:
                continue
            joins = near[i] & ~is_taken
            joins[: i + 1] = False
            representative.update(dict.fromkeys(members[place[joins]].tolist(), int(members[place[i]])))
            is_taken |= joins
        is_taken[: len(near)] = True
        left = left[torch.from_numpy(~is_taken).to(left.device)]
    return representative


def _agree(question: Question, members: Indices, offsets: Tensor, norms: Tensor, head: Tensor, left: Tensor) -> Tensor:
    """Say which of some rows agree with which others, ``(len(head), len(left))``."""
    limits = (question.tolerance * torch.maximum(norms[head][:, None], norms[left])).square()
    for dtype in (offsets.dtype, torch.float64):
        distances, error = _squared_distances(offsets[head].to(dtype), offsets[left].to(dtype))
        if error <= 0.1 * float(limits.min()):
            break
    agree = distances <= limits
    unsure = torch.nonzero((distances - limits).abs() <= error).to(CPU).numpy()
    if len(unsure):
        some_rows, other_rows = members[head.to(CPU).numpy()[unsure[:, 0]]], members[left.to(CPU).numpy()[unsure[:, 1]]]
        answers = torch.from_numpy(question.agree(other_rows, some_rows)).to(agree.device)
        agree[tuple(torch.from_numpy(unsure.T).to(agree.device))] = answers
    return agree
