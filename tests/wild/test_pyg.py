"""PyG, in a loop of one's own."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from lightning_symmetry import SymmetryTracker
from tests.wild.watching import Fault, Library, Plant, closed, library_tests, train_in_loop


def train(name: str, fault: Fault | None) -> SymmetryTracker:
    from torch_geometric import nn as geometric

    nodes, edges, labels = torch.randn(60, 8), torch.randint(60, (2, 240)), torch.arange(60) % 3
    model = getattr(geometric, name)(8, hidden_channels=16, num_layers=2, out_channels=3)
    return train_in_loop(model, lambda: nn.functional.cross_entropy(model(nodes, edges), labels), fault)


LIBRARY = Library(
    "torch_geometric",
    "`SymmetryTracker(model, optimizer)`",
    {name: partial(train, name) for name in ("GCN", "GAT", "GraphSAGE", "GIN")},
    Plant("GCN", closed("convs.0"), "the first layer gets a bias of -100", "convs.0.lin", "SYM301"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
