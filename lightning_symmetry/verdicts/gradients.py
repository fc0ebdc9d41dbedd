"""The evidence of gradients about units with equal weights, and which units move in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
import torch

from lightning_symmetry.matrices.grouping import find_groups_within_budget, is_chance_group
from lightning_symmetry.matrices.mirrors import Mirrored, Parity, spreads
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.look import Gradients

# Gradients up to this many times the precision of their dtype, relative to the largest gradient row of the model, may
# be rounding errors. They prove no difference, and their equality counts only if it is repeated.
_NOISE = 16.0


def in_unused_blocks(is_zero: Mask, blocks: int) -> Mask:
    """Return which units are in a block without any gradient, while other blocks have one, ``(num_units,)``.

    Args:
        is_zero: which gradients are zero, ``(num_units,)``.
        blocks: number of blocks of consecutive units.
    """
    is_unused = is_zero.reshape(blocks, -1).all(axis=1)
    return np.repeat(is_unused & ~is_unused.all(), len(is_zero) // blocks)


def noise_floor(question: Question, scale: float) -> float:
    """Return the norm up to which gradient rows may be rounding errors.

    Args:
        question: the gradient rows of a layer.
        scale: largest norm of a gradient row of the model.
    """
    return _NOISE * torch.finfo(question.rows.dtype).eps * scale


@cache
def none_of(num_units: int) -> Mask:
    """Return a read-only mask that is False for all units, ``(num_units,)``."""
    mask = np.zeros(num_units, dtype=np.bool_)
    mask.setflags(write=False)
    return mask


class GradientEvidence:
    """The gradients of one layer as evidence about sets of its units.

    Args:
        layer: the layer.
        question: its gradient rows; None if there are none.
        suspected: gradient rows that may agree with another one; None with ``question``.
        scale: largest norm of a gradient row of the model.
        floor: norm up to which gradients of units with rows of their own count as zero.
        by_parity: returns the gradient rows by how a mirror image changes them; None: all change sign.
    """

    def __init__(
        self,
        layer: Comparable,
        question: Question | None,
        suspected: Indices | None,
        scale: float,
        floor: float = 0.0,
        by_parity: Callable[[], Parity | None] = lambda: None,
    ) -> None:
        self._layer, self._question, self._floor_of_idle = layer, question, floor
        self._by_parity = by_parity
        self._groups: list[tuple[int, ...]] = []
        if question is None or suspected is None:
            return
        self._norms = question.sketch.norms
        self._floor = noise_floor(question, scale)
        if len(suspected) > 1:
            nonzero = suspected[self._norms[suspected] > 0]
            self._groups = find_groups_within_budget(question, suspected=nonzero).groups

    def of(self, groups: Sequence[tuple[int, ...]]) -> list[Gradients]:
        """Return the evidence about each group of units with equal weights."""
        if self._question is None or not groups:
            return [Gradients.NONE] * len(groups)
        group_of = {unit: i for i, group in enumerate(self._groups) for unit in group}
        largest = self._largest_norms(groups)
        answers = {group: self._if_clear(group, group_of, norm) for group, norm in zip(groups, largest, strict=True)}
        open_groups = [group for group, answer in answers.items() if answer is None]
        if open_groups:
            loose = find_groups_within_budget(self._question.loosened(), among=open_groups)
            crowded = set(loose.crowded.tolist())
            unclear = {*loose.groups, *(group for group in open_groups if not crowded.isdisjoint(group))}
            answers |= {g: Gradients.UNCLEAR if g in unclear else Gradients.DIFFERENT for g in open_groups}
        return [answer for answer in answers.values() if answer is not None]

    def _if_clear(self, group: tuple[int, ...], group_of: Mapping[int, int], largest: float) -> Gradients | None:
        """Return the evidence of norms and groups; None if it takes a comparison at the looser tolerance."""
        silent = self._if_silent(group, largest)
        if silent is not None:
            return silent
        is_faint = largest <= self._floor
        if len({group_of.get(unit, -1 - unit) for unit in group}) == 1:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        return Gradients.UNCLEAR if is_faint else None

    def of_mirrored(self, sets: Sequence[Mirrored]) -> list[Gradients]:
        """Return the evidence about each set of units that are equal up to sign.

        Their gradients are equal if they are so up to the same signs.
        """
        if self._question is None or not sets:
            return [Gradients.NONE] * len(sets)
        distances = spreads(self._question, sets, self._by_parity()).tolist()
        largest = self._largest_norms([mirrored.rows for mirrored in sets])
        return [self._of_one_mirrored(*of_one) for of_one in zip(sets, distances, largest, strict=True)]

    def _of_one_mirrored(self, mirrored: Mirrored, distance: float, largest: float) -> Gradients:
        assert self._question is not None
        silent = self._if_silent(mirrored.rows, largest)
        if silent is not None:
            return silent
        is_faint = largest <= self._floor
        if distance <= self._question.tolerance:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        is_unclear = is_faint or distance <= self._question.loosened().tolerance
        return Gradients.UNCLEAR if is_unclear else Gradients.DIFFERENT

    def _largest_norms(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        """Return the largest norm of a gradient in each group of units; NaN where one is not finite."""
        sizes = [len(group) for group in groups]
        norms = self._norms[np.array([unit for group in groups for unit in group])]
        largest: list[float] = np.maximum.reduceat(norms, [0, *accumulate(sizes[:-1])]).tolist()
        return largest

    def _if_silent(self, units: Sequence[int], largest: float) -> Gradients | None:
        """Return the evidence about units whose gradients are zero or not finite; None for others."""
        if math.isnan(largest):
            return Gradients.NONE
        if largest:
            return None
        is_evidence = self._layer.can_freeze and not self._is_unused[units[0]]
        return Gradients.ZERO if is_evidence else Gradients.NONE

    @cached_property
    def _is_unused(self) -> Mask:
        """Which units are in an unused block, such as an expert without tokens, ``(num_units,)``."""
        return in_unused_blocks(self._norms == 0, self._layer.blocks)

    def in_lockstep(self, exclude: set[int]) -> list[tuple[int, ...]]:
        """Return groups of units outside ``exclude`` with equal gradients that are neither noise nor chance."""
        found = []
        for group in self._groups:
            assert self._question is not None
            units = tuple(unit for unit in group if unit not in exclude)
            is_seen = float(self._norms[group[0]]) > self._floor
            if len(units) > 1 and is_seen and not is_chance_group(self._question, units, self._question.rows.width):
                found.append(units)
        return found

    def idle(self, weight_norms: Floats, exclude: set[int]) -> tuple[Mask | None, Mask | None]:
        """Return which units have a gradient of zero and a row unlike any other, and which gradients are unknown.

        Args:
            weight_norms: norms of the rows of weights, ``(num_units,)``.
            exclude: units that are equal to others.

        Returns:
            :attr:`Look.idle` and :attr:`Look.unseen`.
        """
        if self._question is None or not (self._layer.can_freeze or self._layer.dies_as_a_whole):
            return None, None
        if self._norms.min(initial=np.inf) > self._floor_of_idle:  # neither zero nor NaN, as in most layers
            return none_of(len(self._norms)), none_of(len(self._norms))
        is_zero = self._norms <= self._floor_of_idle
        if self._layer.dies_as_a_whole and not is_zero.all():
            return none_of(len(self._norms)), none_of(len(self._norms))
        idle = is_zero & (weight_norms > 0)
        if exclude:
            idle[list(exclude)] = False
        return idle, np.isnan(self._norms)
