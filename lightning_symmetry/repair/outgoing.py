"""The weights that read dead units: where they can become zero without a change of what the network computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from lightning_symmetry.modules import parametrizations_of
from lightning_symmetry.repair.writing import put
from lightning_symmetry.units.hooks import is_of_user
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.readers import Reader, ReadingGraph

# Activations without a slope only where they put out zero. At zero they put out zero as well.
_SILENT = {"relu", "gelu", "silu", "mish", "hardswish"}
# Parts of the names of operations that scale, drop, pool or move numbers.
_NEUTRAL = ("mul", "div", "dropout", "pool", "flatten", "identity", "contiguous")

# A SiLU far out puts out the smallest numbers that there are.
_TINY = 1e-30


class Reading(NamedTuple):
    """What reads dead units.

    Attributes:
        readers: the layers whose weights can become zero, so that fresh rows leave the function as it is.
        why_not: why there are none, as a clause; empty if there are some.
        is_alive: whether it is because the units put out something, although they have no gradient.
    """

    readers: list[Reader]
    why_not: str = ""
    is_alive: bool = False


def reading_of_dead(graph: ReadingGraph, module: nn.Module, layer: Layer, units: Tensor) -> Reading:
    """Return the layers that read dead units of a layer, if the units give them zeros.

    Args:
        graph: which layers read which units.
        module: the module of the layer.
        layer: the layer.
        units: indices of the dead units, ``(n,)``.
    """
    originals = [original for tensor in layer.all_tensors() for original in tensor.originals]
    if any(is_of_user(hook) for original in originals for hook in (original._backward_hooks or {}).values()):
        return Reading(
            [], "a hook changes the gradients of their weights, which says nothing of what they put out", True
        )
    readers = graph.readers_of(module, layer.num_units)
    if readers is None:
        return Reading([], "what reads them could not be told")
    if not readers:
        return Reading([], "nothing reads them")
    if not all(map(_is_silent_if_dead, readers)):
        return Reading([], "they may put out a constant other than zero")
    if moved := next((reader.name for reader in readers if _has_gradients(reader, units)), None):
        return Reading(
            [], f"`{moved}`, which reads them, has gradients for what they put out, so that is not zero", True
        )
    if frozen := next((reader.name for reader in readers if not reader.weight.requires_grad), None):
        return Reading([], f"`{frozen}`, which reads them, is frozen (`requires_grad=False`)")
    if any(map(_mixes_units, parametrizations_of(module).values())):
        return Reading([], "a parametrization computes all rows of their layer together")
    return Reading(readers)


def clear(readers: Iterable[Reader], units: Tensor, optimizers: Sequence[Optimizer]) -> tuple[str, ...]:
    """Set the weights that read some units to zero; return the names of their layers.

    Args:
        readers: the layers, as :func:`reading_of_dead` gives them.
        units: indices of the units, ``(n,)``.
        optimizers: those that update the parameters of the model.
    """
    names = []
    for reader in readers:
        places = torch.arange(reader.weight.numel()).reshape(reader.weight.shape)
        put(reader.weight, places.index_select(reader.dim, reader.inputs(units).flatten()).flatten(), 0.0, optimizers)
        names.append(reader.name)
    return tuple(dict.fromkeys(names))


def _has_gradients(reader: Reader, units: Tensor) -> bool:
    """Return whether the weights that read some units have gradients, which those of inputs of zero have not."""
    gradient = reader.weight.grad
    if gradient is None or gradient.layout != torch.strided:
        return False
    inputs = reader.inputs(units).flatten().to(gradient.device)
    return bool(gradient.index_select(reader.dim, inputs).abs().max() > _TINY)


def _mixes_units(chain: ParametrizationList) -> bool:
    """Return whether a row that is computed may depend on other rows than its own."""
    return not all(isinstance(step, _WeightNorm) and step.dim == 0 for step in chain)


def _is_silent_if_dead(reader: Reader) -> bool:
    """Return whether a unit without a gradient gives zeros to a reader."""
    names = [name for name in reader.through if not any(part in name for part in _NEUTRAL)]
    while names and names[0].startswith("batchnorm"):  # behind an activation it would move the zeros
        del names[0]
    return bool(names) and _SILENT.issuperset(names)
