"""Which layers read the outputs of a layer, as far as the model can be traced without data."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# What these give at one unit depends on this unit alone, and a unit stays where it is.
_BY_UNIT_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Identity, nn.Flatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
)
_BY_UNIT_FUNCTIONS = {
    *(torch.relu, torch.tanh, torch.sigmoid, torch.flatten),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.selu, functional.gelu),
    *(functional.silu, functional.mish, functional.softplus, functional.tanh, functional.sigmoid, functional.hardtanh),
    *(functional.dropout, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
}
_BY_UNIT_METHODS = {"relu", "tanh", "sigmoid", "flatten", "contiguous"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units of another one.

    Attributes:
        name: its path in the model.
        weight: its weight, whose dimension 1 counts what it reads.
        numbers_per_unit: how many neighbouring inputs belong to one unit; more than one behind a flattened image.
    """

    name: str
    weight: Tensor
    numbers_per_unit: int = 1

    def columns(self, units: Tensor) -> Tensor:
        """The inputs that belong to some units, ``(n,)`` for ``(n / numbers_per_unit,)``."""
        return (units[:, None] * self.numbers_per_unit + torch.arange(self.numbers_per_unit)).flatten()


def readers_of(model: nn.Module, module: nn.Module, num_units: int) -> list[Reader] | None:
    """The linear layers and convolutions that read the units of a layer, and through which all of its work goes.

    The model is traced symbolically (:mod:`torch.fx`): its ``forward`` runs without numbers.

    Args:
        model: the model.
        module: the layer, a part of the model.
        num_units: its number of units.

    Returns:
        The layers; None if the model cannot be traced, or if anything else reads the units.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            graph = fx.Tracer().trace(model)
    except Exception:  # any code of users may run in there
        return None
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module" and modules[node.target] is module]
    try:
        return [reader for call in calls for reader in _readers(call, modules, num_units)] or None
    except _NotByUnitError:
        return None


class _NotByUnitError(Exception):
    """Units are read by something whose inputs are not told apart by unit."""


def _readers(node: fx.Node, modules: dict[str, nn.Module], num_units: int) -> Iterator[Reader]:
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, nn.Linear) and module.in_features % num_units == 0:
            yield Reader(str(user.target), module.weight, module.in_features // num_units)
        elif isinstance(module, _CONVOLUTIONS) and module.groups == 1 and module.in_channels == num_units:
            yield Reader(str(user.target), module.weight)
        elif _is_by_unit(user, module):
            yield from _readers(user, modules, num_units)
        else:
            raise _NotByUnitError


def _is_by_unit(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, _BY_UNIT_MODULES)
    target: Any = node.target
    if node.op == "call_method":
        return target in _BY_UNIT_METHODS
    is_scaled = target in (operator.mul, operator.truediv) and not isinstance(node.args[1], fx.Node)
    return node.op == "call_function" and (target in _BY_UNIT_FUNCTIONS or is_scaled)
