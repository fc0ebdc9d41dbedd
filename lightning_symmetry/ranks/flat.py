"""Parameters that are laid end to end and cut into one interval per rank: the part of each on this rank.

FSDP1 and DeepSpeed's ZeRO ignore rows: an interval can begin and end in the middle of one. It consists of a few boxes:
the end of a row, whole rows, and the beginning of a row.
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
    """This rank's part of a parameter that is laid end to end with others."""

    source: Tensor  # the tensor with this rank's numbers, which the optimizer updates
    offset: int  # index in ``source`` of the parameter's first number
    length: int  # how many numbers of the parameter follow there
    start: int  # index of the first of them in the flattened parameter
    shape: tuple[int, ...]  # shape of the whole parameter
    key: object  # equal for parts of the same parameter only

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers, the same on all ranks."""
        return self.source.dtype

    @property
    def gradient_dtype(self) -> torch.dtype:
        """The coarsest dtype in which the gradient was computed, the same on all ranks."""
        return self.source.dtype

    def numbers(self) -> Tensor:
        """Return this rank's numbers of the parameter, ``(length,)``."""
        return self.source.detach()[self.offset : self.offset + self.length]

    def gradient(self) -> Tensor | None:
        """Return the gradient of these numbers, ``(length,)``; None if there is none."""
        if not self.length:
            return self.source.detach()[:0]
        gradient = self.source.grad
        if gradient is None or gradient.layout != torch.strided:
            return None
        return gradient.detach()[self.offset : self.offset + self.length]


def without_numbers(module: nn.Module, parts: Mapping[str, FlatPart]) -> tuple[nn.Module, dict[int, FlatPart]]:
    """Make a stand-in for a module with flattened parameters, for adapters, which read shapes and make views.

    Its parameters have their whole shapes but no numbers. Return it, and the parts by ``id`` of the new parameters.
    """
    whole = {
        name: nn.Parameter(torch.empty(part.shape, device="meta"), requires_grad=False) for name, part in parts.items()
    }
    stand_in = object.__new__(type(module))
    kept = {key: value for key, value in module.__dict__.items() if key not in parts}
    stand_in.__dict__ = {**kept, "_parameters": {**held(module, "_parameters"), **whole}}
    return stand_in, {id(whole[name]): part for name, part in parts.items()}


def boxes(numbers: Tensor, start: int, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Split consecutive numbers of a flattened tensor, from index ``start`` on; yield boxes, and where they begin."""
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
        for box, place in boxes(numbers[:count], start % width, shape[1:]):
            yield box[None], (row, *place)
        yield from boxes(numbers[count:], start + count, shape)
        return
    count = (end - start) // width
    yield numbers[: count * width].reshape(count, *shape[1:]), (row, *[0] * (len(shape) - 1))
    yield from boxes(numbers[count * width :], start + count * width, shape)
