"""Small trainings with one fault each, which the pages of the codes quote."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_symmetry import SymmetryTracker
from tests.training import fill

__all__ = ["Ensemble", "Net", "copy_half", "fill", "functional", "nn", "torch", "watch"]


class Net(nn.Module):
    """Two layers of 32 and 4 units, and what lies between them.

    Args:
        between: one function or module by its name; computes the inputs of the second layer.
    """

    def __init__(self, **between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(12, 32), nn.Linear(32, 4)
        [(self.name, function)] = (between or {"act": torch.relu}).items()
        setattr(self, self.name, function)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(getattr(self, self.name)(self.fc1(inputs)))
        return outputs


class Ensemble(nn.Module):
    """Two equal networks, whose outputs are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.a = Net()
        self.b = copy.deepcopy(self.a)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.a(inputs) + self.b(inputs)
        return outputs


def copy_half(net: Net, sign: float = 1.0) -> Net:
    """Make half of the units of the first layer copies, or mirror images, of the others."""
    with torch.no_grad():
        for tensor in (net.fc1.weight, net.fc1.bias, net.fc2.weight.T):
            tensor[16:] = sign * tensor[:16]
    return net


def _cross_entropy(model: nn.Module, inputs: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs), inputs[:, :4].argmax(dim=1))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def watch(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor] = _cross_entropy,
    step: Callable[[torch.optim.Optimizer, Tensor], None] = _step,
) -> SymmetryTracker:
    """Train a model for 60 steps of SGD with a tracker.

    Args:
        model: the model.
        loss: computes the loss from the model and inputs between 0 and 1.
        step: makes a step with the optimizer and the loss.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.05)
    with SymmetryTracker(model, optimizer, heatmaps="none", scalars="none", every_n_steps=10) as tracker:
        for _ in range(60):
            step(optimizer, loss(model, torch.rand(64, 12, generator=generator)))
    return tracker
