"""What a traced backward pass tells: where the gradient of units stops, why, and because of which layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.modules import own_parameters
from lightning_symmetry.tracing.calls import Call, Range
from lightning_symmetry.tracing.graph import BackwardPass, Place, Target, Use
from lightning_symmetry.tracing.kinds import (
    CLOSING,
    Stop,
    explains,
    kind_of,
    words_for,
)
from lightning_symmetry.tracing.labels import Labels, along, is_single, operation_of, shapes_of
from lightning_symmetry.verdicts.stops import GradientStop, StopKind, Stopped

# Of the operations at which the gradient of units stops, so many are asked why.
_MAX_STOPS = 8
# These move the numbers of a parameter, and compute nothing.
_MOVING = {"T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "ToCopy", "Slice", "Split", "Unsqueeze"}
# Between the scores of a choice, their softmax, and what is added up.
_BETWEEN = {
    *("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Transpose", "Permute", "Expand", "Clone", "Mul"),
    *("Div", "Add", "Sub", "MaskedFill", "Select", "ToCopy", "NativeDropout"),
}
_SELECTING = ("Topk", "Sort", "Kthvalue")

_ERASED = GradientStop(StopKind.ERASED)
_LOSS = GradientStop(StopKind.LOSS, "the loss", "its gradient is zero where it leaves the loss")


class Told(NamedTuple):
    """Where the gradient of some labels stops.

    Attributes:
        labels: the labels.
        stopped: where it stops.
    """

    labels: list[int]
    stopped: Stopped


@dataclass
class _Search:
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

    def route(self, place: Place | None) -> list[Place]:
        """Return the tensors from one back to the parameter."""
        route = []
        while place is not None:
            route.append(place)
            place = self.before.get(place)
        return route


class Explanation:
    """Explains one backward pass.

    Args:
        seen: the backward pass.
        targets: what is traced.
        modules: of each target the name of the module that holds its parameter.
    """

    def __init__(self, seen: BackwardPass, targets: Sequence[Target], modules: Sequence[str]) -> None:
        self._seen, self._targets, self._modules = seen, targets, modules
        self._owners: dict[str, str] = {}  # by name of a module, the layer among the targets that it is, or has
        for module, target in zip(modules, targets, strict=True):
            self._owners.setdefault(module, target.layer)
        self._moved: dict[int, list[Place]] = {}
        self._told: dict[int, list[Told]] = {}
        self._users: dict[Any, str] | None = None

    def constant_behind(self, i: int) -> Stopped | None:
        """Return the operation whose output is constant, so that a target gets nothing but rounding errors.

        None if there is a way from the target to the loss that does not lead through such an operation.
        """
        path, seen = self._seen.paths[i], self._seen
        search = _Search(before={path.start: None})
        left, first = deque([path.start]), None
        while left:
            place = left.popleft()
            if not seen.uses(place):
                return None
            for use in seen.uses(place):
                told = kind_of(_bare(use, self._leaf(use.node)))
                if told.kind is StopKind.ONE_VALUE:
                    told = replace(told, is_by_design=self._is_choice(use.node))
                    route = search.route(place)
                    first = first or Stopped(replace(told, at=self._place(use.node, route, i)), self._follows(route, i))
                    continue
                for each in path.outputs.get(use.node, ()):
                    if each not in search.before:
                        search.before[each] = place
                        left.append(each)
        return first

    def tell(self, i: int, depth: int = 0) -> list[Told]:
        """Return where the gradient of a target stops, for all labels of which the same is to be said together."""
        if i in self._told:
            return self._told[i]
        alike: dict[tuple[StopKind, str, str], list[Told]] = {}
        for labels in self._alike(i):
            stopped = self._tell(i, labels, depth)
            key = stopped.stop.kind, stopped.stop.at, stopped.follows
            alike.setdefault(key, []).append(Told(labels, stopped))
        told = []
        for several in alike.values():
            every = [label for each in several for label in each.labels]
            # What was measured of some is not true of all of them.
            told.append(several[0] if len(several) == 1 else Told(every, self._tell(i, every, depth)))
        self._told[i] = told
        return told

    def _alike(self, i: int) -> list[list[int]]:
        """Return the labels of a target, those together of which all that was seen is the same."""
        path, number = self._seen.paths[i], self._targets[i].num_labels
        if number == 1:
            return [[1]]
        columns = [each[:number].tolist() for each in path.arrived.values()]
        columns += [[label in left_out for label in range(1, number + 1)] for left_out in path.left_out.values()]
        several = [place for outputs in path.outputs.values() if len(outputs) > 1 for place in outputs]
        columns += [[path.may_hold(place, label) for label in range(1, number + 1)] for place in several]
        for place, labels in path.labels.items():
            for use in self._seen.uses(place) if labels is not None else ():
                factor = self._seen.factors.get(use)
                if factor is not None:
                    columns.append(factor.are_zero(labels, number))
        groups: dict[tuple[bool, ...], list[int]] = {}
        for label, signature in enumerate(zip(*columns, strict=True), start=1):
            groups.setdefault(signature, []).append(label)
        return list(groups.values()) or [list(range(1, number + 1))]

    def _tell(self, i: int, labels: list[int], depth: int) -> Stopped:
        search = self._search(i, labels[0])
        if search.has_arrived:
            return Stopped(_ERASED if self._targets[i].is_known else GradientStop(StopKind.UNKNOWN))
        told = [self._at(i, labels, search, use, place, depth) for use, place in search.stops[:_MAX_STOPS]]
        clear = [each for each in told if each.stop.kind not in (StopKind.UNKNOWN, StopKind.LOSS)]
        if clear:
            return clear[0]
        if search.unseen:
            told.append(self._in_loss(i, labels, search, *search.unseen[0]))
            if told[-1].stop.kind is not StopKind.LOSS:
                return told[-1]
        if told:
            return next((each for each in told if each.stop.kind is StopKind.LOSS), told[0])
        if search.left_out:
            use, place = search.left_out[0]
            at = self._place(use.node, search.route(place), i)
            if operation_of(use.node) in _SELECTING:
                return Stopped(GradientStop(StopKind.CLOSED, at, "none of them is ever selected"))
            return Stopped(GradientStop(StopKind.UNREAD, at, "it leaves them out"))
        if search.end is not None:
            return Stopped(_LOSS)
        return Stopped(
            GradientStop(StopKind.UNREAD, self._targets[i].layer, "nothing that the loss depends on reads them")
        )

    def _search(self, i: int, label: int) -> _Search:
        """Follow the units of a label from their parameter towards the loss, as far as no gradient is seen."""
        seen, path = self._seen, self._seen.paths[i]
        search = _Search(before={path.start: None})
        if seen.has_arrived(path, path.start, label):
            search.has_arrived = True
            return search
        left = deque([path.start])
        while left:
            place = left.popleft()
            uses, came_from = seen.uses(place), search.before[place]
            if not uses and (place.node in seen.roots or came_from is None):
                search.end = place
            elif not uses and came_from is not None:  # one of several outputs, which nobody reads
                search.left_out.append((Use(place.node, 0), came_from))
            for use in uses:
                outputs = path.outputs[use.node]
                if label in path.left_out.get(use, ()):
                    search.left_out.append((use, place))
                elif use.node not in seen.fired:
                    search.unseen.append((use, place))
                elif any(seen.has_arrived(path, each, label) for each in outputs):
                    search.stops.append((use, place))
                else:
                    for each in outputs:
                        if each not in search.before and path.may_hold(each, label):
                            search.before[each] = place
                            left.append(each)
        return search

    # ---------------------------------------------------------------- one operation

    def _at(self, i: int, labels: list[int], search: _Search, use: Use, place: Place, depth: int) -> Stopped:
        """Return why no gradient comes out of an operation."""
        seen, route = self._seen, search.route(place)
        if place in self._of_parameter(i):
            if operation_of(use.node) in _MOVING or self._targets[i].parameter._backward_hooks:
                return Stopped(_ERASED)
            return self._inputs_are_zero(i, use, depth)
        stop = self._stop(i, labels, use, place)
        if use in seen.passed and bool(seen.passed[use]) and not self._is_partly_there(i, place):
            if len(seen.uses(place)) > 1:
                detail = "what several operations hand back cancels out"
                return Stopped(GradientStop(StopKind.UNKNOWN, self._place(use.node, route, i), detail))
            at = self._place(use.node, route, i)
            return Stopped(GradientStop(StopKind.ERASED, at, "a hook on what goes in there makes its gradient zero"))
        if stop.operation == "Pow" and operation_of(place.node) in CLOSING and len(route) > 1:
            # The slope of a power is zero where its input is, which something before it has made zero.
            before = next(each for each in self._seen.uses(route[1]) if each.node is place.node)
            stop, route = self._stop(i, labels, before, route[1]), route[1:]
            use, place = before, route[0]
        if stop.given is not None and _is_zero(stop.given) and stop.operation in CLOSING and stop.in_model:
            nearer = self._closed_before(i, labels, search, route, depth)
            if nearer is not None:
                return nearer
        told = kind_of(stop)
        if told.kind is StopKind.ONE_VALUE:
            told = replace(told, is_by_design=self._is_choice(use.node))
        if told.kind is StopKind.CLOSED and stop.is_factor_zero and _factor_node(stop) is not None:
            zeros = self._zeros_before(_factor_node(stop))
            if zeros is not None:
                return Stopped(zeros, self._follows(route, i))
        if told.kind is StopKind.LOSS and self._seen.value != 0 and self._seen.is_output(place.node):
            # An activation of the outputs that stands beside the model, in the loop that trains it.
            activation = kind_of(replace(stop, in_model=True))
            told = activation if activation.kind in (StopKind.CLOSED, StopKind.SATURATED) else told
        if told.kind in (StopKind.CLOSED, StopKind.SATURATED) and self._seen.value == 0 and self._is_last(use.node):
            told = _LOSS  # a loss of zero that has nothing to ask for
        if told.kind is StopKind.LOSS:
            return Stopped(replace(told, at="the loss"))
        return Stopped(replace(told, at=self._place(use.node, route, i)), self._follows(route, i))

    def _stop(self, i: int, labels: list[int], use: Use, place: Place) -> Stop:
        seen, target = self._seen, self._targets[i]
        factor, of_place = seen.factors.get(use), seen.paths[i].labels.get(place)
        is_zero = factor is not None and factor.are_zero(of_place, target.num_labels)[labels[0] - 1]
        one_hot = seen.one_hot.get(use.node)
        return Stop(
            use.node,
            use.number,
            self._leaf(use.node),
            use.node in seen.in_model,
            self._given(i, place, labels),
            factor,
            is_zero,
            None if factor is None else factor.source or (self._source(factor.node) if factor.node else None),
            float(seen.largest.get(use.node, torch.tensor(0.0))),
            None if one_hot is None else bool(one_hot),
        )

    def _closed_before(
        self, i: int, labels: list[int], search: _Search, route: Sequence[Place], depth: int
    ) -> Stopped | None:
        """Return what makes the input of a closed activation zero: an activation before it that is closed as well."""
        for number in range(len(route) - 1, 0, -1):  # from the parameter on
            place = route[number]
            for use in self._seen.uses(place):
                if use.node is not route[number - 1].node or operation_of(use.node) not in CLOSING:
                    continue
                stop = self._stop(i, labels, use, place)
                if stop.given is not None and not _is_zero(stop.given) and explains(use.node, stop.given):
                    at = self._place(use.node, route[number:], i)
                    return Stopped(replace(kind_of(stop), at=at), self._follows(route[number:], i))
        own = [use for place in self._of_parameter(i) for use in self._seen.uses(place)]
        for use in own:
            factor = self._seen.factors.get(use)
            if factor is not None and not bool(factor.is_any):
                return self._inputs_are_zero(i, use, depth)
        return None

    def _inputs_are_zero(self, i: int, use: Use, depth: int) -> Stopped:
        """Return why an operation hands a gradient to its inputs, but none to the parameter that it multiplies by."""
        layer = self._targets[i].layer
        factor = self._seen.factors.get(use)
        if factor is None or bool(factor.is_any):
            return Stopped(GradientStop(StopKind.UNKNOWN, layer))
        detail = f"the inputs of {layer} are zero in all values seen"
        if factor.node is None or hasattr(factor.node, "variable"):
            return Stopped(GradientStop(StopKind.UNKNOWN, layer, detail, is_by_design=factor.source is None))
        owner, zeros = self._owner_before(factor.node, layer), self._zeros_before(factor.node)
        if zeros is not None:
            return Stopped(replace(zeros, detail=detail), owner)
        names = [target.layer for target in self._targets]
        if owner and depth < len(names) and names.index(owner) in self._seen.paths:
            told = self.tell(names.index(owner), depth + 1)[0].stopped
            return Stopped(replace(told.stop, detail=detail), owner)
        kind = kind_of(_bare(Use(factor.node, 0), None)).kind
        if kind in (StopKind.CLOSED, StopKind.SATURATED):
            behind = [Place(child, output) for child, output in factor.node.next_functions if child is not None]
            return Stopped(GradientStop(StopKind.CLOSED, self._place(factor.node, behind, i), detail), owner)
        return Stopped(GradientStop(StopKind.UNKNOWN, layer, detail), owner)

    def _is_choice(self, node: Any) -> bool:
        """Return whether a softmax weighs what is added up, unless its scores are products, as those of attention."""
        if operation_of(node) not in ("Softmax", "SafeSoftmax") or node not in self._seen.in_model:
            return False
        scores = node.next_functions[0][0]
        while scores is not None and operation_of(scores) in _BETWEEN and not hasattr(scores, "variable"):
            scores = scores.next_functions[0][0]
        if scores is None or operation_of(scores) in ("Bmm", "Baddbmm"):
            return False
        left, known = [Place(node, 0)], {node}
        while left:
            place = left.pop()
            for use in self._seen.uses(place):
                if operation_of(use.node) in _BETWEEN:
                    if use.node not in known:
                        known.add(use.node)
                        left.append(Place(use.node, 0))
                elif not _adds_up_one(use, place):
                    return False
        return True

    def _zeros_before(self, node: Any) -> GradientStop | None:
        """Return which module makes a tensor zero, if all that lies between has put out nothing but zeros."""
        for call in self._calls_before(node):
            if not call.ranges or not _is_zero(call.ranges[0]):
                return None
            own = [each.detach() for each in own_parameters(call.module).values()]
            are_here = all(type(each) is Tensor and each.numel() and not each.is_meta for each in own)
            if own and are_here and not any(bool(each.any()) for each in own):
                return GradientStop(
                    StopKind.ZERO_WEIGHTS, call.name, "its weights are zero, and so is what it puts out"
                )
        return None

    def _in_loss(self, i: int, labels: list[int], search: _Search, use: Use, place: Place) -> Stopped:
        """Return why no gradient comes out of a loss, as far as its operations tell, whose gradients were not seen."""
        route, given = search.route(place), self._given(i, place, labels)
        node, index = use.node, use.number
        if self._seen.value != 0 and explains(node, given):
            told = kind_of(replace(_bare(use, None), given=given))
            return Stopped(replace(told, at=self._place(node, route, i)), self._follows(route, i))
        for _ in range(100):
            told = kind_of(_bare(Use(node, index), None))
            if told.kind in (StopKind.ONE_VALUE, StopKind.FLAT):
                return Stopped(replace(told, at=self._place(node, route, i)), self._follows(route, i))
            uses = self._seen.uses(Place(node, 0))
            if not uses:
                break
            node, index = uses[0]
        dtype = place.node._input_metadata[place.output].dtype
        if self._seen.value != 0 and dtype in (torch.float16, torch.bfloat16):  # it may underflow, or be the loss
            return Stopped(GradientStop(StopKind.UNKNOWN, "the loss", f"the outputs are of {dtype}"))
        return Stopped(_LOSS)

    # ---------------------------------------------------------------- modules and tensors

    def _is_last(self, node: Any) -> bool:
        """Return whether no module with parameters comes after an operation."""
        left, known = [node], set()
        while left:
            node = left.pop()
            if node in known:
                continue
            known.add(node)
            call = self._leaf(node)
            if call is not None and len(known) > 1 and call.module.__dict__.get("_parameters"):
                return False
            places = (Place(node, output) for output in range(len(node._input_metadata)))
            left += [use.node for place in places for use in self._seen.uses(place)]
        return True

    def _leaf(self, node: Any) -> Call | None:
        call = self._seen.calls.get(node)
        return call if call is not None and call.is_leaf else None

    def _is_partly_there(self, i: int, place: Place) -> bool:
        """Return whether a tensor also holds numbers that have nothing to do with a target."""
        labels = self._seen.paths[i].labels[place]
        return labels is not None or bool(self._seen.arrived.get(place, torch.tensor(False)))

    def _given(self, i: int, place: Place, labels: list[int]) -> Range | None:
        """Return the range of what a module has put out, of the units of some labels where they are known."""
        call = self._leaf(place.node)
        if call is None or not self._seen.is_output(place.node):
            return None
        of_place = self._seen.paths[i].labels.get(place)
        wanted = torch.tensor(labels)
        for each, dim in zip(call.ranges, (-1, 1), strict=False):
            places = _along(of_place, dim, is_only=self._targets[i].num_labels == 1)
            if places is not None and places.shape == each.lowest.shape:
                mask = torch.isin(places, wanted.to(places.device))
                if mask.any():
                    return Range(each.lowest[mask], each.highest[mask], each.nearest[mask], each.num_each)
        return call.ranges[0] if call.ranges else None

    def _source(self, node: Any) -> Call | None:
        """Return the call of the module with parameters that has computed a tensor."""
        for call in self._calls_before(node):
            if call.module.__dict__.get("_parameters"):
                return call
        return None

    def _owner_before(self, node: Any, layer: str) -> str:
        """Return the traced layer that comes last before a tensor, if it is another one; else nothing."""
        names = (self._owners.get(call.name, "") for call in self._calls_before(node))
        return next((name for name in names if name and name != layer), "")

    def _calls_before(self, node: Any) -> Iterator[Call]:
        """Yield the calls of modules that lie before a tensor, the nearest first."""
        left, known = deque([node]), set()
        while left:
            node = left.popleft()
            if node in known or hasattr(node, "variable"):
                continue
            known.add(node)
            call = self._leaf(node)
            if call is not None:
                yield call
            left += [child for child, _ in node.next_functions if child is not None]

    def _of_parameter(self, i: int) -> list[Place]:
        """Return the tensors that are the parameter of a target itself, at most moved."""
        if i not in self._moved:
            path = self._seen.paths[i]
            moved = [path.start]
            for place in moved:
                for use in self._seen.uses(place):
                    if operation_of(use.node) in _MOVING and len(use.node.next_functions) == 1:
                        moved += path.outputs[use.node]
            self._moved[i] = moved
        return self._moved[i]

    def _follows(self, route: Sequence[Place], i: int) -> str:
        """Return the traced layer that comes last on a route to where a gradient stops, if it is another one."""
        if self._users is None:
            self._users = {}
            for j in range(len(self._targets)):
                if j not in self._seen.paths:
                    continue
                moved = self._of_parameter(j)
                nodes = {place.node for place in moved}
                for use in (use for place in moved for use in self._seen.uses(place)):
                    if use.node not in nodes:
                        self._users.setdefault(use.node, self._targets[j].layer)
        layer = self._targets[i].layer
        for place in route:  # from where it stops back to the parameter
            call = self._leaf(place.node)
            if call is not None and call.name == self._modules[i]:
                return ""
            owner = (self._owners.get(call.name, "") if call is not None else "") or self._users.get(place.node, "")
            if owner:
                return "" if owner == layer else owner
        return ""

    def _place(self, node: Any, route: Sequence[Place], i: int) -> str:
        """Return the module that an operation belongs to, or the operation and the module before it.

        Args:
            node: the node of the operation.
            route: the tensors from its input back to the parameter.
            i: the target that the parameter belongs to.
        """
        call = self._leaf(node)
        if call is not None and not self._seen.is_whole_model(call):
            return call.name
        owners = (self._leaf(place.node) for place in route)
        known = (owner.name for owner in owners if owner is not None and not self._seen.is_whole_model(owner))
        return f"{words_for(node)} after {next(known, self._targets[i].layer)}"


def _factor_node(stop: Stop) -> Any | None:
    """Return the node that has computed what an operation multiplies by, if that is no parameter."""
    return None if stop.factor is None or stop.factor.is_parameter else stop.factor.node


def _bare(use: Use, leaf: Call | None) -> Stop:
    """Return an operation of which nothing was measured."""
    return Stop(use.node, use.number, leaf, True, None, None, False, None, 1.0)


def _adds_up_one(use: Use, place: Place) -> bool:
    """Return whether an operation adds up along a dimension of size 1."""
    shape = shapes_of(place.node)[place.output]
    if operation_of(use.node) == "Sum":
        dims = getattr(use.node, "_saved_dim", ())
        return bool(dims) and is_single(shape, dims)
    summed = {"Bmm": {0: -1, 1: -2}, "Mm": {0: -1, 1: -2}, "Addmm": {1: -1, 2: -2}}
    dim = summed.get(operation_of(use.node), {}).get(use.number)
    return dim is not None and shape[dim] == 1


def _is_zero(given: Range) -> bool:
    return not bool(given.lowest.any()) and not bool(given.highest.any())


def _along(labels: Labels, dim: int, *, is_only: bool) -> Tensor | None:
    """Return the labels along a dimension; if there is only one label, several of the same are one."""
    if is_only and labels is not None:
        labels = labels.abs()
    return along(labels, dim)
