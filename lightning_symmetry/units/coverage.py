"""Which share of a model's weights the layers look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import prod

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.ranks.fsdp1 import FlatPart
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.slices import is_matrix


def coverage_of(
    model: nn.Module, flattened: Mapping[nn.Module, Mapping[str, FlatPart]], layers: Iterable[Layer]
) -> float:
    """The share of a model's weights that the layers look at.

    Weights are the numbers in parameters of two or more dimensions, without those that hold one number per unit all the
    same, as of shape ``(1, 1, n)``. Shared parameters count once, sharded ones with
    their global shape, those of parametrized layers before the parametrization. Parameters that are not initialised
    yet have no shape and are not counted.

    Args:
        model: any module.
        flattened: the parameters of the model that FSDP1 has flattened, by module and name.
        layers: layers of the model.

    Returns:
        Between 0 and 1; 1 for a model without weights.
    """
    shares: dict[object, Fraction] = defaultdict(Fraction)
    for layer in layers:
        for key, share in layer.shares():
            shares[key] += share
    sizes = {key: prod(shape) for key, shape in _shapes(model, flattened).items() if key in shares or is_matrix(shape)}
    # Different layers may look at the same numbers, for example an embedding that shares its weight with a head.
    looked_at = sum(size * min(Fraction(1), shares[key]) for key, size in sizes.items())
    total = sum(sizes.values())
    return float(looked_at / total) if total else 1.0


def _shapes(model: nn.Module, flattened: Mapping[nn.Module, Mapping[str, FlatPart]]) -> dict[object, tuple[int, ...]]:
    """The shape of every parameter of two or more dimensions, by identity or by key of the flat part."""
    parts = [part for by_name in flattened.values() for part in by_name.values()]
    sources = {id(part.source) for part in parts}
    shapes: dict[object, tuple[int, ...]] = {part.key: part.shape for part in parts}
    for parameter in model.parameters():
        if id(parameter) not in sources and not is_lazy(parameter):
            shapes[id(parameter)] = tuple(parameter.shape)
    return {key: shape for key, shape in shapes.items() if len(shape) > 1}
