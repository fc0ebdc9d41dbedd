"""Stable codes of diagnoses, each with a page in ``docs/codes/``."""

from __future__ import annotations

from enum import StrEnum, unique

from lightning_symmetry.verdicts.stops import StopKind


@unique
class Code(StrEnum):
    """The codes, each with its ``meaning`` in a few words. A code never changes its meaning and is never reused.

    In lower case, a code is the name of its page and of its row in the index ``docs/codes.md``.

    Example:
        >>> print(Code.CLOSED, Code.CLOSED.meaning, sep="; ")
        SYM301; no gradient: an activation is closed
    """

    meaning: str

    CONSTANT_INIT = "SYM101", "train as one: constant initialisation"
    ZERO_INIT = "SYM102", "train as one or not at all: zero initialisation, gradients cancel"
    COPIED_ROWS = "SYM103", "train as one: copied rows"
    MIRRORED_ROWS = "SYM104", "train as one: mirrored rows"
    COLLAPSED = "SYM105", "train as one: collapsed during training"
    COPIED_MODULES = "SYM106", "train as one: whole modules that are copies"
    LOCKSTEP = "SYM201", "move in parallel"
    CLOSED = "SYM301", "no gradient: an activation is closed"
    SATURATED = "SYM302", "no gradient: an activation is saturated"
    ZERO_WEIGHTS = "SYM303", "no gradient: the weights that read the units are zero"
    FLAT = "SYM304", "no gradient: an operation without a slope"
    ONE_VALUE = "SYM305", "no gradient: a softmax or norm over one number"
    DROPPED = "SYM306", "no gradient: everything is dropped or masked"
    ERASED = "SYM307", "no gradient: erased before the optimizer step"
    ROUNDING = "SYM308", "no gradient but rounding errors"
    NOT_MEASURED = "SYM309", "no gradient: the cause was not measured"
    UNREAD = "SYM401", "idle: nobody reads the outputs"
    LOSS = "SYM402", "idle: the loss gives no gradient"
    DETACHED = "SYM403", "idle: the loss cannot be reached"
    NO_CHOICE = "SYM404", "idle: there is a single one to choose from"
    NO_INPUT = "SYM405", "idle: the inputs are zero"

    def __new__(cls, value: str, meaning: str = "") -> Code:
        """Make a string that carries its meaning; ``Code("SYM101")`` looks one up."""
        code = str.__new__(cls, value)
        code._value_, code.meaning = value, meaning
        return code


_OTHER_NAMES = {StopKind.UNKNOWN: Code.NOT_MEASURED, StopKind.VANISHED: Code.ROUNDING}
CODE_OF_STOP = {kind: _OTHER_NAMES.get(kind) or Code[kind.name] for kind in StopKind}
"""The code of units without a gradient, by the kind of stop."""
