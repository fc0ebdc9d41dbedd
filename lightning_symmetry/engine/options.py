"""The options of a monitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_symmetry.arguments import (
    check_choice,
    check_count,
    check_flag,
    check_patterns,
    check_share,
    check_tolerance,
)
from lightning_symmetry.outputs.output import Heatmaps, Scalars

OnSymmetry = Literal["warn", "stop", "raise", "break", "ignore"]


@dataclass(frozen=True)
class Options:
    """What a user may choose; :class:`lightning_symmetry.SymmetryMonitor` says what each option means.

    Raises:
        TypeError: if an option is of the wrong type.
        ValueError: if an option is out of range.
    """

    every_n_steps: int | None = None
    tolerance: float | None = None
    patience: int = 3
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    heatmaps: Heatmaps = "findings"
    on_symmetry: OnSymmetry = "warn"
    scalars: Scalars = "summary"
    require_conclusion: bool = False
    dead_share: float = 0.5

    def __post_init__(self) -> None:
        if self.every_n_steps is not None:
            check_count("every_n_steps", self.every_n_steps)
        check_tolerance(self.tolerance)
        check_count("patience", self.patience)
        check_patterns(include=self.include, exclude=self.exclude)
        check_choice("heatmaps", self.heatmaps, get_args(Heatmaps))
        check_choice("on_symmetry", self.on_symmetry, get_args(OnSymmetry))
        check_choice("scalars", self.scalars, get_args(Scalars))
        check_flag("require_conclusion", self.require_conclusion)
        check_share("dead_share", self.dead_share)
