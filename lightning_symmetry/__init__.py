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

__all__ = [  # noqa: RUF022 # by purpose, as on the page "Classes and functions"
    # For users: watch a training.
    "SymmetryMonitor",
    "SymmetryTracker",
    "ActivationProbe",
    # For users: check once.
    "diagnose",
    "scan",
    "assert_no_symmetry",
    "duplicate_groups",
    # For users: results.
    "SymmetryReport",
    "LayerDiagnosis",
    "UnitGroup",
    "CopyGroup",
    "Finding",
    "GradientStop",
    "StopKind",
    "Verdict",
    "SymmetryWarning",
    "SymmetryError",
    # For users: repair.
    "break_symmetry",
    "Change",
    "merge_duplicates",
    "Merged",
    # For writers of adapters. Writers of outputs import `lightning_symmetry.outputs.output`.
    "register_layer",
    "Units",
]

# Names are imported on first use: TensorBoard loads the plugin of this package at every start and should not wait for
# torch; only the callback needs Lightning, whose import takes seconds.
_NAMES_IN = {
    "callback": ["SymmetryMonitor"],
    "tracker": ["SymmetryTracker"],
    "probe": ["ActivationProbe"],
    "engine.diagnose": ["diagnose"],
    "disk.scanning": ["scan"],
    "gate": ["assert_no_symmetry"],
    "matrices.grouping": ["duplicate_groups"],
    "verdicts.report": ["SymmetryReport"],
    "verdicts.diagnoses": ["LayerDiagnosis", "UnitGroup", "CopyGroup", "Finding"],
    "verdicts.stops": ["GradientStop", "StopKind"],
    "verdicts.verdict": ["Verdict"],
    "engine.messages": ["SymmetryWarning", "SymmetryError"],
    "repair.breaking": ["break_symmetry", "Change"],
    "merging.merge": ["merge_duplicates", "Merged"],
    "units.registry": ["register_layer", "Units"],
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"lightning_symmetry.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
