"""The states of all layers of a model over time, each tied to the parameters of its layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from operator import index
from typing import Any

from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason
from lightning_symmetry.verdicts.layer_state import LayerState
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.records import units_from_state
from lightning_symmetry.verdicts.stops import GradientStop
from lightning_symmetry.verdicts.verdict import Verdict

# Of the findings in layers that are gone, so many are remembered.
_MAX_ENDED = 1000


class History:
    """Keeps what is known of each layer from check to check, as long as the layer has the same parameters.

    Args:
        patience: checks in a row that a group must hold before it is called frozen or lockstep, or locked if it was
            not there from the start; and at which the gradient of a unit must be zero before it is called dead.
        dead_share: the share of a layer's units that must be dead before the user is warned of them.
    """

    def __init__(self, patience: int, dead_share: float) -> None:
        self._patience, self._dead_share = patience, dead_share
        self._states: dict[str, LayerState] = {}
        self._ended: list[Finding] = []

    def __getitem__(self, layer: str) -> LayerState:
        """Return what is known of the layer of this name."""
        return self._states[layer]

    def knows(self, layer: Comparable) -> bool:
        """Return whether anything is known of the parameters that a layer has now."""
        state = self._states.get(layer.name)
        return state is not None and state.belongs_to(layer)

    def attend(self, layers: Iterable[Comparable], step: int) -> None:
        """Tie what is known to the layers that there are now; what is known of others has come to an end.

        Args:
            layers: all layers and copies of the model.
            step: completed optimizer steps.
        """
        gone, self._states = self._states, {}
        for layer in layers:
            state = gone.get(layer.name)
            if state is not None and state.belongs_to(layer):
                del gone[layer.name]
            else:
                state = LayerState(self._patience, self._dead_share)
            state.tie_to(layer)
            self._states[layer.name] = state
        for name, state in gone.items():
            for finding in state.findings(name):
                self._ended.append(finding if finding.broken_step is not None else replace(finding, broken_step=step))
        del self._ended[:-_MAX_ENDED]

    def release(self) -> None:
        """Let go of all parameters; what is known of them stays."""
        for state in self._states.values():
            state.release()

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of: those in layers that are gone, and then in the order of the layers."""
        return [*self._ended, *(finding for name, state in self._states.items() for finding in state.findings(name))]

    def findings_in(self, layer: str) -> list[Finding]:
        """Return every group of one layer that was warned of."""
        return self._states[layer].findings(layer) if layer in self._states else []

    def is_fresh(self, looks: Sequence[Look], *, had_gradient: bool = False) -> bool:
        """Return whether these looks tell more than the last ones at the same layers.

        They do not if there were gradients, but no update moved anything: at a learning rate of zero, or when the
        gradient scaler skips a step.

        Args:
            looks: the looks.
            had_gradient: whether layers that were read quickly had a gradient.
        """
        closely = [(seen, self._states[seen.layer.name].last) for seen in looks if seen.fingerprint is not None]
        before = [(seen, last) for seen, last in closely if last is not None]
        has_moved = any(fingerprint != seen.fingerprint for seen, (fingerprint, _) in before)
        return has_moved or not (had_gradient or any(has_gradient for _, (_, has_gradient) in before))

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {
            "layers": {name: state.to_state() for name, state in self._states.items()},
            "ended": [_to_plain(finding) for finding in self._ended],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` wrote.

        Raises:
            Exception: of any kind, if it did not write this; nothing has been taken over then.
        """
        states = {name: LayerState(self._patience, self._dead_share) for name in state["layers"]}
        for name, values in state["layers"].items():
            states[name].load_state(values)
        self._ended = [_from_plain(values) for values in state["ended"]]
        self._states = states


def _to_plain(finding: Finding) -> dict[str, Any]:
    plain = {key: str(value) if isinstance(value, StrEnum) else value for key, value in asdict(finding).items()}
    return {**plain, "stop": None if finding.stop is None else finding.stop.to_dict()}


def _from_plain(values: Mapping[str, Any]) -> Finding:
    return Finding(
        **{
            **values,
            **{name: units_from_state(values[name]) for name in ("units", "mirrored")},
            **{name: index(values[name]) for name in ("first_step", "last_step", "broken_step")},
            "verdict": Verdict(values["verdict"]),
            "cause": Cause(values["cause"]),
            "origin": Origin(values["origin"]),
            "reason": Reason(values["reason"]),
            "modules": tuple(values["modules"]),
            "stop": GradientStop.from_dict(values["stop"]) if values.get("stop") else None,
            "follows": str(values.get("follows", "")),
            "kept_by": str(values.get("kept_by", "")),
        }
    )
