"""The fallback for parameters that no adapter knows: the slices along each dimension count as units.

Equal slices with equal gradients train as one, whatever the module computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from lightning_symmetry.ranks.pieces import View

# Single numbers are not compared: they are often equal by chance.
_MIN_NUMBERS = 2


class Slicing(NamedTuple):
    """A way to cut a parameter into comparable slices.

    Attributes:
        label: suffix of the parameter's name in the name of the layer, such as ``[dim 0]``.
        dim: the dimension that counts slices; None if several do.
        view: ``parameter -> (num_slices, ...)``, without a copy.
        blocks: number of blocks of consecutive slices; slices of different blocks are never compared.
    """

    label: str
    dim: int | None
    view: View
    blocks: int = 1


def slicings_of(shape: Sequence[int]) -> Iterator[Slicing]:
    """Yield all ways to slice a parameter of this shape: along each dimension, and as a stack of matrices.

    A parameter of three dimensions may be such a stack, as the weights of experts are: rows are compared within each
    matrix.

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
        yield Slicing("[dims 0, 1]", None, lambda stack: stack.flatten(0, 1), blocks=shape[0])


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a parameter of this shape has slices to compare, and not just one number per unit.

    Example:
        >>> is_matrix((3, 4)), is_matrix((1, 1, 4)), is_matrix((4,))
        (True, False, False)
    """
    return any(True for _ in slicings_of(shape))


def _along(dim: int) -> View:
    return lambda tensor: tensor.movedim(dim, 0)
