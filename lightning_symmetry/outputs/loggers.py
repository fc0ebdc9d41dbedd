"""The outputs for a logger, a run or a folder.

Loggers are recognised by the names of their classes, so that none of their libraries is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_symmetry.brief import brief
from lightning_symmetry.outputs.folder import folder_outputs, is_remote
from lightning_symmetry.outputs.mlflow import MLflowOutput
from lightning_symmetry.outputs.output import NAME, Check, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.scalars import ScalarChoice
from lightning_symmetry.outputs.wandb import WandbOutput
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.verdicts.report import SymmetryReport

_WRITERS = {"torch.utils.tensorboard", "tensorboardX"}  # modules in which a SummaryWriter is defined

Kind = Callable[[Any, Heatmaps, Scalars, str], list[Output] | None]
"""A factory: returns the outputs for a target that it recognises, else None."""


class LoggerScalars(Output):
    """Logs the scalars of every check with ``log_metrics``, which all loggers of Lightning and Fabric have."""

    keeps_findings = False

    def __init__(self, logger: Any, scalars: Scalars, tag: str = NAME) -> None:
        self._logger = logger
        self._choice = ScalarChoice(scalars, tag)
        self.name = f"scalars in {type(logger).__name__}"

    def write(self, check: Check) -> None:
        metrics: Mapping[str, float] = self._choice.of(check)
        if metrics:
            self._logger.log_metrics(metrics, step=check.report.step)

    def close(self, report: SymmetryReport) -> None:
        # A Trainer saves by itself. A custom loop may forget it, and would lose the latest numbers.
        save = getattr(self._logger, "save", None)
        if callable(save):
            save()


@preserved_random_numbers()  # imports and the opening of loggers may draw some
def outputs_of(target: object, heatmaps: Heatmaps, scalars: Scalars, name: str = NAME) -> list[Output]:
    """Return the outputs for a target; none if neither pictures nor scalars are wanted.

    Args:
        target: a folder, a ``SummaryWriter``, a run of Weights & Biases or of MLflow, a logger of Lightning or Fabric,
            or an output.
        heatmaps: which layers get pictures, an option of the monitor.
        scalars: which scalars are written, an option of the monitor.
        name: the name of folders and tags in a logger.

    Raises:
        TypeError: if the target is none of these.
        ValueError: if it is a remote address.
        OSError: if a folder cannot be written.
    """
    for kind in KINDS:
        outputs = kind(target, heatmaps, scalars, name)
        if outputs is not None:
            return [] if heatmaps == scalars == "none" else outputs
    raise TypeError(
        "Expected argument `output` to be a folder, a SummaryWriter, a run of W&B or MLflow, or a logger of Lightning "
        f"or Fabric but got {brief(target)}."
    )


def _of_itself(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    return [target] if isinstance(target, Output) else None


def _of_folder(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    if not isinstance(target, str | os.PathLike):
        return None
    return folder_outputs(target, heatmaps, scalars)


def _of_wandb(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    is_run = type(target).__module__.startswith("wandb.") and hasattr(target, "log")
    return [WandbOutput(target, heatmaps, scalars, name)] if is_run or "WandbLogger" in _class_names(target) else None


def _of_mlflow(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    is_run = type(target).__module__.startswith("mlflow.") and hasattr(target, "info")
    return [MLflowOutput(target, heatmaps, scalars, name)] if is_run or "MLFlowLogger" in _class_names(target) else None


def _of_tensorboard(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    writer = target
    if not _is_writer(target):
        can_have_one = _WRITERS & sys.modules.keys() or "TensorBoardLogger" in _class_names(target)
        if not can_have_one or heatmaps == scalars == "none":
            return None  # access to the logger's writer would open a file
        # A logger of any class counts if it has a writer.
        writer = getattr(target, "experiment", None)
    if not _is_writer(writer):
        return None
    if name != NAME and not is_remote(writer.log_dir):
        return folder_outputs(Path(writer.log_dir) / name, heatmaps, scalars)  # the tab shows one monitor per run
    from lightning_symmetry.outputs.tab import SymmetryTab
    from lightning_symmetry.outputs.tensorboard import TensorBoardPictures, TensorBoardScalars

    return [
        TensorBoardScalars(writer, scalars),
        SymmetryTab(writer, heatmaps),
        TensorBoardPictures(writer, heatmaps),
    ]


def _of_any(target: Any, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output] | None:
    if not callable(getattr(target, "log_metrics", None)):
        return None
    outputs: list[Output] = [LoggerScalars(target, scalars, name)]
    folder = getattr(target, "log_dir", None)
    if isinstance(folder, str | os.PathLike) and not is_remote(folder):
        outputs += folder_outputs(Path(folder) / name, heatmaps, scalars)
    return outputs


def _is_writer(target: object) -> bool:
    return "SummaryWriter" in _class_names(target) and hasattr(target, "_get_file_writer")


def _class_names(target: object) -> set[str]:
    return {kind.__name__ for kind in type(target).__mro__}


KINDS: list[Kind] = [_of_itself, _of_folder, _of_wandb, _of_mlflow, _of_tensorboard, _of_any]
"""The factories; the first that recognises the target decides."""
