"""Delivers checks to outputs, such that the failure of one does not affect the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.outputs.output import Changes, Check, Output
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.report import SymmetryReport

_TRIES = 3


@dataclass
class _Recipient:
    """An output and the state of its delivery."""

    output: Output
    guard: Guard
    missed: list[Check] = field(default_factory=list)  # the checks that could not be written so far, in order
    has_written: bool = False  # whether the latest check was written

    @property
    def name(self) -> str:
        try:
            return str(self.output.name)
        except Exception:
            return type(self.output).__name__

    def write(self, check: Check) -> None:
        """Write the missed checks and then this one; keep those that fail for the next time."""
        missed = self.missed
        changed = frozenset[str]().union(check.changed, *(before.changed for before in missed))
        waiting = [*missed, replace(check, changed=changed)]
        try:
            while waiting:
                self.output.write(waiting[0])
                del waiting[0]
        finally:
            # By the next time, the weights that looks refer to will have changed.
            self.missed, self.has_written = [replace(each, looks=()) for each in waiting], not waiting

    def close(self, report: SymmetryReport) -> None:
        """Write the missed checks and close the output."""
        try:
            for check in self.missed:
                self.output.write(check)
        finally:  # the output may have open files
            self.output.close(report)


class Delivery:
    """Writes checks to outputs, retries what failed, and switches off an output after three failures in a row.

    The random generators are restored after everything that may draw from them.

    Args:
        warn: shows the user a warning.
        who: the name of the monitor in messages.
    """

    def __init__(self, warn: Callable[[str], None], who: str) -> None:
        self._warn_user = warn
        self._who = who
        self._maker = Guard(self._warn, who, _TRIES)
        self._changes = Changes()
        self._recipients: dict[int, _Recipient] = {}  # by `id`, since a custom output may be unhashable
        self._made: dict[int, tuple[object, Sequence[Output]]] = {}  # by `id` of a target, the target and its outputs

    def __getstate__(self) -> dict[str, Any]:
        # Outputs hold open files, which cannot be pickled.
        return {**self.__dict__, "_recipients": {}, "_made": {}}

    def outputs_of(self, target: object, task: str, make: Callable[[], Sequence[Output]]) -> Sequence[Output]:
        """Return the outputs of a target, made on first use; none if that fails. It is tried three times at most.

        Args:
            target: a logger or the like, identified by its ``id``.
            task: the name of this task in messages.
            make: makes the outputs.
        """
        if id(target) not in self._made:
            outputs = self._maker.run(task, make)
            if outputs is None:
                return ()
            self._made[id(target)] = target, outputs  # a reference, so that the `id` is not reused
        return self._made[id(target)][1]

    def write(
        self, outputs: Sequence[Output], report: SymmetryReport, findings: Sequence[Finding], looks: Sequence[Look]
    ) -> None:
        """Write a check; its parts are those of :class:`Check`."""
        check = Check(report, findings, looks, self._changes.update(report, findings))
        recipients = [each for each in map(self._recipient, outputs) if not each.guard.is_off(each.name)]
        # Restoring takes 0.1 ms; the outputs of this package draw random numbers only when something has changed.
        may_draw = any(check.changed or each.output.is_foreign or not each.has_written for each in recipients)
        with preserved_random_numbers() if may_draw else nullcontext():
            for recipient in recipients:
                recipient.guard.run(recipient.name, recipient.write, check)

    def close(self, outputs: Sequence[Output], report: SymmetryReport) -> None:
        """Close all outputs at the end of a training: those made here, and then ``outputs``. A failure is final."""
        made = [output for _, several in self._made.values() for output in several]
        with preserved_random_numbers():
            for output in (*made, *outputs):
                recipient = self._recipient(output)
                if not recipient.guard.is_off(recipient.name):
                    Guard(self._warn, self._who).run(recipient.name, recipient.close, report)
                del self._recipients[id(output)]

    def release(self) -> None:
        """Release all targets; a training that continues later opens new files."""
        self._made = {}

    def _recipient(self, output: Output) -> _Recipient:
        if id(output) not in self._recipients:
            self._recipients[id(output)] = _Recipient(output, Guard(self._warn, self._who, _TRIES))
        return self._recipients[id(output)]

    def _warn(self, text: str) -> None:
        self._warn_user(f"{text} All findings remain in its attribute `findings`.")
