"""The resident set of a training over many checks, with everything on: ``python -m tests.benchmarks resident``."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import SymmetryTracker
from tests import zoo
from tests.benchmarks.fresh import in_new_process
from tests.benchmarks.timing import show

_CHECKS = 20_000
_EVERY = 1000  # checks between two readings
_SHOWN = (1000, 5000, 10_000, 20_000)
_FROM = 5000  # checks after which nothing may grow


def sick_perceptron() -> nn.Module:
    """A first layer with a group of four units that train as one, and a healthy second one."""
    torch.manual_seed(0)
    return zoo.duplicate_units(zoo.perceptron(nn.Tanh), "0", "2", [(0, 1, 2, 3)])


def resident_bytes() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Fit random numbers; by number of steps, the resident bytes."""
    generator = torch.Generator().manual_seed(0)
    resident = {}
    for step in range(1, _CHECKS + 1):
        optimizer.zero_grad()
        inputs = torch.randn(16, zoo.INPUTS, generator=generator)
        torch.autograd.backward((model(inputs) - inputs[:, : zoo.OUTPUTS]).square().mean())
        optimizer.step()
        if step % _EVERY == 0:
            resident[step] = resident_bytes()
    return resident


def measure(is_watched: bool) -> dict[int, int]:
    """In a process of its own: train with the tracker at every step, or without it."""
    model = sick_perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = SummaryWriter(folder)
        options: dict[str, Any] = {"output": output, "every_n_steps": 1, "heatmaps": "findings", "scalars": "layers"}
        with SymmetryTracker(model, optimizer, **options) if is_watched else nullcontext() as tracker:
            resident = train(model, optimizer)
        output.close()
    if tracker is not None:
        [finding] = tracker.findings
        assert (finding.layer, finding.units, finding.broken_step) == ("0", (0, 1, 2, 3), None)
    return resident


def run() -> dict[str, dict[str, float]]:
    """Train with and without the tracker, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: dict[str, dict[str, float]] = {}
    for name, is_watched in (("without", False), ("with the tracker", True)):
        resident = {int(step): number / 1e6 for step, number in in_new_process(measure, is_watched).items()}
        growth = (resident[_CHECKS] - resident[_FROM]) / (_CHECKS - _FROM) * 1000
        rows.append((name, *(f"{resident[step]:.1f} MB" for step in _SHOWN), f"{1000 * growth:.1f} kB"))
        results[name] = {**{str(step): number for step, number in resident.items()}, "growth_per_1000": growth}
    head = ("", *(f"{step:,} checks" for step in _SHOWN), f"growth per 1,000 from {_FROM:,} on")
    show("Resident set of a training that is checked at every step", head, rows)
    return results
