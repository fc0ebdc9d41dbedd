"""The states of all layers of a model, each tied to the parameters of its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.layer_state import GroupsAtLook, LayerState
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.records import from_plain, to_plain
from lightning_symmetry.verdicts.streaks import JoinedStreaks, Zeros

# At most this many findings in layers that are gone are kept.
_MAX_ENDED = 1000


class History:
    """The state of each layer, kept from check to check while the layer has the same parameters.

    Args:
        patience: as in :class:`lightning_symmetry.engine.options.Options`.
        dead_share: as there.
    """

    def __init__(self, patience: int, dead_share: float) -> None:
        self._patience, self._dead_share = patience, dead_share
        self._states: dict[str, LayerState] = {}
        self._ended: list[Finding] = []
        self._joined = JoinedStreaks()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joined": JoinedStreaks()}  # in a copy the views become separate arrays

    def __getitem__(self, layer: str) -> LayerState:
        """Return the state of the layer of this name."""
        return self._states[layer]

    def knows(self, layer: Comparable) -> bool:
        """Return whether there is a state for the parameters that a layer has now."""
        state = self._states.get(layer.name)
        return state is not None and state.belongs_to(layer)

    def match_layers(self, layers: Iterable[Comparable], step: int) -> None:
        """Keep the states of layers with the same parameters, make new ones for others, and end those without a layer.

        Args:
            layers: all layers and copies of the model.
            step: completed optimizer steps.
        """
        gone, self._states, self._joined = self._states, {}, JoinedStreaks()
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
        """Drop the references to all parameters, but keep the states."""
        for state in self._states.values():
            state.release()

    @property
    def findings(self) -> list[Finding]:
        """All findings: those in layers that are gone, then in the order of the layers."""
        return [*self._ended, *(finding for name, state in self._states.items() for finding in state.findings(name))]

    def findings_in(self, layer: str) -> list[Finding]:
        """Return the findings in one layer."""
        return self._states[layer].findings(layer) if layer in self._states else []

    def is_fresh(self, looks: Sequence[Look], *, had_gradient: bool = False) -> bool:
        """Return whether the weights have moved since the last looks, or had no gradients to move them.

        Gradients without a move occur at a learning rate of zero, or when the gradient scaler skips a step: then these
        looks are no new evidence.

        Args:
            looks: the looks.
            had_gradient: whether layers that were read quickly had a gradient.
        """
        closely = [(seen, self._states[seen.layer.name].last) for seen in looks if seen.fingerprint is not None]
        before = [(seen, last) for seen, last in closely if last is not None]
        has_moved = any(fingerprint != seen.fingerprint for seen, (fingerprint, _) in before)
        return has_moved or not (had_gradient or any(has_gradient for _, (_, has_gradient) in before))

    def update(
        self,
        looks: Sequence[Look],
        step: int,
        *,
        is_fresh: bool,
        unused: Set[str] = frozenset(),
        unread: Set[str] = frozenset(),
        on_error: Callable[[Comparable, Exception], None],
    ) -> list[Finding]:
        """Record the looks of a check. Return the new findings.

        Args:
            looks: the looks.
            step: completed optimizer steps.
            is_fresh: whether these looks are new evidence, see :meth:`is_fresh`.
            unused: the names of layers whose modules take no part in this step, so that zero gradients mean nothing.
            unread: the names of layers whose outputs may go unread.
            on_error: called with a layer whose look cannot be recorded, and the exception.
        """
        updated: list[tuple[Look, GroupsAtLook, Zeros | None]] = []
        for seen in looks:
            name = seen.layer.name
            state = self._states[name]
            try:
                if seen.is_steady:
                    state.keep_steady(seen, step)
                    continue
                found = state.update(seen, step, is_fresh=is_fresh, is_unused=name in unused)
                zeros = state.dead_units.zeros_to_record(seen, is_unused=name in unused or name in unread)
            except Exception as error:
                on_error(seen.layer, error)
                continue
            updated.append((seen, found, zeros))
        several = [zeros for *_, zeros in updated if zeros is not None]
        if several:
            self._joined.update(several, step, is_fresh=is_fresh)
        news: list[Finding] = []
        for seen, found, zeros in updated:
            try:
                news += self._states[seen.layer.name].conclude(seen, step, found, has_zeros=zeros is not None)
            except Exception as error:
                on_error(seen.layer, error)
        return news

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {
            "layers": {name: state.to_state() for name, state in self._states.items()},
            "ended": [to_plain(finding) for finding in self._ended],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            Exception: of any type, if the state is malformed; then nothing has changed.
        """
        states = {name: LayerState(self._patience, self._dead_share) for name in state["layers"]}
        for name, values in state["layers"].items():
            states[name].load_state(values)
        self._ended = [from_plain(Finding, values) for values in state["ended"]]
        self._states, self._joined = states, JoinedStreaks()
