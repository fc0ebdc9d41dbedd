"""The directions of a layer's units: when they are counted, and the latest number.

Counting costs as much as the rest of a check, so it is seldom done. It never leads to a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from lightning_symmetry.matrices.directions import MAX_ROWS, count_directions
from lightning_symmetry.matrices.numerics import Indices, exact_arithmetic
from lightning_symmetry.verdicts.look import Look

_EARLY = (1, 8, 16, 32)
_EVERY = 64
_EVERY_IF_FEW = 4


@dataclass
class Orientations:
    """The directions of one layer over time."""

    num_looks: int = 0  # number of looks at the layer
    latest: int | None = None  # number of directions at the latest count; None before the first
    are_few: bool = False  # whether there were at most half as many as distinct living units

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> Orientations:
        """Build from the fields of an instance."""
        latest = values["latest"]
        return cls(index(values["num_looks"]), None if latest is None else index(latest), bool(values["are_few"]))

    @property
    def is_due(self) -> bool:
        """Whether the next look counts the directions."""
        number = self.num_looks + 1
        return number in _EARLY or number % (_EVERY_IF_FEW if self.are_few else _EVERY) == 0

    def update(self, seen: Look, dead: Collection[int]) -> None:
        """Record a look, and count the directions if it is time.

        Args:
            seen: the look.
            dead: the dead units, which do not count.
        """
        units = _living_units(seen, dead) if self.is_due else None
        self.num_looks += 1
        if units is not None:
            self.latest = _count(seen, units)
            self.are_few = 2 * self.latest <= len(units)


def count_orientations(seen: Look) -> int | None:
    """Return the number of directions at a single look; None if there are too many rows."""
    units = _living_units(seen)
    return None if units is None else _count(seen, units)


def _living_units(seen: Look, dead: Collection[int] = ()) -> Indices | None:
    """Return the distinct units that are neither dead nor zero; None if they cannot be counted."""
    if seen.norms is None or seen.layer.row_names:
        return None
    copies = [unit for sighting in seen.sightings if sighting.has_equal_weights for unit in sighting.units[1:]]
    # Norms of rows that are not finite are NaN.
    units = np.setdiff1d(np.flatnonzero(seen.norms > 0), [*dead, *copies], assume_unique=True)
    return units if len(units) <= MAX_ROWS else None


def _count(seen: Look, units: Indices) -> int:
    assert seen.norms is not None
    with exact_arithmetic(seen.layer.device):
        return count_directions(seen.weights, seen.norms, units)
