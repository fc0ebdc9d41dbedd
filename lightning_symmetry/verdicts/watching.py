"""What is seen of the gradients between two checks, of units that may be dead or frozen: which are still zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, to_host
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.reading import read
from lightning_symmetry.ranks.team import Name, Team
from lightning_symmetry.units.layers import Layer


class Suspects(NamedTuple):
    """Units of a layer whose gradients were zero at the latest look.

    Attributes:
        layer: the layer.
        units: their sorted indices.
        floor: the norm up to which their gradients are zero but for rounding.
    """

    layer: Layer
    units: Indices
    floor: float


def zero_gradients(
    suspects: Iterable[Suspects],
    trained: Set[int],
    on_error: Callable[[Layer, Exception], None],
    team: Team | None = None,
) -> Iterator[tuple[Layer, Mask, Mask]]:
    """Yield of each layer that has gradients which suspected units have one of zero, and of which nothing is seen.

    Nothing is seen of the other units, and where a gradient is not finite.

    Args:
        suspects: the units, by layer.
        trained: identities (``id``) of the parameters whose gradients are up to date.
        on_error: called with a layer that cannot be read, and the exception.
        team: the ranks that hold the layers; None: they are all here.
    """
    several: list[tuple[Suspects, Rows]] = []
    for each in suspects:
        try:
            gradients = each.layer.gradients(trained)
        except Exception as error:
            on_error(each.layer, error)
            continue
        if gradients is not None:
            several.append((each, gradients))
    if team is not None:
        failures = read(team, {_name(each): gradients for each, gradients in several})
        several = [(each, gradients) for each, gradients in several if _name(each) not in failures]
    for (each, _), sizes in zip(several, _sizes(several), strict=True):
        is_zero = np.zeros(each.layer.num_units, dtype=np.bool_)
        is_unseen = np.ones(each.layer.num_units, dtype=np.bool_)
        is_zero[each.units], is_unseen[each.units] = sizes <= each.floor, np.isnan(sizes)
        yield each.layer, is_zero, is_unseen


def _name(suspects: Suspects) -> Name:
    return "gradients", suspects.layer.name


def _sizes(several: list[tuple[Suspects, Rows]]) -> Iterator[Floats]:
    """Yield of each layer the norm of each suspected row, or its largest number where only zero matters."""
    if all(isinstance(rows, DenseRows) and not each.floor for each, rows in several):
        largest = [_largest(each.units, rows) for each, rows in several if isinstance(rows, DenseRows)]
        ends = np.cumsum([len(each.units) for each, _ in several])[:-1]
        yield from np.split(to_host(torch.cat(largest)), ends) if largest else []
    else:
        for (each, _), sketch in zip(several, sketch_all([rows for _, rows in several]), strict=True):
            yield sketch.norms[each.units]


def _largest(units: Indices, rows: DenseRows) -> Tensor:
    """Return the largest absolute number of some rows, ``(m,)``; NaN where one is not a number."""
    largest: Tensor = torch.linalg.vector_norm(rows.fetch(units), ord=torch.inf, dim=1)
    return largest.to(torch.float64)
