"""Stable codes of diagnoses, each with a section on the page ``docs/codes.md``.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique
from types import MappingProxyType

from lightning_symmetry.verdicts.stops import StopKind


@unique
class Code(StrEnum):
    """The codes. A code never changes its meaning and is never reused.

    Example:
        >>> print(Code.CLOSED, Code.CLOSED.meaning, Code.CLOSED.anchor, sep="; ")
        SYM301; no gradient: an activation is closed; sym301
    """

    CONSTANT_INIT = "SYM101"
    ZERO_INIT = "SYM102"
    COPIED_ROWS = "SYM103"
    MIRRORED_ROWS = "SYM104"
    COLLAPSED = "SYM105"
    COPIED_MODULES = "SYM106"
    LOCKSTEP = "SYM201"
    CLOSED = "SYM301"
    SATURATED = "SYM302"
    ZERO_WEIGHTS = "SYM303"
    FLAT = "SYM304"
    ONE_VALUE = "SYM305"
    DROPPED = "SYM306"
    ERASED = "SYM307"
    ROUNDING = "SYM308"
    NOT_MEASURED = "SYM309"
    UNREAD = "SYM401"
    LOSS = "SYM402"
    DETACHED = "SYM403"
    NO_CHOICE = "SYM404"
    NO_INPUT = "SYM405"

    @property
    def meaning(self) -> str:
        """The diagnosis in a few words."""
        return _MEANINGS[self]

    @property
    def anchor(self) -> str:
        """The anchor of its section on the page of the codes."""
        return self.value.lower()


_MEANINGS = {
    Code.CONSTANT_INIT: "train as one: constant initialisation",
    Code.ZERO_INIT: "train as one or not at all: zero initialisation, gradients cancel",
    Code.COPIED_ROWS: "train as one: copied rows",
    Code.MIRRORED_ROWS: "train as one: mirrored rows",
    Code.COLLAPSED: "train as one: collapsed during training",
    Code.COPIED_MODULES: "train as one: whole modules that are copies",
    Code.LOCKSTEP: "move in parallel",
    Code.CLOSED: "no gradient: an activation is closed",
    Code.SATURATED: "no gradient: an activation is saturated",
    Code.ZERO_WEIGHTS: "no gradient: the weights that read the units are zero",
    Code.FLAT: "no gradient: an operation without a slope",
    Code.ONE_VALUE: "no gradient: a softmax or norm over one number",
    Code.DROPPED: "no gradient: everything is dropped or masked",
    Code.ERASED: "no gradient: erased before the optimizer step",
    Code.ROUNDING: "no gradient but rounding errors",
    Code.NOT_MEASURED: "no gradient: the cause was not measured",
    Code.UNREAD: "idle: nobody reads the outputs",
    Code.LOSS: "idle: the loss gives no gradient",
    Code.DETACHED: "idle: the loss cannot be reached",
    Code.NO_CHOICE: "idle: there is a single one to choose from",
    Code.NO_INPUT: "idle: the inputs are zero",
}

CODE_OF_STOP: Mapping[StopKind, Code] = MappingProxyType(
    {
        **{kind: Code[kind.name] for kind in StopKind if kind is not StopKind.UNKNOWN},
        StopKind.UNKNOWN: Code.NOT_MEASURED,
    }
)
"""The code of units without a gradient, by the kind of stop."""
