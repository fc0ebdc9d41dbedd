"""Checks of arguments: each error repeats the argument and says what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike

from torch import Tensor, nn

from lightning_symmetry.brief import brief


def check_module(model: nn.Module) -> None:
    """Check that ``model`` is a module of PyTorch."""
    if not isinstance(model, nn.Module):
        text = f"Expected argument `model` to be a torch.nn.Module but got {brief(model)}."
        raise TypeError(" ".join(filter(None, [text, _instead_of_module(model)])))


def _instead_of_module(value: object) -> str:
    """Return advice for a value that is often passed in place of a module; else an empty text."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"You passed the class, not an instance: pass {value.__name__}(...)."
    if isinstance(value, str | PathLike):
        return f"For a checkpoint on disk use lightning_symmetry.scan({brief(str(value))})."
    if isinstance(value, Mapping) and any(isinstance(each, Tensor | Mapping) for each in value.values()):
        return "For a state dict pass the model that loads it; lightning_symmetry.scan(path) reads checkpoints on disk."
    return ""


def check_tolerance(tolerance: float | None) -> None:
    """Check that ``tolerance`` is a relative distance in [0, 1), or None for the default."""
    if tolerance is not None:
        check_number("tolerance", tolerance, lambda value: 0 <= value < 1, "0 <= tolerance < 1", "a number or None")


def check_share(name: str, value: float) -> None:
    """Check that ``value`` is a fraction in (0, 1]."""
    check_number(name, value, lambda value: 0 < value <= 1, f"0 < {name} <= 1")


def check_number(
    name: str, value: float, is_valid: Callable[[float], bool], limits: str, kind: str = "a number"
) -> None:
    """Check that ``value`` is a number within some limits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected argument `{name}` to be {kind} but got {brief(value)}.")
    if not is_valid(value):
        raise ValueError(f"Expected argument `{name}` to be in the range {limits} but got {value!r}.")


def check_patterns(**arguments: Sequence[str] | None) -> None:
    """Check that all arguments are sequences of patterns, not bare strings. ``include`` may be None."""
    for name, value in arguments.items():
        if value is None and name == "include":
            continue
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str | Mapping)
        if not is_sequence or not all(isinstance(pattern, str) for pattern in value or ()):
            raise TypeError(
                f"Expected argument `{name}` to be a sequence of patterns, e.g. ['fc*'], but got {brief(value)}."
            )


def check_count(name: str, value: int) -> None:
    """Check that ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected argument `{name}` to be an int but got {brief(value)}.")
    if value < 1:
        raise ValueError(f"Expected argument `{name}` to be at least 1 but got {value!r}.")


def check_flag(name: str, value: bool) -> None:
    """Check that ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a bool but got {brief(value)}.")


def check_callable(name: str, value: object) -> None:
    """Check that ``value`` is callable or None."""
    if value is not None and not callable(value):
        raise TypeError(f"Expected argument `{name}` to be callable or None but got {brief(value)}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {list(choices)} but got {brief(value)}.")
