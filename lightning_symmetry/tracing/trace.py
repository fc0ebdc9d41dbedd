"""One traced step of a training: where the gradient of units stops that have none."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_symmetry.matrices.numerics import Indices
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.tracing.calls import Call, ModuleCalls, Range
from lightning_symmetry.tracing.graph import BackwardPass, Path, Place, Target, Use, roots_of_running_pass
from lightning_symmetry.tracing.kinds import (
    Stop,
    constant_output,
    explains,
    has_zero_weights,
    kind_of,
    range_in_words,
    words_for,
)
from lightning_symmetry.tracing.labels import MANY, operation_of
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.verdicts.stops import GradientStop, StopKind, Stopped, Traced

# Of the backward passes between two steps, as with accumulated gradients, so many are traced.
_MAX_PASSES = 8
# Of the operations at which the gradient of units stops, so many are asked why.
_MAX_STOPS = 8


class _Told(NamedTuple):
    """Where a gradient stops, and what that is read off.

    Attributes:
        stop: where it stops.
        follows: as :attr:`Stopped.follows`.
        given: the range of the input of an activation that stops it.
    """

    stop: GradientStop
    follows: str = ""
    given: Range | None = None


class Suspected(NamedTuple):
    """Units of a layer that are to be traced.

    Attributes:
        layer: the layer.
        units: their sorted indices.
        may_be_rounding: whether gradients other than zero may arrive that are rounding errors.
    """

    layer: Layer
    units: Indices
    may_be_rounding: bool


@dataclass
class _Found:
    """What a search from a parameter towards the loss has met.

    Attributes:
        has_arrived: whether a gradient arrives at the parameter itself.
        stops: the uses into which a gradient goes that does not come out, with the tensors that are used.
        unseen: the uses that belong to the loss and ran before anything could be seen.
        left_out: the uses that leave all numbers in question out.
        end: the last tensor before the loss, if all of it is zero up to there.
        before: by tensor, the one from which the search has come.
    """

    has_arrived: bool = False
    stops: list[tuple[Use, Place]] = field(default_factory=list)
    unseen: list[tuple[Use, Place]] = field(default_factory=list)
    left_out: list[tuple[Use, Place]] = field(default_factory=list)
    end: Place | None = None
    before: dict[Place, Place | None] = field(default_factory=dict)

    def route(self, place: Place) -> list[Place]:
        """Return the tensors from one back to the parameter."""
        route = []
        at: Place | None = place
        while at is not None:
            route.append(at)
            at = self.before.get(at)
        return route


class GradientTrace:
    """Follows the next backward passes of a model, until :meth:`finish`, and says where gradients stop.

    The training is not touched: hooks look at gradients and change none.

    Args:
        model: the model.
        suspects: the units to trace.

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

    def __init__(self, model: nn.Module, suspects: Sequence[Suspected]) -> None:
        self._model = model
        self._suspects = list(suspects)
        self._targets = [_target_of(each) for each in self._suspects]
        self._thread = threading.get_ident()
        self._passes: list[BackwardPass] = []
        self._relevant: list[list[BackwardPass]] = [[] for _ in self._targets]
        self._task = -1
        self._expected: BackwardPass | None = None
        self._holders = {
            id(parameter): name
            for name, module in readable_modules(model)
            for parameter in module.__dict__.get("_parameters", {}).values()
            if parameter is not None
        }
        self._failure: Exception | None = None
        self._is_finished = False  # a graph may be kept, and its hooks called, for longer
        self._calls = ModuleCalls(model, self._fail, self._arrive)

    def expect(self, loss: Tensor) -> None:
        """Take notice of a loss whose backward pass comes next: the operations of the loss are then traced as well."""
        if loss.grad_fn is not None and len(self._passes) < _MAX_PASSES:
            self._expected = self._begin([loss.grad_fn], running=None)

    def finish(self) -> dict[str, list[Traced]]:
        """End the trace.

        Returns:
            By layer, where the gradients of its units stop; nothing of layers of which no backward pass was seen.

        Raises:
            Exception: what has failed in a hook, if any has.
        """
        self._is_finished = True
        self._calls.end()
        if self._failure is not None:
            raise self._failure
        for each in self._passes:
            each.end()
        found: dict[str, list[Traced]] = {}
        for i, (suspected, target) in enumerate(zip(self._suspects, self._targets, strict=True)):
            alike: dict[tuple[StopKind, str, str], list[tuple[tuple[int, ...], _Told]]] = {}
            for labels in self._alike(i):
                told = self._tell(i, labels, suspected.may_be_rounding)
                if told is not None:
                    units = target.units if target.labels is None else tuple(target.units[each - 1] for each in labels)
                    alike.setdefault((told.stop.kind, told.stop.at, told.follows), []).append((units, told))
            if alike:
                found[suspected.layer.name] = sorted(map(_laid_together, alike.values()), key=lambda t: -len(t.units))
        self._passes, self._relevant, self._expected = [], [[] for _ in self._targets], None
        self._calls.calls = []
        return found

    # ---------------------------------------------------------------- what hooks call

    def _arrive(self, key: int, gradients: Sequence[Tensor | None]) -> None:
        """See a gradient arrive at what an outermost module has put out: the first time, begin a pass."""
        if self._is_finished:
            return
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            expected, self._expected = self._expected, None
            if expected is not None and expected.node_of(key) is not None:
                return
            if len(self._passes) >= _MAX_PASSES:
                return
            self._begin(roots_of_running_pass(self._thread), running=key)
        if self._passes and (node := self._passes[-1].node_of(key)) is not None:
            self._passes[-1].arrive(node, gradients)

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error

    def _begin(self, roots: Sequence[Any], running: int | None) -> BackwardPass:
        made = BackwardPass(self._model, roots, self._targets, self._calls, self._fail)
        made.watch(None if running is None else made.node_of(running))
        self._passes.append(made)
        for i in made.paths:
            # Whatever came before was zeroed by the loop, as between the steps of two optimizers.
            if not _has_gradient(self._targets[i].parameter):
                self._relevant[i].clear()
            self._relevant[i].append(made)
        return made

    # ---------------------------------------------------------------- what was seen

    def _alike(self, i: int) -> list[tuple[int, ...]]:
        """Return the labels of a target in groups of which the same was seen, so that each is looked into once."""
        every = range(1, self._targets[i].num_labels + 1)
        if len(every) == 1:
            return [(1,)]
        seen = [column for each in self._relevant[i] for column in _seen_of_labels(each, each.paths[i], every)]
        alike: dict[tuple[bool, ...], list[int]] = {}
        for label in every:
            alike.setdefault(tuple(column[label - 1] for column in seen), []).append(label)
        return [tuple(labels) for labels in alike.values()]

    def _tell(self, i: int, labels: tuple[int, ...], may_be_rounding: bool, depth: int = 0) -> _Told | None:
        """Return where the gradient of units stops, and which layer stops it, of labels of which the same was seen."""
        told = None
        for each in self._relevant[i]:
            constant = _constant_behind(each, each.paths[i], self._targets[i].layer) if may_be_rounding else None
            if constant is not None:
                return _Told(constant)
            found = _search(each, each.paths[i], labels[0])
            if found.has_arrived:
                return _ERASED
            told = told or self._why(each, i, labels, found, depth)
        if told is not None or not self._passes:
            return told
        name = self._holders.get(id(self._targets[i].parameter), "")
        if any(call.name == name for call in self._calls.calls):
            return _Told(GradientStop(StopKind.DETACHED, name, "it is called, and the loss does not depend on it"))
        return None

    def _why(self, seen: BackwardPass, i: int, labels: tuple[int, ...], found: _Found, depth: int) -> _Told:
        told = [self._why_at(seen, i, labels, found, *stop, depth) for stop in found.stops[:_MAX_STOPS]]
        for kinds in ({*StopKind} - {StopKind.UNKNOWN, StopKind.LOSS}, {StopKind.LOSS}, {StopKind.UNKNOWN}):
            for each in told:
                if each.stop.kind in kinds:
                    return each
        layer = self._targets[i].layer
        if found.unseen:
            use, place = found.unseen[0]
            given = _given(seen, seen.paths[i], place, labels)
            stop = _why_in_loss(seen, use, place, found, layer, given)
            return _Told(stop, "" if stop is _LOSS else self._follows(seen, i, found, place))
        if found.left_out:
            use, place = found.left_out[0]
            at = _place_in_words(seen, use.node, found.route(place), layer)
            if operation_of(use.node) in ("Topk", "Sort", "Kthvalue"):
                return _Told(GradientStop(StopKind.CLOSED, at, "none of them is ever selected"))
            return _Told(GradientStop(StopKind.UNREAD, at, "nobody reads what is left out there"))
        if found.end is not None:
            return _Told(_LOSS)
        return _Told(GradientStop(StopKind.UNREAD, layer, "nothing that the loss depends on reads them"))

    def _why_at(
        self, seen: BackwardPass, i: int, labels: tuple[int, ...], found: _Found, use: Use, place: Place, depth: int
    ) -> _Told:
        layer, path = self._targets[i].layer, seen.paths[i]
        call = seen.calls.get(use.node)
        factor = seen.factors.get(use)
        is_zero = factor is not None and factor.is_zero(_places(path, place, labels, _dim_of_factor(use.node)))
        source = None if factor is None or factor.node is None else _source(seen, factor.node)
        if place in _of_parameter(seen, path):
            if operation_of(use.node) in _MOVED or self._targets[i].parameter._backward_hooks:
                return _ERASED
            return self._why_inputs_are_zero(seen, use, is_zero, source, layer, depth)
        stop = Stop(
            use.node,
            use.number,
            call if call is not None and call.is_leaf else None,
            use.node in seen.in_model,
            _given(seen, path, place, labels),
            factor,
            is_zero,
            source,
            float(seen.largest.get(use.node, torch.tensor(0.0))),
        )
        told = kind_of(stop)
        if told.kind is StopKind.LOSS:
            return _Told(replace(told, at="the loss"))
        at = _place_in_words(seen, use.node, found.route(place), layer)
        return _Told(replace(told, at=at), self._follows(seen, i, found, place), stop.given)

    def _why_inputs_are_zero(
        self, seen: BackwardPass, use: Use, is_zero: bool, source: Call | None, layer: str, depth: int
    ) -> _Told:
        """Return why an operation hands a gradient to its inputs, but none to the parameter that it multiplies by."""
        if not is_zero:
            return _Told(GradientStop(StopKind.UNKNOWN, layer))
        detail = f"the inputs of {layer} are zero in all values seen"
        names = [target.layer for target in self._targets]
        if source is not None and source.name in names and source.name != layer and depth < len(names):
            told = self._tell(names.index(source.name), (1,), False, depth + 1)
            if told is not None:
                return _Told(replace(told.stop, detail=detail), source.name)
        node = seen.factors[use].node  # type: ignore[union-attr] # there is one, as it is zero
        if node is None or hasattr(node, "variable"):
            return _Told(GradientStop(StopKind.UNKNOWN, layer, detail))
        kind = kind_of(Stop(node, 0, None, True, None, None, False, None, 1.0)).kind
        if kind in (StopKind.CLOSED, StopKind.SATURATED):
            behind = [Place(child, output) for child, output in node.next_functions if child is not None]
            return _Told(GradientStop(StopKind.CLOSED, _place_in_words(seen, node, behind, layer), detail))
        if source is not None and has_zero_weights(source.module):
            return _Told(GradientStop(StopKind.ZERO_WEIGHTS, source.name, detail))
        return _Told(GradientStop(StopKind.UNKNOWN, layer, detail))

    def _follows(self, seen: BackwardPass, i: int, found: _Found, place: Place) -> str:
        """Return the traced layer that comes last on the way to where the gradient stops, if it is another one."""
        owners: dict[Any, str] = {}
        for j, path in seen.paths.items():
            for node in _operations_of(seen, path):
                owners.setdefault(node, self._targets[j].layer)
        layer = self._targets[i].layer
        own = _operations_of(seen, seen.paths[i])
        for at in found.route(place):  # from where it stops back to the parameter
            owner = owners.get(at.node, "")
            if at.node in own:
                return ""
            if owner and owner != layer:
                return owner
        return ""


_ERASED = _Told(GradientStop(StopKind.ERASED, "", "a gradient arrived, and was zero before the step"))
_LOSS = GradientStop(StopKind.LOSS, "the loss", "its gradient is zero where it leaves the loss")
# What meets the factor of these is the second dimension of their input.
_ALONG_CHANNELS = {"Convolution", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm"}


def _target_of(suspected: Suspected) -> Target:
    layer, units = suspected.layer, suspected.units
    weight = layer.tensors[0]
    parameter = next((each for each in weight.originals if each.shape == weight.weights.shape), weight.originals[0])
    every = Target(layer.name, parameter, None, tuple(units.tolist()))
    if len(units) == layer.num_units or weight.part is not None or is_sharded(parameter):
        return every
    if parameter.shape != weight.weights.shape:
        return every
    numbers = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
    rows = weight.view(numbers).reshape(layer.num_units, -1)
    labels = torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
    traced = torch.as_tensor(units, device=parameter.device)
    labels[rows[traced]] = torch.arange(1, len(units) + 1, dtype=torch.int32, device=parameter.device)[:, None]
    return replace(every, labels=labels.view(parameter.shape))


def _has_gradient(parameter: Tensor) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return False
    if type(gradient) is not Tensor or gradient.layout != torch.strided:
        return True
    return bool(gradient.any())


def _search(seen: BackwardPass, path: Path, label: int) -> _Found:
    """Follow the units of a label from their parameter towards the loss, as far as no gradient is seen."""
    found = _Found(before={path.start: None})
    if seen.has_arrived(path, path.start, label):
        found.has_arrived = True
        return found
    left = deque([path.start])
    while left:
        place = left.popleft()
        uses = seen.uses(place)
        came_from = found.before[place]
        if not uses and (place.node in seen.roots or came_from is None):
            found.end = place
        elif not uses and came_from is not None:
            found.left_out.append((Use(place.node, 0), came_from))
        for use in uses:
            if label in path.left_out.get(use, ()):
                found.left_out.append((use, place))
                continue
            outputs = path.outputs[use.node]
            if use.node not in seen.fired:
                found.unseen.append((use, place))
            elif any(seen.has_arrived(path, each, label) for each in outputs):
                found.stops.append((use, place))
            else:
                for each in outputs:
                    if each not in found.before and path.may_hold(each, label):
                        found.before[each] = place
                        left.append(each)
    return found


def _laid_together(alike: Sequence[tuple[tuple[int, ...], _Told]]) -> Traced:
    """Return in one what is told of units whose gradients stop at one place for one kind of reason."""
    units = tuple(sorted(unit for several, _ in alike for unit in several))
    first = alike[0][1]
    given = [told.given for _, told in alike if told.given is not None]
    if len(alike) > 1 and len(given) == len(alike):
        low = torch.cat([each.lowest for each in given])
        high = torch.cat([each.highest for each in given])
        near = torch.cat([each.nearest for each in given])
        words = range_in_words(Range(low, high, near, given[0].num_each), is_clip=False)
        return Traced(units, Stopped(replace(first.stop, detail=words or first.stop.detail), first.follows))
    return Traced(units, Stopped(first.stop, first.follows))


def _of_parameter(seen: BackwardPass, path: Path) -> list[Place]:
    """Return the tensors that are the parameter itself, at most moved."""
    from_start = [path.start]
    for place in from_start:
        for use in seen.uses(place):
            if operation_of(use.node) in _MOVED and len(use.node.next_functions) == 1:
                from_start += path.outputs[use.node]
    return from_start


_MOVED = {"T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "ToCopy", "Slice", "Split", "Unsqueeze"}


def _operations_of(seen: BackwardPass, path: Path) -> set[Any]:
    """Return the operations that use a parameter first."""
    moved = _of_parameter(seen, path)
    nodes = {place.node for place in moved}
    return {use.node for place in moved for use in seen.uses(place)} - nodes


def _constant_behind(seen: BackwardPass, path: Path, layer: str) -> GradientStop | None:
    """Return the first operation behind a layer whose output is constant, so that it passes on rounding errors only."""
    found = _Found(before={path.start: None})
    left = deque([path.start])
    while left:
        place = left.popleft()
        for use in seen.uses(place):
            call = seen.calls.get(use.node)
            leaf = call if call is not None and call.is_leaf else None
            told = kind_of(Stop(use.node, use.number, leaf, True, None, None, False, None, 0.0))
            if told.kind is StopKind.ONE_VALUE:
                return replace(told, at=_place_in_words(seen, use.node, found.route(place), layer))
            for each in path.outputs.get(use.node, ()):
                if each not in found.before:
                    found.before[each] = place
                    left.append(each)
    return None


def _why_in_loss(
    seen: BackwardPass, use: Use, place: Place, found: _Found, layer: str, given: Range | None
) -> GradientStop:
    """Return why no gradient comes out of a loss, as far as its operations tell, whose gradients were not seen.

    Args:
        seen: the backward pass.
        use: the first operation of the loss.
        place: what the model has put out.
        found: the search that has led there.
        layer: the layer whose gradient is traced.
        given: the range of what the model has put out.
    """
    node: Any = use.node
    index = use.number
    route = found.route(place)
    if explains(use.node, given):
        told = kind_of(Stop(use.node, index, None, True, given, None, False, None, 1.0))
        return replace(told, at=_place_in_words(seen, node, route, layer))
    for _ in range(100):
        constant = constant_output(node, index)
        at = _place_in_words(seen, node, route, layer)
        if constant is not None:
            return GradientStop(StopKind.ONE_VALUE, at, constant)
        told = kind_of(Stop(node, index, None, True, None, None, False, None, 1.0))
        if told.kind is StopKind.FLAT:
            return replace(told, at=at)
        uses = seen.uses(Place(node, 0))
        if not uses:
            break
        node, index = uses[0]
    return _LOSS


def _given(seen: BackwardPass, path: Path, place: Place, labels: tuple[int, ...]) -> Range | None:
    """Return the range of what a module has put out, of the units of some labels where they are known; else None."""
    call = seen.calls.get(place.node)
    if call is None or not seen.is_output(place.node) or not call.is_leaf:
        return None
    for each, dim in zip(call.ranges, (-1, 1), strict=False):
        places = _places(path, place, labels, dim)
        if places is not None and places.shape == each.lowest.shape and places.any():
            return Range(each.lowest[places], each.highest[places], each.nearest[places], each.num_each)
    return call.ranges[0] if call.ranges else None


def _places(path: Path, place: Place, labels: tuple[int, ...], dim: int) -> Tensor | None:
    """Return at which places along a dimension the units of some labels are, and no others; None if that is unknown."""
    along = path.labels_along(place, dim)
    if along is None:
        return None
    if path.labels[path.start] is None:  # all of the parameter is traced as one
        return along != 0
    return None if bool((along == MANY).any()) else torch.isin(along, torch.tensor(labels, device=along.device))


def _dim_of_factor(node: Any) -> int:
    """Return the dimension in which the input of an operation meets the factor."""
    return 1 if operation_of(node) in _ALONG_CHANNELS else -1


def _seen_of_labels(seen: BackwardPass, path: Path, labels: Sequence[int]) -> Iterator[list[bool]]:
    """Yield all that was seen of each label, on which it depends where its gradient stops, and why."""
    for arrived in path.arrived.values():
        yield arrived[:-1].tolist()
    for left_out in path.left_out.values():
        yield [label in left_out for label in labels]
    for outputs in path.outputs.values():
        if len(outputs) > 1:
            for place in outputs:
                yield [path.may_hold(place, label) for label in labels]
    for use, factor in seen.factors.items():
        place = Place(*use.node.next_functions[use.number])
        if factor is None or not factor.is_there.ndim or path.labels.get(place) is None:
            continue
        along = path.labels_along(place, _dim_of_factor(use.node))
        if along is not None and along.shape == factor.is_there.shape:
            multiplied = set(along[factor.is_there].tolist())
            yield [label in multiplied for label in labels]
    for place, known in path.labels.items():
        for use in seen.uses(place) if known is not None and seen.is_output(place.node) else ():
            if use.node not in seen.fired:
                yield [explains(use.node, _given(seen, path, place, (label,))) for label in labels]


def _source(seen: BackwardPass, node: Any) -> Call | None:
    """Return the call of the module that has computed a tensor."""
    left, known = [node], set()
    while left:
        node = left.pop(0)
        if node in known or hasattr(node, "variable"):
            continue
        known.add(node)
        call = seen.calls.get(node)
        if call is not None and call.is_leaf and call.module.__dict__.get("_parameters"):
            return call
        left += [child for child, _ in node.next_functions if child is not None]
    return None


def _place_in_words(seen: BackwardPass, node: Any, route: Sequence[Place], layer: str) -> str:
    """Return the module that an operation belongs to, or the operation and the module before it.

    Args:
        seen: the backward pass.
        node: the node of the operation.
        route: the tensors from its input back to the parameter.
        layer: the layer that the parameter belongs to.
    """
    call = seen.calls.get(node)
    if call is not None and call.is_leaf and not seen.is_whole_model(call):
        return call.name
    before = layer
    for place in route:
        owner = seen.calls.get(place.node)
        if owner is not None and owner.is_leaf and not seen.is_whole_model(owner):
            before = owner.name
            break
    return f"{words_for(node)} after {before}"
