"""Layers: sets of units, and how the weights and gradients that feed them are read as matrices with a row per unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.fsdp1 import FlatPart
from lightning_symmetry.ranks.pieces import Piece, View, is_sharded, part_of_rows, piece_of_part
from lightning_symmetry.ranks.sharded import matrix_of
from lightning_symmetry.units.registry import NotUnderstoodError
from lightning_symmetry.units.updates import Updates

_COMPLEX = (torch.complex64, torch.complex128)


def is_trained(parameter: Tensor, trained: Set[int] | None) -> bool:
    """Whether the gradient of a parameter is up to date.

    Args:
        parameter: the parameter.
        trained: identities (``id``) of the parameters that the current optimizer updates; None: all.
    """
    return parameter.requires_grad and (trained is None or id(parameter) in trained)


def readable_gradient(parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter; None if it has none or a sparse one."""
    gradient = parameter.grad
    return None if gradient is None or gradient.layout != torch.strided else gradient.detach()


def real_rows(rows: Tensor) -> Tensor:
    """Return rows of complex numbers as real ones, their real and imaginary parts apart, ``(n, 2, ...)``.

    Rows of real numbers are returned as they are.
    """
    return torch.view_as_real(rows.resolve_conj()).movedim(-1, 1) if rows.is_complex() else rows


def complex_rows(rows: Tensor) -> Tensor:
    """Return the rows of complex numbers that :func:`real_rows` has made real ones of."""
    return torch.view_as_complex(rows.movedim(1, -1).contiguous())


class WrongShapesError(NotUnderstoodError):
    """Tensors of an adapter that do not fit together; the message says why."""


@dataclass(frozen=True)
class Incoming:
    """One tensor that feeds the units of a layer.

    Attributes:
        weights: the tensor as the layer uses it.
        view: turns a tensor of this shape into one whose first dimension counts units, ``(num_units, ...)``; complex
            numbers into pairs of real ones, as :func:`real_rows` does.
        originals: the parameters that ``weights`` is computed from, if the layer is parametrized; the parameter that
            holds this rank's numbers, if FSDP1 has flattened it; else ``weights`` itself.
        part: what this rank holds of the parameter, if FSDP1 has flattened it. ``weights`` is then a tensor on the
            meta device, which has the shape of the whole parameter and no numbers.
    """

    weights: Tensor
    view: View
    originals: tuple[Tensor, ...]
    part: FlatPart | None = None

    @property
    def keys(self) -> tuple[object, ...]:
        """One value for each parameter in question; other layers with the same parameter have the same value."""
        return tuple(map(id, self.originals)) if self.part is None else (self.part.key,)

    @property
    def is_plain(self) -> bool:
        """Whether this is a parameter that lies here in full and is used as it is."""
        is_parameter = len(self.originals) == 1 and self.originals[0] is self.weights
        return self.part is None and is_parameter and not is_sharded(self.weights)

    def rows(self) -> Tensor | Piece:
        """The weights as ``(num_units, ...)``; if they are sharded, what this rank holds of them."""
        if self.part is not None:
            return piece_of_part(self.part, self.part.source, self.view)
        return part_of_rows(self.weights, self.view)

    def gradients(self, trained: Set[int] | None) -> list[Tensor | Piece | None]:
        """The gradient of each original that is trained, as ``(num_units, ...)``; None for one without a gradient."""
        return [self._gradient(original) for original in self.originals if is_trained(original, trained)]

    def _gradient(self, original: Tensor) -> Tensor | Piece | None:
        gradient = readable_gradient(original)
        if self.part is not None and (gradient is not None or not self.part.length):
            return piece_of_part(self.part, gradient, self.view)
        if gradient is None:
            return None
        if gradient.shape == self.weights.shape:
            return part_of_rows(gradient, self.view)
        # The original of a parametrization may have another shape than the weight, but a row for each unit, like the
        # norms in weight_norm. Of any other shape it does not say which numbers belong to which unit.
        return real_rows(gradient) if len(gradient) == len(self.rows()) else None


@dataclass(frozen=True)
class Layer:
    """A set of units whose rows can be compared with one another.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        tensors: what feeds the units, the weight first.
        blocks: number of equal blocks of consecutive units; units of different blocks are never compared.
        recurrent: the tensor that feeds the units back into themselves; its view gives
            ``(num_units, gates, num_units)``.
        also: names of further layers that share the weight.
        num_units: number of units.
        shapes: shape ``(num_units, ...)`` that the view of each tensor gives, the recurrent tensor last.
        fan_in: number of weights that feed one unit, without the bias.
        place: a value that is equal for layers whose weights are read from the same parameter in the same way.
        can_freeze: whether a zero gradient, check after check, is evidence against the units.
        slices_of: name of the parameter, if these units are its slices along one of its dimensions because no adapter
            knows it; empty for layers with an adapter.
        row_names: names of the rows where they are not units but modules; empty for layers.
    """

    name: str
    tensors: tuple[Incoming, ...]
    blocks: int = 1
    recurrent: Incoming | None = None
    also: tuple[str, ...] = ()
    can_freeze: bool = True
    slices_of: str = ""
    num_units: int = field(init=False)
    shapes: tuple[torch.Size, ...] = field(init=False)
    fan_in: int = field(init=False)
    place: object = field(init=False)
    row_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        several = [tensor.rows() for tensor in self.all_tensors()]
        shapes = tuple(rows.shape for rows in several)
        if len({shape[0] for shape in shapes}) != 1 or shapes[0][0] % self.blocks:
            raise WrongShapesError(
                f"its adapter gives tensors of shapes {[tuple(shape) for shape in shapes]} in {self.blocks} blocks; "
                "expected the same number of units first in each, divisible by the number of blocks"
            )
        object.__setattr__(self, "num_units", shapes[0][0])
        object.__setattr__(self, "shapes", shapes)
        feeds = [shapes[0], *(shapes[-1:] if self.recurrent else [])]
        object.__setattr__(self, "fan_in", sum(shape[1:].numel() for shape in feeds))
        object.__setattr__(self, "place", _place_of(several[0], self.tensors[0].weights, self.blocks))

    def all_tensors(self) -> list[Incoming]:
        """All that feeds the units, the recurrent tensor last."""
        return [*self.tensors, *([self.recurrent] if self.recurrent else [])]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tensors[0].originals[0].device

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """The identities (``id``) of the parameters of this layer."""
        return tuple(map(id, self.originals))

    def weights(self) -> Rows:
        """One row per unit: the incoming weights side by side, without the recurrent tensor."""
        return matrix_of([tensor.rows() for tensor in self.tensors])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """One row per unit: the gradients side by side, that of the recurrent tensor included.

        Args:
            trained: identities (``id``) of the parameters that the current optimizer updates; None: all. The gradients
                of other parameters may be old or incomplete and are left out.

        Returns:
            The rows; None if no parameter is trained, or if one that is trained has no readable gradient.
        """
        pieces: list[Tensor | Piece] = []
        for tensor in self.all_tensors():
            for gradient in tensor.gradients(trained):
                if gradient is None:
                    return None
                pieces.append(gradient)
        return matrix_of(pieces) if pieces else None

    def recurrent_rows(self) -> Rows | None:
        """The recurrent tensor as a matrix ``(num_units, gates * num_units)``; None for layers without one."""
        return matrix_of([self.recurrent.rows()]) if self.recurrent else None

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Whether any parameter of this layer is among those with these identities (``id``)."""
        return not trained.isdisjoint(self.identity)

    def are_updated_alike(self, units: Sequence[int], updates: Updates) -> bool:
        """Return whether some of the units are updated from equal state of the optimizer."""
        return all(
            updates.are_alike_along(original, tensor.view, units)
            for tensor in self.all_tensors()
            for original in tensor.originals
            if tensor.part is None and original.shape == tensor.weights.shape
        )

    @cached_property
    def originals(self) -> tuple[Tensor, ...]:
        """The parameters of this layer."""
        return tuple(original for tensor in self.all_tensors() for original in tensor.originals)

    def shares(self) -> Iterator[tuple[object, Fraction]]:
        """Pairs of a key of a parameter, as in :attr:`Incoming.keys`, and the share of its numbers that is looked at.

        The share is less than 1 for parts of a layer whose tensors are packed into one parameter.
        """
        for tensor, shape in zip(self.all_tensors(), self.shapes, strict=True):
            for key in tensor.keys:
                numbers = tensor.weights.numel() * (2 if tensor.weights.is_complex() else 1)
                yield key, Fraction(shape.numel(), max(1, numbers))


def _place_of(rows: Tensor | Piece, weights: Tensor, blocks: int) -> object:
    if not isinstance(rows, Tensor):
        return rows.layout
    # A view that copies lies nowhere in the parameter, and has the strides of some other view.
    is_copy = rows.untyped_storage().data_ptr() != weights.untyped_storage().data_ptr()
    return rows.shape, ("copy", blocks) if is_copy else (rows.storage_offset(), rows.stride())


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor whose numbers cannot be read, or which is not itself the parameter that is trained.

    Raises:
        NotUnderstoodError: says why.
    """
    if is_lazy(tensor):
        raise NotUnderstoodError("not initialised yet")
    if hasattr(tensor, "ds_id"):
        raise NotUnderstoodError("its tensors are partitioned by DeepSpeed ZeRO-3, which this package does not read")
    numbers = tensor
    if is_sharded(tensor):
        numbers = cast("Any", tensor).to_local()
    elif type(tensor) not in (Tensor, nn.Parameter):
        raise NotUnderstoodError(f"its tensors are {type(tensor).__name__}s, which this package does not read")
    if type(numbers.data) is not Tensor:
        raise NotUnderstoodError(f"its data are {type(numbers.data).__name__}s, which this package does not read")
    if not isinstance(tensor, nn.Parameter):
        raise NotUnderstoodError("its weight is computed from other tensors, as by weight_norm or pruning")
    if tensor.is_meta:
        raise NotUnderstoodError("on the meta device: there are no numbers to read")
    if is_sharded(tensor) and tensor.is_complex():
        raise NotUnderstoodError(f"its dtype {tensor.dtype} is not one that this package reads from several ranks")
    if tensor.dtype not in TOLERANCES and tensor.dtype not in _COMPLEX:
        raise NotUnderstoodError(f"its dtype {tensor.dtype} is not a floating point type this package reads")
    if tensor.layout != torch.strided:
        raise NotUnderstoodError(f"its layout {tensor.layout} is not strided")
