"""The options that the monitor, the tracker and the Hugging Face callback share."""

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
    """The options; each is kept as an attribute of the same name."""

    # Not a dataclass: Hydra turns dataclasses in a list of callbacks into configurations.
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
            include: patterns (:mod:`fnmatch`) of the names of layers to check; None: all.
            exclude: patterns of the names of layers to leave out.
            heatmaps: ``"findings"``: pictures of layers with findings, when these change; ``"all"``: of all layers at
                every check; ``"none"``.
            on_symmetry: the reaction to a new finding. ``"warn"``: warn. ``"stop"``: warn and end the training cleanly;
                your own loop reads :attr:`SymmetryTracker.should_stop`. ``"raise"``: warn and raise a
                :class:`SymmetryError`. ``"break"``: warn and re-initialise the units, see :func:`break_symmetry`; the
                only choice that changes the training. ``"ignore"``: only record the finding.
            scalars: ``"summary"``: totals, and up to eight layers that have findings or are condensed; ``"layers"``:
                totals and all layers; ``"findings"``: totals and all layers with findings; ``"none"``. In Lightning
                the totals are also among ``Trainer.callback_metrics``.
            require_conclusion: whether the end of the training, or :meth:`SymmetryTracker.close`, raises a
                :class:`SymmetryError` if there is no conclusion about the model.
            dead_share: the share of a layer's units that must be dead before the user is warned of them.
            on_finding: called once with each new finding, on the first of several processes, whatever
                ``on_symmetry`` is. Its first error becomes a warning; training goes on.

        Raises:
            TypeError: if an argument is of the wrong type.
            ValueError: if an argument is out of range.
        """
        super().__init__()  # initialises a Trainer's callback class, if a subclass inherits from one
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
        """Initialise the state of a subclass, which inherits this signature."""
