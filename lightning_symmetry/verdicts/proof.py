"""Whether equal gradients at one look prove that units stay equal: only if what reads them stays equal, too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from lightning_symmetry.matrices.question import LEAVE_TOLERANCES, TOLERANCES
from lightning_symmetry.units.layers import Layer

# So many units of a group are looked at, and so many layers that may read them.
_NUM_UNITS = 4
_NUM_READERS = 8


def are_read_apart(units: Sequence[int], num_units: int, layers: Iterable[Layer], floor: float) -> bool:
    """Return whether the layer that reads equal units is about to read them apart.

    Units with equal weights and gradients get different gradients at the next step, if the weights that read them have
    different ones at this step: where noise is added to each, as in the latents of a VAE, or where each is added to
    something of its own, as in a residual network. The first layer that has as many inputs, or a multiple, and equal
    weights for these is taken for the one that reads them.

    Args:
        units: units of one layer with equal weights and equal gradients.
        num_units: the number of units of that layer.
        layers: the other layers of the model, the likeliest first.
        floor: the norm up to which gradients may be rounding errors.
    """
    may_read = (layer for layer in layers if layer.shapes[0][1:].numel() % num_units == 0)
    for layer in islice(may_read, _NUM_READERS):
        for weights, gradients in _columns(layer, units[:_NUM_UNITS], num_units):
            if float(weights.norm()) == 0 or _apart(weights) > TOLERANCES[weights.dtype]:
                continue
            if float(gradients.norm(dim=1).max()) > floor:
                return _apart(gradients) > LEAVE_TOLERANCES[gradients.dtype]
    return False


def _columns(layer: Layer, units: Sequence[int], num_units: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the weights with which a layer may read some units, and their gradients, ``(len(units), numbers)`` each.

    An image has several inputs per unit side by side, the gates of a recurrent layer have them one after the other.
    """
    tensor = layer.tensors[0]
    gradient = tensor.weights.grad
    if not tensor.is_plain or gradient is None or gradient.layout != torch.strided:
        return
    both = [tensor.view(each.detach()).flatten(1) for each in (tensor.weights, gradient)]
    width = both[0].shape[1]
    if width % num_units:
        return
    per_unit = width // num_units
    unit = torch.tensor(units, device=both[0].device)[:, None]
    place = torch.arange(per_unit, device=both[0].device)
    layouts = [unit * per_unit + place, place * num_units + unit]
    for index in layouts if per_unit > 1 else layouts[:1]:
        flat = index.flatten()
        weights, gradients = (each[:, flat].T.reshape(len(units), -1) for each in both)
        yield weights, gradients


def _apart(rows: Tensor) -> float:
    """Return the largest distance of a row from the first, relative to the largest norm."""
    return float((rows - rows[:1]).norm(dim=1).max() / rows.norm(dim=1).max())
