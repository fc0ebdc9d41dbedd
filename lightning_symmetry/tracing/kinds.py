"""Why an operation receives a gradient and returns zero: one function for each kind of reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from lightning_symmetry.tracing.autograd import is_single, operation_of, shapes_of
from lightning_symmetry.tracing.calls import Call, Range, storage_of
from lightning_symmetry.tracing.labels import Labels, along
from lightning_symmetry.verdicts.stops import GradientStop, StopKind


class Factor(NamedTuple):
    """The tensor that an operation multiplies one of its inputs by."""

    node: Any | None  # the node that has computed it; None if it does not depend on trained parameters
    source: Call | None  # the call that returned it, if it is an output without a graph
    is_parameter: bool  # whether it is a parameter of the model, or computed from parameters only
    is_any: Tensor  # whether any of its numbers is nonzero, ``()``
    # by dimension of the input, whether any factor of the numbers at each index is nonzero, ``(size,)``
    is_there: dict[int, Tensor]
    largest: Tensor  # its largest absolute value, ``()``

    def are_zero(self, labels: Labels, num_labels: int) -> list[bool]:
        """Return for each label whether all factors of its numbers in the input are zero."""
        for dim, is_there in self.is_there.items():
            # With a single label, numbers of several units (MANY, -1) count as having it.
            places = along(labels.abs() if labels is not None and num_labels == 1 else labels, dim)
            if places is not None and places.shape == is_there.shape:
                met = set(places[is_there].tolist())
                return [label not in met for label in range(1, num_labels + 1)]
        return [not bool(self.is_any)] * num_labels


@dataclass(frozen=True)
class Stop:
    """An operation that receives a gradient and returns none for one input; by default, nothing was measured."""

    node: Any
    index: int  # index of the input
    call: Call | None = None  # the call of a module that the operation belongs to, if it calls no other modules
    in_model: bool = True  # whether the operation is part of the model, not of the loss
    input_range: Range | None = None  # range of the input; None if unknown
    factor: Factor | None = None  # factor of the input; None without one, or if unknown
    is_factor_zero: bool = False  # whether the factors of the units are zero
    source: Call | None = None  # the call of a module that has computed the factor
    largest: float = 1.0  # largest absolute value of the gradient that arrives
    is_one_hot: bool | None = None  # whether all outputs of a softmax are 0 or 1; None if unknown

    @property
    def operation(self) -> str:
        """Autograd's name of the operation."""
        return operation_of(self.node)

    def is_of(self, *kinds: type[nn.Module]) -> bool:
        """Return whether the operation belongs to a module of these classes."""
        return self.call is not None and isinstance(self.call.module, kinds)


_FIRST_WORDS = {"ScaledDotProduct": "scaled_dot_product_attention", "Addmm": "linear", "Mm": "linear", "Bmm": "matmul"}


def words_for(node: Any) -> str:
    """Return the name under which users know an operation.

    >>> words_for(torch.nn.functional.log_softmax(torch.ones(2, requires_grad=True), 0).grad_fn)
    'log_softmax'
    """
    operation = operation_of(node)
    for start, words in _FIRST_WORDS.items():
        if operation.startswith(start):
            return words
    operation = operation.removesuffix("Backward")
    plain = re.sub(r"^Native|^Cudnn|^Mkldnn|WithIndices$|Kernel$", "", operation)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", plain).lower()


# ---------------------------------------------------------------- factors

# By operation and input: autograd's name of the saved factor, the index of the factor among the inputs, and the
# dimensions of the factor and of the input that correspond.
_FACTORS: dict[str, dict[int, tuple[str, int, int, int]]] = {
    "Mm": {0: ("mat2", 1, 0, -1), 1: ("self", 0, 1, 0)},
    "Bmm": {0: ("mat2", 1, 1, -1), 1: ("self", 0, 2, 1)},
    "Addmm": {1: ("mat2", 2, 0, -1), 2: ("mat1", 1, 1, 0)},
    "Baddbmm": {1: ("batch2", 2, 1, -1), 2: ("batch1", 1, 2, 1)},
    "Convolution": {0: ("weight", 1, 1, 1), 1: ("input", 0, 1, 1)},
    "NativeLayerNorm": {0: ("weight", 1, -1, -1)},
    "NativeBatchNorm": {0: ("weight", 1, 0, 1)},
    "CudnnBatchNorm": {0: ("weight", 1, 0, 1)},
    "NativeGroupNorm": {0: ("weight", 1, 0, 1)},
    "Mul": {0: ("other", 1, -1, -1), 1: ("self", 0, -1, -1)},
}
_OF_ATTENTION = {0: ("value", 2, -1, 0), 1: ("value", 2, -1, 0), 2: ("query", 0, -1, 0)}
# A tensor that is computed by more operations does not count as a weight.
_MAX_NODES = 100
_NORMS = {"NativeLayerNorm", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm"}
# Operations that move or copy numbers, and compute nothing.
_THROUGH = {
    *("T", "Transpose", "View", "UnsafeView", "ReshapeAlias", "Permute", "ToCopy", "Expand", "Clone", "Unsqueeze"),
    "Repeat",
}


@torch.no_grad()
def factor_of(
    node: Any, index: int, calls: Mapping[Any, Call], storages: Mapping[int, Call | None], *, may_read: bool
) -> Factor | None:
    """Return the factor of one input of an operation; None without one, or if it may not be read.

    Call it before the backward pass frees the tensors that autograd has saved; ``may_read`` says whether they may be
    read. ``calls`` has the innermost call of a module for each node. ``storages`` maps the storages of parameters to
    None, and those of tensors without a graph to the call that returned them.
    """
    operation = operation_of(node)
    known = _OF_ATTENTION if operation.startswith("ScaledDotProduct") else _FACTORS.get(operation, {})
    if index not in known:
        return None
    name, other, dim, input_dim = known[index]
    before = node.next_functions[other][0] if other < len(node.next_functions) else None
    source = before
    while source is not None and operation_of(source) in _THROUGH and not hasattr(source, "variable"):
        source = source.next_functions[0][0]
    saved = getattr(node, f"_saved_{name}", None) if may_read else getattr(source, "variable", None)
    if not isinstance(saved, Tensor) or type(saved.data) is not Tensor or not saved.numel():
        return None
    numbers = saved.detach()
    sizes = (numbers.float() if numbers.dtype is torch.bool else numbers).abs()
    is_there: dict[int, Tensor] = {}
    if operation == "Convolution" and index == 0:
        is_there[1] = _by_channel(node, sizes) != 0
    elif operation == "Mul":
        is_there = _by_number(sizes, len(shapes_of(node)[0]))
    elif may_read and not operation.startswith("ScaledDotProduct"):  # otherwise the factor may be transposed
        is_there[input_dim] = _over_others(sizes, dim) != 0
    call = calls.get(node)
    is_leaf = call is not None and call.is_leaf
    is_computed_there = is_leaf and before is not None and calls.get(before) is call
    # These modules multiply only by weights, which may be frozen or computed.
    is_weight = is_leaf and isinstance(call.module, nn.Linear | _ConvNd) and operation != "Mul"  # type: ignore[union-attr]
    is_own = is_computed_there or is_weight or (operation in _NORMS and index == 0)
    place = storage_of(numbers)
    # Pruning leaves a module's weight without a graph.
    weight = None if call is None else call.module.__dict__.get("weight")
    is_attribute = isinstance(weight, Tensor) and 0 != storage_of(weight) == place
    is_held = is_attribute or (place != 0 and place in storages and storages[place] is None)
    is_parameter = is_held or is_own or (before is not None and _is_of_parameters(before))
    largest = sizes.amax()
    return Factor(source, storages.get(place), is_parameter, largest != 0, is_there, largest.double())


def is_one_hot(node: Any) -> Tensor | None:
    """Return whether all outputs of a softmax are 0 or 1, ``()``; None for other operations.

    Call it before the backward pass frees the tensors that autograd has saved.
    """
    saved = getattr(node, "_saved_result", None) if operation_of(node) in _SOFTMAX else None
    if not isinstance(saved, Tensor) or type(saved.data) is not Tensor:
        return None
    return ((saved.detach() == 0) | (saved.detach() == 1)).all()


def _is_of_parameters(node: Any) -> bool:
    """Return whether a tensor was computed from trained parameters only."""
    left, known = [node], {node}
    while left:
        node = left.pop()
        if hasattr(node, "variable"):
            continue
        children = [child for child, _ in node.next_functions]
        if None in children:
            # A constant, such as a mask or a scale, keeps the shape; data would add a batch dimension.
            others = [child for child in children if child is not None]
            if operation_of(node) not in ("Mul", "Div", "Add", "Sub") or len(others) != 1:
                return False
            shape = tuple(others[0].variable.shape) if hasattr(others[0], "variable") else shapes_of(others[0])[0]
            if shape != shapes_of(node)[0]:
                return False
            children = others
        left += [child for child in children if child not in known]
        known.update(children)
        if len(known) > _MAX_NODES:
            return False
    return True


def _over_others(sizes: Tensor, dim: int) -> Tensor:
    """Return the maximum over all dimensions but ``dim``, ``(size,)``."""
    others = [each for each in range(sizes.ndim) if each != dim % sizes.ndim]
    return sizes.amax(others) if others else sizes


def _by_channel(node: Any, sizes: Tensor) -> Tensor:
    """Return the largest weight of each input channel of a convolution, ``(channels,)``, given the absolute weights."""
    if node._saved_transposed:
        return sizes.flatten(1).amax(1)
    grouped = sizes.reshape(node._saved_groups, -1, sizes.shape[1], math.prod(sizes.shape[2:]))
    return grouped.amax((1, 3)).flatten()


def _by_number(sizes: Tensor, ndim: int) -> dict[int, Tensor]:
    """Return, for the last dimension and that of channels, whether any elementwise factor at each index is nonzero."""
    is_there = {}
    if sizes.ndim and sizes.shape[-1] > 1:
        is_there[-1] = _over_others(sizes, -1) != 0
    channels = 1 - ndim  # counted from the end
    if ndim > 2 and sizes.ndim >= -channels and sizes.shape[channels] > 1:
        is_there[1] = _over_others(sizes, channels) != 0
    return is_there


# ---------------------------------------------------------------- kinds, in the order in which they are checked

_Kind = Callable[[Stop], str | None]
_KINDS: list[tuple[StopKind, bool, _Kind]] = []


def _kind(kind: StopKind, *, in_model: bool = False) -> Callable[[_Kind], _Kind]:
    """Register a function that returns why a stop is of this kind, else None; with ``in_model``, not for the loss."""

    def register(check: _Kind) -> _Kind:
        _KINDS.append((kind, in_model, check))
        return check

    return register


def kind_of(stop: Stop) -> GradientStop:
    """Return why a gradient stops, without the place."""
    for kind, is_only_in_model, check in _KINDS:
        detail = check(stop) if stop.in_model or not is_only_in_model else None
        if detail is not None:
            return GradientStop(kind, detail=detail)
    return GradientStop(StopKind.UNKNOWN)


@_kind(StopKind.ONE_VALUE)
def _one_value(stop: Stop) -> str | None:
    """Return why the output of an operation on single numbers is constant; None for other operations."""
    node, operation, shapes = stop.node, stop.operation, shapes_of(stop.node)
    if stop.is_of(nn.RMSNorm) and math.prod(stop.call.module.normalized_shape) == 1:  # type: ignore[union-attr, arg-type]
        return "it normalises over a single number"
    if operation in ("Softmax", "LogSoftmax", "SafeSoftmax"):
        return "it is taken over a single number" if is_single(shapes[0], (node._saved_dim,)) else None
    if operation in ("NativeLayerNorm", "FusedRmsNorm"):
        return "it normalises over a single number" if math.prod(node._saved_normalized_shape) == 1 else None
    if operation == "NativeGroupNorm":
        size = node._saved_C // node._saved_group * node._saved_HxW
        return "it normalises over a single number" if size == 1 else None
    if operation == "Div" and _is_over_own_sum(node):
        return "a single number is divided by itself"
    if operation.startswith("ScaledDotProduct") and stop.index < 2:
        key = node.next_functions[1][0]
        is_known = key is not None and not hasattr(key, "variable")
        return "there is a single key, whose weight is always 1" if is_known and shapes_of(key)[0][-2] == 1 else None
    return None


def _is_over_own_sum(node: Any) -> bool:
    """Return whether numbers are divided by their sum or norm along a dimension of size 1."""
    numbers, divisor = node.next_functions[0][0], node.next_functions[1][0]
    while divisor is not None and operation_of(divisor) in ("Expand", "ClampMin", "Add"):
        divisor = divisor.next_functions[0][0]
    if divisor is None or operation_of(divisor) not in ("Sum", "LinalgVectorNorm"):
        return False
    summed, dims = divisor.next_functions[0][0], getattr(divisor, "_saved_dim", None)
    if summed is None or summed is not numbers or not dims:
        return False
    return is_single(shapes_of(numbers)[node.next_functions[0][1]], dims)


@_kind(StopKind.FLAT)
def _flat(stop: Stop) -> str | None:
    flat = {"Round", "Sign", "Sgn", "Floor", "Ceil", "Trunc", "Heaviside", "FloorDivide"}
    return f"{words_for(stop.node)} has no slope" if stop.operation in flat else None


@_kind(StopKind.DROPPED, in_model=True)
def _dropped(stop: Stop) -> str | None:
    if stop.is_of(nn.modules.dropout._DropoutNd) or stop.operation in ("NativeDropout", "FusedDropout"):
        return "it dropped all of them"
    if stop.operation == "MaskedFill":
        return "all of them were masked"
    factor = stop.factor
    is_constant = factor is not None and factor.node is None and factor.source is None and not factor.is_parameter
    if stop.operation in ("Mul", "Bmm") and is_constant and stop.is_factor_zero:
        return "it multiplies them by a constant or a mask of zeros"
    return None


@_kind(StopKind.ZERO_WEIGHTS, in_model=True)
def _zero_weights(stop: Stop) -> str | None:
    if stop.factor is None or not stop.is_factor_zero:
        return None
    if stop.factor.is_parameter:
        gains = stop.operation == "Mul" or stop.operation in _NORMS
        return "its gains for these units are zero" if gains else "its weights for these units are zero"
    if stop.source is not None and has_zero_weights(stop.source.module):
        return f"they are multiplied by what {stop.source.name} puts out, whose weights are zero"
    return None


def has_zero_weights(module: nn.Module) -> bool:
    """Return whether a module has matrices among its parameters, and all of them are zero."""
    weights = [each for each in module.__dict__.get("_parameters", {}).values() if each is not None and each.ndim > 1]
    here = [each.detach() for each in weights if type(each.data) is Tensor and not each.is_meta and each.numel()]
    return bool(here) and not any(bool(each.any()) for each in here)


_NO_SLOPE = "its slope is zero wherever a gradient arrives"
# Operations without a slope on one side, or on both.
CLOSING = {
    *("Relu", "Relu6", "Threshold", "Hardtanh", "Hardswish", "Hardsigmoid", "Clamp", "ClampMin", "ClampMax"),
    *("Softshrink", "Hardshrink", "LeakyRelu", "PreluKernel", "Gelu", "Silu", "Mish", "RreluWithNoise"),
    *("Maximum", "Minimum", "Where"),
}
# Operations without a slope far from zero, on both sides.
_CLIPPING = {"Hardtanh", "Hardsigmoid", "Clamp"}
_SELECTING = {"Topk", "Sort", "Kthvalue", "Amax", "Amin", "Max", "Min"}


@_kind(StopKind.CLOSED, in_model=True)
def _closed(stop: Stop) -> str | None:
    if stop.operation in CLOSING:
        return range_in_words(stop.input_range, is_clip=stop.operation in _CLIPPING) or _NO_SLOPE
    if "MaxPool" in stop.operation:
        return "none of them is ever the largest"
    if stop.operation == "Glu":
        return "what they are multiplied by is zero wherever a gradient arrives"
    if stop.operation in _SELECTING:
        return "none of them is ever selected"
    if stop.factor is not None and stop.is_factor_zero:
        return "what they are multiplied by is zero in all values seen"
    return None


_SOFTMAX = {"Softmax", "SafeSoftmax"}
_SATURATING = {"Sigmoid", "Tanh", "Softplus", "LogSigmoid", "Elu", "Celu", "Erf", "Atan", "Exp", "Softsign"}


@_kind(StopKind.SATURATED, in_model=True)
def _saturated(stop: Stop) -> str | None:
    if stop.operation in _SOFTMAX:
        # A softmax that is not saturated also returns zero where all of its outputs have the same gradient.
        return _NO_SLOPE if stop.is_one_hot else None
    if stop.operation not in _SATURATING:
        return None
    return range_in_words(stop.input_range, is_clip=True) or _NO_SLOPE


# Activations whose slope is largest near zero.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Softplus": functional.softplus,
    "LogSigmoid": functional.logsigmoid,
    "Hardsigmoid": functional.hardsigmoid,
}


def explains(node: Any, input_range: Range | None) -> bool:
    """Return whether an activation has no slope in the whole range of its input.

    >>> node = torch.ones(1, requires_grad=True).sigmoid().grad_fn
    >>> explains(node, Range.of(torch.tensor([[30.0, 40.0]]), -1)), explains(node, Range.of(torch.ones(1, 2), -1))
    (True, False)
    """
    operation = operation_of(node)
    if input_range is None:
        return False
    lowest, highest, nearest = input_range.lowest.amin(), input_range.highest.amax(), input_range.nearest.amin()
    if operation in ("Clamp", "Hardtanh"):
        low = getattr(node, "_saved_min", getattr(node, "_saved_min_val", None))
        high = getattr(node, "_saved_max", getattr(node, "_saved_max_val", None))
        is_below = isinstance(low, int | float) and bool(highest < low)
        return is_below or (isinstance(high, int | float) and bool(lowest > high))
    function = _FUNCTIONS.get(operation)
    if function is None:
        return False
    points = torch.stack([lowest, highest, nearest.clamp(max=highest), (-nearest).clamp(min=lowest)]).detach()
    with torch.enable_grad():
        points.requires_grad_()
        [slopes] = torch.autograd.grad(function(points).sum(), [points])
    return not bool(slopes.any())


@_kind(StopKind.ROUNDING)
def _rounding(stop: Stop) -> str | None:
    dtype = stop.node._input_metadata[0].dtype
    tiny = torch.finfo(dtype).tiny if dtype.is_floating_point else 0.0
    factor = 1.0 if stop.factor is None or stop.is_factor_zero else float(stop.factor.largest)
    if stop.operation == "ToCopy" or 0 < stop.largest * factor < tiny:
        return f"the largest gradient that goes in is {stop.largest:.1g}, and underflows"
    return None


@_kind(StopKind.LOSS)
def _loss(stop: Stop) -> str | None:
    return None if stop.in_model else f"{words_for(stop.node)} in the loss lets none through"


def range_in_words(input_range: Range | None, *, is_clip: bool) -> str:
    """Return the range of an input in words; empty if it does not explain why there is no slope.

    With ``is_clip``, the slope vanishes on both sides of zero, otherwise only below.

    >>> numbers = torch.tensor([[-3.5, -3.125], [-4.0, -5.0]])
    >>> range_in_words(Range.of(numbers, -1), is_clip=False)
    'its input is at most -3.1 in all 4 values seen'
    """
    if input_range is None:
        return ""
    lowest, highest = float(input_range.lowest.amin()), float(input_range.highest.amax())
    nearest, count = float(input_range.nearest.amin()), input_range.num_each * len(input_range.lowest)
    if not all(map(math.isfinite, (lowest, highest))):
        return ""
    seen = f"in all {count:,} values seen" if count > 1 else "in the only value seen"
    if highest <= 0:
        return f"its input is at most {_two_digits(highest, math.ceil)} {seen}"  # rounded up, so that the bound holds
    if not is_clip:
        return ""
    if lowest > 0:
        return f"its input is at least {_two_digits(lowest, math.floor)} {seen}"
    return f"its input is at least {_two_digits(nearest, math.floor)} from zero {seen}" if nearest > 0 else ""


def _two_digits(number: float, rounded: Callable[[float], int]) -> str:
    if not number:
        return "0"
    exponent = math.floor(math.log10(abs(number))) - 1
    shown = rounded(round(number / 10.0**exponent, 9)) * 10.0**exponent
    return f"{shown:.{max(0, -exponent)}f}".rstrip("0").rstrip(".") if -5 < exponent < 0 else f"{shown:.6g}"
