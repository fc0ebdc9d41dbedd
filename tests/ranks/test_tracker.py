"""The tracker in plain loops on several real processes."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lightning_symmetry import Finding, SymmetryError, SymmetryTracker
from tests.distributed import NETWORKS, conclusions, fsdp1, fsdp1_flat, fsdp2, on_ranks, tensor_parallel

LAYOUTS = ("DDP", "FSDP2", "TP", "FSDP1", "FSDP1 flat")


def laid_out(net: nn.Module, layout: str) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    match layout:
        case "DDP":
            return torch.compile(DistributedDataParallel(net), backend="eager")  # type: ignore[return-value]
        case "FSDP2":
            fsdp2(net, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
        case "TP":
            tensor_parallel(net, mesh)
        case "FSDP1":
            return fsdp1(net, mesh)
        case "FSDP1 flat":
            return fsdp1_flat(net, mesh)
    return net


def train(model: nn.Module, steps: int = 8, **options: Any) -> tuple[SymmetryTracker | None, list[Tensor]]:
    """Train in a plain loop on all ranks, with a tracker if there are options; return also the final state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    tracker = SymmetryTracker(model, optimizer, **options) if options else None
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        inputs = torch.rand(16, 12, generator=generator)
        outputs = model(inputs)
        loss = (outputs - inputs[:, : outputs.shape[1]]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if tracker:
        tracker.close()
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return tracker, [*losses, *(part.detach().clone() for part in parts)]


def built(network: str) -> nn.Module:
    torch.manual_seed(5)
    return NETWORKS[network]()


OPTIONS: dict[str, Any] = {"every_n_steps": 1, "on_symmetry": "warn"}


def all_layouts(num_ranks: int, folder: Path, network: str) -> dict[str, Any]:
    """Return the findings in every layout, whether the training is bitwise the same, and the number of warnings."""
    torch.distributed.init_process_group("gloo")
    found = {}
    for layout in LAYOUTS:
        _, without = train(laid_out(built(network), layout))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output = folder / layout.replace(" ", "_")
            heard: list[Finding] = []
            options = {**OPTIONS, "output": output, "on_finding": heard.append}
            tracker, with_it = train(laid_out(built(network), layout), **options)
        assert tracker is not None
        is_same = all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))
        texts = [str(warning.message) for warning in caught if "identical" in str(warning.message)]
        found[layout] = (conclusions(tracker), is_same, len(texts), tracker.state_dict(), len(heard))
    return found


@pytest.mark.parametrize("network", ["planted groups", "healthy block"])
def test_all_ranks_find_what_one_process_finds(network: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker, _ = train(built(network), **OPTIONS)
    assert tracker is not None
    first, second = on_ranks(2, partial(all_layouts, 2, network=network), tmp_path)
    for layout in LAYOUTS:
        assert first[layout][0] == conclusions(tracker), layout
        assert second[layout][0] == conclusions(tracker), layout
        assert first[layout][1], f"{layout} is another training"
        assert second[layout][1], f"{layout} is another training"
        assert first[layout][3] == second[layout][3]
        # The first rank warns and writes for all.
        assert second[layout][2] == 0
        assert (first[layout][2] > 0) == bool(tracker.findings)
        assert (first[layout][4], second[layout][4]) == (len(tracker.findings), 0)
        assert (tmp_path / layout.replace(" ", "_") / "findings.json").exists()


def fail_together(num_ranks: int, folder: Path) -> bool:
    torch.distributed.init_process_group("gloo")
    model = laid_out(built("planted groups"), "FSDP2")
    with pytest.raises(SymmetryError, match="units in 3 groups"):
        train(model, on_symmetry="raise")
    model = laid_out(built("healthy block"), "DDP")
    with pytest.raises(SymmetryError, match="no conclusion"):
        train(model, steps=1, require_conclusion=True)
    return True


def test_all_ranks_raise_together(tmp_path: Path) -> None:
    assert on_ranks(2, partial(fail_together, 2), tmp_path) == [True, True]
