"""Merges of each architecture, and of the digits network of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lightning_symmetry import Merged, diagnose, merge_duplicates
from lightning_symmetry.demo.digits import GALLERY, DigitsNet, load, started
from tests import zoo
from tests.merging.nets import ARCHITECTURES, plant_halves


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    architecture: str
    dtype: torch.dtype
    planted: str
    merged: Merged


def cases() -> Iterator[Case]:
    """Merge every architecture, with every kind of duplicates, in both precisions."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(16, zoo.INPUTS, generator=generator, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        for name, make in ARCHITECTURES.items():
            for equal_outgoing in (True, False):
                torch.manual_seed(0)
                net = plant_halves(make(), equal_outgoing).to(dtype)
                planted = f"{'equal' if equal_outgoing else 'different'} outgoing weights"
                yield Case(name, dtype, planted, merge_duplicates(net, inputs.to(dtype)))
        torch.manual_seed(0)
        net = plant_halves(zoo.perceptron(nn.Tanh), equal_outgoing=True, sign=-1.0).to(dtype)
        net(inputs.to(dtype)).square().sum().backward()  # mirror images are found by their gradients
        yield Case("tanh MLP", dtype, "mirror images", merge_duplicates(net, inputs.to(dtype)))


@dataclass(frozen=True)
class Digits:
    """The merge of the demo's digits network, whose hidden layers consist of two equal halves.

    Attributes:
        widths: number of units of its layers, before and after.
        num_images: number of test images.
        num_equal: number of test images for which both networks predict the same digit.
        accuracy: test accuracy of the original network.
        merged: the merge.
    """

    widths: tuple[list[int], list[int]]
    num_images: int
    num_equal: int
    accuracy: float
    merged: Merged


def digits(epochs: int = 12) -> Digits:
    """Train the network that starts from copied halves, and merge it."""
    data = load()
    net = started(GALLERY["copied half"])
    optimizer = net.configure_optimizers()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.images[batch]), data.labels[batch]).backward()
            optimizer.step()
    merged = merge_duplicates(net, data.images[:64], report=diagnose(net), optimizer=optimizer)
    assert isinstance(merged.model, DigitsNet)
    return Digits(
        widths=([layer.out_features for layer in net.layers()], [each.out_features for each in merged.model.layers()]),
        num_images=len(data.test_images),
        num_equal=int((data.predictions(net) == data.predictions(merged.model)).sum()),
        accuracy=data.accuracy(net),
        merged=merged,
    )
