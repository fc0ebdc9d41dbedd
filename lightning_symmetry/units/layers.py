"""Layers: sets of units whose weights and gradients are read as matrices with a row per unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.matrices.mirrors import Parity
from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.flat import FlatPart
from lightning_symmetry.ranks.pieces import Piece, View, is_sharded, part_of_rows, piece_of_part
from lightning_symmetry.ranks.sharded import matrix_of
from lightning_symmetry.ranks.zero import why_not_read
from lightning_symmetry.units.registry import NotUnderstoodError
from lightning_symmetry.units.updates import Updates

_COMPLEX = (torch.complex64, torch.complex128)


def is_trained(parameter: Tensor, trained: Set[int] | None) -> bool:
    """Return whether the current optimizer updates a parameter, given the ``id`` of all that it updates; None: all."""
    return parameter.requires_grad and (trained is None or id(parameter) in trained)


def readable_gradient(parameter: Tensor) -> Tensor | None:
    """Return the gradient of a parameter; of a sparse gradient its rows, in the order of their indices.

    Returns:
        None if there is no gradient, a sparse one without rows, or one of another layout.
    """
    gradient = parameter.grad
    if gradient is None or gradient.layout == torch.strided:
        return None if gradient is None else gradient.detach()
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        return None
    rows = gradient.detach().coalesce().values()
    return rows if len(rows) else None


def real_rows(rows: Tensor) -> Tensor:
    """Return complex rows ``(n, ...)`` as real and imaginary parts, ``(n, 2, ...)``; real rows unchanged."""
    return torch.view_as_real(rows.resolve_conj()).movedim(-1, 1) if rows.is_complex() else rows


def complex_rows(rows: Tensor) -> Tensor:
    """Return complex rows ``(n, ...)`` from the output of :func:`real_rows`, ``(n, 2, ...)``."""
    return torch.view_as_complex(rows.movedim(1, -1).contiguous())


class WrongShapesError(NotUnderstoodError):
    """The shapes of an adapter's tensors do not match; the message shows them."""


@dataclass(frozen=True)
class Incoming:
    """A tensor that feeds the units of a layer."""

    weights: Tensor  # the tensor that the layer uses
    view: View  # `tensor -> (num_units, ...)` for the shape of `weights`; complex ones become real, see `real_rows`
    # the parameters that `weights` is computed from, if the layer is parametrized; the source of `part`, if there is
    # one; else `weights` itself
    originals: tuple[Tensor, ...]
    # this rank's part of a parameter that FSDP1 or DeepSpeed's ZeRO has flattened. `weights` is then a meta tensor of
    # the whole parameter's shape.
    part: FlatPart | None = None

    @property
    def keys(self) -> tuple[object, ...]:
        """A key per parameter; layers that share a parameter have the same key."""
        return tuple(map(id, self.originals)) if self.part is None else (self.part.key,)

    @property
    def is_plain(self) -> bool:
        """Whether this is an unsharded parameter that the layer uses unchanged."""
        is_parameter = len(self.originals) == 1 and self.originals[0] is self.weights
        return self.part is None and is_parameter and not is_sharded(self.weights)

    def rows(self) -> Tensor | Piece:
        """Return the weights as ``(num_units, ...)``; this rank's part of them if they are sharded."""
        if self.part is not None:
            return piece_of_part(self.part, self.part.numbers(), self.view, self.part.dtype)
        return part_of_rows(self.weights, self.view)

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The originals with the shape of the weights, if these are computed: they train instead. Else empty."""
        if self.part is not None:
            return ()
        weights = self.weights
        return tuple(each for each in self.originals if each is not weights and each.shape == weights.shape)

    def trained_rows(self) -> list[Tensor | Piece]:
        """Return the latents, or else the weights, as ``(num_units, ...)`` each: the tensors that train."""
        return [self.view(each.detach()) for each in self.latents] or [self.rows()]

    def factors(self) -> list[Tensor]:
        """Return the originals of other shapes with numbers for each unit, as ``(num_units, ...)``."""
        factors = [self._by_unit(each.detach()) for each in self.originals if not self._has_rows(each)]
        return [each for each in factors if each is not None]

    def gradients(self, trained: Set[int] | None) -> list[tuple[Tensor | Piece | None, bool]]:
        """Return the gradients of the trained originals, and for each whether its original is a factor.

        Returns:
            The gradients as ``(num_units, ...)``, None for one that cannot be read. Originals that hold a single number
            for all units are omitted.
        """
        every = [each for each in self.originals if is_trained(each, trained) and not self._is_shared(each)]
        return [(self._gradient(each), not self._has_rows(each)) for each in every]

    def _gradient(self, original: Tensor) -> Tensor | Piece | None:
        if self.part is not None:
            numbers = self.part.gradient()
            return None if numbers is None else piece_of_part(self.part, numbers, self.view, self.part.gradient_dtype)
        gradient = readable_gradient(original)
        if gradient is None:
            return None
        if gradient.shape == self.weights.shape:
            return part_of_rows(gradient, self.view)
        if gradient.shape != original.shape:  # the rows of a sparse gradient
            rows = self.view(gradient)
            return rows if len(rows) == len(self.rows()) else None
        return self._by_unit(gradient)

    def _has_rows(self, original: Tensor) -> bool:
        return self.part is not None or original is self.weights or original.shape == self.weights.shape

    def _is_shared(self, original: Tensor) -> bool:
        """Return whether an original is one number for all units, such as a step size."""
        return original.numel() == 1 and not self._has_rows(original)

    def _by_unit(self, numbers: Tensor) -> Tensor | None:
        """Return an original of another shape as ``(num_units, ...)``; None if its shape does not show the units."""
        shape = self.weights.shape
        if self._is_shared(numbers):
            return None
        if numbers.dim() == len(shape) and all(a in (1, b) for a, b in zip(numbers.shape, shape, strict=True)):
            # One number for all weights along a dimension, such as the norms of weight_norm.
            rows = self.view(numbers.expand(shape))
            return rows[(slice(None), *(0 if step == 0 else slice(None) for step in rows.stride()[1:]))]
        return real_rows(numbers) if len(numbers) == len(self.rows()) else None


@dataclass(frozen=True)
class Layer:
    """A set of units whose rows can be compared with one another."""

    name: str  # name of the module in the model, with the part if it has several
    tensors: tuple[Incoming, ...]  # the tensors that feed the units, the weight first
    blocks: int = 1  # number of equal blocks of consecutive units; units of different blocks are never compared
    # the tensor that feeds the units back into themselves; its view returns `(num_units, gates, num_units)`
    recurrent: Incoming | None = None
    also: tuple[str, ...] = ()  # names of further layers that share the weight
    can_freeze: bool = True  # whether repeated zero gradients are evidence against the units
    dies_as_a_whole: bool = False  # whether zero gradients are evidence only if no unit has a gradient
    slices_of: str = ""  # name of the parameter that the units are slices of, because no adapter knows it; else empty
    # the gates, along the second dimension of every view, whose weights change sign in a mirror image; None: all
    # weights do
    odd_gates: tuple[int, ...] | None = None
    num_units: int = field(init=False)  # number of units
    # the shape `(num_units, ...)` of each tensor's view, the recurrent tensor last
    shapes: tuple[torch.Size, ...] = field(init=False)
    fan_in: int = field(init=False)  # number of weights that feed one unit, without the bias
    # where the rows of the weight lie in its parameter; equal for layers that read it in the same way
    place: object = field(init=False)
    row_names: ClassVar[tuple[str, ...]] = ()  # names of rows that are modules; empty for layers, whose rows are units

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
        """Return all tensors that feed the units, the recurrent tensor last."""
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
        """Return a row per unit: the tensors that train, side by side, without the recurrent tensor."""
        return matrix_of([rows for tensor in self.tensors for rows in tensor.trained_rows()])

    @property
    def is_computed(self) -> bool:
        """Whether the layer uses weights that are computed from :meth:`weights`."""
        return any(tensor.latents for tensor in self.tensors)

    def computed_rows(self) -> Rows:
        """Return a row per unit: the weights that the layer uses, without the recurrent tensor."""
        return matrix_of([tensor.rows() for tensor in self.tensors])

    def parity(self) -> Parity | None:
        """Return all rows that equal units share, split into those that change sign in a mirror image and the others.

        Returns:
            None if these are the rows of :meth:`weights` and all of them change sign.
        """
        if self.odd_gates is None and not self.is_computed:
            return None
        rows = [
            (each, False)
            for tensor in self.tensors
            for each in (*tensor.trained_rows(), *([tensor.rows()] if tensor.latents else []))
        ]
        return self._by_parity([*rows, *((each, True) for tensor in self.tensors for each in tensor.factors())])

    def gradients_by_parity(self, trained: Set[int] | None = None) -> Parity | None:
        """Return the rows of :meth:`gradients`, split like :meth:`parity`; None if all change sign."""
        if self.odd_gates is None and not self.is_computed:
            return None
        every = [pair for tensor in self.all_tensors() for pair in tensor.gradients(trained)]
        return self._by_parity([(rows, is_even) for rows, is_even in every if rows is not None])

    def _by_parity(self, every: Iterable[tuple[Tensor | Piece, bool]]) -> Parity | None:
        odd: list[Tensor | Piece] = []
        even: list[Tensor | Piece] = []
        for rows, is_even in every:
            if not isinstance(rows, Tensor):
                return None
            if self.odd_gates is None or is_even:
                (even if is_even else odd).append(rows)
                continue
            for gate in range(rows.shape[1]):
                (odd if gate in self.odd_gates else even).append(rows[:, gate])
        return Parity(matrix_of(odd), matrix_of(even) if even else None) if odd else None

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """Return a row per unit: the gradients of all tensors side by side, including the recurrent one.

        Args:
            trained: identities (``id``) of the parameters that the current optimizer updates; None: all. The gradients
                of other parameters may be old or incomplete and are omitted.

        Returns:
            The rows; None if no parameter is trained, or if a trained one has no readable gradient.
        """
        pieces: list[Tensor | Piece] = []
        for tensor in self.all_tensors():
            for gradient, _ in tensor.gradients(trained):
                if gradient is None:
                    return None
                pieces.append(gradient)
        return matrix_of(pieces) if pieces else None

    def recurrent_rows(self) -> Rows | None:
        """Return the recurrent tensor as ``(num_units, gates * num_units)``; None for layers without one."""
        return matrix_of([self.recurrent.rows()]) if self.recurrent else None

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Return whether any parameter of this layer has one of these identities (``id``)."""
        return not trained.isdisjoint(self.identity)

    def are_updated_alike(self, units: Sequence[int], updates: Updates) -> bool:
        """Return whether these units have equal optimizer state, so that equal gradients lead to equal updates."""
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
        """Yield each parameter's key, as in :attr:`Incoming.keys`, and the share of its numbers that the layer reads.

        The share is less than 1 if several parts of a layer are packed into one parameter.
        """
        for tensor, shape in zip(self.all_tensors(), self.shapes, strict=True):
            for key in tensor.keys:
                numbers = tensor.weights.numel() * (2 if tensor.weights.is_complex() else 1)
                yield key, Fraction(shape.numel(), max(1, numbers))


def _place_of(rows: Tensor | Piece, weights: Tensor, blocks: int) -> object:
    if not isinstance(rows, Tensor):
        return rows.layout
    # A view that copies has no place in the parameter, and its strides may equal those of another view.
    is_copy = rows.untyped_storage().data_ptr() != weights.untyped_storage().data_ptr()
    return rows.shape, ("copy", blocks) if is_copy else (rows.storage_offset(), rows.stride())


def check_tensor(tensor: Tensor) -> None:
    """Check that a tensor is a trained parameter and that its numbers can be read.

    Raises:
        NotUnderstoodError: otherwise; the message says why.
    """
    if is_lazy(tensor):
        raise NotUnderstoodError("not initialised yet")
    reason = why_not_read(tensor)
    if reason:
        raise NotUnderstoodError(f"its tensors are {reason}")
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
