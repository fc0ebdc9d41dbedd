"""One check of a model: find its layers, look at them, and conclude from all looks so far."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from lightning_symmetry.engine.attachments import HeatmapsOnDemand, access_to, heads_in
from lightning_symmetry.engine.options import Options
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.modules import modules_of
from lightning_symmetry.ranks.team import Team, describe
from lightning_symmetry.tracing.trace import Alike, GradientTrace, Suspected
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.copies import Copies, find_copies, find_equal_parameters, holders_by_name
from lightning_symmetry.units.discovery import Found, find_layers, structure_of
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.progress import Ledger
from lightning_symmetry.units.screening import Distinct, LayerScreen
from lightning_symmetry.units.updates import Updates
from lightning_symmetry.units.usage import Usage, is_compiled, members_of_lists
from lightning_symmetry.verdicts.access import Access
from lightning_symmetry.verdicts.deadness import unread_layers
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, under_all_names
from lightning_symmetry.verdicts.doubts import (
    Untrained,
    crowded_layers,
    may_be_dead,
    not_looked_at,
    too_few_checks,
    undecided_layers,
    untrained_parts,
    untrained_reasons,
)
from lightning_symmetry.verdicts.evidence import look, look_at_distinct
from lightning_symmetry.verdicts.gradients import rounding_gain
from lightning_symmetry.verdicts.heads import Heads
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.judging import copy_groups, reported_copies
from lightning_symmetry.verdicts.look import Gradients, Look, Steady
from lightning_symmetry.verdicts.model_diagnosis import at_step
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.stops import GradientStop, StopKind, Stopped, Traced
from lightning_symmetry.verdicts.watching import Suspects, are_still_zero, zero_gradients


class Examination(NamedTuple):
    """The result of a check."""

    report: SymmetryReport  # the state of the model
    looks: list[Look]  # one per layer that was looked at
    news: list[Finding]


@dataclass
class _Model:
    """State that is valid as long as the structure of the model does not change."""

    structure: object = None  # the result of `structure_of`
    found: Found = field(default_factory=lambda: Found([], {}, 1.0, {}, {}))  # the layers
    # whole modules that are copies and still equal; None until they are searched for
    copies: list[Copies] | None = None
    # by member of a list or dict of modules, the names of its layers
    members: dict[str, list[str]] = field(default_factory=dict)
    rounding_gain: float = 0.0  # the factor by which the model amplifies rounding errors in gradients
    is_attended: bool = False  # whether the history is tied to these layers
    # what reads the layers of an optimizer quickly, by the ids of these layers
    screens: dict[tuple[int, ...], LayerScreen] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)  # a record of all parameters
    untrained: dict[str, str] | None = None  # why parts of the model do not train, by name; None before the first check
    optimized: Set[int] = frozenset()  # ids of the parameters that any optimizer updated at the latest check
    # What the latest report shows: the names of the layers that were updated, and the diagnoses; it is valid until any
    # of them changes. None: the next check needs a new report.
    shown: tuple[Set[str], list[LayerDiagnosis | None]] | None = None
    searched_with: Set[int] | None = None  # ids of the parameters that trained when copies were searched for
    _updated: tuple[object, Set[str]] | None = None
    _reached: tuple[dict[str, Access], dict[str, Sequence[Heads]]] | None = None

    def reached_in(self, model: nn.Module) -> tuple[dict[str, Access], dict[str, Sequence[Heads]]]:
        """Return the results of :func:`access_to` and :func:`heads_in`, computed once."""
        if self._reached is None:
            self._reached = access_to(model, self.found.layers), heads_in(model, self.found.layers)
        return self._reached

    def updated_by(self, trained: Set[int], history: History) -> Set[str]:
        """Return the names of the layers that an optimizer updates and that have ever required a gradient.

        Args:
            trained: ids of the parameters that any optimizer updates.
            history: the history of the layers.

        Returns:
            The same set object as before, if nothing has changed.
        """
        wanted = [original.requires_grad for original in self._originals]
        if self._updated is None or self._updated[0] != (trained, wanted):
            updated = set()
            for layer in self.found.layers:
                state = history[layer.name]
                # A layer whose `requires_grad` is off for the steps of another optimizer still counts as trained.
                state.is_wanted |= any(original.requires_grad for original in layer.originals)
                if state.is_wanted and layer.is_trained_by(trained):
                    updated.add(layer.name)
            self._updated = (trained, wanted), updated
        return self._updated[1]

    def is_shown(self, updated: Set[str], diagnoses: Sequence[LayerDiagnosis | None]) -> bool:
        """Return whether the latest report shows these very objects: a result of :meth:`updated_by`, and diagnoses."""
        if self.shown is None or self.shown[0] is not updated or len(self.shown[1]) != len(diagnoses):
            return False
        return all(map(operator.is_, self.shown[1], diagnoses))

    def those_that_train(self, optimized: Set[int]) -> Set[int]:
        """Return the optimized parameters that have had a gradient."""
        # Once all of them have had a gradient, the result stays the same.
        return optimized if self.searched_with == optimized else self.ledger.with_gradients(optimized)

    def largest_elsewhere(self, trained: Set[int]) -> float:
        """Return the largest gradient norm outside of layers; 0 if the model does not amplify rounding errors."""
        return self.ledger.largest_loose_gradient(trained) if self.rounding_gain else 0.0

    @cached_property
    def _originals(self) -> list[Tensor]:
        return [original for layer in self.found.layers for original in layer.originals]


class Examiner:
    """Examines a model at each check.

    Args:
        options: the options of the monitor.
        on_failure: called with a layer that cannot be read, and the reason; the layer is left out from then on.

    Attributes:
        history: the history of all layers.
        report: the latest report; None before the first check.
    """

    def __init__(self, options: Options, on_failure: Callable[[Comparable, str], None]) -> None:
        self._options = options
        self._on_failure = on_failure
        self.history = History(options.patience, options.dead_share)
        self.report: SymmetryReport | None = None
        self._model = _Model()
        self._usage = Usage()
        self._traced_gain = 0.0  # the `rounding_gain` that a trace has shown
        # The units that are watched at each step until the next check, by layer; None: not determined yet.
        self._suspects: dict[str, Suspects | None] = {}

    def release(self) -> None:
        """Release the model, its layers and the memory for reading them; keep the findings."""
        self._model = _Model()
        self._suspects = dict.fromkeys(self._suspects)
        self._usage.end()
        self.history.release()

    def __getstate__(self) -> dict[str, Any]:
        # The layers are left out, since they hold the weights.
        return {**self.__dict__, "_model": _Model(), "_suspects": dict.fromkeys(self._suspects)}

    def find(self, model: nn.Module) -> Found:
        """Return the result of :func:`find_layers`, computed again only when the structure of the model has changed."""
        structure = structure_of(model)
        if structure is None or structure != self._model.structure:
            found = find_layers(model, self._options.include, self._options.exclude)
            include, exclude = self._options.include, self._options.exclude
            ledger = Ledger.of(model, found.layers, include, exclude, self._model.ledger)
            members = members_of_lists(model, [layer.name for layer in found.layers])
            gain = max(rounding_gain(model), self._traced_gain)
            copies, before = self._copies_in(model), self._model.searched_with
            self._model = _Model(structure, found, copies, members, gain, ledger=ledger, searched_with=before)
            self._usage.end()
            names = {layer.name for layer in found.layers}
            self._suspects = {name: None for name in self._suspects if name in names}
        return self._model.found

    def _copies_in(self, model: nn.Module) -> list[Copies] | None:
        """Return the copies that are still part of the model after its structure has changed."""
        if not self._model.copies:
            return self._model.copies
        holders = dict(holders_by_name(model))
        return [
            copies
            for copies in self._model.copies
            if all(holders.get(name) is one for name, one in zip(copies.row_names, copies.modules, strict=True))
        ]

    def examine(
        self,
        model: nn.Module,
        found: Found,
        *,
        trained: Set[int],
        updates: Updates,
        step: int,
        team: Team | None,
    ) -> Examination:
        """Look at a model, and update history and report.

        Args:
            model: the model.
            found: its layers.
            trained: ids of the parameters that the stepping optimizer updates.
            updates: how all optimizers of the training, including this one, update the model.
            step: completed optimizer steps.
            team: the ranks that hold the model; None: it is all here.
        """
        history = self.history
        trained_by_any = updates.parameters
        copies = self._attend(model, found, trained_by_any, step, team)
        every: list[Layer | Copies] = [*found.layers, *copies]
        states = [history[layer.name] for layer in every]
        chosen = [
            layer
            for layer, state in zip(every, states, strict=True)
            if not state.failure and (state.diagnosis is None or layer.is_trained_by(trained))
        ]
        quick = self._read_quickly(chosen, trained, team)
        passed_over, looks = self._look(chosen, quick, trained, updates, team)
        is_fresh = quick.have_moved or history.is_fresh(looks, had_gradient=quick.had_gradient)
        with_zeros = [seen for seen in looks if isinstance(seen.layer, Layer) and _has_zeros(seen)]
        silent = [seen.layer.name for seen in with_zeros if not seen.has_gradient]
        in_use = [seen.layer.name for seen in with_zeros if seen.has_gradient]  # a gradient shows that they took part
        unused = {name for name in silent if self._is_unused(name)}
        unread = unread_layers(looks, self._model.members, found.layers)
        updated = self._model.updated_by(trained_by_any, history)
        trained_now = {layer.name for layer in chosen if layer.is_trained_by(trained)} if looks else set()
        news = history.update(looks, step, is_fresh=is_fresh, unused=unused, unread=unread, on_error=self._leave_out)
        for seen in looks:
            name = seen.layer.name
            if name in updated and name in trained_now:
                history[name].num_checks += is_fresh and seen.has_gradient
        self._usage.end_step(layer.name for layer in chosen)
        for seen in looks:
            if isinstance(seen.layer, Layer) and not seen.is_steady:
                if history[seen.layer.name].is_watched:
                    self._suspects[seen.layer.name] = None  # which units these are is determined when they are watched
                else:
                    self._suspects.pop(seen.layer.name, None)
        self._usage.learn(in_use)
        in_question = [*silent, *(name for name in in_use if not self._usage.is_known(name)), *self._suspects]
        if in_question or self._usage.is_watching:
            self._usage.watch(model, in_question)
        for layer in passed_over:
            history[layer.name].skip(layer)
            history[layer.name].num_checks += is_fresh
        not_finite = [seen.layer for seen in looks if not seen.is_finite and isinstance(seen.layer, Layer)]
        untrained = {**self._untrained(trained, trained_by_any, not_finite, step), **self._detached()}
        diagnoses = [state.diagnosis for state in states]
        if self.report is None or not self._model.is_shown(updated, diagnoses):
            self.report = self._report(model, found, updated, untrained, step)
            # As long as there are reasons, every check may remove some.
            self._model.shown = None if self.report.reasons else (updated, diagnoses)
        else:  # nothing has changed
            self.report = at_step(self.report, step)
        return Examination(self.report, looks, self._with_known_roots(news))

    def _with_known_roots(self, news: Sequence[Finding]) -> list[Finding]:
        """Return findings; ``follows`` is cleared where the layer that it names has no findings."""
        followed = {finding.follows for finding in news if finding.follows}
        found = {name for name in followed if self.history.findings_in(name)}
        return [finding if finding.follows in found else replace(finding, follows="") for finding in news]

    def trace(self, model: nn.Module, trained: Set[int], step: int) -> GradientTrace | None:
        """Return a trace of the backward passes of the next step, if a verdict on zero gradients is near; else None.

        Args:
            model: the model.
            trained: ids of the parameters that the optimizer of that step updates.
            step: the number of the next step.
        """
        every = [layer for layer in self._model.found.layers if not self.history[layer.name].failure]
        # Layers of other optimizers have gradients at other steps; here they only explain those of this optimizer.
        if not any(self.history[each.name].is_to_be_traced(step) and each.is_trained_by(trained) for each in every):
            return None
        layers = [layer for layer in every if layer.is_trained_by(trained)]
        suspects = [
            Suspected(layer, units, state.floor > 0 or state.is_faint)
            for layer in every
            if len(units := (state := self.history[layer.name]).units_without_gradient())
        ]
        alike = [Alike(layer, groups) for layer in layers if (groups := self.history[layer.name].unexplained())]
        if any(is_compiled(module) for module in modules_of(model)):
            stopped = Stopped(GradientStop(StopKind.UNKNOWN, detail="a compiled model is not traced"))
            names = {layer.name for layer in layers}
            chosen = [each for each in suspects if each.layer.name in names]
            traced = {each.layer.name: [Traced(tuple(each.units.tolist()), stopped)] for each in chosen}
            self.take_traced(traced, step)
            for each in alike:
                self.history[each.layer.name].explain({group.rows: "" for group in each.groups})
            return None
        return GradientTrace(model, suspects, alike, wanted=[layer.name for layer in layers])

    def end_trace(self, trace: GradientTrace, step: int) -> None:
        """Finish a trace and record its results."""
        layers = trace.layers
        traced = trace.finish()
        self.take_traced({name: traced.get(name, []) for name in layers}, step)
        for name, keepers in trace.keepers.items():
            self.history[name].explain(keepers)

    def take_traced(self, traced: Mapping[str, Sequence[Traced]], step: int) -> None:
        """Record, by layer, where the gradients of its units stop."""
        for name, every in traced.items():
            state = self.history[name]
            is_rounding = state.floor > 0 or state.is_faint
            if is_rounding and any(each.stopped.stop.kind is StopKind.ONE_VALUE for each in every):
                self._traced_gain = 1.0
                self._model.rounding_gain = max(1.0, self._model.rounding_gain)
            state.trace(every, step)

    def _untrained(
        self, trained: Set[int], trained_by_any: Set[int], not_finite: Sequence[Layer], step: int
    ) -> dict[str, str]:
        """Return why parts of the model do not train, by name; a change makes the latest report invalid."""
        model = self._model
        is_open = model.ledger.take_in(trained, trained_by_any, not_finite, step)
        if is_open or model.untrained is None or model.optimized != trained_by_any:
            untrained = untrained_parts(model.ledger.by_layer(), trained_by_any, self._options.patience)
            idle = model.ledger.idle_inputs(self._options.patience)
            if untrained != model.untrained or self.report is None or idle != self.report.idle_inputs:
                model.shown = None
            # As long as the ledger is open, each check may add information.
            model.untrained, model.optimized = untrained, trained_by_any
        return model.untrained

    def _detached(self) -> dict[str, str]:
        """Return the layers that the loss depended on earlier but, as a trace has shown, no longer does."""
        names = [layer.name for layer in self._model.found.layers if self.history[layer.name].is_detached]
        return dict.fromkeys(names, str(Untrained.NO_GRADIENT))

    def bring_up_to_date(self) -> None:
        """Update the report with the first gradients that parameters got since the latest check."""
        if self.report is not None and self._model.untrained is not None:
            parts = untrained_parts(self._model.ledger.by_layer(), self._model.optimized, self._options.patience)
            untrained = {**parts, **self._detached()}
            if untrained != self.report.untrained:
                known = set(untrained_reasons(self.report.untrained))
                others = [reason for reason in self.report.reasons if reason not in known]
                reasons = [*untrained_reasons(untrained), *others]
                self.report = replace(self.report, untrained=untrained, reasons=reasons)

    @property
    def suspects(self) -> Set[str]:
        """The names of the layers that are to be watched at each step until the next check."""
        return self._suspects.keys()

    @property
    def has_questions(self) -> bool:
        """Whether anything is to be read at the steps until the next check."""
        return bool(self._suspects) or self._model.ledger.lacks_gradients

    @property
    def layers(self) -> Found:
        """The layers of the model at the latest check."""
        return self._model.found

    @property
    def ledger(self) -> Ledger:
        """The record of all parameters of the model."""
        return self._model.ledger

    def follow_suspects(self, names: Set[str]) -> None:
        """Adopt the names of the watched layers from the first rank."""
        self._suspects = dict.fromkeys(names)

    def watch(self, trained: Set[int], step: int, team: Team | None) -> None:
        """Check, at a step between two checks, whether the gradients of suspected layers are still zero.

        Args:
            trained: ids of the parameters that the stepping optimizer updates.
            step: completed optimizer steps.
            team: the ranks that hold the model; None: it is all here.
        """
        unknown = {name for name, suspects in self._suspects.items() if suspects is None}
        if unknown:
            for layer in self._model.found.layers:
                if layer.name in unknown:
                    self._suspect(layer)
        known = [each for each in self._suspects.values() if each is not None]
        suspects = [each for each in known if each.layer.is_trained_by(trained)]
        used = [each for each in suspects if not self._is_unused(each.layer.name)]
        are_zero = [False] * len(used) if team is not None else are_still_zero(used, trained)
        for each, is_still_zero in zip(used, are_zero, strict=True):
            if is_still_zero:
                self.history[each.layer.name].watch_zeros()
        others = [each for each, is_still_zero in zip(used, are_zero, strict=True) if not is_still_zero]
        for layer, is_zero, is_unseen in zero_gradients(others, trained, self._leave_out, team):
            self.history[layer.name].watch(is_zero, is_unseen, step)
            self._suspect(layer)
        self._usage.end_step(each.layer.name for each in suspects)

    def _suspect(self, layer: Layer) -> None:
        """Determine which units of a layer are watched."""
        state = self.history[layer.name]
        units = state.suspected(layer.blocks)
        if len(units):
            self._suspects[layer.name] = Suspects.of(layer, units, state.floor)
        else:
            self._suspects.pop(layer.name, None)

    def _is_unused(self, name: str) -> bool:
        """Return whether the module of a layer without gradients is, or may be, unused at this step."""
        is_used = self._usage.is_used(name)
        if is_used is not None:
            return not is_used
        # Before any module is watched, members of a list may be experts without a token.
        return any(name in layers for layers in self._model.members.values())

    def _attend(
        self, model: nn.Module, found: Found, trained_by_any: Set[int], step: int, team: Team | None
    ) -> list[Copies]:
        """Tie the history to the layers of a model. Return the copies to look at."""
        copies = self._model.copies
        # Modules that start distinct do not become copies, so there are two reasons to search: new parameters, and ones
        # that begin to train, since a set of copies holds only modules that train alike.
        has_new = not (self._model.is_attended or all(map(self.history.knows, found.layers)))
        train = self._model.those_that_train(trained_by_any)
        if copies is None or has_new or train != self._model.searched_with:
            copies = find_copies(model, found.layers, team, train) + find_equal_parameters(model, found.layers, train)
            self._model.copies = copies
            self._model.searched_with = train
            self._model.is_attended = False
        if not self._model.is_attended:
            self.history.match_layers([*found.layers, *copies], step)
            self._model.is_attended = True
        return copies

    def _read_quickly(self, layers: Sequence[Layer | Copies], trained: Set[int], team: Team | None) -> Distinct:
        """Return which of the layers without known groups still have distinct units."""
        # Sharded rows, all heatmaps and zeros but for rounding need full looks.
        if team is not None or self._options.heatmaps == "all" or self._model.rounding_gain:
            return Distinct()
        every = [layer for layer in layers if isinstance(layer, Layer)]
        without_groups = [layer for layer in every if self.history[layer.name].is_without_groups]
        identities = tuple(map(id, every))
        # A screen that is not read at a check is dropped, because it compares with the latest read.
        screen = self._model.screens.pop(identities, None)
        if not without_groups or 2 * len(without_groups) < len(every):
            return Distinct()
        wanted = {id(layer) for layer in without_groups if self.history[layer.name].can_be_quick}
        try:
            screen = screen or LayerScreen(every, self._options.tolerance)
            seen = screen.read(trained, wanted)
        except Exception:  # the full look determines which layer fails
            return Distinct()
        self._model.screens[identities] = screen
        return seen

    def _look(
        self,
        layers: Sequence[Layer | Copies],
        quick: Distinct,
        trained: Set[int],
        updates: Updates,
        team: Team | None,
    ) -> tuple[list[Layer], list[Look]]:
        """Return the layers without any change, and looks at the others."""
        history = self.history
        passed_over = [
            each.layer for each in quick.layers if each.idle is None and not history[each.layer.name].is_open
        ]
        skipped = set(map(id, passed_over))
        looks = [
            look_at_distinct(layer, partial(_rows_of, layer, trained), idle, directions=directions)
            for layer, idle, directions in quick.layers
            if id(layer) not in skipped
        ]
        read = {id(each.layer) for each in quick.layers}
        chosen = [layer for layer in layers if id(layer) not in read]
        if chosen:
            looks += look(
                chosen,
                tolerance=self._options.tolerance,
                trained=trained,
                known={layer.name: history[layer.name].known for layer in chosen},
                steady=self._steady(chosen) if team is None else {},
                gated={layer.name for layer in chosen if history[layer.name].orientations.is_due},
                largest=max(quick.largest, self._model.largest_elsewhere(trained)),
                rounding_gain=self._model.rounding_gain,
                exact={layer.name for layer in chosen if history[layer.name].is_exact},
                updates=updates,
                proven={layer.name: history[layer.name].proven for layer in chosen},
                on_error=self._leave_out,
                team=team,
            )
        return passed_over, looks

    def _steady(self, layers: Sequence[Layer | Copies]) -> dict[str, Steady]:
        """Return the steady groups by layer; none if all layers need full looks."""
        if self._options.heatmaps == "all":
            return {}
        every = {layer.name: self.history[layer.name].steady() for layer in layers}
        return {name: steady for name, steady in every.items() if steady is not None}

    def _leave_out(self, layer: Comparable, error: Exception) -> None:
        state = self.history[layer.name]
        state.failure = f"the check failed with {describe(error)}"
        self._model.shown = None
        self._suspects.pop(layer.name, None)
        self._on_failure(layer, state.failure)

    def _report(
        self, model: nn.Module, found: Found, updated: Set[str], untrained: dict[str, str], step: int
    ) -> SymmetryReport:
        states = {layer.name: self.history[layer.name] for layer in found.layers}
        failed = {name: state.failure for name, state in states.items() if state.failure}
        known: dict[str, LayerDiagnosis] = {
            name: state.diagnosis for name, state in states.items() if state.diagnosis is not None and not state.failure
        }
        trained = [name for name in known if name in updated]
        # More checks would add no information about parts that do not train.
        num_checks = {name: states[name].num_checks for name in trained if name not in untrained}
        reasons = [
            *(["nothing to look at"] if not known else []),
            *untrained_reasons(untrained),
            *too_few_checks(num_checks, self._options.patience),
            *undecided_layers(known[name] for name in trained),
            *crowded_layers(known[name] for name in trained),
            *may_be_dead((known[name] for name in trained), self._options.dead_share),
            *not_looked_at({**found.unread, **failed}),
        ]
        groups = []
        still_equal = []
        for copies in self._model.copies or ():
            diagnosis = self.history[copies.name].diagnosis
            of_these = copy_groups(copies, diagnosis) if diagnosis is not None else []
            groups += reported_copies(copies, of_these)
            if of_these or diagnosis is None:
                still_equal.append(copies)
        # Copies that have diverged are not read again: that would double the cost of every later check.
        self._model.copies = still_equal
        in_order = under_all_names(known.values())
        draw = HeatmapsOnDemand(model, list(known.values()), self._options.include, self._options.exclude)
        skipped = {**found.skipped, **failed}
        idle_inputs = self._model.ledger.idle_inputs(self._options.patience)
        report = SymmetryReport(
            step,
            in_order,
            skipped,
            groups,
            found.coverage,
            reasons,
            untrained,
            idle_inputs,
            draw_heatmaps=draw,
        )
        if report.status != "symmetric":
            return report
        access, heads = self._model.reached_in(model)
        return replace(report, access=access, heads=heads)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, strings, lists and dicts."""
        return {**self.history.state_dict(), "suspects": sorted(self._suspects), "traced_gain": self._traced_gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, also in version 0.1 or 0.2.

        Raises:
            Exception: of any kind, if the state is invalid; nothing has changed then.
        """
        self.history.load_state_dict(state if "layers" in state else _from_earlier_version(state))
        self._suspects = dict.fromkeys(map(str, state.get("suspects", ())))
        self._traced_gain = float(state.get("traced_gain", 0.0))

    def follow(self, report: SymmetryReport | None, state: dict[str, Any]) -> None:
        """Adopt the conclusion of the first rank."""
        self.report = report
        self.load_state_dict(state)


def _from_earlier_version(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state of version 0.1, which has no dead units, or 0.2 to the current form."""
    history = (
        state["history"] if "num_looks" in state else {"groups": state["history"], "deaths": {}, "orientations": {}}
    )
    layers = {
        name: {
            "size": None,
            "groups": of_layer,
            "deaths": history["deaths"].get(name),
            "orientations": history["orientations"].get(name),
            "num_checks": state.get("num_looks", {}).get(name, 0),
        }
        for name, of_layer in history["groups"].items()
    }
    return {"layers": layers, "ended": []}


def _has_zeros(seen: Look) -> bool:
    """Return whether the gradients of some units are zero."""
    is_idle = seen.idle is not None and bool(np.count_nonzero(seen.idle))  # faster than `any`
    return is_idle or any(sighting.gradients is Gradients.ZERO for sighting in seen.sightings)


def _rows_of(layer: Layer, trained: Set[int]) -> tuple[Rows, Rows | None]:
    return layer.weights(), layer.gradients(trained)
