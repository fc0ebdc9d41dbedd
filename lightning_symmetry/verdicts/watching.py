"""Whether the gradients of units that may be dead or frozen are still zero at steps between two checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, to_host
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.sketches import read
from lightning_symmetry.ranks.team import Name, Team
from lightning_symmetry.units.layers import Incoming, Layer


class Suspects(NamedTuple):
    """Units of a layer whose gradients were zero at the latest look."""

    layer: Layer
    units: Indices  # their sorted indices
    floor: float  # norm up to which their gradients are zero but for rounding
    places: Tensor  # the indices on the device of the weights

    @classmethod
    def of(cls, layer: Layer, units: Indices, floor: float) -> Suspects:
        """Build from indices ``(n,)``; copy them to the device of the layer."""
        return cls(layer, units, floor, torch.from_numpy(units).to(layer.device))


def are_still_zero(suspects: Sequence[Suspects], trained: Set[int]) -> list[bool]:
    """Return for each layer whether a fast test finds all gradients of the suspected units to be exactly zero.

    If not, :func:`zero_gradients` reads them. The test takes a few calls of PyTorch per layer, and one transfer to the
    host for all layers.

    Args:
        suspects: the units, by layer.
        trained: identities (``id``) of the parameters whose gradients are up to date.
    """
    answers = [False] * len(suspects)
    seen: list[int] = []
    found: list[Tensor] = []
    for i, each in enumerate(suspects):
        parts = each.layer.all_tensors()
        if each.floor or not trained >= set(each.layer.identity) or not all(map(_is_readable, parts)):
            continue
        rows = [part.view(part.weights.grad).index_select(0, each.places) for part in parts]  # type: ignore[arg-type]
        found += [each_rows.any() for each_rows in rows]
        seen += [i] * len(rows)
    if found:
        first = found[0].device
        for i in seen:
            answers[i] = True
        for i, is_found in zip(seen, torch.stack([one.to(first) for one in found]).tolist(), strict=True):
            answers[i] &= not is_found
    return answers


def _is_readable(part: Incoming) -> bool:
    """Return whether a tensor is an unsharded parameter that is used unchanged, with a dense gradient."""
    gradient = part.weights.grad if part.is_plain and part.weights.requires_grad else None
    return gradient is not None and gradient.layout == torch.strided


def zero_gradients(
    suspects: Iterable[Suspects],
    trained: Set[int],
    on_error: Callable[[Layer, Exception], None],
    team: Team | None = None,
) -> Iterator[tuple[Layer, Mask, Mask]]:
    """Yield each layer that has gradients, with masks ``(num_units,)`` of the zero and of the unknown gradients.

    Unknown are the gradients of units that are not suspected, and those that are not finite.

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


def _sizes(several: Sequence[tuple[Suspects, Rows]]) -> list[Floats]:
    """Return by layer, for each suspected unit, a number that is at most ``floor`` if its gradient is zero.

    It is NaN if the gradient is not finite. It is the norm or, where only zeros matter, the largest number.
    """
    sizes: dict[int, Floats] = {}
    plain = [i for i, (each, rows) in enumerate(several) if isinstance(rows, DenseRows) and not each.floor]
    if plain:
        found = [several[i][1].largest(several[i][0].units) for i in plain]
        host = to_host(torch.cat([one.to(found[0].device) for one in found]))
        bounds = accumulate(map(len, found))
        for i, largest in zip(plain, np.split(host, list(bounds)[:-1]), strict=True):
            largest[largest < torch.finfo(several[i][1].compute_dtype).tiny] = 0.0  # at checks, such norms are zero too
            largest[~np.isfinite(largest)] = np.nan
            sizes[i] = largest
    others = [i for i in range(len(several)) if i not in sizes]
    for i, sketch in zip(others, sketch_all([several[i][1] for i in others]), strict=True):
        sizes[i] = sketch.norms[several[i][0].units]
    return [sizes[i] for i in range(len(several))]


def _name(suspects: Suspects) -> Name:
    return "gradients", suspects.layer.name
