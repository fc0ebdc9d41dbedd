"""One traced step of a training: the operations at which the gradients of units stop."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_symmetry.matrices.mirrors import Mirrored
from lightning_symmetry.matrices.numerics import Indices, is_capturing
from lightning_symmetry.modules import own_parameters
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.tracing.autograd import NO_PASS, outputs_of_running_pass, running_pass
from lightning_symmetry.tracing.calls import ModuleCalls, storage_of
from lightning_symmetry.tracing.explaining import Explanation
from lightning_symmetry.tracing.graph import BackwardPass, Target
from lightning_symmetry.tracing.keeping import kept_by, readers_of
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.verdicts.stops import GradientStop, StopKind, Stopped, Traced

# At most this many backward passes between two steps are traced, as with accumulated gradients.
_MAX_PASSES = 8
# Of several passes, the one whose stops have the lowest rank explains most; other kinds have rank 1.
_RANKS = {StopKind.ERASED: 0, StopKind.VANISHED: 0, StopKind.LOSS: 2, StopKind.UNREAD: 2, StopKind.UNKNOWN: 3}


class Suspected(NamedTuple):
    """Units of a layer that are to be traced."""

    layer: Layer
    units: Indices  # sorted
    may_be_rounding: bool  # whether their gradients may be nonzero rounding errors


class Alike(NamedTuple):
    """Disjoint groups of a layer's units that train as one; the trace finds what keeps them equal."""

    layer: Layer
    groups: Sequence[Mirrored]


class GradientTrace:
    """Traces the next backward passes of a model, until :meth:`finish` returns where gradients stop.

    The training is unaffected: hooks read gradients and change none.

    Args:
        model: the model.
        suspects: the units to trace.
        alike: groups of equal units; the trace finds what keeps them equal.
        wanted: the names of the suspected layers to report; None: all.

    Example:
        >>> import numpy as np
        >>> from lightning_symmetry.units.discovery import find_layers
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> nn.init.constant_(model[0].bias, -100.0).sum()
        tensor(-800., grad_fn=<SumBackward0>)
        >>> first = find_layers(model).layers[0]
        >>> trace = GradientTrace(model, [Suspected(first, np.arange(8), False)])
        >>> model(torch.zeros(16, 4)).square().sum().backward()
        >>> for each in trace.finish()["0"]:
        ...     print(each.stopped.stop)
        closed at 1: its input is at most -100 in all 128 values seen
    """

    def __init__(
        self,
        model: nn.Module,
        suspects: Sequence[Suspected],
        alike: Sequence[Alike] = (),
        wanted: Collection[str] | None = None,
    ) -> None:
        self._model, self._wanted = model, wanted
        self._suspects, self._alike = list(suspects), list(alike)
        # After `finish`, by layer and units of a group, the layer that reads them with equal weights, or the loss; an
        # empty string if unknown.
        self.keepers: dict[str, dict[tuple[int, ...], str]] = {}
        self._targets = [
            *(_target_of(each.layer, each.units) for each in self._suspects),
            *(_target_of(each.layer, _units_of(each), is_apart=True) for each in self._alike),
        ]
        self._thread = threading.get_ident()
        self._passes: list[BackwardPass] = []
        self._relevant: list[list[BackwardPass]] = [[] for _ in self._targets]
        self._task = NO_PASS
        self._expected: BackwardPass | None = None
        parameters = [
            (name, parameter)
            for name, module in readable_modules(model)
            for parameter in own_parameters(module).values()
        ]
        self._holders = {id(parameter): name for name, parameter in parameters}
        plain = [parameter for _, parameter in parameters if type(parameter.data) is Tensor]
        self._storages = dict.fromkeys(map(storage_of, plain))
        self._has_missed_passes = False
        self._failure: Exception | None = None
        self._is_finished = False  # read by hooks, which a retained graph calls even later
        self._calls = ModuleCalls(model, self._record_failure, self._on_gradient)

    @property
    def layers(self) -> list[str]:
        """The names of the suspected layers to report."""
        names = [each.layer.name for each in self._suspects]
        return names if self._wanted is None else [name for name in names if name in self._wanted]

    def expect(self, loss: Tensor) -> None:
        """Announce a loss whose backward pass comes next, so that its own operations are traced as well."""
        if not (self._is_finished or is_capturing() or loss.grad_fn is None):
            self._expected = self._begin([loss])

    def finish(self) -> dict[str, list[Traced]]:
        """End the trace; return for each layer where the gradients of its units stop.

        Layers whose modules were not called are omitted. If a hook has failed, its exception is raised here.
        """
        try:
            if self._failure is not None:
                raise self._failure
            self.keepers = self._find_keepers()
            return self._find_stops()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the trace without a result, and drop all references: a retained graph keeps its hooks and this object."""
        self._is_finished = True
        self._calls.end()
        for each in self._passes:
            each.end()
        self._passes, self._relevant, self._expected = [], [[] for _ in self._targets], None
        self._suspects, self._alike, self._targets = [], [], []
        self._failure = None

    # ---------------------------------------------------------------- called by hooks

    def _on_gradient(self, key: int, gradients: Sequence[Tensor | None]) -> None:
        """Begin to trace a pass when its first gradient arrives at an output of an outermost module."""
        task = running_pass()
        if self._is_finished or task == self._task or is_capturing():
            return
        self._task = task
        expected, self._expected = self._expected, None
        if expected is None or key not in expected.keys:
            self._begin(outputs_of_running_pass(self._thread))

    def _record_failure(self, error: Exception) -> None:
        # The frames of the traceback would keep the tensors of the step.
        self._failure = self._failure or error.with_traceback(None)

    def _begin(self, outputs: Sequence[Tensor]) -> BackwardPass | None:
        if not outputs or len(self._passes) >= _MAX_PASSES:
            self._has_missed_passes = True
            return None
        backward = BackwardPass(self._model, outputs, self._targets, self._storages, self._calls, self._record_failure)
        self._passes.append(backward)
        for i in backward.paths:
            # The loop may have erased the gradients of earlier passes, as between the steps of two optimizers.
            if _is_erased(self._targets[i].parameter, self._relevant[i], i):
                self._relevant[i].clear()
            self._relevant[i].append(backward)
        return backward

    # ---------------------------------------------------------------- results

    def _find_stops(self) -> dict[str, list[Traced]]:
        targets, wanted = self._targets[: len(self._suspects)], set(self.layers)
        names = (self._holders.get(id(target.parameter), "") for target in targets)
        modules = [name.partition(".parametrizations.")[0] for name in names]
        explained = {id(each): Explanation(each, targets, modules) for each in self._passes}
        found: dict[str, list[Traced]] = {}
        for i, (suspected, target) in enumerate(zip(self._suspects, targets, strict=True)):
            if target.layer not in wanted:
                continue
            explanations = [explained[id(each)] for each in self._relevant[i]]
            by_stop: dict[Stopped, list[int]] = {}
            for labels, stopped in self._labels_by_stop(i, explanations, is_rounding=suspected.may_be_rounding):
                by_stop.setdefault(stopped, []).extend(unit for label in labels for unit in target.units[label - 1])
            every = [Traced(tuple(sorted(units)), stopped) for stopped, units in by_stop.items()]
            if every:
                found[target.layer] = sorted(every, key=lambda traced: -len(traced.units))
        return found

    def _find_keepers(self) -> dict[str, dict[tuple[int, ...], str]]:
        keepers: dict[str, dict[tuple[int, ...], str]] = {}
        for i, each in enumerate(self._alike, start=len(self._suspects)):
            units = self._targets[i].units
            is_apart = all(len(of_label) == 1 for of_label in units)  # False for sharded or computed parameters
            readers = readers_of(self._relevant[i][0], i) if is_apart and self._relevant[i] else None
            label = {unit: place for place, of_label in enumerate(units, start=1) for unit in of_label}
            keepers[each.layer.name] = {
                group.rows: kept_by(readers, [label[unit] for unit in group.rows], group.signs) for group in each.groups
            }
        return keepers

    def _labels_by_stop(
        self, i: int, explanations: Sequence[Explanation], *, is_rounding: bool
    ) -> Iterable[tuple[list[int], Stopped]]:
        """Return where the gradient of a target stops, for sets of labels."""
        every = list(range(1, self._targets[i].num_labels + 1))
        if not explanations:
            name = self._holders.get(id(self._targets[i].parameter), "")
            stop = self._without_a_pass(name) if self._passes or self._has_missed_passes else None
            return [] if stop is None else [(every, Stopped(stop))]
        if is_rounding:
            for each in explanations:
                constant = each.constant_behind(i)
                if constant is not None:
                    return [(every, constant)]
        # A pass whose gradient reaches the model explains more than one whose loss has weight 0.
        several = [each.explain(i) for each in explanations]
        return min(several, key=lambda explained: max(_RANKS.get(each.stopped.stop.kind, 1) for each in explained))

    def _without_a_pass(self, name: str) -> GradientStop:
        """Return why a module takes part in no backward pass."""
        if self._has_missed_passes:
            return GradientStop(StopKind.UNKNOWN, detail="not all backward passes could be traced")
        if name in self._calls.recomputed:
            return GradientStop(StopKind.UNKNOWN, detail="a recomputed segment is not traced")
        if any(call.name == name for call in self._calls.calls):
            return GradientStop(StopKind.DETACHED, name, "it is called, but the loss does not depend on it")
        if name in self._calls.unrecorded:
            return GradientStop(StopKind.DETACHED, name, "it is called while autograd is off")
        return GradientStop(StopKind.DETACHED, name, "it takes no part in the traced step")


def _units_of(alike: Alike) -> Indices:
    return np.array(sorted(unit for group in alike.groups for unit in group.rows), dtype=np.intp)


def _target_of(layer: Layer, units: Indices, *, is_apart: bool = False) -> Target:
    """Return a target for units of a layer; with ``is_apart``, each has its own label even if these are all units."""
    weight = layer.tensors[0]
    parameter = next((each for each in weight.originals if each.shape == weight.weights.shape), weight.originals[0])
    whole = Target(layer.name, parameter, None, (tuple(units.tolist()),))
    is_here = weight.part is None and not is_sharded(parameter) and parameter.shape == weight.weights.shape
    if not is_here:
        is_known = len(units) == layer.num_units and weight.part is None
        return replace(whole, is_known=is_known)
    numbers = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
    rows = weight.view(numbers).reshape(layer.num_units, -1)
    is_only = len(units) == layer.num_units and not is_apart
    if is_only and rows.numel() == parameter.numel():
        return whole
    chosen = rows[torch.from_numpy(units).to(rows.device)]
    labels = torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
    each = torch.arange(1, len(units) + 1, dtype=torch.int32, device=parameter.device)
    labels[chosen.flatten()] = torch.ones_like(each[:1]) if is_only else each.repeat_interleave(rows.shape[1])
    by_label = whole.units if is_only else tuple((unit,) for unit in units.tolist())
    return replace(whole, labels=labels.view(parameter.shape), units=by_label)


def _is_erased(parameter: Tensor, before: Sequence[BackwardPass], i: int) -> bool:
    """Return whether a parameter has lost the gradient of earlier passes."""
    gradient = parameter.grad
    if gradient is None:
        return True
    if type(gradient) is not Tensor or gradient.layout != torch.strided or gradient.any():
        return False
    return any(bool(each.arrived.get(each.paths[i].start, False)) for each in before)
