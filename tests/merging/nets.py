"""Small networks of several architectures, and duplicates planted into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_symmetry.units.discovery import find_layers
from tests import zoo


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a perceptron in float64."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1]).double()


def cnn() -> nn.Sequential:
    """Return two convolutions with BatchNorm, and a linear layer that reads every pixel of every channel."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 4, 8), nn.ReLU(), nn.Linear(8, 4))
    net = nn.Sequential(zoo.Image(), *zoo.conv_bn(2, 8, stride=2), *zoo.conv_bn(8, 12, stride=2), *head)
    return shake_norms(net)


def gru() -> nn.Module:
    net = zoo.Recurrent(nn.GRU(3, 8, batch_first=True))
    net.add_module("head", nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, zoo.OUTPUTS)))
    return net


def shake_norms(net: nn.Sequential) -> nn.Sequential:
    """Give BatchNorm layers numbers that differ from channel to channel."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for numbers in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert numbers is not None
                    numbers.uniform_(0.5, 1.5)
    return net


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "MLP": zoo.perceptron,
    "CNN with BatchNorm": cnn,
    "ResNet": zoo.resnet,
    "GRU": gru,
    "Transformer encoder (ViT)": zoo.ViT,
    "depthwise-separable CNN": zoo.mobilenet,
}


def _halve(tensor: Tensor, dim: int, sign: float = 1.0) -> None:
    half = tensor.shape[dim] // 2
    tensor.narrow(dim, half, half).copy_(sign * tensor.narrow(dim, 0, half))


def plant_halves(net: nn.Module, equal_outgoing: bool, sign: float = 1.0) -> nn.Module:
    """Copy the first half of the units of all layers but the last to the second half; with sign -1, mirror them.

    With ``equal_outgoing``, the outgoing weights are copied, too.
    """
    with torch.no_grad():
        layers = [layer for layer in find_layers(net).layers if not layer.slices_of]
        for layer in layers[:-1]:
            for incoming in layer.tensors:
                _halve(incoming.view(incoming.weights.data), 0, sign)
            if layer.recurrent:
                _halve(layer.recurrent.view(layer.recurrent.weights.data), 2)
                _halve(layer.recurrent.view(layer.recurrent.weights.data), 0)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for numbers in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert numbers is not None
                    _halve(numbers, 0)
        readers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        for module in readers if equal_outgoing else []:
            if module.weight.shape[1] % 2 == 0 and module.weight.shape[1] not in (2, zoo.INPUTS):
                _halve(module.weight, 1, sign)
    return net


def plant(net: nn.Module, layer: str, groups: Sequence[Sequence[int]], *readers: str) -> nn.Module:
    """Make the units of each group copies, and also their outgoing weights in the layers ``readers``."""
    module = zoo.linear(net, layer)
    with torch.no_grad():
        for first, *others in groups:
            for unit in others:
                for parameter in module.parameters():
                    parameter[unit] = parameter[first]
                for reader in readers:
                    weight = zoo.linear(net, reader).weight
                    weight[:, unit] = weight[:, first]
    return net
