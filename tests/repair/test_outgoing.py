"""Dead units get new rows: the network computes the same, or the change says why it may not."""

from __future__ import annotations

import copy
import warnings
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
from lightning_symmetry.verdicts.diagnoses import Cause, UnitGroup
from lightning_symmetry.verdicts.stops import GradientStop, StopKind
from lightning_symmetry.verdicts.verdict import Verdict
from tests import zoo
from tests.units.networks import LAYERS, num_units, random_network, run, units_dim

BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.ReLU6)  # with zero slope on both sides
STOPPING = (*BOUNDED, nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish, nn.ELU)


def dead_units(net: nn.Module, name: str, inputs: Tensor) -> set[int]:
    """Return the units of a layer without a gradient in either mode, with and without dropout."""
    net.zero_grad()
    for seed in range(5):
        torch.manual_seed(seed)
        net.train(seed > 0)(inputs).square().sum().backward()
    return set(diagnose(net).layers[name].dead)


def recycled(net: nn.Module, name: str, dead: set[int], stop: GradientStop | None = None) -> tuple[list[Change], str]:
    """Give dead units new rows; return the changes, and the reasons why units were left."""
    groups = [] if stop is None else [UnitGroup(tuple(sorted(dead)), Verdict.DEAD, Cause.DEAD, stop=stop)]
    layer = replace(diagnose(net).layers[name], groups=groups, dead=tuple(sorted(dead)), died_at=(0,) * len(dead))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changes = break_symmetry(net, SymmetryReport(layers={name: layer}))
    return changes, " ".join(str(warning.message) for warning in caught if warning.category is UserWarning)


def outputs_of(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return the outputs in both modes, without changing the statistics of BatchNorm."""
    return [run(copy.deepcopy(net).train(is_training), inputs)[0] for is_training in (True, False)]


def changed_by(net: nn.Module, change: Callable[[], object]) -> dict[str, Tensor]:
    """Map each changed parameter to a mask of its changed numbers."""
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    change()
    masks = {name: parameter.detach() != before[name] for name, parameter in net.named_parameters()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def reads_of(net: nn.Module, layer: nn.Module, unit: int, reader: nn.Module, inputs: Tensor) -> list[int]:
    """Return the inputs of a reader that change with the outputs of a unit."""
    old, new = (run(net.train(), inputs, [reader], poked)[1][0] for poked in (None, (layer, unit)))
    return (old != new).movedim(units_dim(reader), 0).flatten(1).any(1).nonzero().flatten().tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_network_computes_the_same(seed: int) -> None:
    random = Random(seed)
    net, inputs = random_network(random)
    layers = {name: module for name, module in net.named_children() if isinstance(module, LAYERS)}
    graph = ReadingGraph(net)
    known = [name for name, layer in layers.items() if graph.readers_of(layer, num_units(layer))]
    name = random.choice(known if known and random.random() < 0.7 else list(layers)[:-1])
    layer = layers[name]
    activation = random.choice((*STOPPING, nn.ReLU, nn.ReLU, nn.ReLU))()
    for i in range(int(name) + 1, len(net)):
        if type(net[i]) in STOPPING:  # no later layer may stop the gradients of living units
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
    done: list[tuple[list[Change], str]] = []
    masks = changed_by(net, lambda: done.append(recycled(net, name, dead)))
    [(changes, why_not)] = done
    if not changes:
        assert f"{name}: " in why_not
        assert not masks
        return
    [change] = changes
    others = {parameter for parameter in masks if not parameter.startswith(f"{name}.")}
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
        ([nn.Hardsigmoid()], 8, "constant other than zero"),
        ([nn.ReLU(), nn.GroupNorm(2, 8)], 8, "it is unknown what reads them"),
        ([nn.Hardswish()], 8, ""),
        ([nn.ReLU(), nn.BatchNorm1d(8)], 8, "constant other than zero"),
        ([nn.ReLU(), nn.Sigmoid()], 8, "constant other than zero"),
        ([nn.ReLU(), nn.Softmax(-1)], 8, "it is unknown what reads them"),
        ([nn.ReLU(), nn.MaxPool1d(2)], 4, "it is unknown what reads them"),
        ([nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout()], 8, ""),
        ([nn.GELU(), nn.Flatten()], 8, ""),
    ],
)
def test_why_dead_units_are_left_is_said(between: list[nn.Module], inputs: int, why: str) -> None:
    net = nn.Sequential(nn.Linear(3, 8), *between, nn.Linear(inputs, 2))
    assert_recycled_or_left(net, why)


def assert_recycled_or_left(net: nn.Sequential, why: str, stop: GradientStop | None = None) -> None:
    """Assert new rows for units of the first layer and zeros in the last one; or no change, for the reason ``why``."""
    done: list[tuple[list[Change], str]] = []
    masks = changed_by(net, lambda: done.append(recycled(net, "0", {1, 4}, stop)))
    [(changes, why_not)] = done
    reader = str(len(net) - 1)
    if why:
        assert (changes, masks) == ([], {})
        assert why_not.startswith("0: 2 units, {1, 4}, were left as they are: ")
        assert why in why_not
    else:
        [change] = changes
        assert set(masks) == {"0.weight", "0.bias", f"{reader}.weight"}
        assert change.outgoing == (reader,)
        assert str(change).endswith(f"they were dead. Their outgoing weights in {reader} are zero now.")
        assert why_not == ""


def relu_net(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(width, 2))


def test_a_frozen_reader_is_not_written() -> None:
    net = relu_net()
    net[2].requires_grad_(False)
    assert_recycled_or_left(net, "`2`, which reads them, is frozen")


def test_zeros_of_a_gradient_that_a_hook_erases_are_no_death() -> None:
    net = relu_net()
    zoo.linear(net, "0").weight.register_hook(lambda gradient: gradient * 0)
    assert_recycled_or_left(net, "a hook changes the gradients")


def test_units_whose_readers_have_gradients_put_out_something() -> None:
    net = relu_net()
    net(torch.randn(16, 3)).square().mean().backward()
    for parameter in net[0].parameters():  # as in a loop that trains some units only
        assert parameter.grad is not None
        parameter.grad[[1, 4]] = 0
    assert_recycled_or_left(net, "`2`, which reads them, has gradients for their outputs")


def test_who_asks_for_it_gets_fresh_rows_at_the_price_of_another_function() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    layer = replace(diagnose(net).layers["0"], dead=(1, 4), died_at=(0, 0))
    changes: list[Change] = []
    report = SymmetryReport(layers={"0": layer})
    masks = changed_by(net, lambda: changes.extend(break_symmetry(net, report, method="reinit")))
    assert set(masks) == {"0.weight", "0.bias"}
    assert "a constant other than zero, so this may have changed the network's outputs" in str(changes[0])
    assert changes[0].outgoing == ()


@pytest.mark.parametrize("kind", StopKind)
def test_only_where_an_activation_is_shut_units_put_out_zero(kind: StopKind) -> None:
    shut = kind in (StopKind.CLOSED, StopKind.SATURATED, StopKind.UNKNOWN)
    why = "" if shut else f"nothing shows that they output zero ({kind}"
    assert_recycled_or_left(relu_net(), why, GradientStop(kind))


def test_units_that_another_layer_cuts_off_stay() -> None:
    net = relu_net()
    group = UnitGroup((1, 4), Verdict.DEAD, Cause.DEAD, stop=GradientStop(StopKind.CLOSED), follows="2")
    layer = replace(diagnose(net).layers["0"], groups=[group], dead=(1, 4), died_at=(0, 0))
    with pytest.warns(UserWarning, match="layer 2 stops their gradient"):
        assert break_symmetry(net, SymmetryReport(layers={"0": layer})) == []


def test_rows_that_are_computed_together_stay() -> None:
    net = relu_net()
    nn.utils.parametrizations.spectral_norm(net[0])
    assert_recycled_or_left(net, "a parametrization computes all rows of their layer together")


def test_rows_of_weight_norm_are_recycled() -> None:
    net = relu_net()
    nn.utils.parametrizations.weight_norm(net[0])
    inputs = torch.randn(5, 3)
    with torch.no_grad():
        zoo.linear(net, "0").bias[[1, 4]] = -100.0
    before = net(inputs)
    changes, _ = recycled(net, "0", {1, 4})
    assert changes[0].outgoing == ("2",)
    torch.testing.assert_close(net(inputs), before, rtol=1e-6, atol=1e-6)
