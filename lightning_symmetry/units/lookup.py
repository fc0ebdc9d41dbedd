"""The matrices of a model by the names that ranks exchange."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial

from torch import nn

from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.team import Name, Shared
from lightning_symmetry.units.copies import copies_named
from lightning_symmetry.units.finding import Found
from lightning_symmetry.units.layers import Layer

FindLayers = Callable[[], Found]


def rows_by_name(model: nn.Module, find: FindLayers, trained: Set[int] | None) -> Callable[[Name], Shared | None]:
    """Finds a matrix of a model by what :func:`look` calls it on the first rank.

    Args:
        model: the model.
        find: its layers.
        trained: identities of the parameters whose gradients count; None: all.
    """
    by_name: dict[str, Layer] = {}

    def matrix(name: Name) -> Shared | None:
        part, *names = name
        if not by_name:
            by_name.update({layer.name: layer for layer in find().layers})
        layer = copies_named(model, names) if len(names) > 1 else by_name.get(names[0])
        if layer is None:
            return None
        matrices: dict[str, Callable[[], Rows | None]] = {
            "weights": layer.weights,
            "gradients": partial(layer.gradients, trained),
            "recurrent": layer.recurrent_rows,
        }
        rows = matrices[part]()
        assert rows is None or isinstance(rows, Shared)
        return rows

    return matrix
