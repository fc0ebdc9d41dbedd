"""A network with every kind of finding, and a monitor of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from lightning_symmetry import SymmetryMonitor
from tests.training import Classifier, fill, fit


class Patient(nn.Module):
    """Constant, copied, dead and zero units, a layer without an adapter, and copies of a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.constant = fill(nn.Linear(12, 8), 0.25)
        self.copied = nn.Linear(12, 8)
        self.dead = fill(nn.Linear(12, 4), -0.5)
        self.branches = nn.ModuleList([nn.Linear(12, 4) for _ in range(2)])
        self.branches[1].load_state_dict(self.branches[0].state_dict())
        self.head = fill(nn.Linear(24, 4), 0.0)
        self.kernel = nn.Parameter(torch.randn(4, 4))
        with torch.no_grad():
            self.copied.weight[4:] = self.copied.weight[:4]
            self.copied.bias[4:] = self.copied.bias[:4]
            self.head.weight[:, 1:8] = 0.1  # nothing distinguishes these units of the constant layer
            self.head.weight[:, 0] = torch.tensor([0.4, -0.3, 0.2, -0.1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = [torch.tanh(self.constant(inputs)), torch.tanh(self.copied(inputs)), torch.relu(self.dead(inputs))]
        branches = self.branches[0](inputs) + self.branches[1](inputs)
        outputs: torch.Tensor = self.head(torch.cat([*hidden, branches], dim=1)) @ self.kernel
        return outputs


def monitored(*, options: dict[str, Any] | None = None, **trainer_options: Any) -> SymmetryMonitor:
    """Return the monitor of eight steps of the network, all of which are checked.

    Args:
        options: options for the monitor.
        trainer_options: options for the Trainer.
    """
    monitor = SymmetryMonitor(every_n_steps=1, on_symmetry="ignore", **(options or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Classifier(Patient()), monitor, max_steps=8, **trainer_options)
    return monitor
