"""The calls of modules in the forward passes of one step, and the ranges of their outputs."""

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

# In evaluation mode, these modules have a fast path. A hook would disable it, which changes the rounding.
_WITH_FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class Mark(NamedTuple):
    """A record at a node of autograd's graph: a module has returned the output of this operation."""

    is_output: bool  # whether a module that is no loss has returned it
    key: int | None  # a unique number if the module is an outermost one, else None


class Range(NamedTuple):
    """The range of the numbers at each of ``size`` indices along one dimension of a tensor."""

    lowest: Tensor  # smallest numbers, ``(size,)``
    highest: Tensor  # largest numbers, ``(size,)``
    nearest: Tensor  # smallest absolute values, ``(size,)``
    num_each: int  # how many numbers there are at each index

    @classmethod
    def of(cls, numbers: Tensor, dim: int) -> Range:
        """Return the range of a non-empty tensor along ``dim``."""
        flat = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)
        return cls(flat.amin(1), flat.amax(1), flat.abs().amin(1), flat.shape[1])


@dataclass
class Call:
    """One call of a module."""

    name: str  # readable name of the module
    module: nn.Module
    first: int  # autograd's number of the next operation when the call begins
    last: int = -1  # autograd's number of the next operation when the call ends
    has_calls: bool = False  # whether the module calls others
    is_of_loss: bool = False  # whether the call is part of a loss
    # ranges of the output along the last and the second dimension, unless the module calls others
    ranges: list[Range] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        """Whether the module computes its output itself, without calling others, and is no loss of ``torch.nn``."""
        return not self.has_calls and not isinstance(self.module, _Loss)


class ModuleCalls:
    """Records all calls of a model's modules in forward passes with autograd, until :meth:`end`.

    Calls ``on_error`` with the exception of a hook that fails, and ``on_gradient`` with the key of a mark and the
    gradients that arrive at an output of an outermost module.
    """

    def __init__(
        self,
        model: nn.Module,
        on_error: Callable[[Exception], None],
        on_gradient: Callable[[int, Sequence[Tensor | None]], None],
    ) -> None:
        self.calls: list[Call] = []  # in the order in which they ended
        # The `id` of each parameter outside of calls, by its `id` during one: FSDP2 replaces parameters for a call.
        self.parameters: dict[int, int] = {}
        self.constants: dict[int, Call] = {}  # by storage of an output without a graph, the call that returned it
        self.unrecorded: set[str] = set()  # names of modules that were called while autograd was off
        self.recomputed: set[str] = set()  # names of modules that a backward pass called again, to recompute a segment
        self.may_recompute_saved = False  # whether tensors that autograd has saved may be recomputed when they are read
        self._on_error, self._on_gradient = on_error, on_gradient
        self._open: list[Call] = []
        self._handles: list[RemovableHandle] = []
        self._num_keys = 0
        for name, module in readable_modules(model):
            has_fast_path = issubclass(type(module), _WITH_FAST_PATHS) and not module.training
            # A hook on a parametrization would keep other monitors from computing the parametrized weight.
            if has_fast_path or "parametrizations" in name.split("."):
                continue
            own = {key: id(tensor) for key, tensor in own_parameters(module).items()}
            begin = ModuleHook(partial(self._begin, name, own), on_error)
            end = ModuleHook(partial(self._end, name), on_error)
            with suppress(Exception):  # modules of TorchScript take no hooks
                self._handles.append(module.register_forward_pre_hook(begin))
                self._handles.append(module.register_forward_hook(end, always_call=True))  # also if the module raises

    def mark_of(self, node: Any) -> Mark | None:
        """Return the mark at a node of autograd's graph; None if no module has returned its output."""
        return node.metadata.get(self) if hasattr(node, "metadata") else None

    def end(self) -> None:
        """Remove all hooks and forget all calls."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], []
        self.calls, self.constants, self.parameters = [], {}, {}

    def _begin(self, name: str, own: Mapping[str, int], module: nn.Module, args: tuple[Any, ...]) -> None:
        if not _is_recording():
            (self.recomputed if torch.is_grad_enabled() else self.unrecorded).add(name)
            return
        self.may_recompute_saved |= may_recompute()
        self.parameters |= {id(tensor): own[key] for key, tensor in own_parameters(module).items() if key in own}
        if self._open:
            self._open[-1].has_calls = True
        self._open.append(Call(name, module, next_operation()))

    def _end(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not _is_recording() or name not in [call.name for call in self._open]:
            return
        while (call := self._open.pop()).name != name:
            pass  # drop an inner call, which has raised
        call.last = next_operation()
        self.calls.append(call)
        every = list(_tensors_in(output))
        outputs = [each for each in every if each.grad_fn is not None]
        if not call.has_calls and own_parameters(module):
            plain = [each for each in every if each.grad_fn is None and type(each) is Tensor and not each.is_meta]
            self.constants |= {storage_of(each): call for each in plain}
        if call.is_leaf:
            call.ranges = _ranges(outputs)
        # An outermost module without parameters may be a custom loss.
        is_loss = isinstance(module, _Loss) or (not self._open and not any(map(own_parameters, modules_of(module))))
        if is_loss:
            for inner in self.calls:
                inner.is_of_loss |= call.first <= inner.first
        for each in outputs:
            # A single number is usually a loss; a number per sample may be a prediction.
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
    """Return whether autograd records a forward pass, other than a recomputation for a backward pass."""
    is_forward = torch.is_grad_enabled() and running_pass() == NO_PASS
    return is_forward and not torch.compiler.is_compiling() and not is_capturing()


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in a module's output."""
    if isinstance(value, Tensor):
        yield value
    elif depth:
        if isinstance(value, Mapping):
            value = value.values()
        elif not isinstance(value, list | tuple):
            names = [each.name for each in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
            value = [getattr(value, name, None) for name in names]  # a dataclass with slots has no `__dict__`
        for each in value:
            yield from _tensors_in(each, depth - 1)


@torch.no_grad()
def _ranges(outputs: Sequence[Tensor]) -> list[Range]:
    """Return the ranges of the first output; none if it is sharded, empty or not of real numbers."""
    if not outputs or type(outputs[0]) is not Tensor or not outputs[0].is_floating_point():
        return []
    numbers = outputs[0].detach()
    if not numbers.numel() or numbers.ndim == 0 or numbers.is_meta:
        return []
    return [Range.of(numbers, dim) for dim in ((-1, 1) if numbers.ndim > 2 else (-1,))]


def storage_of(numbers: Tensor) -> int:
    """Return the address of a tensor's storage; 0 if it has none."""
    try:
        return numbers.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # there is none inside a transformation of torch.func
        return 0
