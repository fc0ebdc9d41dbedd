"""The hash by which ranks detect that they train as one; tests/ranks compares real ranks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_symmetry.units.imprint import Imprint
from tests.training import fill, mlp


def digest_of(net: nn.Module, *seeds: int, scales: tuple[float, ...] = ()) -> str | None:
    """Return the hash after a backward pass for each seed of inputs."""
    imprint = Imprint(net)
    for i, seed in enumerate(seeds):
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
        (net(inputs).square().mean() * (scales[i] if scales else 1.0)).backward()
    imprint.end()
    return imprint.digest()


def test_equal_weights_and_gradients() -> None:
    assert digest_of(mlp(), 1, 2) == digest_of(mlp(), 1, 2) is not None


@pytest.mark.parametrize("of_the_other", [(1,), (1, 3), (2, 2)])
def test_other_inputs(of_the_other: tuple[int, ...]) -> None:
    assert digest_of(mlp(), 1, 2) != digest_of(mlp(), *of_the_other)


@pytest.mark.parametrize("name", [name for name, _ in mlp().named_parameters()])
def test_one_number_of_one_parameter(name: str) -> None:
    nets = [mlp(), mlp()]
    with torch.no_grad():
        nets[1].get_parameter(name).view(-1)[-1] += 0.1
    for net in nets:
        net.get_parameter(name).requires_grad_(False)  # so that its gradient is not hashed
    assert len({digest_of(net) for net in nets}) == 1  # without gradients the hash is None
    assert digest_of(nets[0], 1) != digest_of(nets[1], 1)


def test_a_buffer() -> None:
    nets = [mlp(), mlp()]
    for number, net in enumerate(nets):
        net.register_buffer("packed", torch.full((3,), number, dtype=torch.uint8))
    assert digest_of(nets[0], 1) != digest_of(nets[1], 1)


def test_constants_without_gradients_or_overflow_tell_nothing() -> None:
    assert digest_of(fill(mlp(), 0.5), 1) is None
    assert digest_of(mlp()) is None
    assert digest_of(mlp(), 1, scales=(math.inf,)) is None
    assert digest_of(nn.Identity()) is None


def test_a_pass_that_overflowed_counts_for_nothing() -> None:
    assert digest_of(mlp(), 1, 2, scales=(math.inf, 1.0)) == digest_of(mlp(), 2)


def test_numbers_of_every_kind() -> None:
    net = mlp().bfloat16()
    net.register_buffer("whole", torch.arange(3))
    net.register_buffer("truth", torch.tensor([True, False]))
    net.register_parameter("turn", nn.Parameter(torch.randn(4, dtype=torch.complex64)))
    net.register_parameter("empty", nn.Parameter(torch.empty(0)))
    net.add_module("lazy", nn.LazyLinear(3))
    net.add_module("table", nn.Embedding(5, 2, sparse=True))
    imprint = Imprint(net)
    whole = net.table(torch.tensor([1])).sum() + net.turn.abs().sum()  # type: ignore[operator]
    (whole + nn.Sequential(*list(net)[:5])(torch.ones(2, 12).bfloat16()).sum()).backward()
    imprint.end()
    assert imprint.digest() is not None
