"""Which share of a model's weights the layers look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import prod

from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.slices import is_matrix


def coverage_of(shapes: Iterable[Mapping[object, Sequence[int]]], layers: Iterable[Layer]) -> float:
    """The share of a model's weights that the layers look at.

    Weights are the numbers in parameters of two or more dimensions, without those that hold one number per unit all the
    same, as of shape ``(1, 1, n)``. Shared parameters count once, sharded ones with
    their global shape, those of parametrized layers before the parametrization. Parameters that are not initialised
    yet have no shape and are not counted.

    Args:
        shapes: of the parameters of each module of the model, by key as in :attr:`Incoming.keys`.
        layers: layers of the model.

    Returns:
        Between 0 and 1; 1 for a model without weights.
    """
    shares: dict[object, Fraction] = defaultdict(Fraction)
    for layer in layers:
        for key, share in layer.shares():
            shares[key] += share
    sizes = {
        key: prod(shape)
        for of_module in shapes
        for key, shape in of_module.items()
        if len(shape) > 1 and (key in shares or is_matrix(shape))
    }
    # Different layers may look at the same numbers, for example an embedding that shares its weight with a head.
    looked_at = sum(size * min(Fraction(1), shares[key]) for key, size in sizes.items())
    total = sum(sizes.values())
    return float(looked_at / total) if total else 1.0
