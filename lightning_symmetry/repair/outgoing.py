"""The weights that read dead units: which of them can become zero without a change of what the network computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry.repair.writing import put
from lightning_symmetry.units.readers import Reader, ReadingGraph

# Activations without a slope only where they put out zero. At zero they put out zero as well.
_SILENT = {"relu", "gelu", "silu", "mish", "hardswish"}
# Parts of the names of operations that scale, drop, pool or move numbers.
_NEUTRAL = ("mul", "div", "dropout", "pool", "flatten", "identity", "contiguous")
_LEFT = "so their outgoing weights were left as they are"


def clear_outgoing(
    graph: ReadingGraph, module: nn.Module, num_units: int, units: Tensor, optimizers: Sequence[Optimizer]
) -> tuple[tuple[str, ...], str]:
    """Set the weights that read dead units to zero, if the units put out zero.

    Args:
        graph: which layers read which units.
        module: the layer.
        num_units: its number of units.
        units: indices of those that are dead, ``(n,)``.
        optimizers: those that update the parameters of the model.

    Returns:
        The names of the layers whose weights were changed, and why none was; one of the two is empty.
    """
    readers = graph.readers_of(module, num_units)
    if readers is None:
        return (), f"what reads them could not be told, {_LEFT}"
    if not all(map(_is_silent_if_dead, readers)):
        return (), f"they may put out a constant other than zero, {_LEFT}"
    for reader in readers:
        places = torch.arange(reader.weight.numel()).reshape(reader.weight.shape)
        put(reader.weight, places.index_select(reader.dim, reader.inputs(units).flatten()).flatten(), 0.0, optimizers)
    return tuple(dict.fromkeys(reader.name for reader in readers)), ""


def _is_silent_if_dead(reader: Reader) -> bool:
    """Return whether a unit without a gradient gives zeros to a reader."""
    names = [name for name in reader.through if not any(part in name for part in _NEUTRAL)]
    while names and names[0].startswith("batchnorm"):  # behind an activation it would move the zeros
        del names[0]
    return bool(names) and _SILENT.issuperset(names)
