"""Layers: sets of units, and the tensors in which the incoming row of each unit lies."""

from __future__ import annotations

from collections.abc import Iterator, Set
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


def is_trained(parameter: Tensor, trained: Set[int] | None) -> bool:
    """Whether the gradient of a parameter counts; ``trained`` are the identities of those that do, None: all."""
    return parameter.requires_grad and (trained is None or id(parameter) in trained)


def readable_gradient(parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter, if it has one, and not a sparse one."""
    gradient = parameter.grad
    return None if gradient is None or gradient.layout != torch.strided else gradient.detach()


@dataclass(frozen=True)
class Incoming:
    """One tensor that feeds the units of a layer.

    Attributes:
        weights: the tensor as the layer uses it.
        view: what makes its first dimension count units, ``tensor -> (num_units, ...)``.
        originals: the parameters that it is computed from; itself, unless the layer is parametrized or flattened.
        part: what this rank holds of it, if FSDP1 has flattened it; ``weights`` then has no more than its shape.
    """

    weights: Tensor
    view: View
    originals: tuple[Tensor, ...]
    part: FlatPart | None = None

    @property
    def keys(self) -> tuple[object, ...]:
        """One value for every original, that is the same for the same parameter."""
        return tuple(map(id, self.originals)) if self.part is None else (self.part.key,)

    def rows(self) -> Tensor | Piece:
        """``(num_units, ...)``."""
        if self.part is not None:
            return piece_of_part(self.part, self.part.source, self.view)
        return part_of_rows(self.weights, self.view)

    def gradients(self, trained: Set[int] | None) -> list[Tensor | Piece | None]:
        """``(num_units, ...)`` of every original that is trained; None for one that has no gradient to see."""
        return [self._gradient(original) for original in self.originals if is_trained(original, trained)]

    def _gradient(self, original: Tensor) -> Tensor | Piece | None:
        gradient = readable_gradient(original)
        if self.part is not None and (gradient is not None or not self.part.length):
            return piece_of_part(self.part, gradient, self.view)
        if gradient is None:
            return None
        if gradient.shape == self.weights.shape:
            return part_of_rows(gradient, self.view)
        # For example the norms of weight_norm: one number per unit.
        return gradient if len(gradient) == len(self.rows()) else None


@dataclass(frozen=True)
class Layer:
    """One set of units whose rows can be compared with one another.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        tensors: what feeds the units.
        blocks: units of different blocks are never compared.
        recurrent: what feeds the units back into themselves; its view gives ``(num_units, gates, num_units)``.
        also: names of layers that share the weight.
        num_units: number of rows.
        shapes: of the rows of every tensor, ``(num_units, ...)``, the recurrent one last.
        fan_in: number of weights that feed one unit, without the bias.
    """

    name: str
    tensors: tuple[Incoming, ...]
    blocks: int = 1
    recurrent: Incoming | None = None
    also: tuple[str, ...] = ()
    num_units: int = field(init=False)
    shapes: tuple[torch.Size, ...] = field(init=False)
    fan_in: int = field(init=False)
    can_freeze: ClassVar[bool] = True
    row_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        shapes = tuple(tensor.rows().shape for tensor in self._all_tensors())
        if len({shape[0] for shape in shapes}) != 1 or shapes[0][0] % self.blocks:
            raise NotUnderstoodError(
                f"its adapter gives tensors of shapes {[tuple(shape) for shape in shapes]} in {self.blocks} blocks; "
                "expected the same number of units first in each, divisible by the number of blocks"
            )
        object.__setattr__(self, "num_units", shapes[0][0])
        object.__setattr__(self, "shapes", shapes)
        feeds = [shapes[0], *(shapes[-1:] if self.recurrent else [])]
        object.__setattr__(self, "fan_in", sum(shape[1:].numel() for shape in feeds))

    def _all_tensors(self) -> list[Incoming]:
        return [*self.tensors, *([self.recurrent] if self.recurrent else [])]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors[0].originals[0].device

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """Of the parameters that this layer is made of."""
        return tuple(map(id, self.originals()))

    def weights(self) -> Rows:
        """The incoming rows, without the recurrent tensor."""
        return matrix_of([tensor.rows() for tensor in self.tensors])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """The gradient rows, with the recurrent tensor, or None if there is nothing to see.

        Args:
            trained: identities (``id``) of the parameters that the optimizer at work updates; None: all. The gradients
                of others may be stale or partial and are left out.
        """
        pieces: list[Tensor | Piece] = []
        for tensor in self._all_tensors():
            for gradient in tensor.gradients(trained):
                if gradient is None:
                    return None
                pieces.append(gradient)
        return matrix_of(pieces) if pieces else None

    def recurrent_rows(self) -> Rows | None:
        """What feeds the units back into themselves, ``(num_units, gates * num_units)``, gate by gate."""
        return matrix_of([self.recurrent.rows()]) if self.recurrent else None

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Whether the optimizer with these parameters updates any of this layer's tensors."""
        return not trained.isdisjoint(self.identity)

    def originals(self) -> list[Tensor]:
        """The parameters that this layer is made of."""
        return [original for tensor in self._all_tensors() for original in tensor.originals]

    def shares(self) -> Iterator[tuple[object, Fraction]]:
        """Which share of its parameters this layer looks at, by :attr:`Incoming.keys`; parts of layers look at less."""
        for tensor, shape in zip(self._all_tensors(), self.shapes, strict=True):
            for key in tensor.keys:
                yield key, Fraction(shape.numel(), tensor.weights.numel())


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor whose numbers cannot be read, or are not those that are trained.

    Raises:
        NotUnderstoodError: saying why.
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
    if tensor.dtype not in TOLERANCES:
        raise NotUnderstoodError(f"its dtype {tensor.dtype} is not a floating point type this package reads")
    if tensor.layout != torch.strided:
        raise NotUnderstoodError(f"its layout {tensor.layout} is not strided")
