"""Hands checks to outputs, each for itself: what one of them fails at is no concern of the others."""

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
    """What is known of an output.

    Attributes:
        output: the output.
        guard: switches the output off.
        missed: the checks that could not be written so far, in order.
        has_written: whether the latest check was written.
    """

    output: Output
    guard: Guard
    missed: list[Check] = field(default_factory=list)
    has_written: bool = False

    @property
    def name(self) -> str:
        try:
            return str(self.output.name)
        except Exception:
            return type(self.output).__name__

    def write(self, check: Check) -> None:
        """Write what was missed, and then this check; keep what cannot be written for the next time."""
        missed = self.missed
        changed = frozenset[str]().union(check.changed, *(before.changed for before in missed))
        waiting = [*missed, replace(check, changed=changed)]
        try:
            while waiting:
                self.output.write(waiting[0])
                del waiting[0]
        finally:
            # The weights move on: what was seen of them cannot be drawn later.
            self.missed, self.has_written = [replace(each, looks=()) for each in waiting], not waiting

    def close(self, report: SymmetryReport) -> None:
        """Write what was missed and what is to be said at the end."""
        try:
            for check in self.missed:
                self.output.write(check)
        finally:  # whatever the output holds open, this is the last time that it is called
            self.output.close(report)


class Delivery:
    """Writes checks to outputs; tries again what has failed, and gives up an output that fails three times in a row.

    The random generators are restored after everything that may draw from them.

    Args:
        warn: says a text to the user.
        who: the name under which the monitor speaks.
    """

    def __init__(self, warn: Callable[[str], None], who: str) -> None:
        self._warn_user = warn
        self._who = who
        self._maker = Guard(self._warn, who, _TRIES)
        self._changes = Changes()
        self._recipients: dict[int, _Recipient] = {}  # by `id`: an output of the user's may be unhashable
        self._made: dict[int, tuple[object, Sequence[Output]]] = {}  # by `id` of a target, it and its outputs

    def __getstate__(self) -> dict[str, Any]:
        # Outputs hold open files; a monitor must be able to travel between processes without them.
        return {**self.__dict__, "_recipients": {}, "_made": {}}

    def outputs_of(self, target: object, task: str, make: Callable[[], Sequence[Output]]) -> Sequence[Output]:
        """Return the outputs of a target, made when it is first met; none if that fails, or has failed three times.

        Args:
            target: told from others by its identity.
            task: what messages call the making of its outputs.
            make: makes them.
        """
        if id(target) not in self._made:
            outputs = self._maker.run(task, make)
            if outputs is None:
                return ()
            self._made[id(target)] = target, outputs  # which keeps the identity from being given anew
        return self._made[id(target)][1]

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
        recipients = [each for each in map(self._recipient, outputs) if not each.guard.is_off(each.name)]
        # Restoring takes 0.1 ms; an output of this package that has no news draws nothing.
        may_draw = any(check.changed or each.output.is_foreign or not each.has_written for each in recipients)
        with preserved_random_numbers() if may_draw else nullcontext():
            for recipient in recipients:
                recipient.guard.run(recipient.name, recipient.write, check)

    def close(self, outputs: Sequence[Output], report: SymmetryReport) -> None:
        """Let the outputs say what is to be said at the end of a training; there is no other try.

        Args:
            outputs: those that were not made here, after the others.
            report: the last one of the training.
        """
        made = [output for _, several in self._made.values() for output in several]
        with preserved_random_numbers():
            for output in (*made, *outputs):
                recipient = self._recipient(output)
                if not recipient.guard.is_off(recipient.name):
                    Guard(self._warn, self._who).run(recipient.name, recipient.close, report)
                del self._recipients[id(output)]

    def release(self) -> None:
        """Let go of all targets; a training that goes on later opens its files anew."""
        self._made = {}

    def _recipient(self, output: Output) -> _Recipient:
        if id(output) not in self._recipients:
            self._recipients[id(output)] = _Recipient(output, Guard(self._warn, self._who, _TRIES))
        return self._recipients[id(output)]

    def _warn(self, text: str) -> None:
        self._warn_user(f"{text} Its `findings` hold all that was found.")
