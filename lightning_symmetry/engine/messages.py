"""Warnings and errors, and the line of user code that they point at."""

from __future__ import annotations

import logging
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport

# Frames of these packages are not the user's code, wherever they are installed.
_NOT_THE_USERS = {
    "lightning_symmetry",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torch",
    "accelerate",
    "transformers",
}
# The module that tracebacks and warning filters name is the one that users import from.
_PUBLIC = "lightning_symmetry"
_PYTHON = Path(sysconfig.get_path("stdlib"))
_COMMANDS = Path(sysconfig.get_path("scripts"))  # where packages install commands
_INSTALLED = {"site-packages", "dist-packages"}


class SymmetryWarning(UserWarning):
    """Units that train as one, or do not train at all."""

    __module__ = _PUBLIC


class SymmetryError(RuntimeError):
    """Units train as one, or there is no conclusion, and the user asked for an error.

    Raised with ``on_symmetry="raise"`` or ``require_conclusion=True``, and by
    :func:`lightning_symmetry.assert_no_symmetry`.

    Attributes:
        report: the report of the check that raised.
        findings: the new findings; empty if there was no conclusion.
    """

    __module__ = _PUBLIC

    def __init__(self, message: str, report: SymmetryReport, findings: Sequence[Finding]) -> None:
        super().__init__(message, report, findings)  # all arguments, for pickle
        self.report = report
        self.findings = list(findings)

    def __str__(self) -> str:
        return str(self.args[0])


# By default Python shows a warning once per process: a second training in a notebook would look healthy.
warnings.filterwarnings("always", category=SymmetryWarning, append=True)


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn, pointing at the running line of user code, such as ``trainer.fit(model)``.

    Where warnings are errors, the text is logged instead: a monitor must not end a training, least of all on one rank.
    """
    try:
        warnings.warn(text, category, stacklevel=_level_of_user())
    except Warning:
        logging.getLogger(__name__).warning(text)


def _level_of_user() -> int:
    """Return the ``stacklevel`` of the innermost user code, as seen from the caller.

    User code is code that is not installed. If there is none, as when a command of an installed package runs the
    training, it is the innermost code that belongs neither to Python nor to the libraries that call the monitor.
    """
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    for may_be_installed in (False, True):
        for level, each in enumerate(frames, start=1):
            if _is_users(each, may_be_installed=may_be_installed):
                return level
    return len(frames)


def _is_users(frame: FrameType, *, may_be_installed: bool) -> bool:
    """Return whether a frame is user code; ``may_be_installed``: even if it is installed like a library."""
    path, package = Path(frame.f_code.co_filename), (frame.f_globals.get("__name__") or "").partition(".")[0]
    if package in _NOT_THE_USERS or path.name.startswith("<frozen "):
        return False
    if not _INSTALLED.isdisjoint(path.parts):
        return may_be_installed
    return not path.is_relative_to(_PYTHON) and (may_be_installed or path.parent != _COMMANDS)
