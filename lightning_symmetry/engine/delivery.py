"""Hands checks to outputs, each for itself: what one of them fails at is no concern of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.outputs.output import Changes, Check, Output
from lightning_symmetry.verdicts.looks import Look
from lightning_symmetry.verdicts.report import Finding, SymmetryReport

_TRIES = 3


class Delivery:
    """Writes checks to outputs; tries again what has failed, and gives up an output that fails three times in a row.

    Args:
        warn: says a text to the user.
        who: the name under which the monitor speaks.
    """

    def __init__(self, warn: Callable[[str], None], who: str) -> None:
        self._warn = warn
        self._who = who
        self._maker = Guard(warn, who, _TRIES)
        self._changes = Changes()
        self._guards: dict[Output, Guard] = {}
        self._missed: dict[Output, frozenset[str]] = {}  # changed layers that an output has failed to write

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
            changed = check.changed | self._missed.pop(output, frozenset())
            guard = self._guards.setdefault(output, Guard(self._warn, self._who, _TRIES))
            self._missed[output] = frozenset(changed)
            guard.run(output.name, self._write, output, replace(check, changed=changed))

    def _write(self, output: Output, check: Check) -> None:
        output.write(check)
        del self._missed[output]

    def close(self, outputs: Sequence[Output], report: SymmetryReport) -> None:
        """Let the outputs say what is to be said at the end of a training; there is no other try."""
        for output in outputs:
            if output not in self._guards or not self._guards[output].is_off(output.name):
                Guard(self._warn, self._who).run(output.name, output.close, report)
