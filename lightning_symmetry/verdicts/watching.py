"""What is seen of the gradients between two checks, of layers whose units may be dead or frozen: which are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np

from lightning_symmetry.matrices.numerics import Mask
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.reading import read
from lightning_symmetry.ranks.team import Name, Team
from lightning_symmetry.units.layers import Layer


def zero_gradients(
    layers: Sequence[Layer], trained: Set[int], on_error: Callable[[Layer, Exception], None], team: Team | None = None
) -> Iterator[tuple[Layer, Mask, Mask]]:
    """Yield of each layer that has gradients which units have one of exactly zero, and which one that is not finite.

    Args:
        layers: the layers.
        trained: identities (``id``) of the parameters whose gradients are up to date.
        on_error: called with a layer that cannot be read, and the exception.
        team: the ranks that hold the layers; None: they are all here.
    """
    rows: dict[Name, tuple[Layer, Rows]] = {}
    for layer in layers:
        try:
            gradients = layer.gradients(trained)
        except Exception as error:
            on_error(layer, error)
            continue
        if gradients is not None:
            rows["gradients", layer.name] = layer, gradients
    if team is not None:
        for name in read(team, {name: gradients for name, (_, gradients) in rows.items()}):
            del rows[name]
    for (layer, _), sketch in zip(rows.values(), sketch_all([each for _, each in rows.values()]), strict=True):
        yield layer, sketch.norms == 0, np.isnan(sketch.norms)
