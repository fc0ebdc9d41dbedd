"""The linear layers of torch_geometric, recognised by class names: the package need not be installed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, SymmetryTracker, Verdict, diagnose
from lightning_symmetry.units.discovery import find_layers


class _Linear(nn.Module):
    __module__, __qualname__ = "torch_geometric.nn.dense.linear", "Linear"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)


class _HeteroLinear(nn.Module):
    __module__, __qualname__ = "torch_geometric.nn.dense.linear", "HeteroLinear"

    def __init__(self, inputs: int, outputs: int, num_types: int) -> None:
        super().__init__()
        self.num_types = num_types
        self.weight = nn.Parameter(torch.randn(num_types, inputs, outputs))
        self.bias = nn.Parameter(torch.randn(num_types, outputs))

    def forward(self, inputs: Tensor, types: Tensor) -> Tensor:
        return torch.einsum("bi,bio->bo", inputs, self.weight[types]) + self.bias[types]


class _Typed(nn.Module):
    """The first of three types does not occur."""

    def __init__(self) -> None:
        super().__init__()
        self.hetero, self.out = _HeteroLinear(5, 4, 3), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hetero(inputs, 1 + torch.arange(len(inputs)) % 2)
        outputs: Tensor = self.out(hidden.relu())
        return outputs


def trained(model: nn.Module, steps: int = 60) -> SymmetryReport:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(), SymmetryTracker(model, optimizer, every_n_steps=5) as tracker:
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.randn(16, 5)) - 1).square().mean().backward()
            optimizer.step()
    assert tracker.report is not None
    return tracker.report


def test_units_of_a_linear_layer_of_graphs() -> None:
    torch.manual_seed(0)
    layer = _Linear(5, 4)
    with torch.no_grad():
        layer.weight[3], layer.bias[3] = layer.weight[1], layer.bias[1]
    report = diagnose(nn.Sequential(layer))
    assert [group.units for group in report.layers["0"].groups] == [(1, 3)]
    assert (report.layers["0"].fan_in, report.skipped, report.coverage) == (5, {}, 1.0)


def test_one_that_is_not_initialised_yet_is_read_later() -> None:
    layer: Any = _Linear(5, 4)
    layer.weight = nn.UninitializedParameter()
    assert find_layers(nn.Sequential(layer)).unread == {"0": "not initialised yet"}
    layer.weight.materialize((4, 5))
    assert [found.name for found in find_layers(nn.Sequential(layer)).layers] == ["0"]


def test_dead_units_of_a_linear_layer_of_graphs() -> None:
    model: Any = nn.Sequential(_Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.constant_(model[0].bias, -100.0)
    [finding] = trained(model).findings
    assert (finding.layer, finding.verdict, finding.units) == ("0", Verdict.DEAD, tuple(range(8)))
    assert finding.stop is not None
    assert str(finding.stop).startswith("closed at 1: ")


def test_units_of_each_type_are_compared_with_one_another_only() -> None:
    torch.manual_seed(0)
    layer = _HeteroLinear(5, 4, 3)
    with torch.no_grad():
        layer.weight[1, :, 3], layer.bias[1, 3] = layer.weight[1, :, 2], layer.bias[1, 2]
        layer.weight[2, :, 0], layer.bias[2, 0] = layer.weight[1, :, 0], layer.bias[1, 0]
    report = diagnose(nn.Sequential(layer))
    assert [group.units for group in report.layers["0"].groups] == [(6, 7)]
    assert (report.layers["0"].num_units, report.layers["0"].fan_in, report.coverage) == (12, 5, 1.0)


def test_a_type_that_does_not_come_up_is_neither_dead_nor_frozen() -> None:
    torch.manual_seed(0)
    model = _Typed()
    with torch.no_grad():
        model.hetero.weight[0], model.hetero.bias[0] = 0.0, 0.0
    assert trained(model).findings == []


def test_dead_units_of_a_type() -> None:
    torch.manual_seed(0)
    model = _Typed()
    nn.init.constant_(model.hetero.bias[1:], -100.0)
    [finding] = trained(model).findings
    assert (finding.layer, finding.verdict) == ("hetero", Verdict.DEAD)
    assert set(range(4, 12)) <= set(finding.units)
