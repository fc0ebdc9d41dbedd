"""When the directions of a layer's units are counted: seldom, because that costs as much as the rest of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from lightning_symmetry.verdicts.look import Look

_EARLY = (1, 8, 16, 32)
_EVERY = 64
_EVERY_IF_FEW = 4


@dataclass
class Orientations:
    """The number of directions of a layer at the latest look that counted them.

    Attributes:
        num_looks: looks at the layer so far.
        latest: the number of directions; None if it has not been counted.
        are_few: whether there were at most half as many as distinct living units.
    """

    num_looks: int = 0
    latest: int | None = None
    are_few: bool = False

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> Orientations:
        """Read the fields of an instance."""
        latest = values["latest"]
        return cls(index(values["num_looks"]), None if latest is None else index(latest), bool(values["are_few"]))

    @property
    def is_due(self) -> bool:
        """Whether the next look shall count them."""
        number = self.num_looks + 1
        return number in _EARLY or number % (_EVERY_IF_FEW if self.are_few else _EVERY) == 0

    def update(self, seen: Look) -> int | None:
        """Take in a look; the number of directions at the latest look that counted them."""
        self.num_looks += 1
        if seen.orientations is not None:
            self.latest = seen.orientations
            self.are_few = 2 * seen.orientations <= seen.num_living
        return self.latest
