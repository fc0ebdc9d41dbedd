"""What is merged in each architecture, and in the digits network of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from lightning_symmetry import Merged, diagnose, merge_duplicates
from lightning_symmetry.demo import GALLERY, DigitsNet
from tests import zoo
from tests.merging.nets import ARCHITECTURES, plant_halves


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        architecture: its name.
        dtype: of its parameters.
        planted: what was planted.
        merged: what came of it.
    """

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
    """The digits network of the demo, whose hidden layers consist of two equal halves, and what it is merged to.

    Attributes:
        widths: number of units of its layers, before and after.
        num_images: number of test images.
        num_equal: for how many of them both networks say the same digit.
        accuracy: share of the test images that the original network gets right.
        merged: what came of it.
    """

    widths: tuple[list[int], list[int]]
    num_images: int
    num_equal: int
    accuracy: float
    merged: Merged


def digits(epochs: int = 12) -> Digits:
    """Train the network that starts from copied halves, and merge it."""
    torch.manual_seed(0)
    images, test_images, labels, test_labels = _digits()
    start = GALLERY["copied half"]
    net = DigitsNet(start.activation, start.optimizer)
    with torch.no_grad():
        start.initialise(net)
    optimizer = net.configure_optimizers()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    merged = merge_duplicates(net, images[:64], report=diagnose(net), optimizer=optimizer)
    assert isinstance(merged.model, DigitsNet)
    with torch.no_grad():
        before, after = (each(test_images).argmax(dim=1) for each in (net, merged.model))
    return Digits(
        widths=([layer.out_features for layer in net.layers()], [each.out_features for each in merged.model.layers()]),
        num_images=len(test_images),
        num_equal=int((before == after).sum()),
        accuracy=float((before == test_labels).double().mean()),
        merged=merged,
    )


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of the training and the test part, then their digits."""
    data = load_digits()
    images, test_images, labels, test_labels = train_test_split(data.data / 16, data.target, random_state=0)
    return (
        torch.tensor(images, dtype=torch.float32),
        torch.tensor(test_images, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(test_labels),
    )
