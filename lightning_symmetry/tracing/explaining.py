"""The explanation of a traced backward pass: where the gradient of units stops, why, and due to which layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.modules import own_parameters
from lightning_symmetry.tracing.autograd import is_single, operation_of, reachable, shapes_of, upstream
from lightning_symmetry.tracing.calls import Call, Range
from lightning_symmetry.tracing.graph import BackwardPass, Place, Target, Use
from lightning_symmetry.tracing.kinds import CLOSING, Stop, explains, kind_of, words_for
from lightning_symmetry.tracing.labels import along
from lightning_symmetry.verdicts.stops import GradientStop, StopKind, Stopped

# At most this many operations at which a gradient stops are examined.
_MAX_STOPS = 8
# Operations that move the numbers of a parameter, and compute nothing.
_MOVING = {"T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "ToCopy", "Slice", "Split", "Unsqueeze"}
# Operations that may lie between the scores, their softmax, and the weighted sum.
_BETWEEN = {
    *("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Transpose", "Permute", "Expand", "Clone", "Mul"),
    *("Div", "Add", "Sub", "MaskedFill", "Select", "ToCopy", "NativeDropout"),
}
_SELECTING = ("Topk", "Sort", "Kthvalue")

_ERASED = GradientStop(StopKind.ERASED)
_LOSS = GradientStop(StopKind.LOSS, "the loss", "its gradient is zero where it leaves the loss")


class Explained(NamedTuple):
    """Where the gradient of some labels stops."""

    labels: list[int]
    stopped: Stopped


@dataclass
class _Search:
    """The results of a search from a parameter towards the loss. Each use is paired with the tensor that is used."""

    before: dict[Place, Place | None]  # by tensor, the previous tensor of the search; None for the parameter
    has_arrived: bool = False  # whether a gradient arrives at the parameter itself
    stops: list[tuple[Use, Place]] = field(default_factory=list)  # uses that receive a gradient and return none
    unseen: list[tuple[Use, Place]] = field(default_factory=list)  # uses in the loss whose gradients are unknown
    left_out: list[tuple[Use, Place]] = field(default_factory=list)  # uses that drop all numbers of the label
    end: Place | None = None  # the last tensor before the loss, if no gradient arrives at it

    def route(self, place: Place | None) -> list[Place]:
        """Return the tensors from this one back to the parameter."""
        route = []
        while place is not None:
            route.append(place)
            place = self.before.get(place)
        return route


class Explanation:
    """Explains one backward pass; ``modules`` has the name of the module that holds the parameter of each target."""

    def __init__(self, backward: BackwardPass, targets: Sequence[Target], modules: Sequence[str]) -> None:
        self._pass, self._targets, self._modules = backward, targets, modules
        self._owners: dict[str, str] = {}  # by name of a module, its first layer among the targets
        for module, target in zip(modules, targets, strict=True):
            self._owners.setdefault(module, target.layer)
        self._moved: dict[int, list[Place]] = {}
        self._explained: dict[int, list[Explained]] = {}

    def constant_behind(self, i: int) -> Stopped | None:
        """Return the first operation with a constant output, if every path from a target to the loss runs through one.

        The gradient of the target then consists of rounding errors.
        """
        path, backward = self._pass.paths[i], self._pass
        search = _Search({path.start: None})
        left, first = deque([path.start]), None
        while left:
            place = left.popleft()
            if not backward.uses(place):
                return None
            for use in backward.uses(place):
                stop = kind_of(Stop(*use, self._leaf(use.node)))
                if stop.kind is StopKind.ONE_VALUE:
                    stop = replace(stop, is_by_design=self._is_choice(use.node))
                    first = first or self._located(stop, use.node, search.route(place), i)
                    continue
                for each in path.outputs.get(use.node, ()):
                    if each not in search.before:
                        search.before[each] = place
                        left.append(each)
        return first

    def explain(self, i: int, depth: int = 0) -> list[Explained]:
        """Return where the gradient of a target stops; labels with the same kind, place and cause are one item."""
        if i not in self._explained:
            by_stop: dict[tuple[StopKind, str, str], list[Explained]] = {}
            for labels in self._equal_labels(i):
                stopped = self._explain_labels(i, labels, depth)
                key = stopped.stop.kind, stopped.stop.at, stopped.follows
                by_stop.setdefault(key, []).append(Explained(labels, stopped))
            explained = []
            for first, *others in by_stop.values():
                if others:  # the details that were measured for some labels need not hold for all of them
                    every = [label for each in (first, *others) for label in each.labels]
                    first = Explained(every, self._explain_labels(i, every, depth))
                explained.append(first)
            self._explained[i] = explained
        return self._explained[i]

    def _equal_labels(self, i: int) -> list[list[int]]:
        """Split the labels of a target into sets for which the hooks have recorded the same."""
        path, number = self._pass.paths[i], self._targets[i].num_labels
        if number == 1:
            return [[1]]
        columns = [each[:number].tolist() for each in path.arrived.values()]
        columns += [[label in left_out for label in range(1, number + 1)] for left_out in path.left_out.values()]
        several = [place for outputs in path.outputs.values() if len(outputs) > 1 for place in outputs]
        columns += [[path.may_contain(place, label) for label in range(1, number + 1)] for place in several]
        for place, labels in path.labels.items():
            for use in self._pass.uses(place) if labels is not None else ():
                factor = self._pass.factors.get(use)
                if factor is not None:
                    columns.append(factor.are_zero(labels, number))
        groups: dict[tuple[bool, ...], list[int]] = {}
        for label, signature in enumerate(zip(*columns, strict=True), start=1):
            groups.setdefault(signature, []).append(label)
        return list(groups.values()) or [list(range(1, number + 1))]

    def _explain_labels(self, i: int, labels: list[int], depth: int) -> Stopped:
        search = self._search(i, labels[0])
        if search.has_arrived:
            return Stopped(self._lost(self._targets[i], labels))
        stops = [self._stop_at(i, labels, search, use, place, depth) for use, place in search.stops[:_MAX_STOPS]]
        clear = [each for each in stops if each.stop.kind not in (StopKind.UNKNOWN, StopKind.LOSS)]
        if clear:
            return clear[0]
        if search.unseen:
            stops.append(self._stop_in_loss(i, labels, search, *search.unseen[0]))
            if stops[-1].stop.kind is not StopKind.LOSS:
                return stops[-1]
        if stops:
            return next((each for each in stops if each.stop.kind is StopKind.LOSS), stops[0])
        if search.left_out:
            use, place = search.left_out[0]
            at = self._place(use.node, search.route(place), i)
            if operation_of(use.node) in _SELECTING:
                return Stopped(GradientStop(StopKind.CLOSED, at, "none of them is ever selected"))
            return Stopped(GradientStop(StopKind.UNREAD, at, "it leaves them out"))
        if search.end is not None:
            return Stopped(_LOSS)
        detail = "nothing that the loss depends on reads them"
        return Stopped(GradientStop(StopKind.UNREAD, self._targets[i].layer, detail))

    @staticmethod
    def _lost(target: Target, labels: list[int]) -> GradientStop:
        """Return why units have no gradient at the optimizer step, though one has arrived in the backward pass."""
        gradient = target.parameter.grad
        if not target.is_known:
            return GradientStop(StopKind.UNKNOWN)
        if type(gradient) is not Tensor or gradient.layout != torch.strided or gradient.is_complex():
            return _ERASED
        sizes = gradient.detach().abs()
        if target.labels is not None:
            sizes = sizes[torch.isin(target.labels, torch.tensor(labels, device=sizes.device))]
        largest = float(sizes.max())
        # Gradients in half precision are read in float32, in which small ones are normal numbers.
        if not 0 < largest < torch.finfo(torch.promote_types(sizes.dtype, torch.float32)).tiny:
            return _ERASED
        return GradientStop(StopKind.VANISHED, detail=f"the largest number in it is {largest:.1g}")

    def _search(self, i: int, label: int) -> _Search:
        """Follow the units of a label from their parameter towards the loss, until a gradient arrives."""
        backward, path = self._pass, self._pass.paths[i]
        search = _Search({path.start: None}, backward.has_arrived(path, path.start, label))
        if search.has_arrived:
            return search
        left = deque([path.start])
        while left:
            place = left.popleft()
            uses, came_from = backward.uses(place), search.before[place]
            if not uses and (place.node in backward.roots or came_from is None):
                search.end = place
            elif not uses and came_from is not None:  # one of several outputs, and no operation uses it
                search.left_out.append((Use(place.node, 0), came_from))
            for use in uses:
                outputs = path.outputs[use.node]
                if label in path.left_out.get(use, ()):
                    search.left_out.append((use, place))
                elif use.node not in backward.fired:
                    search.unseen.append((use, place))
                elif any(backward.has_arrived(path, each, label) for each in outputs):
                    search.stops.append((use, place))
                else:
                    for each in outputs:
                        if each not in search.before and path.may_contain(each, label):
                            search.before[each] = place
                            left.append(each)
        return search

    # ---------------------------------------------------------------- one operation

    def _stop_at(self, i: int, labels: list[int], search: _Search, use: Use, place: Place, depth: int) -> Stopped:
        """Return why an operation returns no gradient."""
        backward, route = self._pass, search.route(place)
        if place in self._of_parameter(i):
            if operation_of(use.node) in _MOVING or self._targets[i].parameter._backward_hooks:
                return Stopped(_ERASED)
            return self._zero_inputs(i, use, depth)
        stop = self._measured(i, labels, use, place)
        # Whether the tensor also holds numbers that do not depend on the target.
        is_mixed = backward.paths[i].labels[place] is not None or bool(backward.arrived.get(place, False))
        if bool(backward.passed.get(use, False)) and not is_mixed:
            if len(backward.uses(place)) > 1:
                detail = "the gradients of several operations cancel"
                return Stopped(GradientStop(StopKind.UNKNOWN, self._place(use.node, route, i), detail))
            at = self._place(use.node, route, i)
            return Stopped(GradientStop(StopKind.ERASED, at, "a hook on its input makes the gradient zero"))
        if stop.operation == "Pow" and operation_of(place.node) in CLOSING and len(route) > 1:
            # The slope of a power is zero at an input of zero: the activation before it has closed.
            before = next(each for each in self._pass.uses(route[1]) if each.node is place.node)
            stop, route = self._measured(i, labels, before, route[1]), route[1:]
            use, place = before, route[0]
        if stop.input_range is not None and _is_zero(stop.input_range) and stop.operation in CLOSING and stop.in_model:
            nearer = self._closed_before(i, labels, route, depth)
            if nearer is not None:
                return nearer
        reason = kind_of(stop)
        if reason.kind is StopKind.ONE_VALUE:
            reason = replace(reason, is_by_design=self._is_choice(use.node))
        if reason.kind is StopKind.CLOSED and stop.is_factor_zero and stop.factor and not stop.factor.is_parameter:
            zeros = None if stop.factor.node is None else self._zeros_before(stop.factor.node)
            if zeros is not None:
                return Stopped(zeros, self._follows(route, i))
        if reason.kind is StopKind.LOSS and self._pass.value != 0 and self._pass.is_output(place.node):
            # The training loop may apply an activation to the outputs of the model.
            activation = kind_of(replace(stop, in_model=True))
            reason = activation if activation.kind in (StopKind.CLOSED, StopKind.SATURATED) else reason
        is_closed = reason.kind in (StopKind.CLOSED, StopKind.SATURATED)
        if reason.kind is StopKind.LOSS or (is_closed and self._pass.value == 0 and self._is_last(use.node)):
            return Stopped(_LOSS if is_closed else replace(reason, at="the loss"))
        return self._located(reason, use.node, route, i)

    def _located(self, reason: GradientStop, node: Any, route: Sequence[Place], i: int) -> Stopped:
        """Return a reason with the place of its operation and the upstream layer that causes it."""
        return Stopped(replace(reason, at=self._place(node, route, i)), self._follows(route, i))

    def _measured(self, i: int, labels: list[int], use: Use, place: Place) -> Stop:
        backward, target = self._pass, self._targets[i]
        factor, of_place = backward.factors.get(use), backward.paths[i].labels.get(place)
        is_zero = factor is not None and factor.are_zero(of_place, target.num_labels)[labels[0] - 1]
        one_hot = backward.one_hot.get(use.node)
        source = None if factor is None else factor.source
        if source is None and factor is not None and factor.node:
            calls = self._calls_before(factor.node)
            source = next((call for call in calls if call.module.__dict__.get("_parameters")), None)
        return Stop(
            *use,
            self._leaf(use.node),
            use.node in backward.in_model,
            self._input_range(i, place, labels),
            factor,
            is_zero,
            source,
            float(backward.largest.get(use.node, 0.0)),
            None if one_hot is None else bool(one_hot),
        )

    def _closed_before(self, i: int, labels: list[int], route: Sequence[Place], depth: int) -> Stopped | None:
        """Return the upstream activation, or the zero inputs, that make the input of a closed activation zero."""
        for number in range(len(route) - 1, 0, -1):  # from the parameter on
            place = route[number]
            for use in self._pass.uses(place):
                if use.node is not route[number - 1].node or operation_of(use.node) not in CLOSING:
                    continue
                stop = self._measured(i, labels, use, place)
                is_known = stop.input_range is not None and not _is_zero(stop.input_range)
                if is_known and explains(use.node, stop.input_range):
                    return self._located(kind_of(stop), use.node, route[number:], i)
        for use in (use for place in self._of_parameter(i) for use in self._pass.uses(place)):
            factor = self._pass.factors.get(use)
            if factor is not None and not bool(factor.is_any):
                return self._zero_inputs(i, use, depth)
        return None

    def _zero_inputs(self, i: int, use: Use, depth: int) -> Stopped:
        """Return why the parameter of an operation gets no gradient: usually, the inputs that multiply it are zero."""
        layer = self._targets[i].layer
        factor = self._pass.factors.get(use)
        if factor is None or bool(factor.is_any):
            return Stopped(GradientStop(StopKind.UNKNOWN, layer))
        detail = f"the inputs of {layer} are zero in all values seen"
        if factor.node is None or hasattr(factor.node, "variable"):
            return Stopped(GradientStop(StopKind.UNKNOWN, layer, detail, is_by_design=factor.source is None))
        owners = (self._owners.get(call.name, "") for call in self._calls_before(factor.node))
        owner = next((name for name in owners if name and name != layer), "")  # the nearest upstream target layer
        zeros = self._zeros_before(factor.node)
        if zeros is not None:
            return Stopped(replace(zeros, detail=detail), owner)
        names = [target.layer for target in self._targets]
        if owner and depth < len(names) and names.index(owner) in self._pass.paths:
            cause = self.explain(names.index(owner), depth + 1)[0].stopped
            return Stopped(replace(cause.stop, detail=detail), owner)
        kind = kind_of(Stop(factor.node, 0)).kind
        if kind in (StopKind.CLOSED, StopKind.SATURATED):
            behind = [Place(child, output) for child, output in factor.node.next_functions if child is not None]
            return Stopped(GradientStop(StopKind.CLOSED, self._place(factor.node, behind, i), detail), owner)
        return Stopped(GradientStop(StopKind.UNKNOWN, layer, detail), owner)

    def _is_choice(self, node: Any) -> bool:
        """Return whether a softmax computes the weights of a sum; False for attention, whose scores are products."""
        if operation_of(node) not in ("Softmax", "SafeSoftmax") or node not in self._pass.in_model:
            return False
        scores = node.next_functions[0][0]
        while scores is not None and operation_of(scores) in _BETWEEN and not hasattr(scores, "variable"):
            scores = scores.next_functions[0][0]
        if scores is None or operation_of(scores) in ("Bmm", "Baddbmm"):
            return False

        def between(node: Any) -> list[Any]:
            return [use.node for use in self._pass.uses(Place(node, 0)) if operation_of(use.node) in _BETWEEN]

        weights = [Place(each, 0) for each in reachable([node], between)]
        ends = ((use, place) for place in weights for use in self._pass.uses(place))
        return all(_adds_up_one(use, place) for use, place in ends if operation_of(use.node) not in _BETWEEN)

    def _zeros_before(self, node: Any) -> GradientStop | None:
        """Return the upstream module whose zero weights make a tensor zero, if all modules in between return zeros."""
        for call in self._calls_before(node):
            if not call.ranges or not _is_zero(call.ranges[0]):
                return None
            own = [each.detach() for each in own_parameters(call.module).values()]
            are_here = all(type(each) is Tensor and each.numel() and not each.is_meta for each in own)
            if own and are_here and not any(bool(each.any()) for each in own):
                detail = "its weights are zero, and so is what it puts out"
                return GradientStop(StopKind.ZERO_WEIGHTS, call.name, detail)
        return None

    def _stop_in_loss(self, i: int, labels: list[int], search: _Search, use: Use, place: Place) -> Stopped:
        """Return why a loss returns no gradient, judged by its operations, whose gradients were not recorded."""
        route, input_range = search.route(place), self._input_range(i, place, labels)
        node, index = use.node, use.number
        if self._pass.value != 0 and explains(node, input_range):
            return self._located(kind_of(Stop(*use, input_range=input_range)), node, route, i)
        for _ in range(100):
            reason = kind_of(Stop(node, index))
            if reason.kind in (StopKind.ONE_VALUE, StopKind.FLAT):
                return self._located(reason, node, route, i)
            uses = self._pass.uses(Place(node, 0))
            if not uses:
                break
            node, index = uses[0]
        dtype = place.node._input_metadata[place.output].dtype
        if self._pass.value != 0 and dtype in (torch.float16, torch.bfloat16):  # the gradient may underflow
            return Stopped(GradientStop(StopKind.UNKNOWN, "the loss", f"the outputs are of {dtype}"))
        return Stopped(_LOSS)

    # ---------------------------------------------------------------- modules and tensors

    def _is_last(self, node: Any) -> bool:
        """Return whether no module with parameters is downstream of an operation."""

        def users(node: Any) -> list[Any]:
            places = (Place(node, output) for output in range(len(node._input_metadata)))
            return [use.node for place in places for use in self._pass.uses(place)]

        calls = map(self._leaf, islice(reachable([node], users), 1, None))
        return not any(call is not None and call.module.__dict__.get("_parameters") for call in calls)

    def _leaf(self, node: Any) -> Call | None:
        call = self._pass.calls.get(node)
        return call if call is not None and call.is_leaf else None

    def _input_range(self, i: int, place: Place, labels: list[int]) -> Range | None:
        """Return the range of a module's output; only for the units of ``labels``, if their places in it are known."""
        call = self._leaf(place.node)
        if call is None or not self._pass.is_output(place.node):
            return None
        of_place = self._pass.paths[i].labels.get(place)
        wanted = torch.tensor(labels)
        if of_place is not None and self._targets[i].num_labels == 1:
            of_place = of_place.abs()  # numbers of several units (MANY, -1) count as having the only label
        for each, dim in zip(call.ranges, (-1, 1), strict=False):
            places = along(of_place, dim)
            if places is not None and places.shape == each.lowest.shape:
                mask = torch.isin(places, wanted.to(places.device))
                if mask.any():
                    return Range(each.lowest[mask], each.highest[mask], each.nearest[mask], each.num_each)
        return call.ranges[0] if call.ranges else None

    def _calls_before(self, node: Any) -> Iterator[Call]:
        """Return the upstream calls of modules, the nearest first."""
        return (call for each in upstream([node]) if (call := self._leaf(each)) is not None)

    def _of_parameter(self, i: int) -> list[Place]:
        """Return the parameter of a target, and the tensors that only rearrange it."""
        if i not in self._moved:
            path = self._pass.paths[i]
            moved = [path.start]
            for place in moved:
                for use in self._pass.uses(place):
                    if operation_of(use.node) in _MOVING and len(use.node.next_functions) == 1:
                        moved += path.outputs[use.node]
            self._moved[i] = moved
        return self._moved[i]

    @cached_property
    def _users(self) -> dict[Any, str]:
        """The layers among the targets, by the nodes that use their parameters."""
        users: dict[Any, str] = {}
        for j, target in enumerate(self._targets):
            moved = self._of_parameter(j) if j in self._pass.paths else []
            nodes = {place.node for place in moved}
            for use in (use for place in moved for use in self._pass.uses(place)):
                if use.node not in nodes:
                    users.setdefault(use.node, target.layer)
        return users

    def _follows(self, route: Sequence[Place], i: int) -> str:
        """Return the target layer nearest to a stop on its route; an empty string if it is that of target ``i``."""
        layer = self._targets[i].layer
        for place in route:  # from the stop back to the parameter
            call = self._leaf(place.node)
            if call is not None and call.name == self._modules[i]:
                return ""
            owner = (self._owners.get(call.name, "") if call is not None else "") or self._users.get(place.node, "")
            if owner:
                return "" if owner == layer else owner
        return ""

    def _place(self, node: Any, route: Sequence[Place], i: int) -> str:
        """Return the module of an operation, or the operation and the last module before it on the route."""
        calls = [self._leaf(each) for each in (node, *(place.node for place in route))]
        # The name of the model itself locates nothing.
        names = [None if call is None or call.module is self._pass.model else call.name for call in calls]
        last = next((name for name in names if name is not None), self._targets[i].layer)
        return last if names[0] is not None else f"{words_for(node)} after {last}"


def _adds_up_one(use: Use, place: Place) -> bool:
    """Return whether an operation sums along a dimension of size 1."""
    shape = shapes_of(place.node)[place.output]
    if operation_of(use.node) == "Sum":
        dims = getattr(use.node, "_saved_dim", ())
        return bool(dims) and is_single(shape, dims)
    summed = {"Bmm": {0: -1, 1: -2}, "Mm": {0: -1, 1: -2}, "Addmm": {1: -1, 2: -2}}
    dim = summed.get(operation_of(use.node), {}).get(use.number)
    return dim is not None and shape[dim] == 1


def _is_zero(input_range: Range) -> bool:
    return not bool(input_range.lowest.any()) and not bool(input_range.highest.any())
