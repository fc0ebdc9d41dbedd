"""How the Symmetry tab copes with much: ``python -m tests.load /tmp/symmetry_load``.

Writes 10 runs of 500 layers and 2,000 checks through the real writer (once; a folder that is there is used again), and
measures what a check costs, what it takes on the disk, and how long TensorBoard and the page need.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.diagnosis import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict, to_diagnosis
from lightning_symmetry.evidence import Cause, look
from lightning_symmetry.layers import find_layers
from lightning_symmetry.writers.tab import TabWriter

NUM_RUNS, NUM_LAYERS, NUM_CHECKS, EVERY_N_STEPS = 10, 500, 2000, 50


def write_run(folder: Path, num_layers: int, num_checks: int, seed: int, num_units: int = 64) -> None:
    """One run: a tenth of the layers lose and win dead units all the time, some are locked, some break."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({f"block{i}": nn.Linear(32, num_units) for i in range(num_layers)})
    _move(model, generator)
    looks = look(find_layers(model, None, ())[0])
    layers = [to_diagnosis(seen, ()) for seen in looks]
    writer, tab = SummaryWriter(str(folder)), TabWriter()
    seconds, slowest = 0.0, 0.0
    for check in range(num_checks):
        layers = [_next(layer, place, check, num_checks, seed, generator) for place, layer in enumerate(layers)]
        if check % 8 == 0:
            _move(model, generator)
        report = SymmetryReport(check * EVERY_N_STEPS, {layer.name: layer for layer in layers})
        started = time.perf_counter()
        tab.write([writer], report, [], looks, "findings")
        taken = time.perf_counter() - started
        seconds, slowest = seconds + taken, max(slowest, taken)
    writer.close()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{folder.name}: {1000 * seconds / num_checks:.3f} ms per check, {1000 * slowest:.0f} ms the slowest, "
        f"{size / 2**20:.1f} MiB, {size / num_checks / num_layers:.1f} bytes per layer and check",
        flush=True,
    )


@torch.no_grad()
def _move(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _next(
    layer: LayerDiagnosis, place: int, check: int, num_checks: int, seed: int, generator: torch.Generator
) -> LayerDiagnosis:
    if place % 10 == 3:
        return replace(layer, dead_units=int(torch.randint(4, (), generator=generator)))
    if place % 50 == seed % 50 and check == 0:
        return replace(layer, groups=[UnitGroup(tuple(range(layer.num_units)), Verdict.LOCKED, Cause.CONSTANT, 0.5, 0)])
    if place % 25 == 7 and check % (num_checks // 20) == 0:
        left = layer.num_units * (num_checks - check) // num_checks
        groups = [UnitGroup(tuple(range(left)), Verdict.BREAKING, Cause.ZERO, None, 0)] if left > 1 else []
        return replace(layer, groups=groups)
    return layer


def main(arguments: Sequence[str]) -> None:
    """Write the runs that are not there."""
    logdir = Path(arguments[0])
    for i in range(NUM_RUNS):
        folder = logdir / f"run{i}"
        if not folder.exists():
            write_run(folder, NUM_LAYERS, NUM_CHECKS, seed=i)


if __name__ == "__main__":
    main(sys.argv[1:])
