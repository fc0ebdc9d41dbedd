"""Candidate pairs: rows whose keys are so near to one another that they have to be compared in full."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, has_exact_products

# At most this many pairs are compared in full at once: per row of a large matrix, and in total for a small one.
_PAIRS_PER_ROW = 3
_MIN_PAIRS = 1 << 11
_MAX_LISTED = 32  # of components up to this size, all pairs are listed
_MIN_KEYS, _KEYS_PER_ROW = 1 << 21, 1 << 8  # compared where the effort is bounded: in all, or per row of a large matrix
_BLOCK = 256  # rows of a crowd whose keys are compared with those of the others at once
_LONGEST_LINE = 2.0**40  # keys on a line up to this length are exact to a thousandth
_MAX_IDLE_KEYS = 3  # keys in a row that split no component


@dataclass(frozen=True)
class Candidates:
    """The candidate pairs among some rows, here called members and counted from 0."""

    pairs: Indices  # pairs of members, `(2, p)`, the smaller first
    is_crowded: Mask  # whether a member lies where candidate pairs are too many to list, `(m,)`; it is then in no pair
    component: Indices  # members with different numbers are near in no pair, `(m,)`


class Effort(NamedTuple):
    """How much may be compared in a matrix. Where it takes more, rows count as crowded."""

    pairs: float  # pairs of rows to compare in full
    keys: float  # pairs of rows whose keys are compared

    @classmethod
    def within_budget(cls, num_rows: int) -> Effort:
        """Return the effort that takes as long as a few reads of a matrix with so many rows."""
        return cls(max(_MIN_PAIRS, num_rows / 2), max(_MIN_KEYS, _KEYS_PER_ROW * num_rows))

    @classmethod
    def exhaustive(cls, num_rows: int) -> Effort:
        """Return the effort up to which it saves time to compare pair by pair; what is left is compared as a whole."""
        return cls(max(_MIN_PAIRS, _PAIRS_PER_ROW * num_rows), math.inf)


def find_candidates(keys: Floats, block: Indices, num_rows: int) -> Candidates:
    """Find the pairs of members that are near in all keys, and the crowds in which these pairs would be too many.

    Args:
        keys: ``(k, m)``; members that agree differ by one at the most.
        block: ``(m,)``; members of different blocks are never compared.
        num_rows: rows of the matrix. Components of more than 32 members, or with more than their share of about three
            pairs per row, are crowds.
    """
    component = _components_of(keys, block)
    size = np.bincount(component)
    order = component.argsort(kind="stable")
    is_crowd = size > _MAX_LISTED
    pairs = _listed_pairs(keys, component, order[~is_crowd[component[order]]])
    per_row = Effort.exhaustive(num_rows).pairs / len(component)
    is_crowd |= np.bincount(component[pairs[0]], minlength=len(size)) > per_row * size
    pairs = pairs[:, ~is_crowd[component[pairs[0]]]]
    return Candidates(np.sort(pairs, axis=0), is_crowd[component], component)


def find_candidates_within(keys: Floats, block: Indices, reach: float, effort: Effort) -> Candidates:
    """Find the pairs of members that are near in all keys together, and the crowds in which these would be too many.

    Members are sorted by the key that varies most. Gaps of more than one in it split them into components, within which
    each member is compared with those that follow it within one.

    Args:
        keys: ``(k, m)``; members that agree differ by one at the most.
        block: the block or the component of each member, ``(m,)``; those of different ones are never compared.
        reach: the largest L2 distance, over all keys but the last, of members that agree.
        effort: the largest components are crowds if there are more keys to compare, and all components with more than
            their share of the pairs.
    """
    best = keys[np.ptp(keys[:-1], axis=1).argmax()]
    order = sort_within(best, block)
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (np.diff(best[order]) > 1) | (np.diff(block[order]) != 0)
    component = np.empty_like(order)
    component[order] = sorted_component = is_first.cumsum() - 1
    starts = np.flatnonzero(is_first)
    size = np.bincount(component)
    # All components on one line, more than one apart.
    place = best[order] - best[order[starts]][sorted_component]
    place += sorted_component * (place.max(initial=0) + 2)
    num_near = np.searchsorted(place, place + 1, side="right") - np.arange(len(place))
    num_compared = np.add.reduceat(num_near, starts)
    by_effort = num_compared.argsort()
    is_crowd = np.zeros(len(size), dtype=np.bool_)
    is_crowd[by_effort] = num_compared[by_effort].cumsum() > effort.keys
    kept = (~is_crowd & (size > 1))[sorted_component]
    order, of_members, num_near = order[kept], sorted_component[kept], num_near[kept]
    share = np.maximum(1, effort.pairs * size / len(component))
    first, second, number = _near_pairs(keys[:, order], of_members, num_near, reach, share)
    is_crowd |= number > share
    pairs = order[np.stack([first, second])][:, ~is_crowd[of_members[first]]]
    return Candidates(np.sort(pairs, axis=0), is_crowd[component], component)


def _components_of(keys: Floats, block: Indices) -> Indices:
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


def _listed_pairs(keys: Floats, component: Indices, order: Indices) -> Indices:
    """List the near pairs ``(2, p)`` of the members at ``order``, which are sorted by their components."""
    found = [np.zeros((2, 0), dtype=np.intp)]
    for shift in range(1, len(order)):
        same = component[order[shift:]] == component[order[:-shift]]
        if not same.any():
            break
        lower, upper = order[:-shift][same], order[shift:][same]
        near = (np.abs(keys[:, upper] - keys[:, lower]) <= 1).all(axis=0)
        found.append(np.stack([lower[near], upper[near]]))
    return np.concatenate(found, axis=1)


def _near_pairs(
    keys: Floats, component: Indices, num_near: Indices, reach: float, share: Floats
) -> tuple[Indices, Indices, Indices]:
    """Compare the keys of sorted members with those of the next ones of their component.

    Args:
        keys: ``(k, m)``.
        component: of each member, ascending, ``(m,)``.
        num_near: of each member, how many from itself on it is compared with, ``(m,)``.
        reach: the largest L2 distance, over all keys but the last, of members that are near.
        share: of each component, the number of pairs after which no more are wanted, ``(c,)``.

    Returns:
        The first and the second members of the near pairs, ``(p,)`` each, and the number of pairs in each component.
    """
    columns = torch.from_numpy(np.ascontiguousarray(keys[:-1]))
    firsts, seconds = [np.zeros(0, dtype=np.intp)], [np.zeros(0, dtype=np.intp)]
    number = np.zeros(len(share), dtype=np.intp)
    for start in range(0, len(component), _BLOCK):
        stop = min(start + _BLOCK, len(component))
        lowest, highest = component[start], component[stop - 1]
        if lowest == highest and number[lowest] > share[lowest]:
            continue
        end = stop - 1 + int(num_near[stop - 1])
        is_near = (_squared_distances(columns[:, start:end], stop - start) <= reach**2).numpy()
        num_found = (np.count_nonzero(is_near) - (stop - start)) // 2  # pairs within the block count twice
        if lowest == highest and num_found > share[lowest]:
            number[lowest] = num_found
            continue
        first, second = np.divmod(np.flatnonzero(is_near), end - start)
        is_pair = first < second
        first, second = start + first[is_pair], start + second[is_pair]
        is_pair = (component[first] == component[second]) & (np.abs(keys[-1, first] - keys[-1, second]) <= 1)
        first, second = first[is_pair], second[is_pair]
        number[lowest : highest + 1] += np.bincount(component[first] - lowest, minlength=highest + 1 - lowest)
        firsts.append(first)
        seconds.append(second)
    return np.concatenate(firsts), np.concatenate(seconds), number


def _squared_distances(keys: Tensor, number: int) -> Tensor:
    """Return squared distances of the first keys from all keys ``(k, m)``, ``(number, m)``.

    A bound on the rounding error is subtracted, so no distance is too large.
    """
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2 loses the more digits, the larger a and b are.
    keys = keys - keys[:, :1]
    squares = keys.square().sum(dim=0)
    extent = float(squares.numpy().max())  # these numbers are on the host, so nothing waits for them
    is_precise = 64 * torch.finfo(torch.float32).eps * extent < 0.1 and has_exact_products()
    dtype = torch.float32 if is_precise else torch.float64
    keys, squares = keys.to(dtype), squares.to(dtype)
    distances = torch.addmm(squares[None], keys[:, :number].T, keys, alpha=-2)
    return distances.add_(squares[:number, None] - 64 * torch.finfo(dtype).eps * extent)
