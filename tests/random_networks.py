"""Random small networks with layers of all kinds, some of them sick, and random events in their training."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from tests.units.networks import Residual

OUTPUTS = 4
_SAMPLES = 12
_ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Identity)


class Reshaped(nn.Module):
    """Reshapes every sample."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(len(inputs), *self.shape)


class Cast(nn.Module):
    """Computes in the precision of its parameters."""

    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.dtype = body.to(dtype), dtype

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs.to(self.dtype))
        return outputs.float()


class Attended(nn.Module):
    """Attention among the samples of a batch."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.attention(inputs, inputs, inputs, need_weights=False)[0]
        return outputs


class Recurrent(nn.Module):
    """A recurrent network over the samples of a batch, or a cell."""

    def __init__(self, body: nn.RNNBase | nn.RNNCellBase) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Any = self.body(inputs)
        first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return first


class Paired(nn.Module):
    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.body = nn.Bilinear(width, width, units)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs, inputs.flip(0))
        return outputs


class Embedded(nn.Module):
    """Looks up a token that depends on the numbers of a sample; some tokens never occur."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.table = nn.Embedding(9, units)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.table((inputs.flatten(1).sum(1).abs() * 3).long() % 7)
        return outputs


class Chosen(nn.Module):
    """Experts; each step uses one of them, or all."""

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        used = [expert for i, expert in enumerate(self.experts) if self.calls % 3 == 0 or i == self.calls // 9 % 2]
        return torch.stack([expert(inputs) for expert in used]).sum(0)


class Unknown(nn.Module):
    """A product with a matrix without an adapter."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, units) / width)
        self.shift = nn.Parameter(torch.zeros(units))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.kernel + self.shift


class Scaled(nn.Module):
    """A parametrization with a changing buffer and its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return weight * self.scale


def network(random: Random) -> nn.Sequential:
    """Return a network of three to six layers for inputs ``(batch, 8)``."""
    layers: list[nn.Module] = []
    shape: tuple[int, ...] = (8,)
    kind = random.choice(["perceptron", "perceptron", *["convolutions"] * 3, "mixed", "mixed"])
    for _ in range(random.randint(3, 5)):
        layer, shape = random.choice(_LAYERS[kind][len(shape)])(random, shape)
        if random.random() < 0.15:
            layer = Cast(layer, random.choice([torch.bfloat16, torch.float64]))
        elif random.random() < 0.05:  # such layers are always checked in full
            _parametrize(random, layer)
        layers += [layer, random.choice(_ACTIVATIONS)()]
        if random.random() < 0.1:
            layers.append(nn.LayerNorm(shape))
    width = int(torch.Size(shape).numel())
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, OUTPUTS))
    for make_sick in random.choices(list(_SICK), list(_SICK.values()), k=random.choice([0, 1, 2, 3])):
        with torch.no_grad():
            make_sick(random, net)
    return net


def _wide(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    units = random.choice([12, 16])
    return nn.Linear(shape[0], units), (units,)


def _linear(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    units = random.choice([2, 4, 6, 8, 12])
    width = shape[0]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(width, units, bias=random.random() < 0.7),
        lambda: Paired(width, units),
        lambda: Embedded(units),
        lambda: Unknown(width, units),
        lambda: Recurrent(nn.GRUCell(width, units)),
        lambda: Recurrent(nn.LSTM(width, units)),
        lambda: Recurrent(nn.RNN(width, units // 2, num_layers=2, bidirectional=True)),
        lambda: Recurrent(nn.LSTM(width, units + 2, proj_size=units)),
    ]
    return random.choices(kinds, [8, 1, 1, 2, 1, 1, 1, 1])[0](), (units,)


def _of_one_width(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    width = shape[0]

    def body() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width))

    first = body()
    equal = random.random() < 0.4
    kinds: list[Callable[[], nn.Module]] = [
        lambda: Residual(first),
        lambda: Attended(width, bias=random.random() < 0.7),
        lambda: Attended(width, kdim=width, vdim=width, add_bias_kv=True),
        lambda: Chosen([first, copy.deepcopy(first) if equal else body(), body()]),
        lambda: nn.Sequential(first, nn.Tanh(), first),  # the same module twice
    ]
    return random.choice(kinds)(), shape


def _image(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    width = shape[0]
    return nn.Sequential(nn.Linear(width, 8 * 9), Reshaped(8, 3, 3)), (8, 3, 3)


def _series(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    width = shape[0]
    return nn.Sequential(nn.Linear(width, 8 * 5), Reshaped(8, 5)), (8, 5)


def _convolution(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    channels, *sizes = shape
    groups, outputs = random.choice([1, 2, 2, 4]), random.choice([4, 8, channels])
    is_transposed = random.random() < 0.6
    kinds: list[type[Any]] = [nn.ConvTranspose1d, nn.ConvTranspose2d] if is_transposed else [nn.Conv1d, nn.Conv2d]
    # A kernel of 1, or of 3 with padding, keeps the shape.
    size = random.choice([1, 3])
    options = {"groups": groups, "padding": size // 2, "bias": random.random() < 0.8}
    return kinds[len(sizes) - 1](channels, outputs, size, **options), (outputs, *sizes)


def _flat(random: Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    width = int(torch.Size(shape).numel())
    layer, shape = _linear(random, (width,))
    return nn.Sequential(nn.Flatten(), layer), shape


_Make = Callable[[Random, tuple[int, ...]], tuple[nn.Module, tuple[int, ...]]]
# By kind of network, and by the current number of dimensions of a sample.
_LAYERS: dict[str, dict[int, list[_Make]]] = {
    "perceptron": {1: [_wide]},
    "convolutions": {1: [_image, _series], 2: [_convolution], 3: [_convolution]},
    "mixed": {
        1: [_linear, _linear, _of_one_width, _of_one_width, _wide, _image, _series],
        2: [_convolution, _convolution, _flat],
        3: [_convolution, _convolution, _flat],
    },
}


def layers_of(net: nn.Module) -> list[Any]:
    """Return the linear layers and convolutions, with or without computed weights."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [module for module in net.modules() if isinstance(module, kinds)]


def _plain(net: nn.Module) -> list[Any]:
    return [layer for layer in layers_of(net) if not is_parametrized(layer)]


def _parametrize(random: Random, layer: nn.Module) -> None:
    choices: list[Callable[[Any], Any]] = [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda module: register_parametrization(module, "weight", Scaled()),
    ]
    for module in layers_of(layer)[:1]:
        random.choice(choices)(module)


def constant(random: Random, net: nn.Module) -> None:
    layer = random.choice(_plain(net))
    for parameter in layer.parameters():
        parameter.fill_(random.choice([0.0, 0.3]))


def duplicated(random: Random, net: nn.Module, sign: float = 1.0) -> None:
    """Give some units equal rows, and equal columns in the linear layer that reads them, if there is one."""
    layers = _plain(net)
    pairs = [(a, b) for a, b in itertools.pairwise(layers) if type(a) is type(b) is nn.Linear]
    layer, after = random.choice(pairs or [(random.choice(layers), None)])
    for first, others in ((0, [1]), (2, [3, -1]))[: random.randint(1, 2)]:
        tensors = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            tensors[0] = tensors[0].transpose(0, 1)  # all units of the groups whose first unit this is
        for tensor in tensors:
            if len(tensor) > 3:
                tensor[others] = sign * tensor[first]
        if after is not None and after.in_features > 3:
            after.weight[:, others] = sign * after.weight[:, [first]]


def mirrored(random: Random, net: nn.Module) -> None:
    duplicated(random, net, -1.0)


def without_activation(random: Random, net: nn.Module) -> None:
    """Return two consecutive linear layers, and freeze the second."""
    modules = [*net.children()]
    for i, (layer, after) in enumerate(zip(modules, modules[2:], strict=False)):
        if type(layer) is type(after) is nn.Linear:
            net._modules[str(i + 1)] = nn.Identity()
            after.requires_grad_(False)
            return


def in_lockstep(random: Random, net: nn.Module) -> None:
    """Give units with different weights equal columns in a frozen layer, so that their gradients are equal."""
    for after in _plain(net):
        if type(after) is nn.Linear and not after.weight.requires_grad and after.in_features > 3:
            after.weight[:, 1:3] = after.weight[:, :1]


def dead(random: Random, net: nn.Module) -> None:
    for layer in _plain(net):
        if layer.bias is not None and random.random() < 0.5:
            layer.bias[random.sample(range(len(layer.bias)), random.randint(1, 2))] = -100.0


def cut_off(random: Random, net: nn.Module) -> None:
    random.choice(_plain(net)).weight.fill_(0.0)


def tied(random: Random, net: nn.Module) -> None:
    layers = _plain(net)
    pairs = [(a, b) for a in layers for b in layers if a is not b and a.weight.shape == b.weight.shape]
    pairs = [(a, b) for a, b in pairs if a.weight.dtype == b.weight.dtype]
    if pairs:
        a, b = random.choice(pairs)
        b.weight = a.weight


def strided(random: Random, net: nn.Module) -> None:
    """Transpose the memory of weights, so that units are not consecutive."""
    for layer in _plain(net):
        layer.weight = nn.Parameter(layer.weight.detach().transpose(0, -1).contiguous().transpose(0, -1))


_SICK = {
    constant: 2,
    duplicated: 5,
    mirrored: 2,
    without_activation: 5,
    in_lockstep: 1,
    dead: 6,
    cut_off: 1,
    tied: 2,
    strided: 2,
}
_Change = Callable[[Random, nn.Module, int], None]


def frozen(random: Random, net: nn.Module, step: int) -> None:
    """Freeze a layer for some steps."""
    for parameter in random.choice(_plain(net)).parameters():
        parameter.requires_grad_(not 12 <= step < 25)


def without_gradient(random: Random, net: nn.Module, step: int) -> None:
    """Drop a gradient for some steps."""
    parameters = list(net.parameters())
    if 15 <= step < 20:
        random.choice(parameters).grad = None


def killed(random: Random, net: nn.Module, step: int) -> None:
    if step == 4:
        dead(random, net)


def read_alike(random: Random, net: nn.Module, step: int) -> None:
    if step == 9:
        in_lockstep(random, net)


def copied(random: Random, net: nn.Module, step: int) -> None:
    if step in (14, 15):
        duplicated(random, net, random.choice([-1.0, 1.0]))


def parted(random: Random, net: nn.Module, step: int) -> None:
    """Add noise to every weight."""
    if step == 40:
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def made_nan(random: Random, net: nn.Module, step: int) -> None:
    if step == 45:
        random.choice(_plain(net)).weight[0] = torch.nan


def untouched(random: Random, net: nn.Module, step: int) -> None:
    pass


CHANGES: list[_Change] = [
    *(untouched, killed, killed, killed, read_alike, read_alike),
    *(frozen, without_gradient, copied, parted, made_nan),
]


def optimizers_of(random: Random, net: nn.Sequential) -> list[torch.optim.Optimizer]:
    """Return one or two optimizers of all parameters, or of most.

    They share no layer: the screen sees movements since the previous check of the same optimizer, a full check
    those since the previous check of any optimizer.
    """
    parameters = list(net.parameters())
    places = {id(parameter): i for i, module in enumerate(net) for parameter in module.parameters()}
    kinds: list[Callable[[Any], torch.optim.Optimizer]] = [
        lambda some: torch.optim.SGD(some, lr=0.05),
        lambda some: torch.optim.SGD(some, lr=0.02, momentum=0.9),
        lambda some: torch.optim.Adam(some, lr=3e-3),
        lambda some: torch.optim.AdamW(some, lr=3e-3, weight_decay=0.1),
    ]
    if random.random() < 0.15:
        parameters = parameters[: len(parameters) // 2 + 1]
    parts = [parameters]
    if random.random() < 0.4:
        cut = random.randrange(len(net))
        first = [parameter for parameter in parameters if places[id(parameter)] <= cut]
        parts = [first, [parameter for parameter in parameters if places[id(parameter)] > cut]]
    return [random.choice(kinds)(part) for part in parts if part]


def training(seed: int, num_steps: int) -> tuple[nn.Module, list[torch.optim.Optimizer], Iterator[int]]:
    """Return a network, its optimizers, and an iterator that takes a step and yields its number."""
    random = Random(seed)
    torch.manual_seed(seed)
    net = network(random)
    optimizers = optimizers_of(random, net)
    change = random.choice(CHANGES)
    pause = random.choice([0, 0, 2])  # of every seven steps, without an update

    def steps() -> Iterator[int]:
        inputs, labels = torch.randn(64, 8), torch.arange(64) % OUTPUTS
        for step in range(num_steps):
            torch.manual_seed(1000 * seed + step)
            batch = torch.randint(64, (_SAMPLES,))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group.setdefault("usual", group["lr"])
                    group["lr"] = 0.0 if step % 7 < pause else group["usual"]
                optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            with torch.no_grad():
                change(Random(seed), net, step)
            for optimizer in optimizers if seed % 3 else [optimizers[step % len(optimizers)]]:
                optimizer.step()
            yield step

    return net, optimizers, steps()
