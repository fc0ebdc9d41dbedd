"""What gradients say about units with equal weights, and which units move in parallel."""

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

# In a constant network the gradients can be nothing but rounding errors. Gradients are taken for such if they are no
# larger than so many times the precision of their dtype, relative to the largest gradient row of the model. Such a
# gradient proves no difference, and that it is equal counts only if it is seen again and again.
_NOISE = 16.0


def in_unused_blocks(is_zero: Mask, blocks: int) -> Mask:
    """Which units lie in a block without any gradient, while other blocks have one, ``(num_units,)``.

    Args:
        is_zero: whether the gradient of a unit is zero, ``(num_units,)``.
        blocks: number of blocks of consecutive units.
    """
    is_unused = is_zero.reshape(blocks, -1).all(axis=1)
    return np.repeat(is_unused & ~is_unused.all(), len(is_zero) // blocks)


def noise_floor(question: Question, scale: float) -> float:
    """The norm up to which gradient rows may be nothing but rounding errors.

    Args:
        question: about the gradient rows of a layer.
        scale: the largest norm of a gradient row of the model.
    """
    return _NOISE * torch.finfo(question.rows.dtype).eps * scale


@cache
def none_of(num_units: int) -> Mask:
    """A mask of none of so many units, ``(num_units,)``, which cannot be written to."""
    mask = np.zeros(num_units, dtype=np.bool_)
    mask.setflags(write=False)
    return mask


class GradientEvidence:
    """What the gradients of one layer say about sets of its units.

    Args:
        layer: the layer.
        question: which of its gradient rows agree; None if there are no gradients to see.
        suspected: the gradient rows that may agree with another one; None with ``question``.
        scale: the largest norm of a gradient row of the model.
        floor: the norm up to which gradients of units with rows of their own are taken for zero.
        by_parity: returns the gradient rows by what a mirror image does to them; None: all change sign.
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
            is_telling = self._norms[suspected] > 0  # that gradients are zero does not tell units apart
            self._groups = find_groups_within_budget(question, suspected=suspected[is_telling]).groups

    def of(self, groups: Sequence[tuple[int, ...]]) -> list[Gradients]:
        """What the gradients say of units with equal weights, one answer per group."""
        if self._question is None or not groups:
            return [Gradients.NONE] * len(groups)
        home = {unit: i for i, group in enumerate(self._groups) for unit in group}
        largest = self._largest_norms(groups)
        answers = {group: self._at_a_glance(group, home, norm) for group, norm in zip(groups, largest, strict=True)}
        open_groups = [group for group, answer in answers.items() if answer is None]
        if open_groups:
            loose = find_groups_within_budget(self._question.loosened(), among=open_groups)
            unclear = {*loose.groups, *(g for g in open_groups if not set(loose.crowded.tolist()).isdisjoint(g))}
            answers |= {g: Gradients.UNCLEAR if g in unclear else Gradients.DIFFERENT for g in open_groups}
        return [answer for answer in answers.values() if answer is not None]

    def _at_a_glance(self, group: tuple[int, ...], home: Mapping[int, int], largest: float) -> Gradients | None:
        """What the norms and the groups of gradients say; None if it takes a comparison at the looser tolerance."""
        silent = self._if_silent(group, largest)
        if silent is not None:
            return silent
        is_faint = largest <= self._floor
        if len({home.get(unit, -1 - unit) for unit in group}) == 1:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        return Gradients.UNCLEAR if is_faint else None

    def of_mirrored(self, sets: Sequence[Mirrored]) -> list[Gradients]:
        """What the gradients say of units that are equal up to sign, one answer per set.

        They are equal if those of the units with the other sign are the negatives of the others.
        """
        if self._question is None or not sets:
            return [Gradients.NONE] * len(sets)
        apart = spreads(self._question, sets, self._by_parity()).tolist()
        largest = self._largest_norms([mirrored.rows for mirrored in sets])
        return [self._of_one_mirrored(*of_one) for of_one in zip(sets, apart, largest, strict=True)]

    def _of_one_mirrored(self, mirrored: Mirrored, apart: float, largest: float) -> Gradients:
        """As :meth:`of_mirrored`; ``apart`` is the largest relative distance from the first."""
        assert self._question is not None
        silent = self._if_silent(mirrored.rows, largest)
        if silent is not None:
            return silent
        is_faint = largest <= self._floor
        if apart <= self._question.tolerance:
            return Gradients.FAINT if is_faint else Gradients.EQUAL
        is_unclear = is_faint or apart <= self._question.loosened().tolerance
        return Gradients.UNCLEAR if is_unclear else Gradients.DIFFERENT

    def _largest_norms(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        """The largest norm of a gradient in each group of units; NaN where one is not finite."""
        sizes = [len(group) for group in groups]
        norms = self._norms[np.array([unit for group in groups for unit in group])]
        largest: list[float] = np.maximum.reduceat(norms, [0, *accumulate(sizes[:-1])]).tolist()
        return largest

    def _if_silent(self, units: Sequence[int], largest: float) -> Gradients | None:
        """What is said of units whose gradients are zero, or not finite; None of others."""
        if math.isnan(largest):
            return Gradients.NONE
        if largest:
            return None
        is_evidence = self._layer.can_freeze and not self._is_unused[units[0]]
        return Gradients.ZERO if is_evidence else Gradients.NONE

    @cached_property
    def _is_unused(self) -> Mask:
        """Which units lie in a block that goes unused, as an expert may, ``(num_units,)``."""
        return in_unused_blocks(self._norms == 0, self._layer.blocks)

    def in_lockstep(self, exclude: set[int]) -> list[tuple[int, ...]]:
        """Groups of units outside ``exclude`` with equal gradients that are neither noise nor chance."""
        found = []
        for group in self._groups:
            assert self._question is not None
            units = tuple(unit for unit in group if unit not in exclude)
            is_seen = float(self._norms[group[0]]) > self._floor
            if len(units) > 1 and is_seen and not is_chance_group(self._question, units, self._question.rows.width):
                found.append(units)
        return found

    def idle(self, weight_norms: Floats, exclude: set[int]) -> tuple[Mask | None, Mask | None]:
        """Which units do not train although their weights are their own, and of which units this look tells nothing.

        Args:
            weight_norms: norms of the rows of weights, ``(num_units,)``.
            exclude: units that are equal to others.

        Returns:
            As :attr:`Look.idle` and :attr:`Look.unseen`.
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
