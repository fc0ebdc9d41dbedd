"""Labels: which numbers of a tensor depend on which traced units, operation by operation.

The labels of a tensor are integers of its shape: 0 for numbers that depend on no traced unit, ``k > 0`` for those that
depend on unit ``k - 1`` only, and :data:`MANY` for several or unknown units. None means :data:`MANY` everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.tracing.autograd import names_of_saved, operation_of, shapes_of, signed

MANY = -1

Labels = Tensor | None
_Rule = Callable[[Any, int, Tensor, Sequence[tuple[int, ...]]], Tensor]


def carry(node: Any, index: int, labels: Labels, shape: Sequence[int], *, may_read: bool) -> list[Labels]:
    """Return the labels of each output of an operation, given the index, labels and shape of one input.

    With ``may_read``, tensors that autograd has saved may be read.
    """
    operation = operation_of(node)
    shapes = shapes_of(node)
    every: list[Labels] = [None] * len(shapes)
    is_move = operation in _MOVES and not getattr(node, "_saved_accumulate", False)  # accumulating adds numbers
    if labels is None:
        if operation not in _JOINING or not is_move:
            return every
        labels = torch.full(tuple(shape), MANY, dtype=torch.int32, device=node._input_metadata[0].device)
    if node.name() == "BackwardHookFunctionBackward":  # the identity, for backward hooks of modules
        every[index] = labels
        return every
    try:
        if is_move:
            if names_of_saved(node) and not may_read:
                return every
            return [_shortened(each) for each in _moved(node, index, labels, shapes)]
        rule = _RULES.get(operation)
        if rule is None:
            return every
        every[0] = _shortened(rule(node, index, labels, shapes).expand(shapes[0]))
    except Exception:  # the rule does not cover this shape
        return [None] * len(shapes)
    return every


def merge(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the labels of a sum over some dimensions, which are kept with size 1.

    >>> merge(torch.tensor([[1, 1, 0], [1, 2, 0], [0, 0, 0]]), [1]).tolist()
    [[1], [-1], [0]]
    """
    if not dims:
        return labels
    labels = without_copies(labels, dims)
    highest = labels.amax(tuple(dims), keepdim=True)
    lowest = labels.masked_fill(labels == 0, torch.iinfo(labels.dtype).max).amin(tuple(dims), keepdim=True)
    is_one = (lowest == highest) | (highest == 0) & (lowest > 0)
    return torch.where(is_one, highest, MANY)


def without_copies(labels: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Return labels with size 1 along expanded dimensions: all of them, or those in ``dims``.

    >>> without_copies(torch.tensor([[1], [2]]).expand(2, 1000)).shape
    torch.Size([2, 1])
    """
    for dim in range(labels.ndim) if dims is None else dims:
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def present_labels(labels: Tensor) -> set[int]:
    """Return the labels that occur.

    >>> sorted(present_labels(torch.tensor([0, 2, 2, MANY])))
    [-1, 0, 2]
    """
    counts = torch.bincount((without_copies(labels) - MANY).flatten())
    return {label + MANY for label in counts.nonzero().flatten().tolist()}


def along(labels: Labels, dim: int) -> Tensor | None:
    """Return the labels along one dimension, ``(size,)``; None if numbers at one index have different labels.

    >>> along(torch.tensor([[1, 0, 2], [1, 0, 0]]), -1).tolist()
    [1, 0, 2]
    """
    if labels is None or not -labels.ndim <= dim < labels.ndim:
        return None
    merged = merge(labels, [each for each in range(labels.ndim) if each != dim % labels.ndim]).flatten()
    return None if bool((merged == MANY).any()) else merged


def join(one: Labels, other: Labels) -> Labels:
    """Return the labels of a sum of two tensors."""
    if one is None or other is None:
        return None
    return _shortened(torch.where(one == 0, other, torch.where((other == 0) | (other == one), one, MANY)))


def _shortened(labels: Tensor) -> Labels:
    return None if bool((without_copies(labels) == MANY).all()) else labels


def _moved(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the output labels of an operation that only moves or drops numbers.

    Its backward function moves gradients the other way: given the places of the outputs as gradients, it returns the
    place to which each input was moved.
    """
    sizes = [math.prod(shape) for shape in shapes]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    places = [
        torch.arange(end - size + 1, end + 1, device=labels.device).view(shape)
        for size, end, shape in zip(sizes, ends, shapes, strict=True)
    ]
    try:
        back = node(*places)
    except RuntimeError:  # some backward functions require the dtype of the forward pass
        dtypes = [each.dtype for each in node._input_metadata]
        has_fractions = all(dtype.is_floating_point or dtype.is_complex for dtype in dtypes)
        if not has_fractions or any(ends[-1] > 2 / torch.finfo(dtype).eps for dtype in dtypes):
            raise
        back = node(*(each.to(dtype) for each, dtype in zip(places, dtypes, strict=True)))
    source = (back if isinstance(back, tuple) else (back,))[index]
    source = (source.real if source.is_complex() else source).long().flatten()
    moved = torch.zeros(ends[-1] + 1, dtype=labels.dtype, device=labels.device)
    moved[source] = labels.flatten()  # place 0 collects dropped numbers
    return [moved[1 + end - size : 1 + end].view(shape) for size, end, shape in zip(sizes, ends, shapes, strict=True)]


def _merging(dims_of: Callable[[Any, int], Sequence[int]]) -> _Rule:
    """Return the rule of an operation that mixes numbers along dimensions, given its node and the input's index."""
    return lambda node, index, labels, shapes: merge(labels, dims_of(node, index))


def _of_matrix(rows: int, columns: int) -> _Rule:
    """Return the rule of a product of two matrices, given their indices among the inputs."""
    return _merging(lambda node, index: {rows: [-1], columns: [-2]}.get(index, []))


def _of_convolution(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    batch, channels, *spatial = shapes[0]
    groups, ones = node._saved_groups, [1] * len(spatial)
    if index == 0:
        grouped = labels.reshape(batch, groups, -1)
        per_group = merge(grouped, [2]).expand(-1, -1, channels // groups)
        return per_group.reshape(batch, channels, *ones)
    if index == 2:
        return labels.view(1, channels, *ones)
    if node._saved_transposed:  # (inputs, outputs of a group, ...)
        grouped = labels.reshape(groups, labels.shape[0] // groups, labels.shape[1], -1)
        return merge(grouped, [1, 3]).reshape(1, channels, *ones)
    return merge(labels.reshape(channels, -1), [1]).reshape(1, channels, *ones)


def _of_batch_norm(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    if index:
        return labels.view(1, -1, *[1] * (len(shapes[0]) - 2))
    return merge(labels, [dim for dim in range(labels.ndim) if dim != 1])


def _of_group_norm(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    batch, channels, *spatial = shapes[0]
    if index:
        return labels.view(1, -1, *[1] * len(spatial))
    grouped = merge(labels.reshape(batch, node._saved_group, -1), [2])
    return grouped.expand(-1, -1, channels // node._saved_group).reshape(batch, channels, *[1] * len(spatial))


def _of_pooling(num_dims: int) -> _Rule:
    return _merging(lambda node, index: range(-num_dims, 0))


def _of_reduction(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    dims = getattr(node, "_saved_dim", None)
    if dims is None or dims == ():
        dims = range(labels.ndim)
    several = dims if isinstance(dims, Sequence) else [dims]
    return merge(labels, [signed(dim) % labels.ndim for dim in several]).reshape(shapes[0])


def _of_repeat(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    times = [size // max(1, before) for size, before in zip(shapes[0][-labels.ndim :], labels.shape, strict=True)]
    return labels.repeat(*shapes[0][: -labels.ndim], *times) if labels.ndim else labels


def _of_glu(node: Any, index: int, labels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    one, other = labels.chunk(2, signed(node._saved_dim))
    joined = join(one, other)
    return torch.full_like(one, MANY) if joined is None else joined


_POOLING = {
    f"{name}{n}D{rest}": _of_pooling(n)
    for n in (1, 2, 3)
    for name in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "MkldnnMaxPool", "MkldnnAdaptiveAvgPool")
    for rest in ("", "WithIndices")
}
_POOLING |= {
    f"Upsample{kind}{n}D": _of_pooling(n)
    for kind, n in (("Nearest", 1), ("Nearest", 2), ("Nearest", 3), ("Bilinear", 2), ("Bicubic", 2), ("Trilinear", 3))
}
_ATTENTION = [
    f"ScaledDotProduct{kind}"
    for kind in ("FlashAttentionForCpu", "FlashAttention", "EfficientAttention", "CudnnAttention", "AttentionMath")
]
_RULES: dict[str, _Rule] = {
    "Mm": _of_matrix(0, 1),
    "Bmm": _of_matrix(0, 1),
    "Addmm": _of_matrix(1, 2),
    "Baddbmm": _of_matrix(1, 2),
    "Convolution": _of_convolution,
    "Embedding": _merging(lambda node, index: [0]),
    "NativeLayerNorm": _merging(lambda node, index: [] if index else range(-len(node._saved_normalized_shape), 0)),
    "NativeGroupNorm": _of_group_norm,
    "Glu": _of_glu,
    "Repeat": _of_repeat,
    "ViewAsReal": lambda node, index, labels, shapes: labels[..., None],
    "ViewAsComplex": lambda node, index, labels, shapes: merge(labels, [-1])[..., 0],
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), _of_batch_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "SafeSoftmax"), _merging(lambda node, index: [signed(node._saved_dim)])),
    **dict.fromkeys(
        ("FftR2C", "FftC2R", "FftC2C"), _merging(lambda node, index: [signed(dim) for dim in node._saved_dim])
    ),
    **dict.fromkeys(_ATTENTION, _merging(lambda node, index: ([-1], [-2, -1], [-2])[index])),
    **dict.fromkeys(("Sum", "Mean", "Amax", "Amin", "Logsumexp", "Prod", "Var", "Std", "Norm"), _of_reduction),
    **_POOLING,
}
_ELEMENTWISE = (
    *("Abs", "Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Pow", "Exp", "Expm1", "Log", "Log1P", "Sqrt", "Rsqrt"),
    *("Reciprocal", "Erf", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Lerp", "Addcmul", "Addcdiv", "Expand", "Copy"),
    *("Relu", "Relu6", "LeakyRelu", "PreluKernel", "Elu", "Gelu", "Silu", "Mish", "Tanh", "Sigmoid", "Hardtanh"),
    *("Hardswish", "Hardsigmoid", "Softplus", "Softshrink", "Hardshrink", "Threshold", "Clamp", "ClampMin", "ClampMax"),
    *("LogSigmoid", "Celu", "RreluWithNoise", "Round", "Sign", "Sgn", "Floor", "Ceil", "Trunc", "Frac", "NanToNum"),
    *("MaskedFill", "Where", "Maximum", "Minimum", "NativeDropout", "ToCopy", "Clone", "WeightNormInterface"),
    *("Complex", "Polar", "Angle", "Conj", "ConjPhysical", "NegView"),
    *("MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"),
)
_RULES |= dict.fromkeys(_ELEMENTWISE, lambda node, index, labels, shapes: labels)
# Operations whose outputs hold the numbers of several inputs, side by side.
_JOINING = {"Cat", "Stack", "ConstantPadNd", "IndexPut"}
_MOVES = {
    *_JOINING,
    *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Flip", "Roll"),
    *("Alias", "Movedim", "PixelShuffle", "PixelUnshuffle", "NativeChannelShuffle", "ChannelShuffle"),
    *("Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind"),
    *("Index", "IndexSelect", "Gather", "MaskedSelect", "AsStrided", "Diagonal", "Narrow"),
    *("Topk", "Sort", "Kthvalue"),
}
