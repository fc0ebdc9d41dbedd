"""The options of whatever watches a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from lightning_symmetry.arguments import (
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_patterns,
    check_share,
    check_tolerance,
)
from lightning_symmetry.outputs.output import Heatmaps, Scalars
from lightning_symmetry.verdicts.diagnoses import Finding

OnSymmetry = Literal["warn", "stop", "raise", "break", "ignore"]


class Options:
    """What a user may choose; the values are attributes of the same names."""

    # No dataclass: Hydra turns the dataclasses in a list of callbacks into configurations.
    def __init__(
        self,
        every_n_steps: int | None = None,
        tolerance: float | None = None,
        patience: int = 3,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        heatmaps: Heatmaps = "findings",
        on_symmetry: OnSymmetry = "warn",
        scalars: Scalars = "summary",
        require_conclusion: bool = False,
        dead_share: float = 0.5,
        on_finding: Callable[[Finding], object] | None = None,
    ) -> None:
        """Check the options and keep them.

        Args:
            every_n_steps: optimizer steps between checks after the first ones; None: as often as the Trainer logs
                (``log_every_n_steps`` of Lightning, ``logging_steps`` of Hugging Face if it counts steps), else 50.
            tolerance: relative L2 distance of rows that count as equal; None: by dtype.
            patience: checks in a row that must agree before units are called frozen or lockstep, or locked if they
                were distinct at first.
            include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
            exclude: patterns of layer names to leave out.
            heatmaps: pictures of layers: of those with findings, when these change; of all, at every check; or none.
            on_symmetry: what a new finding leads to: a warning; a warning and the clean end of the training, for which
                a loop of your own reads :attr:`SymmetryTracker.should_stop`; a warning and a :class:`SymmetryError`; a
                warning and new weights for these units, see :func:`break_symmetry`, which is the one choice that
                changes the training; or nothing but the records.
            scalars: totals, and the layers that have findings or are condensed, at most eight of them; totals and all
                layers; totals and all layers with findings; or none. In Lightning the totals are also among
                ``Trainer.callback_metrics``.
            require_conclusion: whether the end of the training, or :meth:`SymmetryTracker.close`, raises a
                :class:`SymmetryError` if nothing could be concluded of the model.
            dead_share: the share of a layer's units that must be dead before the user is warned of them.
            on_finding: called with each new finding, once, on the first of several processes, whatever
                ``on_symmetry`` is. An error that it raises is warned of once, and the training goes on.

        Raises:
            TypeError: if an argument is of the wrong type.
            ValueError: if an argument is out of range.
        """
        super().__init__()  # of the callback, in the classes that are one
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        check_tolerance(tolerance)
        check_count("patience", patience)
        check_patterns(include=include, exclude=exclude)
        check_choice("heatmaps", heatmaps, get_args(Heatmaps))
        check_choice("on_symmetry", on_symmetry, get_args(OnSymmetry))
        check_choice("scalars", scalars, get_args(Scalars))
        check_flag("require_conclusion", require_conclusion)
        check_share("dead_share", dead_share)
        check_callable("on_finding", on_finding)
        self.every_n_steps = every_n_steps
        self.tolerance = tolerance
        self.patience = patience
        self.include = include
        self.exclude = exclude
        self.heatmaps: Heatmaps = heatmaps
        self.on_symmetry: OnSymmetry = on_symmetry
        self.scalars: Scalars = scalars
        self.require_conclusion = require_conclusion
        self.dead_share = dead_share
        self.on_finding = on_finding
        self._set_up()

    def _set_up(self) -> None:
        """Prepare what a subclass keeps besides the options, which it inherits together with their signature."""
