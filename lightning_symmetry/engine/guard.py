"""Failures of the monitor must not end a training: a task that fails is retried or switched off, with one warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lightning_symmetry.engine.messages import SymmetryError
from lightning_symmetry.ranks.team import describe

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Runs tasks that may fail, and switches off those that do.

    A :class:`SymmetryError` passes through: it is raised only for users who want their trainings to fail.

    Args:
        warn: shows the user a warning.
        who: the name of the monitor in messages.
        tries: how many failures in a row switch a task off.
    """

    def __init__(self, warn: Callable[[str], None], who: str, tries: int = 1) -> None:
        self._warn = warn
        self._who = who
        self._tries = tries
        self._failures: dict[str, int] = {}  # by task, how many in a row
        self._reasons: dict[str, str] = {}  # by task, the latest failure

    def is_off(self, task: str) -> bool:
        """Return whether a task is switched off."""
        return self._failures.get(task, 0) >= self._tries

    def reason(self, task: str) -> str:
        """Return the latest failure of a task; empty if there was none."""
        return self._reasons.get(task, "")

    def run(self, task: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return ``step(*args, **kwargs)``; None if it fails, or if the task, named ``task`` in messages, is off."""
        if self.is_off(task):
            return None
        try:
            result = step(*args, **kwargs)
        except SymmetryError:
            raise
        except Exception as error:
            self._failures[task] = self._failures.get(task, 0) + 1
            self._reasons[task] = describe(error)
            if self.is_off(task):
                reason = describe(error).rstrip(".")
                self._warn(f"{self._who} switches off its {task}, which failed with {reason}. Training goes on.")
            return None
        self._failures.pop(task, None)
        return result
