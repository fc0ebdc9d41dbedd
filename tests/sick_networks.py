"""Random networks of twelve architectures, with equal, mirrored or dead units planted into one layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_symmetry import Change, SymmetryReport, break_symmetry, diagnose

ODD = (nn.Tanh, nn.Hardtanh, nn.Softsign)
OTHERS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Hardsigmoid, nn.ReLU6)
SATURATING = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.ReLU6)
PLANTED = ("copies", "mirror images", "dead units", "saturated units")


@dataclass(frozen=True)
class Sick:
    """A network with units planted into one layer.

    Attributes:
        architecture: name of the architecture.
        planted: kind of the units.
        net: the network.
        inputs: arguments for the network.
        layer: the name of the layer.
        units: the changed units.
    """

    architecture: str
    planted: str
    net: nn.Module
    inputs: Tensor
    layer: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class _Healthy:
    net: nn.Module
    inputs: Tensor
    layer: str
    readers: Sequence[str]
    norms: Sequence[str] = ()


class _Wired(nn.Module):
    """Modules connected by a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.wire = forward

    def forward(self, x: Tensor) -> Any:
        return self.wire(self, x)


def _perceptron(random: Random, act: nn.Module) -> _Healthy:
    width = random.choice([8, 12])
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, width), act, nn.Linear(width, 3))
    return _Healthy(net, torch.randn(12, 5), "2", ["4"])


def _convolutional(random: Random, act: nn.Module) -> _Healthy:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), act, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 3))
    return _Healthy(net, torch.randn(6, 2, 6, 6), "0", ["4"])


def _batch_norm(random: Random, act: nn.Module) -> _Healthy:
    dims = random.choice([1, 2])
    conv: Any = (nn.Conv1d, nn.Conv2d)[dims - 1]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    pool: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1]
    net = nn.Sequential(conv(2, 8, 3), norm(8), act, conv(8, 4, 1), pool(1), nn.Flatten(), nn.Linear(4, 3))
    return _Healthy(net, torch.randn(6, 2, *[5] * dims), "0", ["3"], ["1"])


def _group_norm(random: Random, act: nn.Module) -> _Healthy:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), act, nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))
    return _Healthy(net, torch.randn(6, 2, 5, 5), "0", ["3"], ["2"])


def _residual(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.into(x)
        x = x + net.down(net.act(net.up(x)))
        return net.head(x)

    parts = {
        "into": nn.Linear(5, 6),
        "up": nn.Linear(6, 8),
        "act": act,
        "down": nn.Linear(8, 6),
        "head": nn.Linear(6, 3),
    }
    return _Healthy(_Wired(forward, **parts), torch.randn(12, 5), "up", ["down"])


class _Block(nn.TransformerEncoderLayer):
    """A ``TransformerEncoderLayer`` whose activation can be any module."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__(8, 2, 8, dropout=0.0, activation=act, batch_first=True)


def _attention(random: Random, act: nn.Module) -> _Healthy:
    net = nn.Sequential(nn.Linear(5, 8), _Block(act), nn.Flatten(), nn.Linear(24, 3))
    return _Healthy(net, torch.randn(6, 3, 5), "1.linear1", ["1.linear2"])


def _recurrent(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        return net.head(net.act(net.mid(net.cell(x)[0][:, -1])))

    cell = random.choice([nn.GRU, nn.LSTM, nn.RNN])(5, 6, batch_first=True)
    parts = {"cell": cell, "mid": nn.Linear(6, 8), "act": act, "head": nn.Linear(8, 3)}
    return _Healthy(_Wired(forward, **parts), torch.randn(6, 4, 5), "mid", ["head"])


def _tied(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        return nn.functional.linear(net.down(net.act(net.up(net.tokens(x)))), net.tokens.weight)

    parts = {"tokens": nn.Embedding(9, 6), "up": nn.Linear(6, 8), "act": act, "down": nn.Linear(8, 6)}
    return _Healthy(_Wired(forward, **parts), torch.randint(9, (6, 4)), "up", ["down"])


def _weight_norm(random: Random, act: nn.Module) -> _Healthy:
    net = nn.Sequential(nn.Linear(5, 8), act, parametrizations.weight_norm(nn.Linear(8, 3)))
    return _Healthy(net, torch.randn(12, 5), "0", ["2"])


def _shared(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        for _ in range(2):
            x = net.down(net.act(net.up(x)))
        return net.head(x)

    parts = {"up": nn.Linear(5, 8), "act": act, "down": nn.Linear(8, 5), "head": nn.Linear(5, 3)}
    return _Healthy(_Wired(forward, **parts), torch.randn(12, 5), "up", ["down"])


def _auxiliary(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.act(net.a(x))
        return (net.head(h), net.extra(h)) if net.training else net.head(h)

    parts = {"a": nn.Linear(5, 8), "act": act, "head": nn.Linear(8, 3), "extra": nn.Linear(8, 2)}
    return _Healthy(_Wired(forward, **parts), torch.randn(12, 5), "a", ["head", "extra"])


def _paths(random: Random, act: nn.Module) -> _Healthy:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.act(net.a(x))
        return net.head(h) if x.mean() < 2 else net.head(h.cumsum(-1))

    parts = {"a": nn.Linear(5, 8), "act": act, "head": nn.Linear(8, 3)}
    return _Healthy(_Wired(forward, **parts), torch.randn(12, 5), "a", ["head"])


_MAKE: dict[str, Callable[[Random, nn.Module], _Healthy]] = {
    "MLP": _perceptron,
    "CNN": _convolutional,
    "BatchNorm": _batch_norm,
    "GroupNorm": _group_norm,
    "residual": _residual,
    "attention": _attention,
    "RNN": _recurrent,
    "tied embedding": _tied,
    "weight_norm": _weight_norm,
    "shared layer": _shared,
    "auxiliary head": _auxiliary,
    "two paths": _paths,
}
ARCHITECTURES = tuple(_MAKE)


def sick_network(seed: int, architecture: str, planted: str, dtype: torch.dtype = torch.float64) -> Sick:
    """Make a random network and plant units into one of its layers.

    The weights that read copies and mirror images are equal, too, so that they train as one.

    Args:
        seed: seed of the network.
        architecture: one of ``ARCHITECTURES``.
        planted: one of ``PLANTED``.
        dtype: dtype of the parameters.
    """
    random = Random(seed)
    torch.manual_seed(seed)
    kinds = (ODD + OTHERS, ODD, (nn.ReLU,), SATURATING)[PLANTED.index(planted)]
    healthy = _MAKE[architecture](random, random.choice(kinds)())
    layer: Any = healthy.net.get_submodule(healthy.layer)
    size = len(layer.weight)
    with torch.no_grad():
        if planted.endswith("units"):
            units = tuple(sorted(random.sample(range(size), 3)))
            shift: Any = healthy.net.get_submodule(healthy.norms[0]) if architecture == "BatchNorm" else layer
            shift.bias[list(units)] = -100.0 if planted == "dead units" else 100.0  # a norm cancels the bias before it
        else:
            sign = -1 if planted == "mirror images" else 1
            units = tuple(range(size - 3, size))
            for unit in units:
                _copy(healthy, layer, random.randrange(size - 3), unit, sign)
    net = healthy.net.to(dtype)
    inputs = healthy.inputs.to(dtype) if healthy.inputs.is_floating_point() else healthy.inputs
    return Sick(architecture, planted, net, inputs, healthy.layer, units)


def _copy(healthy: _Healthy, layer: Any, source: int, unit: int, sign: int) -> None:
    """Make a unit a copy or a mirror image of another one, in all tensors with numbers for it."""
    for parameter in (layer.weight, layer.bias):
        parameter[unit] = sign * parameter[source]
    for name in healthy.norms:
        norm: Any = healthy.net.get_submodule(name)
        norm.weight[unit], norm.bias[unit] = norm.weight[source], sign * norm.bias[source]
    for name in healthy.readers:
        reader: Any = healthy.net.get_submodule(name)
        weight = reader.weight.detach().clone()
        columns = weight.reshape(len(weight), len(layer.weight), -1)
        columns[:, unit] = sign * columns[:, source]
        if isinstance(reader.weight, nn.Parameter):
            reader.weight.copy_(weight)
        else:
            reader.weight = weight


def loss_of(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return a loss of all outputs."""
    outputs: Any = net(inputs)
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack(
        [(each - torch.linspace(-1, 1, each.shape[-1]).to(each)).square().mean() for each in several]
    ).sum()


def distance(a: nn.Module, b: nn.Module, inputs: Tensor) -> float:
    """Return the largest relative distance of the outputs of two networks, in float64, in both modes."""
    largest = 0.0
    for is_training in (False, True):
        found = []
        for net in (a, b):
            exact = copy.deepcopy(net).double().train(is_training)
            with torch.no_grad():
                outputs: Any = exact(inputs.double() if inputs.is_floating_point() else inputs)
            found.append(outputs if isinstance(outputs, tuple) else (outputs,))
        largest = max(largest, *(float((x - y).norm() / x.norm()) for x, y in zip(*found, strict=True)))
    return largest


def repaired(case: Sick, optimizer: torch.optim.Optimizer | None = None) -> tuple[list[Change], str]:
    """Repair the planted units; return the changes, and the reasons why units were left."""
    layer = diagnose(case.net).layers[case.layer]
    if case.planted.endswith("units"):
        layer = replace(layer, groups=[], dead=case.units, died_at=(0,) * len(case.units))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changes = break_symmetry(case.net, SymmetryReport(layers={case.layer: layer}), optimizer=optimizer)
    return changes, " ".join(str(each.message) for each in caught)
