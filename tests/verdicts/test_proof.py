from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, diagnose
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.proof import are_read_differently
from tests.training import fill

UNITS = (0, 1, 2)


def reader_of(weight: Tensor, gradient: Tensor, module: nn.Module) -> nn.Module:
    """A layer with a weight and a gradient."""
    assert isinstance(module.weight, nn.Parameter)
    module.weight.data = weight.clone()
    module.weight.grad = gradient.clone()
    return module


def is_apart(*readers: nn.Module, num_units: int = 6) -> bool:
    return are_read_differently(UNITS, num_units, find_layers(nn.Sequential(*readers)).layers, floor=1e-6)


def columns(equal: bool, out: int = 4, units: int = 6, per_unit: int = 1) -> Tensor:
    """Numbers ``(out, units * per_unit)``, a run of columns per unit, those of the first three units equal."""
    numbers = torch.randn(out, units, per_unit, generator=torch.Generator().manual_seed(out))
    if equal:
        numbers[:, 1:3] = numbers[:, :1]
    return numbers.flatten(1)


def linear(weight: Tensor, gradient: Tensor) -> nn.Module:
    return reader_of(weight, gradient, nn.Linear(weight.shape[1], len(weight), bias=False))


def test_equal_weights_with_different_gradients_read_units_apart() -> None:
    assert is_apart(linear(columns(True), columns(False, 5)[:4]))
    assert not is_apart(linear(columns(True), columns(True)))


def test_what_reads_units_with_different_weights_is_no_reader() -> None:
    assert not is_apart(linear(columns(False), columns(False)))


def test_the_first_layer_that_may_read_the_units_decides() -> None:
    alike, apart = linear(columns(True), columns(True)), linear(columns(True), columns(False))
    assert not is_apart(alike, apart)
    assert is_apart(linear(columns(False), columns(False)), apart, alike)


def test_a_layer_of_exactly_as_many_inputs_reads_before_one_of_a_multiple() -> None:
    multiple = linear(columns(True, per_unit=2), columns(False, per_unit=2))
    assert is_apart(multiple)
    assert not is_apart(multiple, linear(columns(True), columns(True)))


def test_zeros_and_rounding_errors_say_nothing() -> None:
    assert not is_apart(linear(torch.zeros(4, 6), columns(False)))
    assert not is_apart(linear(columns(True), 1e-8 * columns(False)))


@pytest.mark.parametrize("order", ["units first", "positions first"])
def test_inputs_of_images_and_gates_are_found(order: str) -> None:
    def arranged(numbers: Tensor) -> Tensor:
        return numbers if order == "units first" else numbers.unflatten(1, (6, 3)).transpose(1, 2).flatten(1)

    weight = arranged(columns(True, per_unit=3))
    assert is_apart(linear(weight, arranged(columns(False, per_unit=3))))
    assert not is_apart(linear(weight, arranged(columns(True, per_unit=3))))


def test_convolutions_and_transposed_ones_are_readers() -> None:
    weight, gradient = (columns(equal, per_unit=9).reshape(4, 6, 3, 3) for equal in (True, False))
    assert is_apart(reader_of(weight, gradient, nn.Conv2d(6, 4, 3, bias=False)))
    transposed = nn.ConvTranspose2d(6, 4, 3, bias=False)
    assert is_apart(reader_of(weight.transpose(0, 1), gradient.transpose(0, 1), transposed))


def train(
    net: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int = 12
) -> SymmetryTracker:
    with SymmetryTracker(net, optimizer, every_n_steps=1, output=None, on_symmetry="ignore") as tracker:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    return tracker


def steps_of(net: nn.Module, loss: Callable[[], Tensor]) -> dict[str, int | None]:
    """Return by layer with a warning the number of steps before the first one."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    said: dict[str, int | None] = {}
    with SymmetryTracker(net, optimizer, every_n_steps=1, output=None, on_symmetry="ignore") as tracker:
        for step in range(8):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            for finding in tracker.findings:
                said.setdefault(finding.layer, step)
    return said


def test_constant_layers_are_told_before_the_first_update() -> None:
    torch.manual_seed(0)
    net = fill(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), 0.1)
    inputs, targets = torch.randn(32, 8), torch.randn(32, 8)
    assert steps_of(net, lambda: (net(inputs) - targets).square().mean()) == {"0": 0, "2": 0}


@pytest.mark.parametrize("width", [5, 7, 10, 24])
def test_constant_units_in_front_of_noise_are_not_told(width: int) -> None:
    torch.manual_seed(0)
    net: Any = fill(nn.Sequential(nn.Linear(8, 5), nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 8)), 0.1)
    inputs, targets = torch.randn(32, 8), torch.randn(32, 8)

    def loss() -> Tensor:
        hidden = net[0](inputs)
        out: Tensor = net[1:](hidden + torch.randn_like(hidden))
        return (out - targets).square().mean()

    assert "0" not in steps_of(net, loss)


@pytest.mark.parametrize("lr", [0.05, 1e-4, 1e-7, 0.0])
def test_mirror_images_of_a_sigmoid_are_not_told_however_small_the_steps(lr: float) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 12), nn.Sigmoid(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter[6:] = -parameter[:6]
        net[2].weight[:, 6:] = -net[2].weight[:, :6]
    inputs, targets = torch.randn(32, 8), torch.randn(32, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    tracker = train(net, lambda: (net(inputs) - targets).square().mean(), optimizer, 40)
    assert tracker.findings == []


def test_one_look_at_mirror_images_is_no_proof() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter[6:] = -parameter[:6]
        net[2].weight[:, 6:] = -net[2].weight[:, :6]
    net(torch.randn(32, 8)).square().sum().backward()
    assert {str(group.verdict) for group in diagnose(net).layers["0"].groups} == {"duplicate"}


def branches() -> tuple[nn.ModuleDict, Callable[[], Tensor]]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    net = nn.ModuleDict({"a": first, "b": copy.deepcopy(first)})
    inputs, targets = torch.randn(32, 8), torch.randn(32, 3)
    return net, lambda: (net["a"](inputs) + net["b"](inputs) - targets).square().mean()


def resumed(optimizer: torch.optim.Optimizer, states: list[Any]) -> torch.optim.Optimizer:
    """Give each parameter of an optimizer a state."""
    for parameter, state in zip(optimizer.param_groups[0]["params"], states, strict=True):
        optimizer.state[parameter] = {key: copy.deepcopy(value) for key, value in state.items()}
    return optimizer


def test_copies_with_other_running_averages_are_not_told_and_those_with_equal_ones_are() -> None:
    net, loss = branches()
    before = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        before.zero_grad()
        loss().backward()
        before.step()
    states = [before.state[parameter] for parameter in net.parameters()]
    tracker = train(net, loss, resumed(torch.optim.Adam(net.parameters(), lr=1e-3), states))
    assert [(finding.layer, str(finding.verdict)) for finding in tracker.findings] == [("a, b", "locked")]
    net, loss = branches()
    other = [{**state, "exp_avg": -state["exp_avg"]} for state in states[len(states) // 2 :]]
    tracker = train(net, loss, resumed(torch.optim.Adam(net.parameters(), lr=1e-3), states[: len(states) // 2] + other))
    assert tracker.findings == []


def test_units_with_other_running_averages_are_not_told() -> None:
    torch.manual_seed(0)
    net = fill(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), 0.1)
    inputs, targets = torch.randn(32, 8), torch.randn(32, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for parameter in net.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    tracker = train(net, lambda: (net(inputs) - targets).square().mean(), optimizer)
    assert tracker.findings == []
