"""Which layers read the units of a layer: all of them, each at the named inputs; or unknown."""

from __future__ import annotations

import random
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_symmetry.units.readers import Reader, ReadingGraph
from tests import zoo
from tests.training import Classifier
from tests.units.networks import LAYERS, Branches, Repeated, Residual, num_units, random_network, run, units_dim


def readers_of(net: nn.Module, name: str) -> list[Reader] | None:
    layer = net.get_submodule(name)
    return ReadingGraph(net).readers_of(layer, num_units(layer))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_unit_acts_through_the_inputs_of_its_readers_and_nothing_else(seed: int, is_training: bool) -> None:
    net, inputs = random_network(Random(seed))
    net.train(is_training)
    graph = ReadingGraph(net)
    for layer in filter(lambda module: isinstance(module, LAYERS), net.modules()):
        unit = seed % num_units(layer)
        readers = graph.readers_of(layer, num_units(layer))
        if readers is None:
            continue
        modules = [net.get_submodule(reader.name) for reader in readers]
        inputs_of_unit = [reader.inputs(torch.tensor([unit]))[0] for reader in readers]
        given = [run(net, inputs, modules, poked=poked)[1] for poked in (None, (layer, unit))]
        assert len(given[0]) == sum(net.training or not reader.name.endswith("second") for reader in readers)
        for module, places, old, new in zip(modules, inputs_of_unit, *given, strict=False):
            changed = (old != new).movedim(units_dim(module), 0).flatten(1).any(1).nonzero().flatten()
            assert set(changed.tolist()) <= set(places.tolist())
        weights = [reader.weight.detach().clone() for reader in readers]
        with torch.no_grad():
            for reader, places in zip(readers, inputs_of_unit, strict=True):
                reader.weight.index_fill_(reader.dim, places, 0.0)
            torch.testing.assert_close(*(run(net, inputs, poked=poked)[0] for poked in (None, (layer, unit))))
            for reader, weight in zip(readers, weights, strict=True):
                reader.weight.copy_(weight)


class Optional(nn.Module):
    """Applies an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, by: float = 2.0) -> Tensor:
        x = torch.relu(self.first(x)) * by
        out: Tensor = self.second(x if mask is None else x + mask)
        return out


class Tied(nn.Module):
    """Units that two layers read; one of the readers uses the weight of the layer itself."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.by_hand = by_hand
        if not by_hand:
            self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(self.second(torch.relu(self.first(x))))
        return nn.functional.linear(out, self.second.weight) if self.by_hand else out


class Aside(nn.Module):
    """A layer that ``forward`` never calls reads the units in another method."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


class Making(nn.Module):
    """A model that creates a module at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.made: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.second(x if self.made is None else self.made(x))
        self.made = nn.Tanh()
        return out


class Aliased(nn.Module):
    """A reader that belongs to the model under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.again = self.second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(torch.relu(self.first(x)))
        return out


class Branching(nn.Module):
    """Control flow that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.second(x if x.sum() > 0 else torch.softmax(x, -1))
        return out


def with_hook(net: nn.Module) -> nn.Module:
    net.get_submodule("1").register_forward_hook(lambda _module, _args, output: output.flip(-1))
    return net


def with_own_forward(net: nn.Module) -> nn.Module:
    net.forward = lambda x: net[2](torch.softmax(net[0](x), -1))  # type: ignore[index]
    return net


def perceptron(*between: nn.Module, inputs: int = 8, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8, **options), *between, nn.Linear(inputs, 2))


def images(*between: nn.Module, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *between, last)


TOLD: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, int, int, int]]] = {
    # the network, the layer; the reader, the dimension, repeats and neighbours
    "perceptron": (lambda: perceptron(nn.ReLU()), "0", ("2", 1, 1, 1)),
    "with BatchNorm": (lambda: perceptron(nn.BatchNorm1d(8), nn.ReLU()), "0", ("3", 1, 1, 1)),
    "with weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 8)), nn.Linear(8, 2)),
        "0",
        ("1", 1, 1, 1),
    ),
    "tokens and units flattened": (lambda: perceptron(nn.ReLU(), nn.Flatten(), inputs=24), "0", ("3", 1, 3, 1)),
    "flattened where nothing is to flatten": (lambda: perceptron(nn.ReLU(), nn.Flatten()), "0", ("3", 1, 1, 1)),
    "flattened image": (
        lambda: images(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), last=nn.Linear(32, 2)),
        "0",
        ("5", 1, 1, 4),
    ),
    "flattened, then BatchNorm": (
        lambda: images(nn.Flatten(), nn.BatchNorm1d(32), last=nn.Linear(32, 2)),
        "0",
        ("3", 1, 1, 4),
    ),
    "convolution": (lambda: images(nn.GELU(), last=nn.Conv2d(8, 3, 3)), "0", ("2", 1, 1, 1)),
    "transposed convolution": (lambda: images(nn.GELU(), last=nn.ConvTranspose2d(8, 3, 3)), "0", ("2", 0, 1, 1)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2)), "0", ("1", 1, 1, 1)),
    "under two names": (lambda: Aliased(), "first", ("second", 1, 1, 1)),
    "in parallel": (lambda: nn.DataParallel(perceptron(nn.ReLU())), "module.0", ("2", 1, 1, 1)),
}


@pytest.mark.parametrize("case", TOLD)
def test_readers_that_are_known(case: str) -> None:
    make, name, expected = TOLD[case]
    net = make()
    layer = net.get_submodule(name)
    units = int(getattr(layer, "embedding_dim", 0)) or num_units(layer)
    [reader] = ReadingGraph(net).readers_of(layer, units) or []
    assert (reader.name, reader.dim, reader.repeats, reader.neighbours) == expected
    weight_path = "module." * isinstance(net, nn.DataParallel) + reader.name
    assert reader.weight is net.get_submodule(weight_path).weight


def test_two_readers_and_what_lies_before_them() -> None:
    branches = Branches(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))
    readers = readers_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), branches), "0") or []
    through = {reader.name: reader.through for reader in readers}
    assert through == {"2.first": ("relu",), "2.second.1": ("relu", "tanh")}


@pytest.mark.parametrize(
    "inputs",
    [[[0, 2, 4], [1, 3, 5]], [[0, 1, 2], [3, 4, 5]]],
    ids=["tokens", "positions"],
)
def test_inputs_of_flattened_units(inputs: list[list[int]]) -> None:
    repeats, neighbours = (3, 1) if inputs[0][1] == 2 else (1, 3)
    reader = Reader("1", nn.Parameter(torch.zeros(2, 6)), 1, repeats, neighbours, ("flatten",))
    assert reader.inputs(torch.tensor([0, 1])).tolist() == inputs
    assert reader.inputs(torch.tensor([1])).tolist() == inputs[1:]


UNTOLD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "outputs of the model": (lambda: perceptron(), "1"),
    "over positions": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Linear(32, 5)), "0"),
    "over as many positions": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Linear(8, 5)), "0"),
    "over tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Conv1d(8, 5, 3)), "0"),
    "pooled over units": (lambda: perceptron(nn.MaxPool1d(2), inputs=4), "0"),
    "pooled over tokens and units": (lambda: perceptron(nn.AdaptiveAvgPool2d(8)), "0"),
    "BatchNorm over tokens": (lambda: perceptron(nn.BatchNorm1d(5)), "0"),
    "LayerNorm": (lambda: perceptron(nn.LayerNorm(8)), "0"),
    "softmax": (lambda: perceptron(nn.Softmax(-1)), "0"),
    "residual": (lambda: perceptron(Residual(nn.Linear(8, 8))), "0"),
    "residual, inside": (lambda: perceptron(Residual(nn.Linear(8, 8))), "1.body"),
    "flattened with the examples": (lambda: images(nn.Flatten(0), last=nn.Linear(64, 2)), "0"),
    "flattened in part": (lambda: images(nn.Flatten(1, 2), last=nn.Linear(64, 2)), "0"),
    "grouped reader": (lambda: images(last=nn.Conv2d(8, 8, 3, groups=2)), "0"),
    "computed reader": (lambda: nn.Sequential(nn.Linear(3, 8), parametrizations.weight_norm(nn.Linear(8, 2))), "0"),
    "a reader that reads two things": (lambda: Repeated(nn.Linear(4, 4), nn.Linear(4, 4)), "first"),
    "a reader that reads them in two orders": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), TwoOrders(nn.Linear(8, 2))),
        "0",
    ),
    "a reader with a tied weight": (lambda: Tied(by_hand=False), "first"),
    "a reader whose weight is used directly": (lambda: Tied(by_hand=True), "first"),
    "a layer with a tied weight": (lambda: Tied(by_hand=False), "second"),
    "a mask that may be given": (lambda: Optional(), "first"),
    "a layer that no trace has seen": (lambda: Aside(), "first"),
    "a path that depends on numbers": (lambda: Branching(), "first"),
    "a module that forward makes": (lambda: Making(), "first"),
    "a hook": (lambda: with_hook(perceptron(nn.ReLU())), "0"),
    "a forward of its own": (lambda: with_own_forward(perceptron(nn.ReLU())), "0"),
    "attention": (lambda: zoo.ViT(), "head"),
    "a part of a layer": (lambda: nn.MultiheadAttention(8, 2), "out_proj"),
}


class TwoOrders(nn.Module):
    """One layer that reads positions after channels, and channels after positions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1)) + self.layer(x.permute(0, 2, 3, 1).flatten(1))
        return out


@pytest.mark.parametrize("case", UNTOLD)
def test_where_readers_are_unknown(case: str) -> None:
    make, name = UNTOLD[case]
    assert readers_of(make(), name) is None


class Busy(nn.Module):
    """A model whose forward changes modules and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.kept = 0, torch.zeros(1)
        self.history: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls.add_(1)
        torch.rand(3), np.random.rand(), random.random()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.data.mul_(0.5)
        self.kept = torch.relu(self.first(x))
        self.history.append(self.kept)
        out: Tensor = self.second(self.kept)
        return out


class Parts(nn.Module):
    """A module without a ``forward``, whose children are called by other methods."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.more = nn.ModuleList([nn.Linear(2, 4), nn.Linear(4, 2)])


@pytest.mark.parametrize("make", [Parts, lambda: Classifier(Parts())])
def test_parts_are_traced_where_the_whole_has_no_forward(make: Callable[[], nn.Module]) -> None:
    net = make()
    start = "" if isinstance(net, Parts) else "net."
    found = readers_of(net, f"{start}body.0")
    assert found is not None
    assert [(reader.name, reader.through) for reader in found] == [(f"{start}body.2", ("relu",))]
    assert readers_of(net, f"{start}body.2") is None
    assert readers_of(net, f"{start}more.0") is None


def test_nothing_changes_by_it() -> None:
    net = Busy()
    net(torch.randn(2, 3))  # stores a tensor with a graph
    net.first.eval()
    numbers = {name: value.clone() for name, value in net.state_dict().items()}
    attributes, length = {**vars(net)}, len(net.history)
    modes = [module.training for module in net.modules()]
    generators = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"], random.getstate()
    [reader] = readers_of(net, "first") or []
    assert reader.weight is net.second.weight
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == generators[1]).all()
    assert random.getstate() == generators[2]
    assert [module.training for module in net.modules()] == modes
    assert vars(net) == attributes
    assert len(net.history) == length
    assert all(torch.equal(value, numbers[name]) for name, value in net.state_dict().items())
