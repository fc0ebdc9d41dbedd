"""The number of directions of a layer's units, over a training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor, SymmetryTracker, diagnose
from lightning_symmetry.verdicts.orientations import Orientations
from tests.oracle import brute_force_directions
from tests.outputs.test_tensorboard import read
from tests.test_tracker import sgd, tracked, train
from tests.training import Classifier, fit, mlp


def rows_of(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1)


def tiny_tanh(num_units: int = 50) -> nn.Sequential:
    """A two-layer network whose units start small, and condense before they grow."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, num_units), nn.Tanh(), nn.Linear(num_units, 1, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=1e-4)
    return net


def samples(num_samples: int = 80) -> tuple[Tensor, Tensor]:
    """Inputs in a cube, and a target that is a sum of sines of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(num_samples, 5, generator=generator) * 6 - 4
    return inputs, 3.5 * torch.sin(5 * inputs + 1).sum(dim=1, keepdim=True)


def condense(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    inputs, targets = samples()
    for _ in range(steps):
        optimizer.zero_grad()
        (net(inputs) - targets).square().mean().backward()
        optimizer.step()


def test_small_initialisation_condenses_onto_one_direction() -> None:
    # Zhou et al. 2022, arXiv 2105.11686: at most 2 p directions, one up to sign for tanh, whose multiplicity p is 1.
    net = tiny_tanh()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with SymmetryTracker(net, optimizer, every_n_steps=4, on_symmetry="raise") as tracker:
        condense(net, optimizer, 1)
        assert tracker.report is not None
        before = tracker.report.layers["0"]
        condense(net, optimizer, 50)
    after = tracker.report.layers["0"]
    assert (before.orientations, before.is_condensed) == (brute_force_directions(rows_of(tiny_tanh()[0]), 0.999), False)  # type: ignore[arg-type]
    assert after.orientations == 1
    assert after.is_condensed
    assert after.effective_width == 50
    assert tracker.report.metrics(["0"])["symmetry/orientations/0"] == after.orientations
    assert tracker.report.to_dict()["layers"]["0"]["orientations"] == after.orientations


def test_the_latest_report_agrees_with_brute_force() -> None:
    net = tiny_tanh()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    for _ in range(8):
        condense(net, optimizer, 5)
        assert diagnose(net).layers["0"].orientations == brute_force_directions(rows_of(net[0]), 0.999)  # type: ignore[arg-type]


def test_a_healthy_layer_has_a_direction_per_unit() -> None:
    tracker = tracked(mlp(), steps=20, every_n_steps=2)
    for layer in tracker.report.layers.values():
        assert layer.orientations == layer.num_units
        assert not layer.is_condensed


def test_parallel_units_share_a_direction_and_are_no_finding() -> None:
    # w_j = c w_i behind a ReLU, with a bias that is scaled too: one unit would do, and nothing is equal.
    net = mlp()
    with torch.no_grad():
        for parameter in net.linear(0).parameters():
            parameter[8:] = 3 * parameter[:8]
    tracker = tracked(net, steps=1)
    assert tracker.report.layers["0"].orientations == 8
    assert tracker.report.layers["0"].is_condensed
    assert tracker.findings == []


def test_copies_and_mirror_images_share_a_direction() -> None:
    net = mlp()
    with torch.no_grad():
        for parameter in net.linear(0).parameters():
            parameter[4:8] = parameter[:4]
            parameter[8:12] = -parameter[:4]
            parameter[12:] = 0
    layer = diagnose(net).layers["0"]
    assert layer.orientations == 4


def test_dead_units_do_not_count() -> None:
    net = mlp()
    with torch.no_grad():
        net.linear(0).bias[:] = 1
        net.linear(0).bias[:6] = -100
    tracker = tracked(net, steps=400, every_n_steps=10)
    layer = tracker.report.layers["0"]
    assert set(range(6)) <= set(layer.dead)
    assert layer.orientations == layer.num_units - len(layer.dead)


def looks_counted(are_few: bool) -> Iterator[int]:
    state = Orientations(are_few=are_few)
    for number in range(1, 130):
        if state.is_due:
            yield number
        state.num_looks += 1


def test_they_are_counted_seldom() -> None:
    assert list(looks_counted(False)) == [1, 8, 16, 32, 64, 128]
    assert list(looks_counted(True)) == [1, *range(4, 130, 4)]


def test_the_number_survives_a_checkpoint() -> None:
    net = mlp()
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        train(net, optimizer, 5)
    state = json.loads(json.dumps(tracker.state_dict()))
    with SymmetryTracker(net, optimizer, every_n_steps=1) as resumed:
        resumed.load_state_dict(state)
        train(net, optimizer, 1)  # the sixth look, which counts nothing
        assert resumed.report is not None
        assert resumed.report.layers["0"].orientations == 16


@pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
def test_a_condensed_layer_gets_a_curve(tmp_path: Path) -> None:
    net = mlp()
    with torch.no_grad():
        for parameter in net.linear(0).parameters():
            parameter[8:] = 3 * parameter[:8]
    fit(Classifier(net), SymmetryMonitor(heatmaps="none"), logger=TensorBoardLogger(tmp_path, name="", version=""))
    tags = {tag for tag in read(tmp_path).Tags()["scalars"] if tag.startswith("symmetry/orientations")}
    assert tags == {"symmetry/orientations/net.0"}
