"""Dataclasses as plain data for checkpoints: numbers, strings and lists, which loading allows by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from operator import index
from typing import Any, TypeVar

from lightning_symmetry.verdicts.diagnoses import Cause, Origin, Reason
from lightning_symmetry.verdicts.look import Gradients
from lightning_symmetry.verdicts.stops import GradientStop, Stopped
from lightning_symmetry.verdicts.verdict import Verdict

T = TypeVar("T")


def to_plain(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its constructor takes, as plain data."""
    return {each.name: _plain(getattr(instance, each.name)) for each in fields(instance) if each.init}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, GradientStop):
        return value.to_dict()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from what :func:`to_plain` returned, in this version or an earlier one.

    Missing fields get their default; unknown ones are ignored.

    Raises:
        Exception: of any kind, if the values are not of this dataclass.
    """
    names = [each.name for each in fields(cls) if each.init and each.name in values]  # type: ignore[arg-type]
    return cls(**{name: _read(name, values[name]) for name in names})


def _read(name: str, value: Any) -> Any:
    if name not in _READERS or (value is None and name in _OPTIONAL):
        return value
    return _READERS[name](value)


def _units(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(index, values))


_OPTIONAL = {"broken_step", "warned", "stop", "stopped", "warned_stopped"}
_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("first_step", "last_step", "broken_step", "streak", "num_watched", "warned_watched"), index),
    **dict.fromkeys(("units", "warned_units", "mirrored"), _units),
    **dict.fromkeys(("modules", "row_names"), tuple),
    **dict.fromkeys(("verdict", "warned"), Verdict),
    **dict.fromkeys(("reason", "warned_reason"), Reason),
    **dict.fromkeys(("stopped", "warned_stopped"), Stopped.from_plain),
    "stop": GradientStop.from_dict,
    "cause": Cause,
    "origin": Origin,
    "gradients": Gradients,
    "position": float,
    "follows": str,
    "kept_by": str,
    "is_explained": bool,
}
