"""Parameters that are laid end to end and cut into one interval per rank: what a rank holds of each of them.

FSDP1 and DeepSpeed's ZeRO do so without regard to rows: an interval can begin and end in the middle of one. It is made
of a few boxes: the end of a row, whole rows, and the beginning of another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_symmetry.modules import held


@dataclass(frozen=True)
class FlatPart:
    """What this rank holds of a parameter that is laid end to end with others.

    Attributes:
        source: the tensor with this rank's numbers, which the optimizer updates.
        offset: the index in ``source`` of the first number of the parameter.
        length: how many numbers of the parameter follow there.
        start: the index of the first of them in the flattened parameter.
        shape: the shape of the whole parameter.
        key: equal for parts of the same parameter, and for no others.
    """

    source: Tensor
    offset: int
    length: int
    start: int
    shape: tuple[int, ...]
    key: object

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers, the same on all ranks."""
        return self.source.dtype

    @property
    def gradient_dtype(self) -> torch.dtype:
        """The coarsest dtype that the gradient has gone through, the same on all ranks."""
        return self.source.dtype

    def numbers(self) -> Tensor:
        """This rank's numbers of the parameter, ``(length,)``."""
        return self.source.detach()[self.offset : self.offset + self.length]

    def gradient(self) -> Tensor | None:
        """The gradient of these numbers, ``(length,)``; None if there is none."""
        if not self.length:
            return self.source.detach()[:0]
        gradient = self.source.grad
        if gradient is None or gradient.layout != torch.strided:
            return None
        return gradient.detach()[self.offset : self.offset + self.length]

    def boxes(self, numbers: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The boxes that make up this part.

        Args:
            numbers: what :meth:`numbers` or :meth:`gradient` returned.

        Yields:
            The numbers of a box, and the coordinates in the whole parameter at which it begins.
        """
        return _boxes(numbers, self.start, self.shape)


def without_numbers(module: nn.Module, parts: Mapping[str, FlatPart]) -> tuple[nn.Module, dict[int, FlatPart]]:
    """A stand-in for a module with parameters that are cut into parts, for adapters that look at shapes and make views.

    Args:
        module: the module; it stays as it is.
        parts: what this rank holds of these parameters, by name.

    Returns:
        The stand-in, in which these parameters have their whole shapes but no numbers, and the parts by the identity
        (``id``) of the new parameters.
    """
    whole = {
        name: nn.Parameter(torch.empty(part.shape, device="meta"), requires_grad=False) for name, part in parts.items()
    }
    stand_in = object.__new__(type(module))
    kept = {key: value for key, value in module.__dict__.items() if key not in parts}
    stand_in.__dict__ = {**kept, "_parameters": {**held(module, "_parameters"), **whole}}
    return stand_in, {id(whole[name]): part for name, part in parts.items()}


def _boxes(numbers: Tensor, start: int, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The boxes that make up some consecutive numbers of a flattened tensor, which begin at ``start`` in it."""
    if not len(numbers):
        return
    if len(shape) == 1:
        yield numbers, (start,)
        return
    width = math.prod(shape[1:])
    end = start + len(numbers)
    row = start // width
    if start % width or end < (row + 1) * width:  # a part of a row
        count = min(end, (row + 1) * width) - start
        for box, place in _boxes(numbers[:count], start % width, shape[1:]):
            yield box[None], (row, *place)
        yield from _boxes(numbers[count:], start + count, shape)
        return
    count = (end - start) // width
    yield numbers[: count * width].reshape(count, *shape[1:]), (row, *[0] * (len(shape) - 1))
    yield from _boxes(numbers[count * width :], start + count * width, shape)
