"""The reason why equal units stay equal: a layer that reads them with equal weights, or the loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, SymmetryWarning
from tests.training import Classifier, fill, fit, mlp, quiet, sgd


def mirrored() -> nn.Sequential:
    """Half of the units, and of the weights that read them, are the negatives of the others."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = -net[0].weight[:4], -net[0].bias[:4]
        net[2].weight[:, 4:] = -net[2].weight[:, :4]
    return net  # type: ignore[no-any-return] # any network here


def convolutions() -> nn.Sequential:
    """Equal filters whose maps are read with equal weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        fill(nn.Conv1d(1, 4, 3), 0.1),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        fill(nn.Linear(20, 4), 0.1),
    )


class Branching(nn.Module):
    """Two layers read the same equal units; only one reads them with equal weights."""

    def __init__(self, *, is_alike: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.other = fill(nn.Linear(12, 8), 0.1), fill(nn.Linear(8, 4), 0.1), nn.Linear(8, 4)
        if is_alike:
            fill(self.other, 0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        outputs: Tensor = self.one(hidden) - self.other(hidden)
        return outputs


def kept_by(net: nn.Module, *, is_summed: bool = False) -> dict[str, str]:
    """Train for a few steps; return by layer what keeps the units of its findings equal."""
    optimizer = sgd(net.parameters())
    tracker = SymmetryTracker(net, optimizer, every_n_steps=2, heatmaps="none", scalars="none", on_symmetry="ignore")
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        inputs = torch.randn(32, 12, generator=generator)
        outputs = net(inputs)
        loss = outputs.sum() if is_summed else nn.functional.cross_entropy(outputs, inputs[:, :4].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tracker.abandon()
    return {finding.layer: finding.kept_by for finding in tracker.findings}


def test_what_reads_equal_units_alike() -> None:
    assert kept_by(fill(mlp(), 0.1)) == {"0": "2", "2": "4"}
    assert kept_by(mirrored()) == {"0": "2"}
    assert kept_by(convolutions()) == {"1": "5"}
    assert kept_by(Branching(is_alike=True)) == {"first": "one"}


def test_nothing_is_said_where_units_are_not_read_alike() -> None:
    assert kept_by(Branching(is_alike=False)) == {}  # they diverge by themselves
    net: Any = nn.Sequential(fill(nn.Linear(12, 8), 0.1), nn.Softmax(1), fill(nn.Linear(8, 4), 0.1))
    assert kept_by(net) == {"0": ""}  # units cannot be followed through a softmax


def test_the_loss_may_treat_outputs_alike() -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    assert kept_by(net, is_summed=True) == {"2": "the loss"}


def test_it_is_part_of_the_message_also_where_only_a_part_of_the_model_can_be_followed() -> None:
    monitor = quiet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SymmetryWarning)
        fit(Classifier(fill(mlp(), 0.1)), monitor)
    texts = [str(each.message) for each in caught if issubclass(each.category, SymmetryWarning)]
    # The warning comes before the first update, the trace at the next check.
    assert "reads them alike" not in texts[0]
    assert {finding.layer: finding.kept_by for finding in monitor.findings} == {"net.0": "net.2", "net.2": "net.4"}
    assert monitor.report is not None
    assert monitor.report.findings[0].kept_by == "net.2"
    assert "net.2 reads them alike: its weights for them are equal." in monitor.report.messages()[0]


def test_it_is_kept_by_checkpoints() -> None:
    net = fill(mlp(), 0.1)
    monitor, other = quiet(), quiet()
    with warnings.catch_warnings(action="ignore"):
        fit(Classifier(net), monitor)
    other.load_state_dict(monitor.state_dict())
    assert [finding.kept_by for finding in other.findings] == ["net.2", "net.4"]
