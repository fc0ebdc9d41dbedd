"""Networks on graphs of torch_geometric: healthy ones are passed over, and dead units are found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, Verdict
from lightning_symmetry.verdicts.report import SymmetryReport

geometric: Any = pytest.importorskip("torch_geometric.nn")

_NODES, _FEATURES, _HIDDEN, _TYPES = 24, 6, 8, 3
LAYERS: dict[str, Callable[[], Any]] = {
    "GCNConv": lambda: geometric.GCNConv(_FEATURES, _HIDDEN),
    "GATConv": lambda: geometric.GATConv(_FEATURES, _HIDDEN // 2, heads=2),
    "SAGEConv": lambda: geometric.SAGEConv(_FEATURES, _HIDDEN),
    "lazy SAGEConv": lambda: geometric.SAGEConv(-1, _HIDDEN),
    "TransformerConv": lambda: geometric.TransformerConv(_FEATURES, _HIDDEN),
    "Linear": lambda: geometric.Linear(-1, _HIDDEN),
    "HeteroLinear": lambda: geometric.HeteroLinear(_FEATURES, _HIDDEN, _TYPES),
    "HeteroDictLinear": lambda: geometric.HeteroDictLinear(_FEATURES, _HIDDEN, ["paper", "author"]),
}


class Network(nn.Module):
    """One layer on a graph, and a head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv, self.act, self.head = LAYERS[name](), nn.ReLU(), geometric.Linear(_HIDDEN, 1)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        if isinstance(self.conv, geometric.HeteroLinear):
            hidden = self.conv(nodes, torch.arange(len(nodes)) % _TYPES)
        elif isinstance(self.conv, geometric.HeteroDictLinear):
            hidden = torch.cat(list(self.conv({"paper": nodes[::2], "author": nodes[1::2]}).values()))
        else:
            hidden = self.conv(nodes) if isinstance(self.conv, geometric.Linear) else self.conv(nodes, edges)
        outputs: Tensor = self.head(self.act(hidden))
        return outputs


def graph() -> tuple[Tensor, Tensor]:
    """Features of the nodes, and edges."""
    torch.manual_seed(1)
    return torch.randn(_NODES, _FEATURES), torch.randint(_NODES, (2, 4 * _NODES))


def train(model: Network) -> SymmetryReport:
    nodes, edges = graph()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(), SymmetryTracker(model, optimizer, every_n_steps=5) as tracker:
        warnings.simplefilter("ignore")
        for _ in range(60):
            optimizer.zero_grad()
            (model(nodes + 0.1 * torch.randn_like(nodes), edges) - 1).square().mean().backward()
            optimizer.step()
    assert tracker.report is not None
    return tracker.report


@pytest.mark.parametrize("name", LAYERS)
def test_a_healthy_layer_is_looked_at_in_silence(name: str) -> None:
    torch.manual_seed(0)
    report = train(Network(name))
    assert (report.findings, report.coverage) == ([], 1.0)
    assert not any(name.endswith("]") and "weight" in name for name in report.layers)


@pytest.mark.parametrize("name", LAYERS)
def test_dead_units_are_found(name: str) -> None:
    torch.manual_seed(0)
    model = Network(name)
    model(*graph())  # lazy layers initialise themselves
    for path, parameter in model.conv.named_parameters():
        if path.endswith("bias"):
            nn.init.constant_(parameter, -100.0)
    report = train(model)
    assert report.status == "symmetric"
    dead = [finding for finding in report.findings if finding.verdict is Verdict.DEAD]
    assert any(finding.stop is not None and finding.stop.kind == "closed" for finding in dead)
