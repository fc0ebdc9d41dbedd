"""What is seen of the gradients between two checks, of layers whose units may be dead or frozen: which are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set

import numpy as np

from lightning_symmetry.matrices.numerics import Mask
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.reading import read
from lightning_symmetry.ranks.team import Name, Team
from lightning_symmetry.units.layers import Layer


def zero_gradients(
    layers: Iterable[tuple[Layer, float]],
    trained: Set[int],
    on_error: Callable[[Layer, Exception], None],
    team: Team | None = None,
) -> Iterator[tuple[Layer, Mask, Mask]]:
    """Yield of each layer that has gradients which units have one of zero, and which one that is not finite.

    Args:
        layers: the layers, each with the norm up to which gradients are zero but for rounding.
        trained: identities (``id``) of the parameters whose gradients are up to date.
        on_error: called with a layer that cannot be read, and the exception.
        team: the ranks that hold the layers; None: they are all here.
    """
    rows: dict[Name, tuple[Layer, float, Rows]] = {}
    for layer, floor in layers:
        try:
            gradients = layer.gradients(trained)
        except Exception as error:
            on_error(layer, error)
            continue
        if gradients is not None:
            rows["gradients", layer.name] = layer, floor, gradients
    if team is not None:
        for name in read(team, {name: gradients for name, (_, _, gradients) in rows.items()}):
            del rows[name]
    sketches = sketch_all([gradients for _, _, gradients in rows.values()])
    for (layer, floor, _), sketch in zip(rows.values(), sketches, strict=True):
        yield layer, sketch.norms <= floor, np.isnan(sketch.norms)
