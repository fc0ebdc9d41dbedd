"""The evidence of gradients about units with equal weights, and which units move in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_symmetry.matrices.grouping import find_groups_within_budget, is_chance_group
from lightning_symmetry.matrices.mirrors import Mirrored, Parity, spreads
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.modules import modules_of
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.look import Gradients

# Gradients up to this many times the precision of their dtype, relative to the largest gradient row of the model, may
# be rounding errors. Differences between these prove nothing, and their equality counts only if it is repeated.
_NOISE = 16.0


def in_unused_blocks(is_zero: Mask, blocks: int) -> Mask:
    """Return a mask ``(num_units,)`` of the units in blocks without any gradient, if another block has a gradient."""
    is_unused = is_zero.reshape(blocks, -1).all(axis=1)
    return np.repeat(is_unused & ~is_unused.all(), len(is_zero) // blocks)


def noise_floor(question: Question, scale: float) -> float:
    """Return the norm up to which gradient rows may be rounding errors; ``scale``: the largest norm in the model."""
    return _NOISE * torch.finfo(question.rows.dtype).eps * scale


def rounding_gain(model: nn.Module) -> float:
    """Return the factor by which norms over a single number enlarge rounding errors of gradients; 0 without such norms.

    Their output is constant, so the gradient that they pass back is zero but for rounding. It is divided by
    ``sqrt(eps)``, their estimate of the standard deviation.

    Example:
        >>> round(rounding_gain(nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1))))
        316
        >>> rounding_gain(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))
        0.0
    """
    over_one: list[Any] = [module for module in modules_of(model) if _may_be_over_one(module)]
    return max(((module.eps or torch.finfo(torch.float32).eps) ** -0.5 for module in over_one), default=0.0)


def _may_be_over_one(module: Any) -> bool:
    if issubclass(type(module), (nn.LayerNorm, nn.RMSNorm)):
        return bool(prod(module.normalized_shape) == 1)
    # With a group per channel and feature maps of one pixel it normalises single numbers.
    return issubclass(type(module), nn.GroupNorm) and bool(module.num_groups == module.num_channels)


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
        suspected: indices of the rows that may agree with another one; None without rows.
        scale: largest norm of a gradient row of the model.
        floor: norm up to which the gradient of a unit that is equal to no other counts as zero.
        by_parity: returns the gradient rows split into those that change sign in a mirror image and the others; None
            if all do.
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
        self._layer, self._question, self._floor_of_idle, self._by_parity = layer, question, floor, by_parity
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
        answers = {}
        for group, norm in zip(groups, self._largest_norms(groups), strict=True):
            is_equal = len({group_of.get(unit, -1 - unit) for unit in group}) == 1
            answers[group] = self._if_clear(group, norm, is_equal=is_equal)
        open_groups = [group for group, answer in answers.items() if answer is None]
        if open_groups:
            loose = find_groups_within_budget(self._question.loosened(), among=open_groups)
            crowded = set(loose.crowded.tolist())
            unclear = {*loose.groups, *(group for group in open_groups if not crowded.isdisjoint(group))}
            answers |= {g: Gradients.UNCLEAR if g in unclear else Gradients.DIFFERENT for g in open_groups}
        return [answer for answer in answers.values() if answer is not None]

    def of_mirrored(self, sets: Sequence[Mirrored]) -> list[Gradients]:
        """Return the evidence about sets of units that are equal up to sign; equal gradients need the same signs."""
        question = self._question
        if question is None or not sets:
            return [Gradients.NONE] * len(sets)
        tight, loose = question.tolerance, question.loosened().tolerance
        distances = spreads(question, sets, self._by_parity()).tolist()
        largest = self._largest_norms([mirrored.rows for mirrored in sets])
        return [
            self._if_clear(mirrored.rows, norm, is_equal=distance <= tight)
            or (Gradients.UNCLEAR if distance <= loose else Gradients.DIFFERENT)
            for mirrored, distance, norm in zip(sets, distances, largest, strict=True)
        ]

    def _largest_norms(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        """Return the largest norm of a gradient row in each group of units; NaN if one is not finite."""
        sizes = [len(group) for group in groups]
        norms = self._norms[np.array([unit for group in groups for unit in group])]
        largest: list[float] = np.maximum.reduceat(norms, [0, *accumulate(sizes[:-1])]).tolist()
        return largest

    def _if_clear(self, units: Sequence[int], largest: float, *, is_equal: bool) -> Gradients | None:
        """Return the evidence about units; None if a comparison at the looser tolerance must decide.

        ``largest`` is the largest norm of their gradient rows, ``is_equal`` whether these agree at the tight tolerance.
        """
        if math.isnan(largest):
            return Gradients.NONE
        if not largest:
            is_evidence = self._layer.can_freeze and not self._is_unused[units[0]]
            return Gradients.ZERO if is_evidence else Gradients.NONE
        if largest <= self._floor:
            return Gradients.FAINT if is_equal else Gradients.UNCLEAR
        return Gradients.EQUAL if is_equal else None

    @cached_property
    def _is_unused(self) -> Mask:
        """Mask of the units in an unused block, such as an expert without tokens, ``(num_units,)``."""
        return in_unused_blocks(self._norms == 0, self._layer.blocks)

    def in_lockstep(self, exclude: set[int]) -> list[tuple[int, ...]]:
        """Return groups of units outside ``exclude`` whose gradients are equal, neither by rounding nor by chance."""
        found = []
        for group in self._groups:
            assert self._question is not None
            units = tuple(unit for unit in group if unit not in exclude)
            is_seen = float(self._norms[group[0]]) > self._floor
            if len(units) > 1 and is_seen and not is_chance_group(self._question, units, self._question.rows.width):
                found.append(units)
        return found

    def idle(self, weight_norms: Floats, exclude: set[int]) -> tuple[Mask | None, Mask | None]:
        """Return :attr:`Look.idle` and :attr:`Look.unseen`, given norms ``(num_units,)`` and units equal to others."""
        if self._question is None or not (self._layer.can_freeze or self._layer.dies_as_a_whole):
            return None, None
        if self._norms.min(initial=np.inf) > self._floor_of_idle:  # neither zero nor NaN, as in most layers
            return none_of(len(self._norms)), none_of(len(self._norms))
        is_zero = self._norms <= self._floor_of_idle
        if self._layer.dies_as_a_whole and not is_zero.all():
            return none_of(len(is_zero)), none_of(len(is_zero))
        idle = is_zero & (weight_norms > 0)
        if exclude:
            idle[list(exclude)] = False
        return idle, np.isnan(self._norms)
