"""Hands checks to outputs, each for itself: what one of them fails at is no concern of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.outputs.output import Changes, Check, Output
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.looks import Look
from lightning_symmetry.verdicts.report import SymmetryReport

_TRIES = 3


class Delivery:
    """Writes checks to outputs; tries again what has failed, and gives up an output that fails three times in a row.

    Args:
        warn: says a text to the user.
        who: the name under which the monitor speaks.
    """

    def __init__(self, warn: Callable[[str], None], who: str) -> None:
        self._warn_user = warn
        self._who = who
        self._maker = Guard(self._warn, who, _TRIES)
        self._changes = Changes()
        self._guards: dict[Output, Guard] = {}
        self._missed: dict[Output, list[Check]] = {}  # what an output has still to write, in order

    def __getstate__(self) -> dict[str, Any]:
        # Outputs hold open files; a monitor must be able to travel between processes without them.
        return {**self.__dict__, "_guards": {}, "_missed": {}}

    def make(self, task: str, make: Callable[[], Sequence[Output]]) -> Sequence[Output] | None:
        """What ``make`` returns; None if it fails, or has failed three times."""
        return self._maker.run(task, make)

    def write(
        self, outputs: Sequence[Output], report: SymmetryReport, findings: Sequence[Finding], looks: Sequence[Look]
    ) -> None:
        """Write a check.

        Args:
            outputs: where to.
            report: the state of the model.
            findings: all that was warned of so far.
            looks: what the check saw.
        """
        check = Check(report, findings, looks, self._changes.take_in(report, findings))
        for output in outputs:
            guard = self._guards.setdefault(output, Guard(self._warn, self._who, _TRIES))
            guard.run(output.name, self._write, output, check)

    def _write(self, output: Output, check: Check) -> None:
        """Write what the output has missed, and then this check, or keep what cannot be written for the next time."""
        missed = self._missed.pop(output, [])
        changed = frozenset[str]().union(check.changed, *(before.changed for before in missed))
        waiting = [*missed, replace(check, changed=changed)]
        try:
            while waiting:
                output.write(waiting[0])
                del waiting[0]
        except Exception:
            # The weights move on: what was seen of them cannot be drawn later.
            self._missed[output] = [replace(each, looks=()) for each in waiting]
            raise

    def close(self, outputs: Sequence[Output], report: SymmetryReport) -> None:
        """Let the outputs say what is to be said at the end of a training; there is no other try."""
        for output in outputs:
            if output not in self._guards or not self._guards[output].is_off(output.name):
                Guard(self._warn, self._who).run(output.name, self._close, output, report)

    def _close(self, output: Output, report: SymmetryReport) -> None:
        try:
            for check in self._missed.pop(output, []):
                output.write(check)
        finally:  # whatever the output holds open, this is the last time that it is called
            output.close(report)

    def _warn(self, text: str) -> None:
        self._warn_user(f"{text} Its `findings` hold all that was found.")
