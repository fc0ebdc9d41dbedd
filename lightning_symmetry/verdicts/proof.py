"""Whether equal gradients at one look prove that units stay equal: only if what reads them stays equal, too."""

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

# So many units of a group are looked at, and so many layers that may read them.
_NUM_UNITS = 4
_NUM_READERS = 8
# Of so many groups of a layer it is asked whether they are read alike.
_MAX_ASKED = 8
# The layer that reads units is looked for among so many that follow theirs in the model.
_MAX_BEHIND = 64


@dataclass(frozen=True)
class Proof:
    """Tells whether equal gradients at one look prove that units stay equal.

    Attributes:
        layers: all layers that are looked at.
        updates: how the optimizers update them; None: that is not known.
        proven: the groups of the layer that are known to stay equal.
        noise: the norm up to which gradients may be rounding errors.
    """

    layers: Sequence[Comparable]
    updates: Updates | None
    proven: Collection[tuple[int, ...]]
    noise: float

    def part(self, layer: Comparable, group: tuple[int, ...]) -> bool:
        """Return whether equal gradients make different updates.

        Units of one layer have the options of one optimizer, and their state stays equal if it was so once.
        """
        is_to_be_asked = bool(layer.row_names) or group not in self.proven
        return is_to_be_asked and self.updates is not None and not layer.are_updated_alike(group, self.updates)

    def judged(self, layer: Comparable, sightings: Sequence[Sighting]) -> list[Sighting]:
        """Return sightings of equal units or copies, marked if something is at hand that may part them."""
        if isinstance(layer, Copies) and self.updates is not None:
            # Groups of equal options may have schedules of their own.
            return [replace(each, is_proof=layer.share_options(each.units, self.updates)) for each in sightings]
        asked = [each for each in sightings if each.gradients is Gradients.EQUAL and each.units not in self.proven]
        if not asked or not isinstance(layer, Layer):
            return list(sightings)
        place = next(i for i, other in enumerate(self.layers) if other is layer)
        behind = self.layers[place + 1 : place + 1 + _MAX_BEHIND]
        readers = [other for other in behind if isinstance(other, Layer)]
        apart = {
            each.units
            for each in asked[:_MAX_ASKED]
            if are_read_apart(each.units, layer.num_units, readers, self.noise)
        }
        # Of so many groups the others are taken to be read as these are.
        of_the_rest = len(asked) > _MAX_ASKED and bool(apart)
        apart |= {each.units for each in asked[_MAX_ASKED:] if of_the_rest}
        return [replace(each, is_proof=each.units not in apart) for each in sightings]


def are_read_apart(units: Sequence[int], num_units: int, layers: Iterable[Layer], floor: float) -> bool:
    """Return whether the layer that reads equal units is about to read them apart.

    Units with equal weights and gradients get different gradients at the next step, if the weights that read them have
    different ones at this step: where noise is added to each, as in the latents of a VAE, or where each is added to
    something of its own, as in a residual network. The first layer that has as many inputs and equal weights for these
    is taken for the one that reads them; where there is none, the first that has a multiple.

    Args:
        units: units of one layer with equal weights and equal gradients.
        num_units: the number of units of that layer.
        layers: layers that follow that one in the model.
        floor: the norm up to which gradients may be rounding errors.
    """
    may_read = [layer for layer in layers if layer.shapes[0][1:].numel() % num_units == 0]
    may_read.sort(key=lambda layer: num_units not in layer.shapes[0][1:])  # those that have exactly as many come first
    for layer in may_read[:_NUM_READERS]:
        for weights, gradients in _columns(layer, units[:_NUM_UNITS], num_units):
            if float(weights.norm()) == 0 or _apart(weights) > TOLERANCES[weights.dtype]:
                continue
            if float(gradients.norm(dim=1).max()) > floor:
                return _apart(gradients) > LEAVE_TOLERANCES[gradients.dtype]
    return False


def _columns(layer: Layer, units: Sequence[int], num_units: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the weights with which a layer may read some units, and their gradients, ``(len(units), numbers)`` each.

    The number of its inputs is a multiple of that of the units.

    An image has several inputs per unit side by side, the gates of a recurrent layer have them one after the other.
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
        flat = index.flatten()
        weights, gradients = (each[:, flat].T.reshape(len(units), -1) for each in both)
        yield weights, gradients


def _apart(rows: Tensor) -> float:
    """Return the largest distance of a row from the first, relative to the largest norm."""
    return float((rows - rows[:1]).norm(dim=1).max() / rows.norm(dim=1).max())
