"""Trainings with ``on_symmetry="break"``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_symmetry import SymmetryMonitor
from tests import zoo
from tests.distributed import LAYOUTS, NETWORKS, Task, on_ranks, state, train
from tests.repair.test_breaking import Doubled
from tests.test_tracker import tracked
from tests.training import Classifier, assert_same, fill, fit, mlp, quiet


def trained(net: nn.Module, monitor: SymmetryMonitor | None, **options: Any) -> list[str]:
    """Train, and return the monitor's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(net), monitor, **options)
    return [text for warning in caught if "Symmetry" in (text := str(warning.message))]


@pytest.mark.parametrize("value", [0.0, 0.05, -0.05])
def test_it_is_broken_once_said_loudly_and_noted(value: float, caplog: pytest.LogCaptureFixture) -> None:
    net, monitor = fill(mlp(), value), quiet(every_n_steps=1, on_symmetry="break")
    with caplog.at_level("INFO"):
        warned = trained(net, monitor, max_steps=30)
    [about] = [text for text in warned if "breaks the symmetry" in text]
    assert all(str(change) in about for change in monitor.changes)
    assert {change.layer for change in monitor.changes} >= {"net.0", "net.2"}
    assert len({(change.layer, change.units) for change in monitor.changes}) == len(monitor.changes)
    assert monitor.report is not None
    assert monitor.report.redundant_units == 0
    assert all(finding.broken_step is not None for finding in monitor.findings)
    assert "Symmetry at step 29: all 28 units of 3 layers are working." in caplog.messages


def test_a_healthy_training_is_the_same_to_the_last_bit() -> None:
    nets = [mlp() for _ in range(2)]
    assert trained(nets[0], quiet(every_n_steps=1, on_symmetry="break")) == []
    trained(nets[1], None)
    assert_same(nets[0].state_dict(), nets[1].state_dict())


def test_the_other_choices_change_nothing() -> None:
    net, monitor = fill(mlp(), 0.05), quiet(every_n_steps=1)
    trained(net, monitor)
    assert monitor.changes == []
    assert (zoo.linear(net, "0").weight == zoo.linear(net, "0").weight[0]).all()


def test_what_cannot_be_parted_is_said() -> None:
    net, monitor = fill(mlp(), 0.05), quiet(every_n_steps=1, on_symmetry="break")
    register_parametrization(net.linear(0), "weight", Doubled())
    warned = trained(net, monitor)
    [refusal] = [text for text in warned if "cannot break the symmetry" in text]
    assert "right_inverse" in refusal
    assert monitor.changes == []
    assert len(monitor.findings) == 2


def test_dead_units_that_put_out_a_constant_stay_and_that_is_said() -> None:
    net, monitor = mlp(), quiet(every_n_steps=20, on_symmetry="break")
    net[1] = nn.Tanh()
    zoo.with_bias(net, "0", 1000.0, 12)
    warned = trained(net, monitor, max_steps=70)
    assert any("left as they are: they are dead, but they may output a constant" in text for text in warned), warned
    assert "net.0" not in {change.layer for change in monitor.changes}
    assert (net.linear(0).bias[:12] > 900).all()


def test_a_loop_of_ones_own() -> None:
    net = fill(mlp(), 0.05)
    tracker = tracked(net, steps=30, every_n_steps=1, on_symmetry="break")
    assert [change.layer for change in tracker.changes] == ["0", "2"]
    assert tracker.report.redundant_units == 0


def test_moments_that_an_optimizer_has_of_the_copies_do_not_pull_them_together() -> None:
    net = fill(mlp(), 0.05)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    tracker = tracked(net, optimizer, steps=60, every_n_steps=1, on_symmetry="break")
    assert tracker.report.redundant_units == 0
    assert optimizer.state[net.linear(0).weight]["step"] == 60


def break_on_ranks(folder: Path) -> dict[str, Any]:
    """Map each layout to the final weights, the changes, and the warnings."""
    results = {}
    for layout in ("DDP", "FSDP2"):
        monitor = quiet(every_n_steps=1, on_symmetry="break")
        task = Task(NETWORKS["constant layer"], LAYOUTS[2][layout])
        trainer = train(task, LAYOUTS[2][layout], monitor)
        results[layout] = (
            state(task, trainer)[: len(list(task.parameters()))],
            [str(change) for change in monitor.changes],
            task.warned,
        )
    return results


def test_all_ranks_draw_the_same_and_shards_are_refused(tmp_path: Path) -> None:
    first, second = on_ranks(2, break_on_ranks, tmp_path)
    weights, changes, _ = first["DDP"]
    assert [change.partition(":")[0] for change in changes] == ["net.up"]
    assert changes == second["DDP"][1]
    assert all(torch.equal(one, other) for one, other in zip(weights, second["DDP"][0], strict=True))
    for _, changes, warned in (first["FSDP2"], second["FSDP2"]):
        assert changes == []
        assert not warned or any("sharded" in text for text in warned)
    assert any("sharded" in text for text in first["FSDP2"][2])
