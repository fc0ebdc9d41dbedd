"""Autograd's graph of one backward pass, and the gradients that arrive at its nodes, unit by unit."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.tracing.autograd import may_read_saved, number_of, running_pass, shapes_of, upstream
from lightning_symmetry.tracing.calls import Call, ModuleCalls
from lightning_symmetry.tracing.kinds import Factor, factor_of, is_one_hot
from lightning_symmetry.tracing.labels import MANY, Labels, carry, join, present_labels, without_copies

# Autograd's number for nodes without an operation, such as those that accumulate gradients of parameters.
_NO_NUMBER = 2**64 - 1


class Place(NamedTuple):
    """A tensor that the step has computed, given by the node of its operation and the index of the output."""

    node: Any
    output: int


class Use(NamedTuple):
    """The use of a tensor by an operation, given by the node and the index of the input."""

    node: Any
    number: int


@dataclass
class Target:
    """Units whose gradient is traced."""

    layer: str  # name of their layer
    parameter: Tensor  # the tensor that feeds them
    # label of each number of the parameter, counted from 1; 0 for units that are not traced; None: all have label 1
    labels: Labels
    units: tuple[tuple[int, ...], ...]  # the units of each label
    is_known: bool = True  # whether it is known which numbers belong to the units; if not, all numbers have label 1

    @property
    def num_labels(self) -> int:
        """The number of labels."""
        return len(self.units)


@dataclass
class Path:
    """All operations between the parameter of a target and the loss."""

    start: Place  # the parameter, at the node that accumulates its gradient
    labels: dict[Place, Labels] = field(default_factory=dict)  # by tensor, the labels of its numbers
    outputs: dict[Any, list[Place]] = field(default_factory=dict)  # by node, its outputs on the path
    left_out: dict[Use, set[int]] = field(default_factory=dict)  # by use, the labels that an operation drops completely
    # by tensor with labels, whether a nonzero gradient arrives for each label, and last for numbers without a label
    arrived: dict[Place, Tensor] = field(default_factory=dict)
    _present: dict[Place, set[int]] = field(default_factory=dict)

    def may_contain(self, place: Place, label: int) -> bool:
        """Return whether any number of a tensor may depend on the units of a label."""
        labels = self.labels[place]
        if labels is None:
            return True
        if place not in self._present:
            self._present[place] = present_labels(labels)
        return label in self._present[place] or MANY in self._present[place]

    def add(self, place: Place, labels: Labels) -> bool:
        """Add a tensor, or labels of a known tensor; return whether the tensor is new."""
        is_new = place not in self.labels
        self.labels[place] = labels if is_new else join(self.labels[place], labels)
        if is_new:
            self.outputs.setdefault(place.node, []).append(place)
        return is_new


class BackwardPass:
    """One backward pass from ``outputs``: its graph, and the gradients that arrive at nodes on the paths of targets.

    ``parameters`` maps the storages of the model's parameters to None, ``module_calls`` has the calls of the forward
    pass, and ``on_error`` is called with the exception of a hook that fails.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Sequence[Tensor],
        targets: Sequence[Target],
        parameters: Mapping[int, None],
        module_calls: ModuleCalls,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.model, self._targets = model, targets
        self._module_calls, self._on_error = module_calls, on_error
        self._may_read = not module_calls.may_recompute_saved
        # By storage, the call that returned a constant; None for a parameter.
        self._storages = {**module_calls.constants, **parameters}
        real = [each for each in outputs if type(each) is Tensor and each.numel() and not each.is_complex()]
        plain = [each.detach().sum().double() for each in real]
        # The sum of the outputs, which is the value of a loss; None if unknown.
        self.value = float(sum(plain, torch.zeros(()))) if len(plain) == len(outputs) else None
        self._users: dict[Place, list[Use]] = {}
        self._carried: dict[Use, list[Labels]] = {}  # the output labels of uses whose input labels are unknown
        self._nodes: dict[Any, None] = {}
        self.keys: set[int] = set()  # of the marks in this pass
        self._task: int | None = None  # autograd's number of this pass
        self.roots: set[Any] = {each.grad_fn for each in outputs}  # the nodes at which the pass starts
        self._walk()
        self.calls = _innermost_calls(self._nodes, module_calls.calls)  # by node
        self.in_model = self._find_model()
        self.factors: dict[Use, Factor | None] = {}  # by use, what the operation multiplies its input by
        self.one_hot: dict[Any, Tensor | None] = {}  # by node, whether it is a softmax whose outputs are all 0 or 1
        self.passed: dict[Use, Tensor] = {}  # by use, whether the operation returned a nonzero gradient for this input
        self.arrived: dict[Place, Tensor] = {}  # by tensor on any path, whether a nonzero gradient arrives
        self.largest: dict[Any, Tensor] = {}  # by node, the largest absolute gradient that arrives
        self.fired: set[Any] = set()  # the nodes whose hook was called
        starts = {
            module_calls.parameters.get(id(node.variable), id(node.variable)): node
            for node in self._nodes
            if hasattr(node, "variable")
        }
        # By index of a target, its path, if its parameter is part of the graph.
        self.paths = {
            i: self._find_path(starts[id(target.parameter)], target)
            for i, target in enumerate(targets)
            if id(target.parameter) in starts
        }
        nodes = {place.node for path in self.paths.values() for place in path.labels}
        self._handles: list[RemovableHandle] = [node.register_hook(partial(self._hook, node)) for node in nodes]

    def uses(self, place: Place) -> list[Use]:
        """Return the operations that use a tensor."""
        return self._users.get(place, [])

    def has_arrived(self, path: Path, place: Place, label: int) -> bool:
        """Return whether a nonzero gradient arrives at the numbers of a label."""
        seen = path.arrived.get(place)
        return bool(self.arrived.get(place, False) if seen is None else seen[label - 1])

    def end(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def is_output(self, node: Any) -> bool:
        """Return whether a module has returned the output of an operation."""
        return self._module_calls.mark_of(node) is not None

    def _hook(self, node: Any, grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        try:
            task = running_pass()
            self._task = task if self._task is None else self._task
            if task == self._task:  # a retained graph may serve another pass
                self._record(node, grad_inputs, grad_outputs)
        except Exception as error:  # raising would end the training
            self._on_error(error)

    @torch.no_grad()
    def _record(self, node: Any, grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        """Record the gradients that arrive at a node, and those that it returns."""
        self.fired.add(node)
        every = {Place(node, i): _local(each) for i, each in enumerate(grad_outputs) if each is not None}
        here = [each.abs().amax() for each in every.values() if each.numel()]
        if here:
            self.largest[node] = torch.stack([each.double() for each in here]).amax()
        for place, gradient in every.items():
            is_there = gradient != 0
            self.arrived[place] = is_there.any()
            for i, path in self.paths.items():
                labels = path.labels.get(place)
                if labels is not None and labels.shape == gradient.shape:
                    path.arrived[place] = _by_label(is_there, labels, self._targets[i].num_labels)
        for index, (child, output) in enumerate(node.next_functions):
            if any(Place(child, output) in path.labels for path in self.paths.values()):
                use = Use(node, index)
                may_read = self._may_read and may_read_saved(node)
                self.factors[use] = factor_of(node, index, self.calls, self._storages, may_read=may_read)
                self.one_hot[node] = is_one_hot(node) if may_read else None
                given = grad_inputs[index] if index < len(grad_inputs) else None
                if given is not None:
                    self.passed[use] = (_local(given) != 0).any()

    def _walk(self) -> None:
        left = list(self.roots)
        while left:
            node = left.pop()
            if node in self._nodes:
                continue
            self._nodes[node] = None
            mark = self._module_calls.mark_of(node)
            if mark is not None and mark.key is not None:
                self.keys.add(mark.key)
            for index, (child, output) in enumerate(node.next_functions):
                if child is not None:
                    self._users.setdefault(Place(child, output), []).append(Use(node, index))
                    left.append(child)

    def _find_model(self) -> set[Any]:
        """Return the nodes of the model: those of module outputs and of calls outside the loss, and all upstream."""
        ends = []
        for node in self._nodes:
            call, mark = self.calls.get(node), self._module_calls.mark_of(node)
            is_inside = call is not None and call.is_leaf and bool(call.ranges)
            is_output = mark is not None and mark.is_output
            if (is_output or is_inside) and not (call is not None and call.is_of_loss):
                ends.append(node)
        return set(upstream(ends))

    @torch.no_grad()
    def _find_path(self, start: Any, target: Target) -> Path:
        path = Path(Place(start, 0))
        path.add(path.start, target.labels)
        # In the order of computation, so that the labels of all inputs are known before those of the outputs.
        waiting, num_found = [(-1, 0, path.start)], 1
        while waiting:
            _, _, place = heapq.heappop(waiting)
            for use in self.uses(place):
                behind = self._carry(use, path.labels[place], place, target)
                if path.labels[place] is not None and None not in behind:
                    kept = {label for each in behind if each is not None for label in present_labels(each)}
                    if MANY not in kept:
                        path.left_out[use] = set(range(1, target.num_labels + 1)) - kept
                for output, each in enumerate(behind):
                    if path.add(Place(use.node, output), each):
                        heapq.heappush(waiting, (number_of(use.node), num_found, Place(use.node, output)))
                        num_found += 1
        return path

    def _carry(self, use: Use, labels: Labels, place: Place, target: Target) -> list[Labels]:
        if labels is None and use in self._carried:
            return self._carried[use]
        is_parameter = hasattr(place.node, "variable")
        shape = target.parameter.shape if is_parameter else shapes_of(place.node)[place.output]
        may_read = self._may_read and may_read_saved(use.node)
        behind = carry(use.node, use.number, labels, shape, may_read=may_read)
        if labels is None:
            self._carried[use] = behind
        return behind


def _local(gradient: Tensor) -> Tensor:
    """Return this rank's part of a gradient; of a sparse gradient its values."""
    if type(gradient) is not Tensor and hasattr(gradient, "to_local"):
        gradient = gradient.to_local()
    return gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient


def _by_label(is_there: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Return whether ``is_there`` holds for any number of each label, last for any without, ``(num_labels + 1,)``."""
    kept = without_copies(labels)
    copied = [dim for dim in range(labels.ndim) if kept.shape[dim] < labels.shape[dim]]
    if copied:
        is_there = is_there.any(copied, keepdim=True)
    beyond = num_labels + 2  # the label of numbers for which `is_there` is False
    counts = torch.bincount((kept - MANY).masked_fill(~is_there, beyond).flatten(), minlength=beyond)[:beyond]
    return (counts[1:] > 0).roll(-1) | (counts[0] > 0)


def _innermost_calls(nodes: Iterable[Any], calls: Sequence[Call]) -> dict[Any, Call]:
    """Map each node to the innermost call of a module during which its operation ran."""
    # An inner call begins after the outer one, or at the same number and ends earlier.
    upcoming = deque(sorted(calls, key=lambda call: (call.first, -call.last)))
    found: dict[Any, Call] = {}
    open_calls: list[Call] = []
    numbered = [(number_of(node), node) for node in nodes]
    for number, node in sorted((pair for pair in numbered if pair[0] != _NO_NUMBER), key=lambda pair: pair[0]):
        while upcoming and upcoming[0].first <= number:
            open_calls.append(upcoming.popleft())
        while open_calls and open_calls[-1].last <= number:
            open_calls.pop()
        if open_calls:
            found[node] = open_calls[-1]
    return found
