"""Where the gradient of units stops on its way back from the loss, as plain data.

Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple


class StopKind(StrEnum):
    """Why a gradient goes into an operation and zero comes out."""

    CLOSED = "closed"  # an activation is shut, or clipped, for all samples seen
    SATURATED = "saturated"  # a sigmoid or tanh is so far out that its slope is zero in this dtype
    ZERO_WEIGHTS = "zero weights"  # the weights that read these units are zero: a matrix, the gain of a norm, a gate
    FLAT = "flat"  # the operation has no slope, as rounding
    ONE_VALUE = "one value"  # a softmax or a norm over a single number, whose output is constant
    DROPPED = "dropped"  # multiplied by zero: dropout of 1, or everything masked
    UNREAD = "unread"  # nobody reads these outputs: they are sliced off or dropped
    LOSS = "loss"  # the loss gives no gradient: it has weight 0, is met, or has nothing to compare with
    DETACHED = "detached"  # used in the forward pass, but the loss cannot be reached from it
    ROUNDING = "rounding"  # underflow, or nothing but rounding errors
    ERASED = "erased"  # a gradient went through, and was zero when the optimizer stepped
    UNKNOWN = "unknown"  # the step was not traced, or what was seen fits nothing above


@dataclass(frozen=True)
class GradientStop:
    """Where the gradient of units stops, as measured by tracing one step.

    Attributes:
        kind: why it stops there.
        at: the name of the module, or the operation and the module before it, such as ``"relu after fc1"``.
        detail: the measurement in words, without a full stop; may be empty.
        is_by_design: whether nothing is broken, although no gradient can pass: there is a single one to choose from, or
            the inputs are zeros that nothing has computed.

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
        """Whether the zero gradient is not the units' own doing."""
        return self.is_by_design or self.kind in (StopKind.UNREAD, StopKind.LOSS, StopKind.DETACHED)

    def __str__(self) -> str:
        return f"{self.kind}{f' at {self.at}' if self.at else ''}{f': {self.detail}' if self.detail else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {"kind": str(self.kind), "at": self.at, "detail": self.detail, "is_by_design": self.is_by_design}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GradientStop:
        """Read what :meth:`to_dict` wrote."""
        is_by_design = bool(values.get("is_by_design", False))
        return cls(StopKind(values["kind"]), str(values["at"]), str(values["detail"]), is_by_design)


class Stopped(NamedTuple):
    """Where the gradient of a unit stops, and because of which layer.

    Attributes:
        stop: where it stops.
        follows: the name of the layer that stops it, if that is another one with zero gradients; else empty.
    """

    stop: GradientStop
    follows: str = ""


class Traced(NamedTuple):
    """Where the gradient of some units of a layer stops.

    Attributes:
        units: sorted indices of the units.
        stopped: where it stops, and because of which layer.
    """

    units: tuple[int, ...]
    stopped: Stopped


def most_common(every: Iterable[Stopped | None]) -> Stopped | None:
    """Return where the gradients of most units stop, and of how many if not of all; None if that is known of none.

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
