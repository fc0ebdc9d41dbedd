"""Record single looks, each as the only one of a check."""

from __future__ import annotations

from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.deadness import DeadUnits
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.layer_state import LayerState
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.streaks import JoinedStreaks


def record_in_history(history: History, seen: Look, step: int, is_fresh: bool = True) -> list[Finding]:
    """Record a look at the only layer of a model; return the news."""
    if not history.knows(seen.layer):
        history.match_layers([seen.layer], step)
    return history.update([seen], step, is_fresh=is_fresh, on_error=fail)


def record_in_state(state: LayerState, seen: Look, step: int) -> None:
    found = state.update(seen, step)
    state.conclude(seen, step, found, has_zeros=_record_zeros(state.dead_units, seen, step))


def record_in_dead_units(deaths: DeadUnits, seen: Look, step: int) -> None:
    if _record_zeros(deaths, seen, step):
        deaths.conclude(seen, step)


def _record_zeros(deaths: DeadUnits, seen: Look, step: int) -> bool:
    """Record which gradients are zero; return whether there was anything to record."""
    zeros = deaths.zeros_to_record(seen, is_unused=False)
    if zeros is not None:
        JoinedStreaks().update([zeros], step, is_fresh=True)
    return zeros is not None


def fail(layer: Comparable, error: Exception) -> None:
    raise error
