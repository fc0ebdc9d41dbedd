"""Find neurons that train as one: duplicate weights and identical gradients, reported as the training starts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_symmetry.callback import SymmetryMonitor
    from lightning_symmetry.disk.scanning import scan
    from lightning_symmetry.engine.diagnose import diagnose
    from lightning_symmetry.engine.messages import SymmetryError, SymmetryWarning
    from lightning_symmetry.gate import assert_no_symmetry
    from lightning_symmetry.matrices.grouping import duplicate_groups
    from lightning_symmetry.merging.merge import Merged, merge_duplicates
    from lightning_symmetry.probe import ActivationProbe
    from lightning_symmetry.repair.breaking import Change, break_symmetry
    from lightning_symmetry.tracker import SymmetryTracker
    from lightning_symmetry.units.registry import Units, register_layer
    from lightning_symmetry.verdicts.diagnoses import CopyGroup, Finding, LayerDiagnosis, UnitGroup
    from lightning_symmetry.verdicts.report import SymmetryReport
    from lightning_symmetry.verdicts.stops import GradientStop, StopKind
    from lightning_symmetry.verdicts.verdict import Verdict

__version__ = "0.2.0"

__all__ = [
    "ActivationProbe",
    "Change",
    "CopyGroup",
    "Finding",
    "GradientStop",
    "LayerDiagnosis",
    "Merged",
    "StopKind",
    "SymmetryError",
    "SymmetryMonitor",
    "SymmetryReport",
    "SymmetryTracker",
    "SymmetryWarning",
    "UnitGroup",
    "Units",
    "Verdict",
    "assert_no_symmetry",
    "break_symmetry",
    "diagnose",
    "duplicate_groups",
    "merge_duplicates",
    "register_layer",
    "scan",
]


# Every name is imported when it is first used: TensorBoard loads the plugin of this package at every start, and should
# not wait for torch; only the callback needs Lightning, which takes seconds.
_MODULES = {
    "ActivationProbe": "probe",
    "Change": "repair.breaking",
    "CopyGroup": "verdicts.diagnoses",
    "Finding": "verdicts.diagnoses",
    "GradientStop": "verdicts.stops",
    "LayerDiagnosis": "verdicts.diagnoses",
    "Merged": "merging.merge",
    "StopKind": "verdicts.stops",
    "SymmetryError": "engine.messages",
    "SymmetryMonitor": "callback",
    "SymmetryReport": "verdicts.report",
    "SymmetryTracker": "tracker",
    "SymmetryWarning": "engine.messages",
    "UnitGroup": "verdicts.diagnoses",
    "Units": "units.registry",
    "Verdict": "verdicts.verdict",
    "assert_no_symmetry": "gate",
    "break_symmetry": "repair.breaking",
    "diagnose": "engine.diagnose",
    "duplicate_groups": "matrices.grouping",
    "merge_duplicates": "merging.merge",
    "register_layer": "units.registry",
    "scan": "disk.scanning",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"lightning_symmetry.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
