"""Where the gradient of units stops in the backward pass, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple


class StopKind(StrEnum):
    """Why an operation turns a nonzero gradient into zero."""

    CLOSED = "closed"  # an activation has zero slope, or is clipped, for all samples seen
    SATURATED = "saturated"  # the input of a sigmoid or tanh is so large that its slope is zero in this dtype
    ZERO_WEIGHTS = "zero weights"  # the weights that read these units are zero: a matrix, the gain of a norm, a gate
    FLAT = "flat"  # the slope of the operation is zero everywhere, as for rounding
    ONE_VALUE = "one value"  # a softmax or a norm over a single number, whose output is constant
    DROPPED = "dropped"  # multiplied by zero: dropout of 1, or everything masked
    UNREAD = "unread"  # no operation reads these outputs: they are sliced off or dropped
    LOSS = "loss"  # the loss gives no gradient: its weight is 0, it is at its minimum, or it has nothing to compare
    DETACHED = "detached"  # used in the forward pass, but no path leads from it to the loss
    ROUNDING = "rounding"  # underflow, or nothing but rounding errors
    VANISHED = "vanished"  # a gradient arrived, but below the smallest normal number of its dtype
    ERASED = "erased"  # a gradient arrived, and was zero when the optimizer stepped
    UNKNOWN = "unknown"  # the step was not traced, or the observations fit nothing above


@dataclass(frozen=True)
class GradientStop:
    """Where the gradient of units stops, as measured by tracing one step.

    Attributes:
        kind: why it stops there.
        at: the name of the module, or the operation and the module before it, such as ``"relu after fc1"``.
        detail: the measurement in words, without a full stop; may be empty.
        is_by_design: whether no gradient can pass although nothing is broken: a softmax has a single option, or the
            inputs are zeros that were not computed.

    Example:
        >>> print(GradientStop(StopKind.CLOSED, "relu after fc1", "its input is at most -3.1 in all 512 values seen"))
        closed at relu after fc1: its input is at most -3.1 in all 512 values seen
    """

    kind: StopKind
    at: str = ""
    detail: str = ""
    is_by_design: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether the cause of the zero gradient lies outside the units."""
        return self.is_by_design or self.kind in (StopKind.UNREAD, StopKind.LOSS, StopKind.DETACHED)

    def __str__(self) -> str:
        return f"{self.kind}{f' at {self.at}' if self.at else ''}{f': {self.detail}' if self.detail else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {"kind": str(self.kind), "at": self.at, "detail": self.detail, "is_by_design": self.is_by_design}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GradientStop:
        """Build from what :meth:`to_dict` returned."""
        is_by_design = bool(values.get("is_by_design", False))
        return cls(StopKind(values["kind"]), str(values["at"]), str(values["detail"]), is_by_design)


class Stopped(NamedTuple):
    """Where the gradient of a unit stops."""

    stop: GradientStop  # the place and the reason
    follows: str = ""  # name of the layer that stops it, if that is another layer with zero gradients; else empty

    @classmethod
    def from_plain(cls, values: Sequence[Any]) -> Stopped:
        """Build from a list of two items: the dict of :meth:`GradientStop.to_dict`, and ``follows``."""
        return cls(GradientStop.from_dict(values[0]), str(values[1]))


class Traced(NamedTuple):
    """Units of a layer whose gradients stop at the same place; ``units`` are sorted indices."""

    units: tuple[int, ...]
    stopped: Stopped


def most_common(every: Iterable[Stopped | None]) -> Stopped | None:
    """Return where the gradients of most units stop; None if that is known for none.

    If the stop is not the same for all units, the detail says for how many it was measured.

    >>> shut, unread = Stopped(GradientStop(StopKind.CLOSED)), Stopped(GradientStop(StopKind.UNREAD))
    >>> print(most_common([unread, shut, shut]).stop)
    closed: measured for 2 of these 3 units
    """
    units = list(every)
    counts = Counter(each for each in units if each is not None)
    if not counts:
        return None
    stopped, number = counts.most_common(1)[0]
    if number == len(units):
        return stopped
    detail = "; ".join(filter(None, (stopped.stop.detail, f"measured for {number} of these {len(units)} units")))
    return Stopped(replace(stopped.stop, detail=detail), stopped.follows)
