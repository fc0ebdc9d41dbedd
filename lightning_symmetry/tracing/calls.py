"""Which modules are called in the forward passes of one step, and the range of what they put out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.matrices.numerics import is_capturing
from lightning_symmetry.modules import modules_of, own_parameters
from lightning_symmetry.tracing.autograd import NO_PASS, may_recompute, next_operation, running_pass
from lightning_symmetry.units.hooks import ModuleHook
from lightning_symmetry.units.naming import readable_modules

# In evaluation mode these compute something else, but for rounding, if they have hooks.
_WITH_FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class Mark(NamedTuple):
    """What a trace notes at the node of something that a module has put out.

    Attributes:
        is_output: whether a module that is no loss has put it out.
        key: a number of its own, if an outermost module has put it out.
    """

    is_output: bool
    key: int | None


class Range(NamedTuple):
    """The range of numbers, by index of one dimension of a tensor.

    Attributes:
        lowest: the smallest number at each index, ``(size,)``.
        highest: the largest one.
        nearest: the smallest absolute value.
        num_each: how many numbers there are at each index.
    """

    lowest: Tensor
    highest: Tensor
    nearest: Tensor
    num_each: int

    @classmethod
    def of(cls, numbers: Tensor, dim: int) -> Range:
        """Measure a tensor with at least one number."""
        flat = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)
        return cls(flat.amin(1), flat.amax(1), flat.abs().amin(1), flat.shape[1])


@dataclass
class Call:
    """One call of a module.

    Attributes:
        name: the readable name of the module.
        module: the module.
        first: the number that autograd gives the next operation as the call begins.
        last: the same as the call ends.
        has_calls: whether it has called other modules.
        is_of_loss: whether it is part of a loss.
        ranges: the ranges of what it puts out, along the last dimension and the second one, if it calls no modules.
    """

    name: str
    module: nn.Module
    first: int
    last: int = -1
    has_calls: bool = False
    is_of_loss: bool = False
    ranges: list[Range] = field(default_factory=list)

    @property
    def is_loss(self) -> bool:
        """Whether the module is a loss of ``torch.nn``."""
        return isinstance(self.module, _Loss)

    @property
    def is_leaf(self) -> bool:
        """Whether it computes something itself, instead of calling other modules."""
        return not self.has_calls and not self.is_loss


class ModuleCalls:
    """Notes the calls of all modules of a model that have a graph of autograd, until :meth:`end`.

    Args:
        model: the model.
        on_error: called with what fails in a hook.
        on_gradient: called in a backward pass with the key of a mark and the gradients, when they arrive at what an
            outermost module has put out.

    Attributes:
        calls: all calls that have ended, in this order.
        parameters: by identity of a tensor that was the parameter of a module as it was called, the identity of the
            parameter that the module holds otherwise: FSDP2 puts others in its place for the call.
        constants: by identity of its storage, the call that has put out a tensor without a graph.
        unrecorded: the names of modules that were called where autograd records nothing.
        recomputed: the names of those that were called again in a backward pass, as in a checkpointed segment.
        is_sealed: whether tensors that autograd has saved may be computed anew when they are read.
    """

    def __init__(
        self,
        model: nn.Module,
        on_error: Callable[[Exception], None],
        on_gradient: Callable[[int, Sequence[Tensor | None]], None],
    ) -> None:
        self.calls: list[Call] = []
        self.parameters: dict[int, int] = {}
        self.constants: dict[int, Call] = {}
        self.unrecorded: set[str] = set()
        self.recomputed: set[str] = set()
        self.is_sealed = False
        self._on_error, self._on_gradient = on_error, on_gradient
        self._open: list[Call] = []
        self._handles: list[RemovableHandle] = []
        self._num_keys = 0
        for name, module in readable_modules(model):
            has_fast_path = issubclass(type(module), _WITH_FAST_PATHS) and not module.training
            # Of what computes weights, hooks would keep others from computing them, as another monitor does.
            if has_fast_path or "parametrizations" in name.split("."):
                continue
            own = {key: id(tensor) for key, tensor in module.__dict__.get("_parameters", {}).items()}
            begin = ModuleHook(partial(self._begin, name, own), on_error)
            end = ModuleHook(partial(self._end, name), on_error)
            with suppress(Exception):  # modules of TorchScript take no hooks
                self._handles.append(module.register_forward_pre_hook(begin))
                self._handles.append(module.register_forward_hook(end, always_call=True))  # also if it raises

    def mark_of(self, node: Any) -> Mark | None:
        """Return what is noted at a node of autograd's graph; None of what no module has put out."""
        return node.metadata.get(self) if hasattr(node, "metadata") else None

    def end(self) -> None:
        """Take off all hooks of modules."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], []
        self.calls, self.constants, self.parameters = [], {}, {}

    def _begin(self, name: str, own: Mapping[str, int], module: nn.Module, args: tuple[Any, ...]) -> None:
        if not _is_recording():
            (self.recomputed if torch.is_grad_enabled() else self.unrecorded).add(name)
            return
        if may_recompute():
            self.is_sealed = True
        for key, tensor in module.__dict__.get("_parameters", {}).items():
            if tensor is not None and key in own:
                self.parameters[id(tensor)] = own[key]
        if self._open:
            self._open[-1].has_calls = True
        self._open.append(Call(name, module, next_operation()))

    def _end(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not _is_recording() or name not in [call.name for call in self._open]:
            return
        while (call := self._open.pop()).name != name:
            pass  # one that has raised
        call.last = next_operation()
        self.calls.append(call)
        every = list(_tensors_in(output))
        outputs = [each for each in every if each.grad_fn is not None]
        if not call.has_calls and own_parameters(module):
            plain = [each for each in every if each.grad_fn is None and type(each) is Tensor and not each.is_meta]
            self.constants |= {storage_of(each): call for each in plain}
        if call.is_leaf:
            call.ranges = _ranges(outputs)
        # What has no parameters and belongs to no other module may be a loss of the user's own.
        is_loss = call.is_loss or (not self._open and not any(map(own_parameters, modules_of(module))))
        if is_loss:
            for inner in self.calls:
                inner.is_of_loss |= call.first <= inner.first
        for each in outputs:
            # A single number is a loss, as a rule; one per sample is as likely a prediction.
            self._mark(each, is_outermost=not self._open, is_loss=is_loss or each.ndim == 0)

    def _mark(self, output: Tensor, *, is_outermost: bool, is_loss: bool) -> None:
        node: Any = output.grad_fn
        before = self.mark_of(node) or Mark(is_output=False, key=None)
        key = before.key
        if is_outermost and key is None:
            self._num_keys += 1
            key = self._num_keys
            handle = node.register_prehook(ModuleHook(partial(self._on_gradient, key), self._on_error))
            self._handles.append(handle)
        node.metadata[self] = Mark(before.is_output or not is_loss, key)


def _is_recording() -> bool:
    """Return whether autograd records a forward pass, and not one that is computed again for a backward pass."""
    is_forward = torch.is_grad_enabled() and running_pass() == NO_PASS
    return is_forward and not torch.compiler.is_compiling() and not is_capturing()


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in what a module puts out."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_in(each, depth - 1)
    elif depth and dataclasses.is_dataclass(value):
        for each in vars(value).values():
            yield from _tensors_in(each, depth - 1)


@torch.no_grad()
def _ranges(outputs: Sequence[Tensor]) -> list[Range]:
    """Return the ranges of the first output; none if its numbers do not all lie here."""
    if not outputs or type(outputs[0]) is not Tensor or not outputs[0].is_floating_point():
        return []
    numbers = outputs[0].detach()
    if not numbers.numel() or numbers.ndim == 0 or numbers.is_meta:
        return []
    return [Range.of(numbers, dim) for dim in ((-1, 1) if numbers.ndim > 2 else (-1,))]


def storage_of(numbers: Tensor) -> int:
    """Return the address of the numbers of a tensor; 0 if it has none."""
    try:
        return numbers.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # inside a transformation of torch.func there is none
        return 0
