from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import register_parametrization

from lightning_symmetry import SymmetryTracker, Verdict, diagnose
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.units.discovery import find_layers


@pytest.mark.parametrize(
    "parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("module_type", [lambda: nn.Linear(8, 6), lambda: nn.Conv1d(8, 6, 2, groups=2)])
def test_parametrized_layers_are_read_as_they_compute(
    parametrize: Callable[..., Any], module_type: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    module = parametrize(module_type())
    rng = torch.get_rng_state()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    (layer,), skipped, *_ = find_layers(nn.Sequential(module))
    assert skipped == {}
    assert module.training
    assert module.parametrizations.weight.training
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    module.eval()
    weights, trained = layer.computed_rows(), layer.weights()
    assert isinstance(weights, DenseRows)
    assert isinstance(trained, DenseRows)
    piece, latent = weights.pieces[0], trained.pieces[0]
    assert isinstance(piece, Tensor)
    assert isinstance(latent, Tensor)
    assert torch.equal(piece, module.weight)
    assert latent.shape == piece.shape
    assert any(torch.equal(latent, original) for original in module.parametrizations.weight.parameters())
    module(torch.randn(4, 8, *([5] if isinstance(module, nn.Conv1d) else []))).square().sum().backward()
    gradients = layer.gradients()
    assert gradients is not None
    assert gradients.num_rows == 6


def test_duplicates_in_a_weight_normed_layer_are_locked() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    with torch.no_grad():
        first.weight[3], first.bias[3] = first.weight[1], first.bias[1]
        second.weight[:, 3] = second.weight[:, 1]
    model = nn.Sequential(parametrizations.weight_norm(first), nn.Tanh(), second)
    model(torch.randn(8, 5)).square().sum().backward()
    groups = diagnose(model).layers["0"].groups
    assert {group.units: group.verdict for group in groups} == {(1, 3): Verdict.LOCKED}


def test_looking_at_a_spectral_norm_leaves_its_power_iteration_alone() -> None:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    diagnose(nn.Sequential(module))
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())


COUNT = 0
SEEN = [0]
GENERATOR = np.random.default_rng(0)


def next_seen() -> int:
    SEEN[0] += 1
    return SEEN[0]


class Ranged(nn.Module):
    """Tracks a range in a buffer, in place."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.largest.mul_(0.9).add_(0.1 * weight.detach().abs().max())
        return weight / self.largest.clone()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * (1 + 1e-3 * self.calls)


class Iterating(nn.Module):
    """Takes a step of a power iteration from a vector that is a class attribute at first."""

    u = torch.ones(16) / 4

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            v = nn.functional.normalize(weight.T @ self.u, dim=0)
            self.u = nn.functional.normalize(weight @ v, dim=0)
        return weight / (self.u @ weight @ v)


class InPlaceOnTheClass(Iterating):
    u = torch.ones(16) / 4

    def forward(self, weight: Tensor) -> Tensor:
        self.u.mul_(1.01)
        return weight * self.u[0]


class CountedByClass(nn.Module):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        type(self).calls += 1
        return weight * (1 + 1e-3 * self.calls)


class CountedByName(nn.Module):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        CountedByName.calls += 1
        return weight * (1 + 1e-3 * self.calls)


class CountedByGlobal(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        return weight * (1 + 1e-3 * COUNT)


class CountedByFunction(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return self.scaled(weight)

    def scaled(self, weight: Tensor) -> Tensor:
        return weight * (1 + 1e-3 * next_seen())


class CountedByDefault(nn.Module):
    def forward(self, weight: Tensor, calls: list[int] = [0]) -> Tensor:  # noqa: B006
        calls[0] += 1
        return weight * (1 + 1e-3 * calls[0])


class Dividing(nn.Module):
    """Changes the parameter through its data, which no version counter notices."""

    def forward(self, weight: Tensor) -> Tensor:
        weight.data.mul_(0.99)
        return weight


class OfDrawn(nn.Module):
    """Adds random numbers from a given function."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * self.draw()


class OfOwnGenerator(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, weight: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return weight + 0.01 * torch.rand((), generator=self.generator)
        return weight + 0.01 * float(self.generator.random())


class OfGeneratorOfTheClass(nn.Module):
    generator = np.random.default_rng(0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * self.generator.random()


class OfOtherModule(nn.Module):
    """Calls a counting module from another place in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[nn.Module] = []

    def forward(self, weight: Tensor) -> Tensor:
        scaled: Tensor = self.others[0](weight)
        return scaled


def with_hook() -> nn.Module:
    parametrization, calls = nn.Identity(), [0]

    def count(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return output * (1 + 1e-3 * calls[0])

    parametrization.register_forward_hook(count)
    return parametrization


def counted_by_closure() -> nn.Module:
    calls = 0

    def count() -> float:
        nonlocal calls
        calls += 1
        return calls

    return OfDrawn(count)


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "buffer": Ranged,
    "counted by itself": Counting,
    "attribute": Iterating,
    "attribute of the class, in place": InPlaceOnTheClass,
    "counted by its class": CountedByClass,
    "counted by the name of its class": CountedByName,
    "counted by a global": CountedByGlobal,
    "counted by a function": CountedByFunction,
    "counted by a default": CountedByDefault,
    "counted by a closure": counted_by_closure,
    "counted by a hook": with_hook,
    "parameter in place": Dividing,
    "Python's random numbers": lambda: OfDrawn(random.random),
    "numpy's random numbers": lambda: OfDrawn(np.random.rand),
    "torch's random numbers": lambda: OfDrawn(lambda: torch.rand(()).item()),
    "generator of Python": lambda: OfOwnGenerator(random.Random(0)),
    "generator of numpy": lambda: OfOwnGenerator(np.random.default_rng(0)),
    "generator of torch": lambda: OfOwnGenerator(torch.Generator().manual_seed(0)),
    "generator of the class": OfGeneratorOfTheClass,
    "generator of the program": lambda: OfDrawn(lambda: GENERATOR.random()),
    "method of a generator of the program": lambda: OfDrawn(GENERATOR.random),
    "other module": OfOtherModule,
    "fake quantisation": FakeQuantize,
    "spectral_norm": lambda: _SpectralNorm(torch.randn(16, 8)),
}


def parametrized(parametrization: nn.Module) -> nn.Sequential:
    """Return a network whose first weight is computed by this parametrization."""
    counting = Counting()
    if isinstance(parametrization, OfOtherModule):
        parametrization.others.append(counting)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4), counting)
    register_parametrization(net[0], "weight", parametrization)
    return net


def trained(make: Callable[[], nn.Module], *, is_watched: bool) -> tuple[list[Tensor], list[object]]:
    """Return parameters and buffers after some steps, and the random numbers and counts outside of the network."""
    global COUNT, SEEN, GENERATOR
    COUNT, SEEN, GENERATOR = 0, [0], np.random.default_rng(0)
    CountedByClass.calls = CountedByName.calls = 0
    CountedByDefault.forward.__defaults__ = ([0],)
    InPlaceOnTheClass.u, OfGeneratorOfTheClass.generator = torch.ones(16) / 4, np.random.default_rng(0)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    net = parametrized(make())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = partial(SymmetryTracker, net, optimizer, every_n_steps=2, on_symmetry="raise")
    with watch() if is_watched else nullcontext() as tracker:
        for step in range(8):
            inputs = torch.rand(8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            optimizer.step()
        if tracker is not None:
            assert tracker.report is not None
            assert tracker.report.coverage == 1.0
    outside: list[object] = [torch.rand(()).item(), np.random.rand(), random.random(), COUNT, SEEN, GENERATOR.random()]
    outside += [CountedByClass.calls, CountedByName.calls, OfGeneratorOfTheClass.generator.random()]
    return [*net.parameters(), *net.buffers(), InPlaceOnTheClass.u], outside


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_a_training_is_the_same_whatever_a_parametrization_keeps_or_draws(make: Callable[[], nn.Module]) -> None:
    tensors, outside = trained(make, is_watched=True)
    expected, expected_outside = trained(make, is_watched=False)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert outside == expected_outside


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torch's random numbers", "gives another weight at every call"),
        ("counted by the name of its class", "changes the attribute calls of its class"),
        ("counted by a function", "uses SEEN, which is no part of it"),
        ("counted by a closure", "uses calls, which is no part of it"),
        ("counted by a hook", "has hooks"),
        ("other module", "uses another module of the model"),
    ],
)
def test_what_cannot_be_computed_is_compared_as_it_is(name: str, reason: str) -> None:
    found = find_layers(parametrized(STATEFUL[name]()))
    original = "0.parametrizations.weight.original"
    assert [layer.name for layer in found.layers] == [f"{original}[dim 0]", f"{original}[dim 1]", "2"]
    assert reason in found.skipped["0"]
    assert found.unread == {}


@pytest.mark.parametrize("name", ["buffer", "attribute", "generator of numpy", "fake quantisation"])
def test_what_has_a_state_of_its_own_is_computed(name: str) -> None:
    net = parametrized(STATEFUL[name]())
    found = find_layers(net)
    assert [layer.name for layer in found.layers] == ["0", "2"]
    weights = found.layers[0].computed_rows()
    assert isinstance(weights, DenseRows)
    piece = weights.pieces[0]
    assert isinstance(piece, Tensor)
    assert torch.equal(piece, cast("Tensor", net.eval()[0].weight))


def test_units_with_equal_directions_and_other_norms_are_not_equal() -> None:
    torch.manual_seed(0)
    module: Any = parametrizations.weight_norm(nn.Linear(5, 4, bias=False))
    norms, directions = module.parametrizations.weight.original0, module.parametrizations.weight.original1
    with torch.no_grad():
        directions[3] = directions[1]
    assert diagnose(nn.Sequential(module)).layers["0"].groups == []
    with torch.no_grad():
        norms[3] = norms[1]
    assert [group.units for group in diagnose(nn.Sequential(module)).layers["0"].groups] == [(1, 3)]


class Binary(nn.Module):
    """The sign of a weight times a scale of the tensor or of each row, with a straight-through gradient."""

    def __init__(self, by_row: bool) -> None:
        super().__init__()
        self.by_row = by_row

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.abs().mean(1, keepdim=True) if self.by_row else weight.abs().mean()
        return weight + (weight.sign() * scale - weight).detach()


@pytest.mark.parametrize("by_row", [False, True])
def test_units_of_other_numbers_that_are_rounded_alike_do_not_move_in_parallel(by_row: bool) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 4))
    with torch.no_grad():
        # The same magnitudes in another order: the signs and the mean are equal.
        net[0].weight[3] = net[0].weight[1].sign() * net[0].weight[1].abs().flip(0)
        net[2].weight[:, 3] = net[2].weight[:, 1]
    register_parametrization(net[0], "weight", Binary(by_row))
    inputs, targets = torch.randn(32, 8), torch.randn(32, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with SymmetryTracker(net, optimizer, every_n_steps=5, output=None, on_symmetry="ignore") as tracker:
        for _ in range(70):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
    gradient = net[0].parametrizations.weight.original.grad
    assert torch.allclose(gradient[1], gradient[3], rtol=1e-5, atol=0)  # so only their weights differ
    assert tracker.findings == []


class OnTop(nn.Module):
    """Adds a fixed weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", weight)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.get_buffer("fixed")


def test_dead_units_are_found_where_what_trains_is_zero() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    fixed = net[0].weight.detach().clone()
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, -100.0)
    register_parametrization(net[0], "weight", OnTop(fixed))
    inputs, targets = torch.randn(32, 8), torch.randn(32, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with SymmetryTracker(net, optimizer, every_n_steps=5, output=None, on_symmetry="ignore") as tracker:
        for _ in range(70):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
    assert [(finding.layer, str(finding.verdict), len(finding.units)) for finding in tracker.findings] == [
        ("0", "dead", 12)
    ]
