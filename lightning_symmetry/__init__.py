"""Find neurons that train as one: duplicate weights and identical gradients, reported as the training starts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_symmetry.callback import SymmetryError, SymmetryMonitor, SymmetryWarning
    from lightning_symmetry.diagnosis import CopyGroup, LayerDiagnosis, SymmetryReport, UnitGroup, Verdict, diagnose
    from lightning_symmetry.grouping import duplicate_groups
    from lightning_symmetry.history import Finding
    from lightning_symmetry.layers import Units, register_layer

__version__ = "0.1.0"

__all__ = [
    "CopyGroup",
    "Finding",
    "LayerDiagnosis",
    "SymmetryError",
    "SymmetryMonitor",
    "SymmetryReport",
    "SymmetryWarning",
    "UnitGroup",
    "Units",
    "Verdict",
    "diagnose",
    "duplicate_groups",
    "register_layer",
]


# Every name is imported when it is first used: TensorBoard loads the plugin of this package at every start, and should
# not wait for torch; only the callback needs Lightning, which takes seconds.
_ROOMS = {
    "CopyGroup": "diagnosis",
    "Finding": "history",
    "LayerDiagnosis": "diagnosis",
    "SymmetryError": "callback",
    "SymmetryMonitor": "callback",
    "SymmetryReport": "diagnosis",
    "SymmetryWarning": "callback",
    "UnitGroup": "diagnosis",
    "Units": "layers",
    "Verdict": "diagnosis",
    "diagnose": "diagnosis",
    "duplicate_groups": "grouping",
    "register_layer": "layers",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("lightning_symmetry.adapters")  # PyTorch's layers first, so that a layer of yours can stand for one
    value = globals()[name] = getattr(import_module(f"lightning_symmetry.{_ROOMS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
