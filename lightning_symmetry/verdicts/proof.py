"""Whether equal gradients at one look prove that units stay equal: only if what reads the units treats them equally."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_symmetry.matrices.question import LEAVE_TOLERANCES, TOLERANCES
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.copies import Copies
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.updates import Updates
from lightning_symmetry.verdicts.look import Gradients, Sighting

# Limits of the search for readers. The result is a guess; a wrong one can only delay a verdict.
_NUM_UNITS = 4  # of a group
_NUM_READERS = 8  # layers that may read the units
_MAX_GROUPS = 8  # of a layer
_MAX_BEHIND = 64  # downstream layers among which readers are searched


@dataclass(frozen=True)
class Proof:
    """Decides whether equal gradients at one look prove that units stay equal."""

    layers: Sequence[Comparable]  # all layers, in the order of the model
    updates: Updates | None  # how the optimizers update them; None: unknown
    proven: Collection[tuple[int, ...]]  # the groups of the layer that are known to stay equal
    noise: float  # norm up to which gradients may be rounding errors

    def updates_differ(self, layer: Comparable, group: tuple[int, ...]) -> bool:
        """Return whether equal gradients lead to different updates.

        Units of one layer share the options of an optimizer, and equal optimizer states stay equal.
        """
        is_open = bool(layer.row_names) or group not in self.proven
        return is_open and self.updates is not None and not layer.are_updated_alike(group, self.updates)

    def mark(self, layer: Comparable, sightings: Sequence[Sighting]) -> list[Sighting]:
        """Return the sightings; ``is_proof`` is False for units that are about to diverge."""
        if isinstance(layer, Copies) and self.updates is not None:
            # Parameter groups with equal options may have different schedules.
            return [replace(each, is_proof=layer.share_options(each.units, self.updates)) for each in sightings]
        equal = [each for each in sightings if each.gradients is Gradients.EQUAL and each.units not in self.proven]
        if not equal or not isinstance(layer, Layer):
            return list(sightings)
        place = next(i for i, other in enumerate(self.layers) if other is layer)
        behind = self.layers[place + 1 : place + 1 + _MAX_BEHIND]
        readers = [other for other in behind if isinstance(other, Layer)]
        diverging = {
            each.units
            for each in equal[:_MAX_GROUPS]
            if are_read_differently(each.units, layer.num_units, readers, self.noise)
        }
        if diverging:  # groups beyond the limit are assumed to diverge too
            diverging |= {each.units for each in equal[_MAX_GROUPS:]}
        return [replace(each, is_proof=each.units not in diverging) for each in sightings]


def are_read_differently(units: Sequence[int], num_units: int, layers: Iterable[Layer], floor: float) -> bool:
    """Return whether the layer that reads equal units is about to treat them differently.

    Units with equal weights and gradients get different gradients at the next step if the weights that read them get
    different gradients at this step: where noise is added to each unit, as in the latents of a VAE, or a different
    number to each, as in a residual network. The reader is taken to be the first layer with as many inputs,
    and equal weights for these units; if there is none, the first with a multiple of the inputs.

    ``layers`` are those that follow the layer with ``num_units`` units in the model. Gradients with norms up to
    ``floor`` may be rounding errors.
    """
    may_read = [layer for layer in layers if layer.shapes[0][1:].numel() % num_units == 0]
    may_read.sort(key=lambda layer: num_units not in layer.shapes[0][1:])  # an exact match comes first
    for layer in may_read[:_NUM_READERS]:
        for weights, gradients in _columns(layer, units[:_NUM_UNITS], num_units):
            if float(weights.norm()) == 0 or _spread(weights) > TOLERANCES[weights.dtype]:
                continue
            if float(gradients.norm(dim=1).max()) > floor:
                return _spread(gradients) > LEAVE_TOLERANCES[gradients.dtype]
    return False


def _columns(layer: Layer, units: Sequence[int], num_units: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the weights with which a layer may read some units, and their gradients, ``(len(units), n)`` each.

    The layer's number of inputs is a multiple of the number of units. A flattened image has several adjacent inputs per
    unit; a recurrent layer has all units once per gate.
    """
    tensor = layer.tensors[0]
    gradient = tensor.weights.grad
    if not tensor.is_plain or gradient is None or gradient.layout != torch.strided:
        return
    both = [tensor.view(each.detach()).flatten(1) for each in (tensor.weights, gradient)]
    per_unit = both[0].shape[1] // num_units
    unit = torch.tensor(units, device=both[0].device)[:, None]
    place = torch.arange(per_unit, device=both[0].device)
    layouts = [unit * per_unit + place, place * num_units + unit]
    for index in layouts if per_unit > 1 else layouts[:1]:
        weights, gradients = (each[:, index.flatten()].T.reshape(len(units), -1) for each in both)
        yield weights, gradients


def _spread(rows: Tensor) -> float:
    """Return the largest distance of one of the rows ``(n, d)`` from the first, relative to the largest norm."""
    return float((rows - rows[:1]).norm(dim=1).max() / rows.norm(dim=1).max())
