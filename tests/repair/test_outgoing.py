"""Dead units get fresh rows: the network computes the same, or the change says why it may not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_symmetry import Change, SymmetryReport, break_symmetry, diagnose
from lightning_symmetry.units.readers import ReadingGraph, input_dim
from tests.units.networks import LAYERS, num_units, random_network, run, units_dim

BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.ReLU6)  # without a slope on both sides
STOPPING = (*BOUNDED, nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish, nn.ELU)
LEFT = "so their outgoing weights were left as they are"


def dead_units(net: nn.Module, name: str, inputs: Tensor) -> set[int]:
    """The units of a layer without a gradient in either mode, whatever dropout does."""
    net.zero_grad()
    for seed in range(5):
        torch.manual_seed(seed)
        net.train(seed > 0)(inputs).square().sum().backward()
    return set(diagnose(net).layers[name].dead)


def recycled(net: nn.Module, name: str, dead: set[int]) -> Change:
    layer = replace(diagnose(net).layers[name], groups=[], dead=tuple(sorted(dead)), died_at=(0,) * len(dead))
    [change] = break_symmetry(net, SymmetryReport(layers={name: layer}))
    return change


def outputs_of(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The outputs in both modes; the statistics of BatchNorm stay as they are."""
    return [run(copy.deepcopy(net).train(is_training), inputs)[0] for is_training in (True, False)]


def changed_by(net: nn.Module, change: Callable[[], object]) -> dict[str, Tensor]:
    """By the name of each parameter that changes, a mask of its numbers that do."""
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    change()
    masks = {name: parameter.detach() != before[name] for name, parameter in net.named_parameters()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def reads_of(net: nn.Module, layer: nn.Module, unit: int, reader: nn.Module, inputs: Tensor) -> list[int]:
    """The inputs of a reader that change with the outputs of a unit."""
    old, new = (run(net.train(), inputs, [reader], poked)[1][0] for poked in (None, (layer, unit)))
    return (old != new).movedim(units_dim(reader), 0).flatten(1).any(1).nonzero().flatten().tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_network_computes_the_same_or_the_readers_are_left_alone(seed: int) -> None:
    random = Random(seed)
    net, inputs = random_network(random)
    layers = {name: module for name, module in net.named_children() if isinstance(module, LAYERS)}
    graph = ReadingGraph(net)
    told = [name for name, layer in layers.items() if graph.readers_of(layer, num_units(layer))]
    name = random.choice(told if told and random.random() < 0.7 else list(layers)[:-1])
    layer = layers[name]
    activation = random.choice((*STOPPING, nn.ReLU, nn.ReLU, nn.ReLU))()
    for i in range(int(name) + 1, len(net)):
        if type(net[i]) in STOPPING:  # no layer behind is to stop the gradients of living units
            net[i] = nn.LeakyReLU()
    net.insert(int(name) + 1, activation)
    planted = set(range(num_units(layer) // 2))
    with torch.no_grad():
        is_high = isinstance(activation, BOUNDED) and random.random() < 0.5
        layer.bias[list(planted)] = 100.0 if is_high else -100.0  # type: ignore[index]
    dead = planted & dead_units(net, name, inputs)
    if not dead:
        return
    before = outputs_of(net, inputs)
    changes: list[Change] = []
    masks = changed_by(net, lambda: changes.append(recycled(net, name, dead)))
    [change] = changes
    others = {parameter for parameter in masks if not parameter.startswith(f"{name}.")}
    if not change.outgoing:
        assert LEFT in str(change)
        assert not others
        return
    assert others <= {f"{reader}.weight" for reader in change.outgoing}
    for old, new in zip(before, outputs_of(net, inputs), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-12, atol=1e-12)
    for reader in map(net.get_submodule, change.outgoing):
        for unit in set(range(num_units(layer))) - dead:
            reads = reads_of(net, layer, unit, reader, inputs)
            mask = masks[next(n for n, p in net.named_parameters() if p is reader.weight)]
            assert not mask.movedim(input_dim(reader), 0)[reads].any()


@pytest.mark.parametrize(
    ("between", "inputs", "why"),
    [
        ([nn.Tanh()], 8, "constant other than zero"),
        ([nn.Sigmoid()], 8, "constant other than zero"),
        ([nn.ReLU6()], 8, "constant other than zero"),
        ([nn.ReLU(), nn.BatchNorm1d(8)], 8, "constant other than zero"),
        ([nn.ReLU(), nn.Sigmoid()], 8, "constant other than zero"),
        ([nn.ReLU(), nn.Softmax(-1)], 8, "could not be told"),
        ([nn.ReLU(), nn.MaxPool1d(2)], 4, "could not be told"),
        ([nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout()], 8, ""),
        ([nn.GELU(), nn.Flatten()], 8, ""),
    ],
)
def test_why_outgoing_weights_are_left_is_said(between: list[nn.Module], inputs: int, why: str) -> None:
    net = nn.Sequential(nn.Linear(3, 8), *between, nn.Linear(inputs, 2))
    changes: list[Change] = []
    masks = changed_by(net, lambda: changes.append(recycled(net, "0", {1, 4})))
    [change] = changes
    reader = str(len(net) - 1)
    assert set(masks) == ({"0.weight", "0.bias"} if why else {"0.weight", "0.bias", f"{reader}.weight"})
    if why:
        assert why in change.reason
        assert str(change).endswith(f"{LEFT}.")
    else:
        assert change.outgoing == (reader,)
        assert str(change).endswith(f"they were dead. Their outgoing weights in {reader} are zero now.")
