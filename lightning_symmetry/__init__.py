"""Find neurons that train as one: duplicate weights and identical gradients, reported as the training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_symmetry import adapters as adapters  # registers the layers of PyTorch
from lightning_symmetry.diagnosis import CopyGroup, LayerDiagnosis, SymmetryReport, UnitGroup, Verdict, diagnose
from lightning_symmetry.grouping import duplicate_groups
from lightning_symmetry.history import Finding
from lightning_symmetry.layers import Units, register_layer

if TYPE_CHECKING:
    from lightning_symmetry.callback import SymmetryError, SymmetryMonitor, SymmetryWarning

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


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and only the callback needs it.
    if name in ("SymmetryError", "SymmetryMonitor", "SymmetryWarning"):
        from lightning_symmetry import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
