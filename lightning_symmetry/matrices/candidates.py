"""Candidate pairs: rows whose keys are so near to one another that they have to be compared in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask

# At most this many pairs are compared in full at once: per row of a large matrix, and in total for a small one.
_PAIRS_PER_ROW = 3
_MIN_PAIRS = 1 << 11
_MAX_LISTED = 32  # of components up to this size, all pairs are listed
_BLOCK = 256  # rows of a crowd whose keys are compared with those of the others at once
_LONGEST_LINE = 2.0**40  # keys on a line up to this length are exact to a thousandth
_MAX_IDLE_KEYS = 3  # keys in a row that split no component


@dataclass(frozen=True)
class Candidates:
    """The candidate pairs among some rows, here called members and counted from 0."""

    pairs: Indices  # pairs of members, `(2, p)`, the smaller first
    is_crowded: Mask  # whether a member lies where candidate pairs are too many to list, `(m,)`; it is then in no pair


def find_candidates(keys: Floats, block: Indices, num_rows: int, reach: float | None = None) -> Candidates:
    """Find the pairs of members that are near in all keys, and the crowds in which these pairs would be too many.

    Args:
        keys: ``(k, m)``; members that agree differ by one at the most.
        block: ``(m,)``; members of different blocks are never compared.
        num_rows: rows of the matrix. Components with more than their share of about three pairs per row are crowds.
        reach: the largest L2 distance, over all keys but the last, between members that agree; None if unknown. Then
            components of more than 32 members are crowds.
    """
    component = components_of(keys, block)
    size = np.bincount(component)
    order = component.argsort(kind="stable")
    is_large = size > _MAX_LISTED
    per_row = max(_MIN_PAIRS, _PAIRS_PER_ROW * num_rows) / len(component)
    found = [_listed_pairs(keys, component, order[~is_large[component[order]]], reach)]
    number = np.bincount(component[found[0][0]], minlength=len(size))
    is_crowd = is_large | (number > per_row * size)
    if reach is not None:
        ends = size.cumsum()
        for i in np.flatnonzero(is_large):
            members = order[ends[i] - size[i] : ends[i]]
            pairs = _pairs_within(keys[:, members], reach, int(per_row * size[i]))
            if pairs is not None:
                found.append(members[pairs])
                is_crowd[i] = False
    pairs = np.concatenate(found, axis=1)
    pairs = pairs[:, ~is_crowd[component[pairs[0]]]]
    return Candidates(np.sort(pairs, axis=0), is_crowd[component])


def components_of(keys: Floats, block: Indices) -> Indices:
    """Number the members ``(m,)`` so that no two with different numbers are near in all keys.

    Members are sorted by a key and split where the next one lies more than one away; then each part by the next key.
    """
    component, num_components, num_idle = block, 0, 0
    for key in (*keys, *keys):  # an earlier key may split the parts of a later one
        order = sort_within(key, component)
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = (np.diff(key[order]) > 1) | (np.diff(component[order]) != 0)
        component = np.empty_like(order)
        component[order] = is_first.cumsum() - 1
        before, num_components = num_components, int(is_first.sum())
        num_idle = num_idle + 1 if num_components == before else 0
        if num_components == len(order) or num_idle == _MAX_IDLE_KEYS:
            break
    return component


def sort_within(key: Floats, block: Indices) -> Indices:
    """Return the order of members by block, and by key within a block."""
    length = float(key.max(initial=0) - key.min(initial=0)) + 1
    if length * float(block.max(initial=0)) < _LONGEST_LINE:  # all blocks side by side on one line, which sorts faster
        return (key + length * block).argsort()
    return np.lexsort((key, block))


def _listed_pairs(keys: Floats, component: Indices, order: Indices, reach: float | None) -> Indices:
    """List the near pairs ``(2, p)`` of the members at ``order``, which are sorted by their components."""
    found = [np.zeros((2, 0), dtype=np.intp)]
    for shift in range(1, len(order)):
        same = component[order[shift:]] == component[order[:-shift]]
        if not same.any():
            break
        lower, upper = order[:-shift][same], order[shift:][same]
        apart = np.abs(keys[:, upper] - keys[:, lower])
        near = (apart <= 1).all(axis=0)
        if reach is not None:
            near &= np.square(apart[:-1]).sum(axis=0) <= reach**2
        found.append(np.stack([lower[near], upper[near]]))
    return np.concatenate(found, axis=1)


def _pairs_within(keys: Floats, reach: float, most: int) -> Indices | None:
    """Return the near pairs ``(2, p)`` of a large component; None if there are more than ``most``."""
    keys = keys - keys[:, :1]  # small numbers, so that the products below lose few digits
    best = np.ptp(keys, axis=1).argmax()
    order = keys[best].argsort()
    keys = keys[:, order]
    ends = np.searchsorted(keys[best], keys[best] + 1, side="right")
    squares_from = _squared_distances(keys[:-1])
    found, num_found = [], 0
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        is_near = squares_from(start, stop, int(ends[stop - 1])) <= reach**2
        if np.count_nonzero(is_near) > 2 * most + _BLOCK:  # a pair within the block counts twice
            return None
        first, second = start + np.stack(np.divmod(np.flatnonzero(is_near), is_near.shape[1]))
        is_pair = (first < second) & (np.abs(keys[-1, second] - keys[-1, first]) <= 1)
        num_found += int(np.count_nonzero(is_pair))
        if num_found > most:
            return None
        found.append(order[np.stack([first[is_pair], second[is_pair]])])
    return np.concatenate(found, axis=1)


def _squared_distances(keys: Floats) -> Callable[[int, int, int], Floats]:
    """Return a function that computes squared distances of keys ``start`` to ``stop`` from keys ``start`` to ``end``.

    The keys are ``(k, m)``. A bound on the rounding error is subtracted, so no distance is too large.
    """
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2 loses the more digits, the larger a and b are.
    extent = float(np.square(keys).sum(axis=0).max())
    dtype = torch.float32 if 64 * torch.finfo(torch.float32).eps * extent < 0.1 else torch.float64
    columns = torch.from_numpy(keys).to(dtype)
    norms = columns.square().sum(dim=0)
    own = norms[:, None] - 64 * torch.finfo(dtype).eps * extent

    def squared_distances(start: int, stop: int, end: int) -> Floats:
        products = torch.addmm(norms[None, start:end], columns[:, start:stop].T, columns[:, start:end], alpha=-2)
        squares: Floats = products.add_(own[start:stop]).numpy()
        return squares

    return squared_distances
