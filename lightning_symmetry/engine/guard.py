"""A monitor must never end a training: what fails is tried again or given up, and said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lightning_symmetry.engine.messages import SymmetryError
from lightning_symmetry.ranks.team import describe

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Runs tasks that may fail, and switches off those that do.

    A :class:`SymmetryError`, which is raised for users who want their trainings to fail, goes through.

    Args:
        warn: says a text to the user.
        who: the name under which the monitor speaks.
        tries: how many failures in a row a task may have before it is switched off.
    """

    def __init__(self, warn: Callable[[str], None], who: str, tries: int = 1) -> None:
        self._warn = warn
        self._who = who
        self._tries = tries
        self._failures: dict[str, int] = {}  # by name of the task, in a row
        self._reasons: dict[str, str] = {}  # by name of the task, the latest failure

    def is_off(self, task: str) -> bool:
        """Return whether a task has failed so often that it is not tried any more."""
        return self._failures.get(task, 0) >= self._tries

    def reason(self, task: str) -> str:
        """Return the latest failure of a task; empty if there was none."""
        return self._reasons.get(task, "")

    def run(self, task: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what a step of a task returns; None if it fails, or if the task is off.

        Args:
            task: what the messages call it.
            step: what to do.
            args: for ``step``.
            kwargs: for ``step``.
        """
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
