"""Checks of what users pass in: each error repeats the argument and says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from torch import Tensor, nn

from lightning_symmetry.brief import brief


def check_module(model: nn.Module) -> None:
    """Refuse what is no module of PyTorch."""
    if not isinstance(model, nn.Module):
        text = f"Expected argument `model` to be a torch.nn.Module but got {brief(model)}."
        raise TypeError(" ".join(filter(None, [text, _instead_of_module(model)])))


def _instead_of_module(value: object) -> str:
    """Say what to do about something that is often passed where a module is expected."""
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"You passed the class, not an instance: pass {value.__name__}(...)."
    if isinstance(value, str | PathLike):
        return f"For a checkpoint on disk use lightning_symmetry.scan({brief(str(value))})."
    if isinstance(value, Mapping) and any(isinstance(each, Tensor | Mapping) for each in value.values()):
        return (
            "Of a state dict pass the model that it is loaded into; lightning_symmetry.scan(path) looks at checkpoints "
            "on disk."
        )
    return ""


def check_tolerance(tolerance: float | None) -> None:
    """Refuse what is no relative distance; None stands for the default."""
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"Expected argument `tolerance` to be a number or None but got {brief(tolerance)}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"Expected argument `tolerance` to be in the range 0 <= tolerance < 1 but got {tolerance!r}.")


def check_patterns(**arguments: Sequence[str] | None) -> None:
    """Refuse what is no sequence of patterns; a bare string is the usual slip. ``include`` may be None."""
    for name, value in arguments.items():
        if value is None and name == "include":
            continue
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str | Mapping)
        if not is_sequence or not all(isinstance(pattern, str) for pattern in value or ()):
            raise TypeError(
                f"Expected argument `{name}` to be a sequence of patterns, e.g. ['fc*'], but got {brief(value)}."
            )


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected argument `{name}` to be an int but got {brief(value)}.")
    if value < 1:
        raise ValueError(f"Expected argument `{name}` to be at least 1 but got {value!r}.")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share of a whole; a share of nothing is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected argument `{name}` to be a number but got {brief(value)}.")
    if not 0 < value <= 1:
        raise ValueError(f"Expected argument `{name}` to be in the range 0 < {name} <= 1 but got {value!r}.")


def check_flag(name: str, value: bool) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be a bool but got {brief(value)}.")


def check_callable(name: str, value: object) -> None:
    """Refuse what cannot be called; None stands for nothing to call."""
    if value is not None and not callable(value):
        raise TypeError(f"Expected argument `{name}` to be callable or None but got {brief(value)}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {list(choices)} but got {brief(value)}.")
