"""What the merging of units does to the numbers of one tensor, to its gradient and to what an optimizer keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Equal:
    """Slices of a tensor that are equal, or mirror images, if units are.

    Attributes:
        name: name of the parameter or buffer in the model.
        dim: the dimension along which the slices lie.
        pairs: the index of a slice, that of the one that it equals, and the sign.
    """

    name: str
    dim: int
    pairs: tuple[tuple[int, int, int], ...]

    def make_so(self, tensor: Tensor) -> None:
        """Make the slices of a tensor equal, in place.

        Example:
            >>> tensor = torch.tensor([1.0, 2.0, 3.0])
            >>> Equal("bias", 0, ((2, 0, -1),)).make_so(tensor)
            >>> tensor
            tensor([ 1.,  2., -1.])
        """
        indices, others, signs = zip(*self.pairs, strict=True)
        slices = tensor.detach().index_select(self.dim, _index(others, tensor))
        tensor.detach().index_copy_(self.dim, _index(indices, tensor), slices * _along(signs, self.dim, slices))


@dataclass(frozen=True)
class Edit:
    """Slices of a tensor are added to others and dropped.

    Attributes:
        name: name of the parameter or buffer in the model.
        dim: the dimension in question, of size ``n``.
        kept: indices of the slices that stay, sorted.
        added: for every slice whose numbers are added to another one before it is dropped: its index, that of the other
            one, and the sign.
        factors: for every slice that stays, what its gradient in the merged network has to be multiplied by for the
            merged network to follow the original one.
    """

    name: str
    dim: int
    kept: tuple[int, ...]
    added: tuple[tuple[int, int, int], ...]
    factors: tuple[float, ...]

    def fold(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in which slices are added to others; none is dropped yet."""
        if not self.added:
            return tensor.clone()
        # Thousands of equal numbers add up with an error that shows; some devices have no float64.
        exact = tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64, copy=True)
        gone, into, signs = zip(*self.added, strict=True)
        slices = exact.index_select(self.dim, _index(gone, exact))
        return exact.index_add_(self.dim, _index(into, exact), slices * self._along(signs, exact)).to(tensor)

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor after the merge. So go the weights, and all that is linear in the gradient, like a momentum."""
        return self._keep(self.fold(tensor))

    def apply_to_squares(self, tensor: Tensor) -> Tensor:
        """An average of squared gradients after the merge, as if gradients had been multiplied by their factors.

        The gradient of a sum of ``m`` slices is then ``m`` times that of each; all others are those of the original.
        """
        kept = self._keep(tensor)
        return kept * self.correction(tensor).square() if self.added else kept

    def apply_to_scale(self, scale: Tensor) -> Tensor:
        """Factors of a gradient, of size 1 along the dimensions in which they are equal, with those of this merge."""
        kept = scale if scale.shape[self.dim] == 1 else self._keep(scale)
        return kept * self.correction(scale)

    def correction(self, like: Tensor) -> Tensor:
        """What the gradient in the merged network has to be multiplied by, to be broadcast to the tensor."""
        return self._along(self.factors, like)

    def _keep(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(self.dim, _index(self.kept, tensor))

    def _along(self, numbers: Iterable[float], like: Tensor) -> Tensor:
        return _along(numbers, self.dim, like)


def gradient_scales(edits: Iterable[Edit], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors for the gradients of the merged network, by the names of parameters, where any is not 1.

    Args:
        edits: what was done, in this order.
        parameters: those of the merged network that are trained, by name.
    """
    scales: dict[str, Tensor] = {}
    for edit in edits:
        parameter = parameters.get(edit.name)
        if parameter is not None:  # else it is a buffer, or frozen
            ones = torch.ones([1] * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
            scales[edit.name] = edit.apply_to_scale(scales.get(edit.name, ones))
    return {name: scale for name, scale in scales.items() if not bool((scale == 1).all())}


def _along(numbers: Iterable[float], dim: int, like: Tensor) -> Tensor:
    vector = torch.tensor(list(numbers), dtype=like.dtype, device=like.device)
    return vector.reshape([-1 if each == dim % like.ndim else 1 for each in range(like.ndim)])


def _index(indices: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(indices), dtype=torch.long, device=like.device)


def edit_of_writer(name: str, dim: int, size: int, sets: Iterable[Iterable[tuple[int, int]]]) -> Edit:
    """The edit of a tensor with a slice for each unit: the first slice of each set stays.

    A slice that stands for ``m`` units gets ``m`` times the gradient, so the factor is ``1 / m``.

    Args:
        name: name of the tensor in the model.
        dim: its dimension in question.
        size: the size of this dimension.
        sets: for every set of equal slices, their indices, and a sign that plays no part here.
    """
    return _edit(name, dim, size, sets, adds=False)


def edit_of_reader(name: str, dim: int, size: int, sets: Iterable[Iterable[tuple[int, int]]]) -> Edit:
    """The edit of a tensor that is multiplied by the outputs of units: the slices of each set are added up.

    A sum of ``m`` slices gets the gradient of one, so the factor is ``m``. The arguments are those of
    :func:`edit_of_writer`; the sign says how a slice enters the sum.

    Example:
        >>> edit = edit_of_reader("fc2.weight", 1, 3, [[(0, 1), (2, -1)]])
        >>> edit.apply(torch.tensor([[1.0, 2.0, 3.0]])), edit.factors
        (tensor([[-2.,  2.]]), (2.0, 1.0))
    """
    return _edit(name, dim, size, sets, adds=True)


def _edit(name: str, dim: int, size: int, sets: Iterable[Iterable[tuple[int, int]]], adds: bool) -> Edit:
    added: list[tuple[int, int, int]] = []
    multiplicity: dict[int, int] = {}
    for members in sets:
        (first, sign), *others = members
        multiplicity[first] = 1 + len(others)
        added += [(index, first, sign * other) for index, other in others]
    gone = {index for index, _, _ in added}
    kept = tuple(index for index in range(size) if index not in gone)
    power = 1 if adds else -1
    factors = tuple(math.pow(multiplicity.get(index, 1), power) for index in kept)
    return Edit(name, dim, kept, tuple(added) if adds else (), factors)
