"""What one look at a layer shows: evidence, from which nothing is concluded yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.numerics import Indices, Mask
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause


class Gradients(StrEnum):
    """What the gradients of units with equal weights say at one look."""

    NONE = "none"  # there are none, or they are not finite
    ZERO = "zero"  # exactly zero
    EQUAL = "equal"
    FAINT = "faint"  # equal, but so small that it could be rounding noise
    UNCLEAR = "unclear"  # neither equal nor different beyond doubt
    DIFFERENT = "different"


@dataclass(frozen=True)
class Sighting:
    """A set of units that one look found equal up to sign, in weights or in gradients only.

    Attributes:
        units: sorted indices.
        has_equal_weights: otherwise only the gradients agree.
        gradients: what the gradients say.
        cause: what the weights look like.
        value: the number that every weight equals, for :attr:`Cause.CONSTANT`.
        position: the product of the first unit's row with a fixed random vector. From look to look it changes by about
            as much as the row does.
        reach: the L2 distance up to which two of these rows count as equal, at the looser tolerance. Rows that are
            still equal after they have moved by many times this distance have moved together.
        resolution: the L2 distance up to which two of these rows count as equal when they are first seen.
        mirrored: units whose row is the negative of the first unit's; so are their gradients, if these are equal.
        is_proof: whether equal gradients at this one look prove that the units stay equal.
    """

    units: tuple[int, ...]
    has_equal_weights: bool
    gradients: Gradients
    cause: Cause
    value: float | None
    position: float
    reach: float
    resolution: float = 0.0
    mirrored: tuple[int, ...] = ()
    is_proof: bool = True


class Crowd(NamedTuple):
    """Units whose weights nearly agree, too many to compare them all.

    Attributes:
        num_units: how many there are.
        radius: within which relative L2 distance of one of them their weights lie.
    """

    num_units: int
    radius: float


NO_CROWD = Crowd(0, 0.0)


@dataclass(frozen=True)
class Steady:
    """Groups of equal units with equal gradients of which all is said: to see that they hold is enough.

    Attributes:
        members: all units of the groups but the first of each, ``(m,)``.
        firsts: of each member, the first unit of its group, ``(m,)``.
        distinct: the first unit of each group and the units of no group, ``(num_units - m,)``.
    """

    members: Indices
    firsts: Indices
    distinct: Indices

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]], num_units: int) -> Steady:
        """The steady groups of a layer of so many units, each group sorted."""
        pairs = [(unit, group[0]) for group in groups for unit in group[1:]]
        members, firsts = np.array(pairs, dtype=np.intp).T
        return cls(members, firsts, np.setdiff1d(np.arange(num_units), members, assume_unique=True))


@dataclass(frozen=True)
class Look:
    """What one look at a layer showed.

    Attributes:
        layer: the layer.
        read: gives its rows, and its gradient rows if there are any to see; called when these are first asked for,
            which must be before the weights move.
        sightings: disjoint sets of units.
        fingerprint: a hash of the weights, which changes if any row does; None if the layer was read quickly.
        has_gradient: whether any gradient is not zero; it may be infinite.
        idle: which units have a gradient of zero, and weights that are not zero and their own,
            ``(num_units,)``; None if there are no gradients to see, or if zeros say nothing.
        unseen: which units have a gradient that is not finite; None with ``idle``.
        orientations: number of directions of the rows, up to sign; None if they were not counted at this look.
        num_living: number of distinct units among which they were counted: those that are neither dead nor zero.
        stands: whether the steady groups of the layer are as they were, and there is nothing else to see; then
            ``sightings`` does not tell of them.
        is_finite: whether all weights are.
        is_faint: whether there are gradients, and all of them may be rounding errors.
        crowd: the units whose weights nearly agree with those of too many others to compare them all.
        floor: the norm up to which ``idle`` takes gradients for zero, since they are rounding errors; 0 as a rule.
    """

    layer: Comparable
    read: Callable[[], tuple[Rows, Rows | None]]
    sightings: tuple[Sighting, ...]
    fingerprint: int | None
    has_gradient: bool
    idle: Mask | None = None
    unseen: Mask | None = None
    orientations: int | None = None
    num_living: int = 0
    stands: bool = False
    is_finite: bool = True
    is_faint: bool = False
    crowd: Crowd = NO_CROWD
    floor: float = 0.0

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        return self.read()

    @property
    def weights(self) -> Rows:
        """The rows of the layer."""
        return self._rows[0]

    @property
    def gradients(self) -> Rows | None:
        """Its gradient rows, if there are any to see."""
        return self._rows[1]
