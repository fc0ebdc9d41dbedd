"""When to look."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any


class Schedule:
    """Which steps of which optimizer are checked: the first ones at 0, 1, 3, 7, ..., then every so many.

    Attributes:
        num_steps: by place of the optimizer, how many steps it has begun.

    Example:
        >>> schedule, checked = Schedule(), []
        >>> for step in range(24):
        ...     if schedule.is_due(0, every_n_steps=10):
        ...         checked.append(step)
        ...     schedule.count(0, step)
        >>> checked
        [0, 1, 3, 7, 10, 20]
    """

    def __init__(self) -> None:
        self.num_steps: dict[int, int] = {}
        self._latest: dict[int, int] = {}  # by place of the optimizer, the step of the training at its latest one

    def is_repeated(self, place: int, step: int) -> bool:
        """Whether this step was counted before, as when LBFGS evaluates its closure several times within one step.

        Args:
            place: the place of the optimizer among those of the training.
            step: completed optimizer steps of the training.
        """
        return self._latest.get(place) == step

    def is_due(self, place: int, every_n_steps: int) -> bool:
        """Whether the optimizer's next step is to be checked; with ``every_n_steps`` 0, only the first ones are."""
        own_step = self.num_steps.get(place, 0)
        if every_n_steps and own_step >= every_n_steps:
            return own_step % every_n_steps == 0
        return own_step & (own_step + 1) == 0

    def load(self, num_steps: Mapping[Any, Any]) -> None:
        """Take over numbers of steps; where a checkpoint is written as JSON, the places come back as strings.

        Raises:
            TypeError: if a number is none.
            ValueError: if a place is no number.
        """
        self.num_steps = {int(place): index(number) for place, number in num_steps.items()}

    def count(self, place: int, step: int) -> None:
        """Count a step of an optimizer."""
        self._latest[place] = step
        self.num_steps[place] = self.num_steps.get(place, 0) + 1
