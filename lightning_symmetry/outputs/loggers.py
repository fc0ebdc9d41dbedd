"""Which outputs a logger gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lightning_symmetry.outputs.output import Check, Heatmaps, Output
from lightning_symmetry.outputs.tab import SymmetryTab
from lightning_symmetry.outputs.tensorboard import TensorBoardPictures, TensorBoardScalars


class Logger(Protocol):
    """What is asked of every logger: what those of Lightning and of Fabric have."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log some numbers by name."""


class LoggerScalars(Output):
    """Hands the scalars of every check to a logger of any kind.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self.name = f"scalars in {type(logger).__name__}"

    @override
    def write(self, check: Check) -> None:
        metrics: Mapping[str, float] = check.report.metrics()
        self._logger.log_metrics(metrics, step=check.report.step)


def _of_tensorboard(logger: Logger, heatmaps: Heatmaps) -> list[Output] | None:
    # Not by the class of the logger: `pytorch_lightning` has a TensorBoardLogger of its own.
    writer = getattr(logger, "experiment", None)
    if not isinstance(writer, SummaryWriter):
        return None
    return [TensorBoardScalars(writer), SymmetryTab(writer, heatmaps), TensorBoardPictures(writer, heatmaps)]


def _of_any(logger: Logger, heatmaps: Heatmaps) -> list[Output] | None:
    return [LoggerScalars(logger)]


OUTPUTS: list[Callable[[Logger, Heatmaps], list[Output] | None]] = [_of_tensorboard, _of_any]
"""The kinds of loggers: each answers with the outputs of a logger of its kind, or None; the first answer holds."""


def outputs_of(logger: Logger, heatmaps: Heatmaps) -> list[Output]:
    """The outputs that a logger gets.

    Args:
        logger: a logger of Lightning or Fabric.
        heatmaps: the option of the monitor.
    """
    answers = (kind(logger, heatmaps) for kind in OUTPUTS)
    return next(outputs for outputs in answers if outputs is not None)
