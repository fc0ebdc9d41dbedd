"""The fallback for parameters that no adapter knows: their slices along each dimension are taken for units.

Slices that are equal and whose gradients are equal train as one, whatever a module computes with them. So nothing need
be known of the module to find them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from lightning_symmetry.ranks.pieces import View

# Slices of a single number are not compared: that two numbers are equal says too little.
_MIN_NUMBERS = 2


class Slicing(NamedTuple):
    """A way to cut a parameter into slices that can be compared with one another.

    Attributes:
        label: what follows the name of the parameter in the name of the layer, such as ``[dim 0]``.
        dim: the dimension along which there is a slice for each index; None if it is not just one.
        view: turns the parameter into ``(num_slices, ...)`` without copying it.
        blocks: number of blocks of consecutive slices; slices of different blocks are never compared.
    """

    label: str
    dim: int | None
    view: View
    blocks: int = 1


def slicings_of(shape: Sequence[int]) -> Iterator[Slicing]:
    """All ways in which a parameter of this shape is looked at, if no adapter knows it.

    Each dimension gives the slices along it. A parameter of three dimensions may also be a stack of matrices, such as
    the weights of experts: within each matrix its rows are compared.

    Example:
        >>> [slicing.label for slicing in slicings_of((6, 4))]
        ['[dim 0]', '[dim 1]']
        >>> [slicing.label for slicing in slicings_of((8, 6, 4))]
        ['[dim 0]', '[dim 1]', '[dim 2]', '[dims 0, 1]']
        >>> list(slicings_of((1, 1, 4)))  # one number per unit
        []
    """
    numbers = prod(shape)
    for dim, size in enumerate(shape):
        if size > 1 and numbers // size >= _MIN_NUMBERS:
            yield Slicing(f"[dim {dim}]", dim, _along(dim))
    if len(shape) == 3 and min(shape[:2]) > 1 and shape[2] >= _MIN_NUMBERS:
        yield Slicing("[dims 0, 1]", None, _rows_of_stack, blocks=shape[0])


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape has slices to compare, rather than one number per unit at most.

    Example:
        >>> is_matrix((3, 4)), is_matrix((1, 1, 4)), is_matrix((4,))
        (True, False, False)
    """
    return any(True for _ in slicings_of(shape))


def _along(dim: int) -> View:
    return lambda tensor: tensor.movedim(dim, 0)


def _rows_of_stack(stack: Tensor) -> Tensor:
    return stack.flatten(0, 1)
