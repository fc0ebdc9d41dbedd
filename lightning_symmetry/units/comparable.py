"""Sets of rows that are compared with one another, and how ranks find them by name.

The rows are the units of a layer, or whole modules that are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial

from torch import nn

from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.team import Name, Shared
from lightning_symmetry.units.copies import Copies, copies_named
from lightning_symmetry.units.discovery import Found
from lightning_symmetry.units.layers import Layer

Comparable = Layer | Copies
FindLayers = Callable[[], Found]


def rows_by_name(model: nn.Module, find: FindLayers, trained: Set[int] | None) -> Callable[[Name], Shared | None]:
    """Return a function that maps a name to a matrix of a model; to None if this rank has no such layer or matrix.

    A name is the kind of the matrix (``"weights"``, ``"gradients"`` or ``"recurrent"``), followed by the name of a
    layer, or by the names of modules that the first rank has found to be copies. Ranks request matrices from one
    another by these names. ``find`` returns the layers of the model; ``trained`` is as for :meth:`Layer.gradients`.
    """
    by_name: dict[str, Layer] = {}

    def matrix(name: Name) -> Shared | None:
        kind, *names = name
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
        rows = matrices[kind]()
        assert rows is None or isinstance(rows, Shared)
        return rows

    return matrix
