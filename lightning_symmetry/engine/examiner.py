"""One check of a model: which layers it has, a look at them, and what follows from all looks so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_symmetry.engine.options import Options
from lightning_symmetry.engine.pictures import HeatmapsOnDemand
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.team import Team, describe
from lightning_symmetry.units.choices import members_of_lists
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.copies import Copies, find_copies
from lightning_symmetry.units.discovery import Found, find_layers, structure_of
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.screening import Distinct, LayerScreen
from lightning_symmetry.verdicts.deadness import unused_layers
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, under_all_names
from lightning_symmetry.verdicts.doubts import may_be_dead, not_looked_at, too_few_checks, undecided_layers
from lightning_symmetry.verdicts.evidence import look, look_at_distinct
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.judging import copy_groups
from lightning_symmetry.verdicts.looks import Look, Steady
from lightning_symmetry.verdicts.report import SymmetryReport


class Examination(NamedTuple):
    """What a check has come to.

    Attributes:
        report: the state of the model.
        looks: what was seen, a look per layer that was looked at.
        news: what is found for the first time.
    """

    report: SymmetryReport
    looks: list[Look]
    news: list[Finding]


@dataclass
class _Model:
    """What stands as long as the structure of a model does.

    Attributes:
        structure: what :func:`structure_of` says of the model.
        found: its layers.
        members: by module that may go unused, the names of its layers.
        screens: by the identities of the layers of an optimizer, what reads them quickly.
        latest: the names of the layers that were updated at the latest check, if its report stands until a layer is
            looked at or others are updated.
    """

    structure: object
    found: Found
    members: dict[str, list[str]] = field(default_factory=dict)
    screens: dict[tuple[int, ...], LayerScreen] = field(default_factory=dict)
    latest: Set[str] | None = None
    _updated: tuple[object, Set[str]] | None = None

    def updated_by(self, trained: Set[int]) -> Set[str]:
        """The names of the layers that an optimizer updates, and for which gradients are wanted.

        Args:
            trained: identities (``id``) of the parameters that any optimizer updates.

        Returns:
            The very set of the call before, if nothing has changed.
        """
        wanted = [original.requires_grad for original in self._originals]
        if self._updated is None or self._updated[0] != (trained, wanted):
            layers = (layer for layer in self.found.layers if layer.is_trained_by(trained))
            updated = {layer.name for layer in layers if any(x.requires_grad for x in layer.originals)}
            self._updated = (trained, wanted), updated
        return self._updated[1]

    @cached_property
    def _originals(self) -> list[Tensor]:
        return [original for layer in self.found.layers for original in layer.originals]


class Examiner:
    """Looks at a model again and again, and concludes.

    Args:
        options: the options of the monitor.
        on_failure: called with a layer that cannot be looked at, and why; the layer is left out from then on.

    Attributes:
        history: the records of all groups.
        report: the latest report; None before the first check.
        num_looks: by layer, at how many checks it had a gradient that was not zero, and the weights had moved since.
        copies: whole modules that are copies and still equal; None before the first check.
    """

    def __init__(self, options: Options, on_failure: Callable[[Comparable, str], None]) -> None:
        self._options = options
        self._on_failure = on_failure
        self.history = History(options.patience, options.dead_share)
        self.report: SymmetryReport | None = None
        self.num_looks: dict[str, int] = {}
        self.copies: list[Copies] | None = None
        self._model = _Model(None, Found([], {}, 1.0, {}, {}))
        self._seen: dict[str, tuple[int, ...]] = {}  # by layer, the identities of its parameters at the latest look
        self._failed: dict[str, str] = {}  # by layer, why it is left out
        self._diagnoses: dict[str, LayerDiagnosis] = {}  # the latest of all layers and copies

    def find(self, model: nn.Module) -> Found:
        """What :func:`find_layers` says of a model, asked again only when the model has changed."""
        structure = structure_of(model)
        if structure is None or structure != self._model.structure:
            found = find_layers(model, self._options.include, self._options.exclude)
            self._model = _Model(structure, found, members_of_lists(model, [layer.name for layer in found.layers]))
        return self._model.found

    def examine(
        self,
        model: nn.Module,
        found: Found,
        *,
        trained: Set[int],
        trained_by_any: Set[int],
        step: int,
        team: Team | None,
    ) -> Examination:
        """Look at a model, and bring history and report up to date.

        Args:
            model: the model.
            found: its layers.
            trained: identities of the parameters that the optimizer at work updates.
            trained_by_any: identities of the parameters that any optimizer of the training updates, also this one.
            step: completed optimizer steps.
            team: the ranks that hold the model; None: it is all here.
        """
        if self.copies is None:  # what starts apart does not become a copy
            self.copies = find_copies(model, found.layers, team)
        chosen = self._chosen([*found.layers, *self.copies], trained)
        quick = self._read_quickly(chosen, trained, team)
        passed_over, looks = self._look(chosen, quick, trained, team)
        news: list[Finding] = []
        is_fresh = quick.have_moved or self.history.is_fresh(looks, had_gradient=quick.had_gradient)
        unused = unused_layers(looks, self._model.members, found.layers)
        updated = self._model.updated_by(trained_by_any)
        has_news = len(passed_over) + sum(seen.stands for seen in looks) < len(chosen)
        if has_news:
            self._model.latest = None  # also if this check is interrupted
        trained_now = {layer.name for layer in chosen if layer.is_trained_by(trained)} if looks else set()
        for seen in looks:  # what is known of layers that this optimizer does not train stands
            name = seen.layer.name
            if seen.stands:
                self.history.hold(seen, step, is_fresh=is_fresh)
            else:
                self._diagnoses[name], new = self.history.update(seen, step, is_fresh, name in unused)
                news += new
            if name in updated and name in trained_now:
                self.num_looks[name] = self.num_looks.get(name, 0) + (is_fresh and seen.has_gradient)
        for layer in passed_over:
            self.history.pass_over(layer)
            self.num_looks[layer.name] = self.num_looks.get(layer.name, 0) + is_fresh
        if has_news or self.report is None or self._model.latest is not updated:
            self.report = self._report(model, found, updated, step)
            # As long as there are reasons, every check may do away with some.
            self._model.latest = None if self.report.reasons else updated
        else:  # nothing has changed
            self.report = replace(self.report, step=step)
        return Examination(self.report, looks, news)

    def _chosen(self, layers: Sequence[Layer | Copies], trained: Set[int]) -> list[Layer | Copies]:
        """The layers that this optimizer trains, and those that have not been looked at."""
        chosen = [
            layer
            for layer in layers
            if layer.name not in self._failed
            and (layer.is_trained_by(trained) or self._seen.get(layer.name) != layer.identity)
        ]
        self._seen.update({layer.name: layer.identity for layer in chosen})
        return chosen

    def _read_quickly(self, layers: Sequence[Layer | Copies], trained: Set[int], team: Team | None) -> Distinct:
        """Which layers, of those in which no groups are known, have distinct units as before."""
        if team is not None or self._options.heatmaps == "all":  # which takes a look at all of them
            return Distinct()
        every = [layer for layer in layers if isinstance(layer, Layer)]
        without_groups = [layer for layer in every if self.history.is_without_groups(layer)]
        if not without_groups or 2 * len(without_groups) < len(every):
            return Distinct()
        wanted = {id(layer) for layer in without_groups if self.history.can_be_quick(layer)}
        identities = tuple(map(id, every))
        screens = self._model.screens
        if identities not in screens:
            screens[identities] = LayerScreen(every, self._options.tolerance)
        try:
            return screens[identities].read(trained, wanted)
        except Exception:  # the look at all of them finds out which layer fails
            return Distinct()

    def _look(
        self, layers: Sequence[Layer | Copies], quick: Distinct, trained: Set[int], team: Team | None
    ) -> tuple[list[Layer], list[Look]]:
        """The layers of which all stands as it was, and looks at the others."""
        passed_over = [layer for layer, idle in quick.layers if idle is None and self.history.can_pass_over(layer)]
        skipped = set(map(id, passed_over))
        looks = [
            look_at_distinct(layer, partial(_rows_of, layer, trained), idle)
            for layer, idle in quick.layers
            if id(layer) not in skipped
        ]
        read = {id(layer) for layer, _ in quick.layers}
        chosen = [layer for layer in layers if id(layer) not in read]
        if chosen:
            looks += look(
                chosen,
                tolerance=self._options.tolerance,
                trained=trained,
                known={layer.name: self.history.known(layer.name) for layer in chosen},
                steady=self._steady(chosen) if team is None else {},
                without=self.history.due_for_orientations(layer.name for layer in chosen if isinstance(layer, Layer)),
                largest=quick.largest,
                on_error=self._leave_out,
                team=team,
            )
        return passed_over, looks

    def _steady(self, layers: Sequence[Layer | Copies]) -> dict[str, Steady]:
        """Of the layers with steady groups, these; none if all layers are to be looked at."""
        if self._options.heatmaps == "all":
            return {}
        every = {layer.name: self.history.steady(layer) for layer in layers}
        return {name: steady for name, steady in every.items() if steady is not None}

    def _leave_out(self, layer: Comparable, error: Exception) -> None:
        self._failed[layer.name] = f"the check failed with {describe(error)}"
        self._on_failure(layer, self._failed[layer.name])

    def _report(self, model: nn.Module, found: Found, updated: Set[str], step: int) -> SymmetryReport:
        known = self._diagnoses
        present = [layer.name for layer in found.layers if layer.name in known and layer.name not in self._failed]
        trained = [name for name in present if name in updated]
        reasons = [
            *(["nothing to look at"] if not present else []),
            *too_few_checks({name: self.num_looks.get(name, 0) for name in trained}, self._options.patience),
            *undecided_layers(known[name] for name in trained),
            *may_be_dead((known[name] for name in trained), self._options.dead_share),
            *not_looked_at({**found.unread, **self._failed}),
        ]
        groups = {
            copies: copy_groups(copies, known[copies.name]) for copies in self.copies or () if copies.name in known
        }
        # Copies that have parted need not be read again: that would double the cost of every later check.
        self.copies = [copies for copies in self.copies or () if groups.get(copies) != []]
        every_group = [group for several in groups.values() for group in several]
        in_order = under_all_names(known[name] for name in present)
        skipped = {**found.skipped, **self._failed}
        draw = HeatmapsOnDemand(model, [known[name] for name in present], self._options.include, self._options.exclude)
        return SymmetryReport(step, in_order, skipped, every_group, found.coverage, reasons, draw)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {"history": self.history.state_dict(), "num_looks": dict(self.num_looks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` wrote, also that of version 0.1.

        Version 0.1 had no ``num_looks``, and knew nothing of dead units: its history is that of the groups.
        """
        history = state["history"]
        is_of_version_0_1 = "num_looks" not in state
        self.history.load_state_dict(
            {"groups": history, "deaths": {}, "orientations": {}} if is_of_version_0_1 else history
        )
        self.num_looks = dict(state.get("num_looks", {}))

    def follow(self, report: SymmetryReport | None, state: dict[str, Any]) -> None:
        """Take over what the first rank has concluded."""
        self.report = report
        self.load_state_dict(state)


def _rows_of(layer: Layer, trained: Set[int]) -> tuple[Rows, Rows | None]:
    return layer.weights(), layer.gradients(trained)
