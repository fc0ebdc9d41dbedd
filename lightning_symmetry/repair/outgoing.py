"""The weights that read dead units, and whether zeroing them leaves the network's function unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.optim import Optimizer

from lightning_symmetry.modules import parametrizations_of
from lightning_symmetry.repair.writing import write_numbers
from lightning_symmetry.units.hooks import is_of_user
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.readers import Reader, ReadingGraph

# Activations whose slope is zero only where their output is zero, and that map zero to zero.
_SILENT = {"relu", "gelu", "silu", "mish", "hardswish"}
# Parts of the names of operations that scale, drop, pool or move numbers.
_NEUTRAL = ("mul", "div", "dropout", "pool", "flatten", "identity", "contiguous")

# The outputs of a SiLU at large negative inputs are not zero, but among the smallest numbers of the dtype.
_TINY = 1e-30


class Reading(NamedTuple):
    """The layers that read dead units."""

    readers: list[Reader]  # the layers whose weights can be zeroed, so that fresh rows keep the network's function
    why_not: str = ""  # why there are none, as a clause; empty if there are some
    is_alive: bool = False  # whether the reason is that the units may have an output although they have no gradient


def reading_of_dead(graph: ReadingGraph, module: nn.Module, layer: Layer, units: Tensor) -> Reading:
    """Return the layers that read the dead ``units`` ``(n,)`` of a layer, if the outputs of these units are zero."""
    originals = [original for tensor in layer.all_tensors() for original in tensor.originals]
    if any(is_of_user(hook) for original in originals for hook in (original._backward_hooks or {}).values()):
        return Reading([], "a hook changes the gradients of their weights, so their outputs are unknown", True)
    readers = graph.readers_of(module, layer.num_units)
    if readers is None:
        return Reading([], "it is unknown what reads them")
    if not readers:
        return Reading([], "nothing reads them")
    if not all(map(_is_silent_if_dead, readers)):
        return Reading([], "they may output a constant other than zero")
    if moved := next((reader.name for reader in readers if _has_gradients(reader, units)), None):
        return Reading([], f"`{moved}`, which reads them, has gradients for their outputs, so these are not zero", True)
    if frozen := next((reader.name for reader in readers if not reader.weight.requires_grad), None):
        return Reading([], f"`{frozen}`, which reads them, is frozen (`requires_grad=False`)")
    steps = [step for chain in parametrizations_of(module).values() for step in chain]
    if not all(isinstance(step, _WeightNorm) and step.dim == 0 for step in steps):
        return Reading([], "a parametrization computes all rows of their layer together")
    return Reading(readers)


def clear(readers: Iterable[Reader], units: Tensor, optimizers: Sequence[Optimizer]) -> tuple[str, ...]:
    """Set the weights that read ``units`` ``(n,)`` to zero; return the names of the readers."""
    names = []
    for reader in readers:
        places = torch.arange(reader.weight.numel()).reshape(reader.weight.shape)
        places = places.index_select(reader.dim, reader.inputs(units).flatten()).flatten()
        write_numbers(reader.weight, places, 0.0, optimizers)
        names.append(reader.name)
    return tuple(dict.fromkeys(names))


def _has_gradients(reader: Reader, units: Tensor) -> bool:
    """Return whether the weights that read some units have gradients, so that the units' outputs are not zero."""
    gradient = reader.weight.grad
    if gradient is None or gradient.layout != torch.strided:
        return False
    inputs = reader.inputs(units).flatten().to(gradient.device)
    return bool(gradient.index_select(reader.dim, inputs).abs().max() > _TINY)


def _is_silent_if_dead(reader: Reader) -> bool:
    """Return whether a unit without a gradient must have an output of zero at a reader."""
    names = [name for name in reader.through if not any(part in name for part in _NEUTRAL)]
    while names and names[0].startswith("batchnorm"):  # fine before the activation; after it, it would shift zeros
        del names[0]
    return bool(names) and _SILENT.issuperset(names)
