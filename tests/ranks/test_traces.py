"""Traced steps of trainings on two processes: the findings equal those on one process, and nothing is changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lightning_symmetry import SymmetryTracker
from tests.ranks.pool import RankPool

# The findings of each: kind and place of the stop, and the layer that it follows from.
Found = dict[str, tuple[str, str, str]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("ranks")) as pool:
        yield pool


class Shut(nn.Module):
    """Three hidden layers, the second of which is closed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.constant_(self.b.bias, -50.0)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.d(torch.tanh(self.c(torch.relu(self.b(torch.tanh(self.a(inputs)))))))
        return outputs


def parallel(layout: str) -> nn.Module:
    """The network on all ranks."""
    net = Shut()
    if layout == "DDP":
        return DistributedDataParallel(net)
    mesh = init_device_mesh("cpu", (2,))
    if layout == "TP":
        return parallelize_module(net, mesh, {"a": ColwiseParallel(), "b": RowwiseParallel()})
    for layer in (net.a, net.b, net.c, net.d):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def trained(layout: str, *, is_watched: bool) -> tuple[list[Tensor], Found]:
    """Train on this rank; return this rank's part of the final parameters, and the findings."""
    model = parallel(layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"every_n_steps": 10, "heatmaps": "none", "scalars": "none", "on_symmetry": "ignore"}
    tracker = SymmetryTracker(model, optimizer, **options) if is_watched else None
    rank = 0 if layout == "TP" else dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(71):
        inputs = torch.rand(16, 12, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), inputs[:, :4].argmax(1)).backward()
        optimizer.step()
    found: Found = {}
    if tracker is not None:
        tracker.abandon()
        for finding in tracker.findings:
            if finding.stop is not None:
                found[finding.layer] = str(finding.stop.kind), finding.stop.at, finding.follows
    ends = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    return [each.detach().clone() for each in ends], found


def compare(layout: str) -> tuple[bool, Found, list[str]]:
    """Return whether the training is the same with a tracker, and the tracker's findings and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched, found = trained(layout, is_watched=True)
    alone, _ = trained(layout, is_watched=False)
    is_same = all(map(torch.equal, watched, alone))
    return is_same, found, [text for each in caught if "Symmetry" in (text := str(each.message))]


@pytest.mark.parametrize("layout", ["DDP", "FSDP2", "TP"])
def test_the_stop_is_found_on_several_processes(ranks: RankPool, layout: str) -> None:
    results = ranks.call(compare, layout)
    assert [is_same for is_same, _, _ in results] == [True, True]
    assert [warned for _, _, warned in results] == [[], []]
    assert results[0][1] == {"a": ("closed", "relu after b", "b"), "b": ("closed", "relu after b", "")}
