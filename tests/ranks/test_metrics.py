"""Metrics and the probe on several real processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lightning_symmetry import ActivationProbe
from lightning_symmetry.metrics import DeadActivations, DuplicateActivations, EffectiveRank, EffectiveWidth
from tests.distributed import on_ranks
from tests.training import mlp

SAMPLES = 96


def samples() -> torch.Tensor:
    found = torch.relu(torch.randn(SAMPLES, 9, generator=torch.Generator().manual_seed(0)) + 1)
    found[:, 3] = found[:, 2]
    found[:, 5] = 0
    return found


def measure(rank: int, num_ranks: int, group: Any = None) -> dict[str, float]:
    """Compute the metrics of samples of which this rank has a part, in two batches of different sizes."""
    mine = samples()[rank::num_ranks]
    found = {}
    for kind in (DeadActivations, DuplicateActivations, EffectiveRank):
        metric = kind(process_group=group)
        metric.update(mine[:5])
        metric.update(mine[5:])
        found[type(metric).__name__] = float(metric.compute())
    width = EffectiveWidth(process_group=group)
    width.update(samples().T)
    return {**found, "EffectiveWidth": float(width.compute())}


def train(rank: int, num_ranks: int, is_watched: bool) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Train under DDP; return the final weights and the probe's results."""
    net: nn.Module = mlp()
    model = DistributedDataParallel(net) if num_ranks > 1 else net
    probe = ActivationProbe(model, every_n_steps=1) if is_watched else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        inputs = torch.randn(24, 12, generator=generator)[rank::num_ranks]
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    values = {} if probe is None else {name: float(value) for name, value in probe.compute().items()}
    return [parameter.detach() for parameter in net.parameters()], values


def work(num_ranks: int, folder: Path) -> Any:
    if num_ranks == 1:
        return [measure(0, 1)], train(0, 1, False), train(0, 1, True)
    init_device_mesh("cpu", (num_ranks,))
    rank = torch.distributed.get_rank()
    pairs = [torch.distributed.new_group([0, 1]), torch.distributed.new_group([2, 3])]
    measured = [measure(rank, num_ranks), measure(rank % 2, 2, pairs[rank // 2])]
    return measured, train(rank, num_ranks, False), train(rank, num_ranks, True)


def test_samples_of_all_ranks_are_put_together(tmp_path: Path) -> None:
    """Return the results of one, two and four ranks."""
    [expected], (weights, _), (_, probed) = work(1, tmp_path)
    for measured, (plain, _), (watched, values) in on_ranks(4, partial(work, 4), tmp_path):
        for found in measured:
            assert found == pytest.approx(expected, rel=1e-6)
        assert all(map(torch.equal, plain, watched))
        torch.testing.assert_close(plain, weights, rtol=1e-4, atol=1e-6)
        assert values == pytest.approx(probed, rel=1e-3)


class Branches(nn.Module):
    """A ReLU shared by two layers, one of which each pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.relu = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 6), nn.ReLU()

    def forward(self, inputs: torch.Tensor, branch: str) -> Any:
        return self.relu(self.get_submodule(branch)(self.relu(self.first(inputs))))


def probe_branches(folder: Path) -> list[set[str]]:
    """Compute the metrics if each rank used another layer, and only one has new samples."""
    init_device_mesh("cpu", (2,))
    rank = torch.distributed.get_rank()
    net = Branches()
    probe = ActivationProbe(net, every_n_steps=1)
    computed = []
    for branch in ("a", "b") if rank == 0 else ("b",):
        net(torch.randn(7, 3), branch)
    for _ in range(3):
        if rank == 0:
            net(torch.randn(7, 3), "a")
        computed.append({name for name, value in probe.compute().items() if not value.isnan()})
    return computed


def test_ranks_that_see_other_places_do_not_wait_for_one_another(tmp_path: Path) -> None:
    places = ("relu", "relu after a", "relu after b")
    metrics = ("dead_activations", "duplicate_activations", "effective_rank")
    expected = {f"symmetry/{metric}/{place}" for place in places for metric in metrics}
    assert on_ranks(2, probe_branches, tmp_path) == [[expected] * 3] * 2
