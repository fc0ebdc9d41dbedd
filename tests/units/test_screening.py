"""Fast reading of layers: a full look agrees that the returned layers are distinct."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.matrices.screening import directions_of
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.screening import Distinct, LayerScreen
from lightning_symmetry.verdicts.evidence import look
from tests.training import mlp

NetT = TypeVar("NetT", bound=nn.Module)


def with_gradients(net: NetT, generator: torch.Generator) -> NetT:
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return net


def parameters_of(net: nn.Module) -> set[int]:
    return {id(parameter) for parameter in net.parameters()}


def read(net: nn.Module, screen: LayerScreen | None = None, tolerance: float | None = None) -> Distinct:
    layers = find_layers(net).layers
    if screen is None:
        screen = LayerScreen(layers, tolerance)
        assert screen.read(parameters_of(net), set(map(id, layers))) == Distinct()  # movement is unknown at first
    return screen.read(parameters_of(net), set(map(id, screen.layers)))


def names_of(found: Distinct) -> list[str]:
    return [layer.name for layer, *_ in found.layers]


class Mixed(nn.Module):
    """Return layers of all kinds with rows of many lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 7, bias=False)
        self.conv, self.back = nn.Conv2d(2, 6, 3), nn.ConvTranspose1d(4, 6, 2)
        self.grouped, self.table = nn.Conv1d(6, 6, 3, groups=3), nn.Embedding(9, 5)
        self.gru, self.attention = nn.GRUCell(4, 5), nn.MultiheadAttention(8, 2)


@given(st.data())
def test_what_is_called_distinct_is_distinct_for_a_look_too(data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    torch.manual_seed(0)
    net = with_gradients(Mixed().to(dtype), generator)
    for parameter in net.parameters():
        assert parameter.grad is not None
        for tensor in (parameter.detach(), parameter.grad):
            change = data.draw(st.sampled_from(["none"] * 6 + ["copy", "negate", "near", "zero", "nan", "inf", "tiny"]))
            target, source = 1, 0
            if change in ("copy", "negate", "near"):
                factor = {"copy": 1, "negate": -1, "near": 1 + 2e-6}[change]
                tensor[target] = factor * tensor[source]
            elif change != "none":
                tensor[target] = {"zero": 0.0, "nan": torch.nan, "inf": torch.inf, "tiny": 1e-42}[change]
    layers = find_layers(net).layers
    looks = {seen.layer.name: seen for seen in look(layers, trained=parameters_of(net))}
    for layer, idle, _ in read(net).layers:
        seen = looks[layer.name]
        assert seen.sightings == ()
        assert seen.has_gradient
        assert seen.unseen is not None
        assert not seen.unseen.any()
        assert seen.idle is not None
        assert np.array_equal(seen.idle, np.zeros(layer.num_units, dtype=np.bool_) if idle is None else idle)


def test_healthy_layers_of_all_kinds_are_distinct() -> None:
    torch.manual_seed(0)
    net = with_gradients(Mixed(), torch.Generator().manual_seed(1))
    assert names_of(read(net)) == [layer.name for layer in find_layers(net).layers]


@pytest.mark.parametrize("what", ["weight", "gradient"])
@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_copies_and_negatives_need_a_closer_look(what: str, factor: float) -> None:
    net = with_gradients(mlp(), torch.Generator().manual_seed(1))
    for parameter in net.linear(2).parameters():
        tensor = parameter.detach() if what == "weight" else parameter.grad
        assert tensor is not None
        tensor[5] = factor * tensor[2]
    assert names_of(read(net)) == ["0", "4"]


def test_units_with_a_zero_gradient_are_named() -> None:
    net = with_gradients(mlp(), torch.Generator().manual_seed(1))
    for parameter in net.linear(2).parameters():
        assert parameter.grad is not None
        parameter.grad[[1, 6]] = 0
    first, second, third = (each.idle for each in read(net).layers)
    assert first is third is None
    assert second is not None
    assert np.flatnonzero(second).tolist() == [1, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_are_those_of_the_rows_however_they_are_read(dtype: torch.dtype) -> None:
    net = with_gradients(mlp().to(dtype), torch.Generator().manual_seed(1))
    found = read(net).layers
    assert len(found) == 3
    for layer, _, directions in found:
        rows = layer.weights().fetch(np.arange(layer.num_units))
        assert np.abs(directions - directions_of(rows)).max() < 1e-12
        assert np.abs(directions - directions_of(0.9 * rows)).max() < 1e-6  # weight decay keeps them


def test_layers_without_a_gradient_of_this_optimizer_are_left_out() -> None:
    net = with_gradients(mlp(), torch.Generator().manual_seed(1))
    screen = LayerScreen(find_layers(net).layers, None)
    read(net, screen)
    net.linear(0).weight.grad = None
    net.linear(2).bias.grad = torch.zeros(8).to_sparse()
    assert names_of(read(net, screen)) == ["4"]
    wanted = set(map(id, screen.layers))
    assert names_of(screen.read(set(), wanted)) == []
    assert names_of(screen.read(parameters_of(net), set())) == []


def test_movement_is_noticed() -> None:
    net = with_gradients(mlp(), torch.Generator().manual_seed(1))
    screen = LayerScreen(find_layers(net).layers, None)
    assert read(net, screen) == Distinct()  # movement is unknown at first
    assert not read(net, screen).have_moved
    with torch.no_grad():
        net.linear(2).weight[3, 4] += 1e-3
    assert [read(net, screen).have_moved for _ in range(2)] == [True, False]


def test_whether_there_was_any_gradient_is_kept() -> None:
    net = with_gradients(mlp(), torch.Generator().manual_seed(1))
    screen = LayerScreen(find_layers(net).layers, None)
    read(net, screen)
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    assert [read(net, screen).had_gradient for _ in range(2)] == [True, False]


def test_what_is_large_computed_or_in_float64_is_left_out() -> None:
    nets: list[nn.Module] = [nn.Linear(300, 300), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))]
    nets.append(nn.Linear(4, 4).double())
    for net in nets:
        with_gradients(net, torch.Generator().manual_seed(1))
        assert not read(nn.Sequential(net)).layers


def test_a_view_that_copies_is_not_taken_for_the_parameter() -> None:
    net = nn.Sequential(nn.ConvTranspose1d(8, 8, 2, groups=2, bias=False), nn.Conv1d(8, 8, 2, groups=2, bias=False))
    weight = net[1].weight = net[0].weight  # square, so that the rows of both views have one shape
    assert isinstance(weight, nn.Parameter)
    transposed, plain = find_layers(net).layers  # two layers, since their views differ
    assert transposed.shapes == plain.shapes
    with_gradients(net, torch.Generator().manual_seed(1))
    assert weight.grad is not None
    weight.grad[4:, 1] = 0  # of an output of the second group
    idle, idle_plain = (each.idle for each in read(net).layers)
    assert idle_plain is None
    assert idle is not None
    assert np.flatnonzero(idle).tolist() == [5]


def test_layers_with_the_same_view_of_a_shared_weight_are_one_even_if_it_copies() -> None:
    net = nn.Sequential(nn.ConvTranspose1d(8, 8, 2, groups=2), nn.ConvTranspose1d(8, 8, 2, groups=2))
    net[1].weight = net[0].weight
    assert [(layer.name, layer.also) for layer in find_layers(net).layers] == [("0", ("1",))]


def test_more_layers_than_are_copied_at_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(200, 200) for _ in range(20)])
    with_gradients(net, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in net[13].parameters():
            parameter[150] = parameter[3].clone()
    assert names_of(read(net)) == [str(i) for i in range(20) if i != 13]
