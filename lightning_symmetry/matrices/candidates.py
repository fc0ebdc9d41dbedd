"""Candidate pairs: rows whose keys are so near to one another that they have to be compared in full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask

# A row with more neighbours than this lies in a crowd, where pairs are too many to list.
_MAX_NEIGHBOURS = 64
_SAMPLE = 1 << 11


@dataclass(frozen=True)
class Candidates:
    """The candidate pairs among some rows, here called members and counted from 0.

    Attributes:
        pairs: pairs of members, ``(2, p)``, the smaller first.
        is_crowded: whether a member lies in a crowd, ``(m,)``; it is then in no pair.
        best_key: the key that separates best; of use for crowds only.
    """

    pairs: Indices
    is_crowded: Mask
    best_key: int


def find_candidates(keys: Floats, block: Indices) -> Candidates:
    """The pairs of members that are near in all keys, and the crowds in which these pairs would be too many.

    Args:
        keys: ``(k, m)``; members that agree differ by one at the most.
        block: ``(m,)``; members of different blocks are never compared.
    """
    num_members = keys.shape[1]
    if num_members <= _MAX_NEIGHBOURS:  # too few for a crowd
        near = (np.abs(keys[:, :, None] - keys[:, None]) <= 1).all(axis=0) & (block[:, None] == block)
        return Candidates(np.array(np.nonzero(np.triu(near, 1))), np.zeros(num_members, dtype=np.bool_), best_key=0)
    best = _best_of(keys)
    others = [i for i in range(len(keys)) if i != best]
    order = sort_within(keys[best], block)
    # Runs of members near the next one: none has a partner in another run, so crowds are whole runs.
    is_first = np.ones(num_members, dtype=np.bool_)
    is_first[1:] = ~_near_in_order(keys[best, order], block[order], 1)
    run = np.empty_like(order)
    run[order] = is_first.cumsum() - 1
    is_crowd = np.zeros(is_first.sum(), dtype=np.bool_)
    is_crowd[run[order][_is_packed(keys[:, order], block[order])]] = True
    order = order[~is_crowd[run[order]]]
    num_pairs = np.zeros(num_members, dtype=np.intp)
    pairs = [np.zeros((2, 0), dtype=np.intp)]
    shift = 1
    while shift < len(order):
        near = _near_in_order(keys[best, order], block[order], shift)
        if not near.any():
            break
        lower, upper = order[:-shift][near], order[shift:][near]
        for i in others:
            near = np.abs(keys[i, upper] - keys[i, lower]) <= 1
            lower, upper = lower[near], upper[near]
        pairs.append(np.stack([lower, upper]))
        num_pairs[lower] += 1
        num_pairs[upper] += 1
        if shift % _MAX_NEIGHBOURS == 0:
            is_crowd[run[num_pairs > _MAX_NEIGHBOURS]] = True
            order = order[~is_crowd[run[order]]]
        shift += 1
    found = np.concatenate(pairs, axis=1)
    found = found[:, ~is_crowd[run[found[0]]]]
    return Candidates(np.sort(found, axis=0), is_crowd[run], best)


def find_neighbours(keys: Floats, block: Indices) -> Indices:
    """Pairs ``(2, p)`` of members that are near in all keys and follow one another in the key that separates best."""
    order = sort_within(keys[_best_of(keys)], block)
    lower, upper = order[:-1], order[1:]
    is_near = (np.abs(keys[:, upper] - keys[:, lower]) <= 1).all(axis=0) & (block[upper] == block[lower])
    return np.stack([lower[is_near], upper[is_near]])


def sort_within(key: Floats, block: Indices) -> Indices:
    """The order of members by block, and by key within a block."""
    return key.argsort() if (block == block[0]).all() else np.lexsort((key, block))


def _best_of(keys: Floats) -> int:
    """The key that separates best."""
    return min(range(len(keys)), key=lambda i: _count_near(keys[i]))


def _count_near(key: Floats) -> int:
    """How often a member of a sample has the next one near; a rough measure of how badly a key separates."""
    sample = np.sort(key[:: 1 + len(key) // _SAMPLE])
    return int(np.count_nonzero(np.diff(sample) <= 1))


def _near_in_order(key: Floats, block: Indices, shift: int) -> Mask:
    """Whether a member is near the one ``shift`` before it, ``(m - shift,)``; the key is sorted within each block."""
    near: Mask = (key[shift:] - key[:-shift] <= 1) & (block[shift:] == block[:-shift])
    return near


def _is_packed(keys: Floats, block: Indices) -> Mask:
    """Whether a member is near the 64th before it in all keys, as where many are equal."""
    is_packed = np.zeros(keys.shape[1], dtype=np.bool_)
    before, after = slice(None, -_MAX_NEIGHBOURS), slice(_MAX_NEIGHBOURS, None)
    near = (np.abs(keys[:, after] - keys[:, before]) <= 1).all(axis=0)
    is_packed[after] = near & (block[after] == block[before])
    return is_packed
