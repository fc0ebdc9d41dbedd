"""The evidence from one look at a layer, without conclusions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause


class Gradients(StrEnum):
    """The gradients of units with equal weights at one look."""

    NONE = "none"  # missing or not finite
    ZERO = "zero"  # exactly zero
    EQUAL = "equal"
    FAINT = "faint"  # equal, but small enough to be rounding errors
    UNCLEAR = "unclear"  # neither clearly equal nor clearly different
    DIFFERENT = "different"


@dataclass(frozen=True)
class Sighting:
    """A set of units that one look found equal up to sign, in weights or in gradients only."""

    units: tuple[int, ...]  # sorted indices
    has_equal_weights: bool  # False if only the gradients agree
    gradients: Gradients  # evidence of the gradients
    cause: Cause  # pattern of the weights
    value: float | None  # the number that every weight equals, for `Cause.CONSTANT`
    # Product of the first unit's row with a fixed random vector. Its change from look to look estimates how far the row
    # has moved.
    position: float
    # L2 distance at the looser tolerance. Rows that have moved many times this far and are still equal have moved
    # together.
    reach: float
    resolution: float = 0.0  # L2 distance at the tight tolerance
    # Units whose row, and gradient row if these are equal, is the negative of the first unit's.
    mirrored: tuple[int, ...] = ()
    is_proof: bool = True  # whether equal gradients at this one look prove that the units stay equal


class Crowd(NamedTuple):
    """Units whose weights nearly agree, too many to compare them all."""

    num_units: int
    radius: float  # the relative L2 distance from one of them within which the weights of all lie


NO_CROWD = Crowd(0, 0.0)


@dataclass(frozen=True)
class Steady:
    """Settled groups of equal units with equal gradients: a check only verifies that they are unchanged."""

    members: Indices  # all units of the groups but the first of each, `(m,)`
    firsts: Indices  # for each member, the first unit of its group, `(m,)`
    distinct: Indices  # the first unit of each group and the units of no group, `(num_units - m,)`

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]], num_units: int) -> Steady:
        """Build from the groups, each sorted, of a layer with ``num_units`` units."""
        pairs = [(unit, group[0]) for group in groups for unit in group[1:]]
        members, firsts = np.array(pairs, dtype=np.intp).T
        return cls(members, firsts, np.setdiff1d(np.arange(num_units), members, assume_unique=True))


@dataclass(frozen=True)
class Look:
    """The evidence from one look at a layer."""

    layer: Comparable
    # Returns the rows of the layer, and its gradient rows if there are any. It is called when these are first needed;
    # the weights must not have moved by then.
    read: Callable[[], tuple[Rows, Rows | None]]
    sightings: tuple[Sighting, ...]  # disjoint sets of units
    fingerprint: int | None  # hash of the weights, which changes if any row does; None if the layer was read quickly
    has_gradient: bool  # whether any gradient is not zero; it may be infinite
    # Mask `(num_units,)` of the units with a gradient of zero whose weights are not zero and equal no other unit's;
    # None if there are no gradients, or if zeros are no evidence.
    idle: Mask | None = None
    unseen: Mask | None = None  # mask of the units whose gradient is not finite; None with `idle`
    norms: Floats | None = None  # norms of the rows, `(num_units,)`; None if the layer was read quickly
    # What `directions_of` in `matrices/screening.py` returns for the rows, if the layer was read quickly; else None.
    directions: Floats | None = None
    # Whether the steady groups are unchanged and no other units agree; `sightings` is then empty.
    is_steady: bool = False
    is_finite: bool = True  # whether all weights are finite
    is_faint: bool = False  # whether there are gradients, and all of them may be rounding errors
    crowd: Crowd = NO_CROWD  # the units whose weights nearly agree with those of too many others to compare them all
    floor: float = 0.0  # norm up to which gradients count as zero in `idle`; positive only for rounding errors

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        return self.read()

    @property
    def weights(self) -> Rows:
        """The rows of the layer."""
        return self._rows[0]

    @property
    def gradients(self) -> Rows | None:
        """The gradient rows of the layer, if there are any."""
        return self._rows[1]
