"""Tables with sparse gradients, in a plain loop and in a Trainer, with the optimizers that take such gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from tests.training import Classifier, fill, make_trainer

# Adagrad of PyTorch makes sparse tensors without a check.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "sparse adam": lambda parameters: torch.optim.SparseAdam(parameters, lr=0.01),
}


class Factors(nn.Module):
    """A product of features of users and items, with fixed weights for the features if these differ."""

    def __init__(self, are_alike: bool, sparse: bool = True) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8, sparse=sparse), nn.Embedding(50, 8, sparse=sparse)
        self.register_buffer("weights", torch.ones(8) if are_alike else torch.randn(8))

    def forward(self, pairs: Tensor) -> Tensor:
        product: Tensor = self.users(pairs[:, 0]) * self.items(pairs[:, 1])
        return product @ self.get_buffer("weights")


class Rating(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ratings = (batch[0] % 5).float()
        return nn.functional.mse_loss(self.net(batch[0]), (ratings[:, 0] - ratings[:, 1]) / 2)


def train(net: Factors, optimizer: str, in_trainer: bool) -> Any:
    pairs = torch.stack([torch.randint(0, 40, (320,)), torch.randint(0, 50, (320,))], dim=1)
    data: Any = DataLoader(TensorDataset(pairs), 16)
    if in_trainer:
        monitor = SymmetryMonitor(every_n_steps=5, on_symmetry="ignore")
        task = Rating(net, OPTIMIZERS[optimizer])
        make_trainer([monitor], max_steps=60).fit(task, data)
        return monitor
    made = OPTIMIZERS[optimizer](net.parameters())
    with SymmetryTracker(net, made, every_n_steps=5, output=None, on_symmetry="ignore") as tracker:
        for _ in range(3):
            for batch in data:
                made.zero_grad()
                Rating(net, OPTIMIZERS[optimizer]).training_step(batch, 0).backward()
                made.step()
    return tracker


@pytest.mark.parametrize("in_trainer", [False, True], ids=["loop", "Trainer"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("are_alike", [True, False], ids=["alike", "told apart"])
def test_constant_tables_are_locked_only_if_nothing_tells_features_apart(
    optimizer: str, are_alike: bool, in_trainer: bool
) -> None:
    torch.manual_seed(0)
    net = Factors(are_alike)
    fill(nn.ModuleList([net.users, net.items]), 0.5)
    monitor = train(net, optimizer, in_trainer)
    found = {finding.layer.removeprefix("net."): str(finding.verdict) for finding in monitor.findings}
    assert found == ({"users": "locked", "items": "locked"} if are_alike else {})
    assert len(net.users.weight.unique(dim=1).T) == (1 if are_alike else 8)


def test_random_tables_are_healthy_and_tables_of_zeros_are_not() -> None:
    torch.manual_seed(0)
    random, zero = Factors(True), fill(Factors(True), 0.0)
    assert train(random, "sparse adam", False).report.status == "healthy"
    monitor = train(zero, "sparse adam", False)
    assert monitor.report.status == "symmetric"
    assert {finding.layer for finding in monitor.findings} == {"users", "items"}


def test_sparse_and_dense_gradients_make_the_same_findings() -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = Factors(True, sparse)
        fill(nn.ModuleList([net.users, net.items]), 0.5)
        monitor = train(net, "adagrad", False)
        found.append(
            [(finding.layer, finding.units, finding.verdict, finding.first_step) for finding in monitor.findings]
        )
    assert found[0] == found[1] != []
