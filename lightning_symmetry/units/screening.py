"""A fast check of many layers at once, which decides which of them need a full check."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import Floats, Integers, Mask, exact_arithmetic
from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.matrices.screening import Screen
from lightning_symmetry.ranks.pieces import View
from lightning_symmetry.units.layers import Incoming, Layer, is_trained

# A parameter, and the view that puts its units first; None if they are first already.
_Source = tuple[Tensor, View | None]


class DistinctLayer(NamedTuple):
    """A layer with distinct weight rows and distinct gradient rows, apart from gradient rows of zeros."""

    layer: Layer
    idle: Mask | None  # which units have a gradient of zero, `(num_units,)`; None: none
    directions: Floats  # `directions_of` its weight rows, `(num_units,)`


@dataclass(frozen=True)
class Distinct:
    """The layers in which no units agree."""

    layers: Sequence[DistinctLayer] = ()  # these layers
    largest: float = 0.0  # the largest norm of a gradient row of these layers
    have_moved: bool = False  # whether any weight of the read layers has changed since the previous reading
    had_gradient: bool = False  # whether any of the read layers had a nonzero gradient at the previous reading


class LayerScreen:
    """Reads the weights and gradients of many layers, check after check.

    Less exact than :func:`lightning_symmetry.verdicts.evidence.look`, in a fraction of the time.

    Args:
        layers: the layers. Only small layers on the device of the first one are read, and only if their weights are
            unsharded parameters without parametrizations.
        tolerance: relative distance up to which rows agree; None: the default of the dtype.

    Attributes:
        layers: the layers that are read.
    """

    def __init__(self, layers: Sequence[Layer], tolerance: float | None) -> None:
        self.layers = [layer for layer in layers if _can_be_read(layer) and layer.device == layers[0].device]
        tensors = [incoming for layer in self.layers for incoming in (layer.tensors, layer.all_tensors())]
        self._sources = [[_source(tensor) for tensor in layer.all_tensors()] for layer in self.layers]
        self._before: tuple[Integers, bool] | None = None  # fingerprints, and whether any gradient was nonzero
        self._screen: Screen | None = None
        if self.layers:
            samples = [DenseRows([_rows(each) for each in several]) for several in tensors]
            tolerances = [TOLERANCES[rows.dtype] if tolerance is None else tolerance for rows in samples]
            self._screen = Screen(samples, tolerances, [layer.blocks for layer in self.layers for _ in range(2)])

    def read(self, trained: Set[int], wanted: Set[int]) -> Distinct:
        """Read all layers once; the first reading finds nothing, since whether weights have moved is unknown.

        Args:
            trained: identities (``id``) of the parameters whose gradients are up to date.
            wanted: identities (``id``) of the layers that may be returned.
        """
        if self._screen is None:
            return Distinct()
        with exact_arithmetic(self.layers[0].device):
            tensors, has_gradient = self._gather(trained)
            screened = self._screen.read(tensors)
        is_wanted = np.array([id(layer) in wanted for layer in self.layers])
        is_found = screened.are_distinct[0::2] & screened.are_distinct[1::2] & has_gradient & is_wanted
        is_found &= (screened.num_zero[0::2] == 0) & (screened.largest[1::2] > 0)
        before = self._before
        fingerprints = screened.fingerprints[0::2]
        self._before = fingerprints, bool((has_gradient & (screened.largest[1::2] != 0)).any())
        if before is None:
            return Distinct()
        largest = float(screened.largest[1::2][is_found].max(initial=0.0))
        num_idle = screened.num_zero[1::2].tolist()
        found = [
            DistinctLayer(
                self.layers[i], screened.is_zero(2 * i + 1) if num_idle[i] else None, screened.directions(2 * i)
            )
            for i in np.flatnonzero(is_found).tolist()
        ]
        return Distinct(found, largest, not np.array_equal(before[0], fingerprints), before[1])

    def _gather(self, trained: Set[int]) -> tuple[list[Tensor], Mask]:
        """Return weights and gradients of all layers in turn, and a mask of the layers with all gradients."""
        tensors: list[Tensor] = []
        has_gradient = np.ones(len(self.layers), dtype=np.bool_)
        for i, (layer, sources) in enumerate(zip(self.layers, self._sources, strict=True)):
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            for parameter, view in sources:
                gradient = parameter.grad if is_trained(parameter, trained) else None
                if gradient is None or gradient.layout != torch.strided or gradient.dtype != parameter.dtype:
                    has_gradient[i] = False
                    gradient = parameter  # a placeholder
                weights.append(parameter if view is None else view(parameter))
                gradients.append(gradient if view is None else view(gradient))
            tensors += weights[: len(layer.tensors)]  # without the recurrent tensor
            tensors += gradients
        return tensors, has_gradient


def _can_be_read(layer: Layer) -> bool:
    for tensor in layer.all_tensors():
        if not tensor.is_plain or _rows(tensor).dtype == torch.float64:
            return False
    return DenseRows([_rows(tensor) for tensor in layer.all_tensors()]).is_small


def _rows(tensor: Incoming) -> Tensor:
    return tensor.view(tensor.weights.detach())


def _source(tensor: Incoming) -> _Source:
    rows = _rows(tensor)
    # A view that copies may return rows with the shape and strides of the parameter.
    is_same = all(read(rows) == read(tensor.weights) for read in (Tensor.data_ptr, Tensor.size, Tensor.stride))
    return tensor.weights, None if is_same else tensor.view
