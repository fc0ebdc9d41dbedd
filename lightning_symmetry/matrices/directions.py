"""Counts the directions, up to sign, among the rows of a matrix."""

from __future__ import annotations

import math

import numpy as np
import torch

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import compare_pairs
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, to_host
from lightning_symmetry.matrices.projections import rough_reach
from lightning_symmetry.matrices.rows import Rows

COSINE = 0.999
"""Rows whose cosine similarity is at least this, or at most its negative, have the same direction."""

MAX_ROWS = 1 << 14
"""Among more rows than this, directions are not counted, because the time grows with the square of their number."""

_FEW_PRODUCTS = 1 << 20  # up to so many products of numbers take less time than the calls that avoid them
_BLOCK = 256
_PAIRS_PER_ROW = 8
# Rows that crowd around a few directions are settled one direction a round; this limits the rounds.
_MAX_ROUNDS = 64
_ROUNDS_AT_ONCE = 8


def count_directions(rows: Rows, norms: Floats, index: Indices, cosine: float = COSINE) -> int:
    """Count the directions, up to sign, of some rows.

    In the order of their indices, each row joins the first representative with which its cosine similarity is
    ``cosine`` or more in absolute value, or becomes a representative. Representatives are counted. Where thousands of
    rows crowd around hundreds of directions, rows that 64 rounds do not settle count as a direction each.

    Args:
        rows: the matrix.
        norms: the norms of all rows, ``(n,)``.
        index: the rows in question, ``(m,)``, ascending; none of them is zero.
        cosine: the least cosine similarity of rows of one direction.
    """
    if len(index) < 2 or rows.width == 1:
        return min(len(index), 1)
    if isinstance(rows, DenseRows) and len(index) ** 2 * rows.width <= _FEW_PRODUCTS:
        return _count_by_products(rows, norms, index, cosine)
    apart = math.sqrt(2 - 2 * cosine)  # the distance of two unit vectors with this cosine
    keys = (rows.project_roughly(index) / norms[index]).T.astype(np.float32)  # (m, k)
    limit = rough_reach(apart, rows.width) ** 2

    def agree(members: Indices, firsts: Indices) -> Mask:
        # Keys of rows of one direction are nearly equal up to sign, so the sign of their product is that of the rows.
        signs = np.where(np.einsum("mk,mk->m", keys[members], keys[firsts]) < 0, -1.0, 1.0)
        size = norms[index[members]].astype(np.float64)
        return rows.distances(index[members], index[firsts], size, signs * size / norms[index[firsts]]) <= apart

    members = np.arange(len(index))
    num_found = 0
    for _ in range(0, _MAX_ROUNDS, _ROUNDS_AT_ONCE):
        pairs = _near_pairs(keys[members], limit)
        if pairs is not None:
            return num_found + len(members) - (len(compare_pairs(agree, members[pairs])) if pairs.size else 0)
        for _ in range(_ROUNDS_AT_ONCE):
            first, rest = members[0], members[1:]
            near = rest[_squared_distances(keys[first], keys[rest]) <= limit]
            joined = near[agree(near, np.full_like(near, first))] if len(near) else near
            members = np.setdiff1d(rest, joined, assume_unique=True)
            num_found += 1
            if len(members) < 2:
                return num_found + len(members)
    return num_found + len(members)


def _count_by_products(rows: DenseRows, norms: Floats, index: Indices, cosine: float) -> int:
    """Do as :func:`count_directions`, by the products of all pairs of rows."""
    # The norms are rounded, but keep the squares of numbers in the range of float64.
    numbers = torch.from_numpy(to_host(rows.fetch(index)) / norms[index, None])
    numbers /= torch.linalg.vector_norm(numbers, dim=1, keepdim=True)
    cosines = (numbers @ numbers.T).abs_().fill_diagonal_(0).numpy()
    if cosines.max() < cosine:  # the usual case
        return len(index)
    agree = cosines >= cosine
    pairs = np.stack(np.nonzero(np.triu(agree)))
    return len(index) - len(compare_pairs(lambda some, others: agree[some, others], pairs))


def _near_pairs(keys: Floats, limit: float) -> Indices | None:
    """Return the pairs of members whose keys ``(m, k)``, or negated keys, have a squared distance up to the limit.

    They are ``(2, p)``, the smaller first; None if they are too many.
    """
    order = np.abs(keys[:, 0]).argsort()
    ordered = torch.from_numpy(keys[order])
    first_key, squares = ordered[:, 0].abs().numpy(), ordered.square().sum(dim=1)
    ends = np.searchsorted(first_key, first_key + math.sqrt(limit), side="right")
    found: list[Indices] = []
    num_found = 0
    for start in range(0, len(keys), _BLOCK):
        stop = min(start + _BLOCK, len(keys))
        these, others = slice(start, stop), slice(start, int(ends[stop - 1]))
        # |a -+ b|^2 = |a|^2 -+ 2 a b + |b|^2 is at most the limit for one of the signs.
        products = (ordered[these] @ ordered[others].T).mul_(2).abs_()
        is_near = products.sub_(squares[others]) >= (squares[these] - limit)[:, None]
        # A member is near itself, and those of this block are compared twice.
        row, column = np.divmod(np.flatnonzero(is_near.numpy()), is_near.shape[1])
        is_pair = row < column
        num_found += int(np.count_nonzero(is_pair))
        if num_found > _PAIRS_PER_ROW * len(keys):
            return None
        found.append(np.sort(order[start + np.stack([row[is_pair], column[is_pair]])], axis=0))
    return np.concatenate(found, axis=1)


def _squared_distances(key: Floats, others: Floats) -> Floats:
    """Return squared distances of a key ``(k,)`` from others, or their negatives if these are nearer, ``(n,)``."""
    squares: Floats = np.square(key).sum() + np.einsum("mk,mk->m", others, others) - 2 * np.abs(others @ key)
    return squares
