"""Small random networks with units along any dimension, and runs in which the outputs of a unit change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
BATCH = 5
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh),
    *(nn.Hardswish, nn.PReLU, nn.Mish, nn.Hardsigmoid),
)


class Call(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)
        return out


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Branches(nn.Module):
    """Two layers that read the same units, one of them in training mode only."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out + self.second(x) if self.training else out


class Repeated(nn.Module):
    """A layer with two inputs."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x))) + self.second(torch.tanh(x))
        return out


def _size(random: Random) -> int:
    return random.choice((2, 4))  # so that the numbers of units, tokens and positions often coincide


def _layer(random: Random, shape: Sequence[int]) -> nn.Module:
    size = _size(random)
    layers: list[nn.Module] = [nn.Linear(shape[-1], size)]
    if len(shape) == 2:
        layers += [nn.Conv1d(shape[0], size, 3, padding=1), nn.ConvTranspose1d(shape[0], size, 3, padding=1)]
    if len(shape) == 3:
        layers += [nn.Conv2d(shape[0], size, 3, padding=1), nn.ConvTranspose2d(shape[0], size, 3, padding=1)]
        layers.append(nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=shape[0]))
    return random.choice(layers[-3:] if random.random() < 0.7 else layers)


def _other(random: Random, shape: Sequence[int]) -> nn.Module:
    """Return an operation that may mix units."""
    last = shape[-1]
    others: list[nn.Module] = [nn.Flatten(), nn.Dropout(), nn.LayerNorm(last), nn.Softmax(-1), Call(torch.tanh)]
    others += [Residual(nn.Linear(last, last)), Repeated(nn.Linear(last, last), nn.Linear(last, 4))]
    others += [Branches(nn.Linear(last, 4), nn.Linear(last, 4)), Call(lambda x: 2 * x), Call(lambda x: x * 0.5)]
    others += [Call(lambda x: torch.flatten(x, 1)), Call(lambda x: x.mean(1, True))]
    others += [nn.MaxPool1d(2), Call(lambda x: functional.avg_pool1d(x, 2))] if len(shape) < 3 and last > 1 else []
    if len(shape) > 1:
        others += [Call(lambda x: x.transpose(1, 2)), nn.AdaptiveAvgPool2d(1), Call(lambda x: x.flatten(-2))]
        others.append(Call(lambda x: functional.adaptive_max_pool2d(x, 2)))
    # With as many tokens as units, BatchNorm1d may normalise either; units are assumed.
    if (len(shape) < 3 and shape[0] != last) or len(shape) == 1:
        others.append(nn.BatchNorm1d(shape[0]))
    if len(shape) == 3:
        others.append(nn.BatchNorm2d(shape[0]))
    return random.choice(others)


def random_network(random: Random) -> tuple[nn.Sequential, Tensor]:
    """Return a network in float64, and inputs for it."""
    torch.manual_seed(random.randrange(1000))
    shapes = ((4,), (_size(random), 4), (4, 4, 4))
    inputs = torch.randn(BATCH, *random.choice(shapes), dtype=torch.float64)
    net = nn.Sequential()
    x = inputs
    with torch.no_grad():
        while len(net) < 8:
            net.append(_layer(random, x.shape[1:]).double())
            x = net[-1](x)
            for _ in range(random.randrange(3)):
                is_activation = random.random() < 0.6
                net.append((random.choice(ACTIVATIONS)() if is_activation else _other(random, x.shape[1:])).double())
                x = net[-1](x)
        net.append(nn.Linear(x.shape[-1], 3))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                for parameter in module.parameters():
                    parameter.uniform_(0.5, 1.5)
    return net.double(), inputs


def num_units(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", 0) or layer.out_channels)  # type: ignore[arg-type]


def units_dim(layer: nn.Module) -> int:
    """Return the dimension of units in the input and output of a layer."""
    return -1 if isinstance(layer, nn.Linear) else 1


def run(
    net: nn.Module, inputs: Tensor, readers: Sequence[nn.Module] = (), poked: tuple[nn.Module, int] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Run a network in training or evaluation mode.

    Args:
        net: the network.
        inputs: its inputs.
        readers: layers of it.
        poked: a layer and a unit whose outputs are made others.

    Returns:
        The outputs of the network, and all that the readers were given, call by call.
    """
    given: list[Tensor] = []
    handles = [reader.register_forward_pre_hook(lambda _, args: given.append(args[0])) for reader in readers]

    def poke(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        assert poked is not None
        output = output.clone()
        output.select(units_dim(poked[0]), poked[1]).add_(1.5)
        return output

    if poked is not None:
        handles.append(poked[0].register_forward_hook(poke))
    torch.manual_seed(0)  # for dropout
    with torch.no_grad():
        output = net(inputs)
    for handle in handles:
        handle.remove()
    return output, given
