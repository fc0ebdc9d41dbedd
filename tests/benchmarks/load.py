"""How the Symmetry tab copes with much: ``python -m tests.benchmarks.load /tmp/symmetry_load``.

Writes 10 runs of 500 layers and 2,000 checks through the real writer (once; a folder that is there is used again), and
measures what a check costs, what it takes on the disk, and how long TensorBoard and the page need.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.diagnoses import Cause, LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import to_diagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict
from tests.browsing import open_browser
from tests.serving import Server, is_up, tensorboard, wait_for
from tests.tab_runs import TabWriter

NUM_RUNS, NUM_LAYERS, NUM_CHECKS, EVERY_N_STEPS = 10, 500, 2000, 50


def write_run(folder: Path, model: nn.Module, num_checks: int, seed: int, flicker: int) -> None:
    """One run, anew: every so many layers lose and win dead units all the time, some are locked, some break."""
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    _move(model, generator)
    looks = look(find_layers(model, None, ()).layers)
    layers = [to_diagnosis(seen, ()) for seen in looks]
    writer, tab = SummaryWriter(str(folder)), TabWriter()
    taken = []
    for check in range(num_checks):
        layers = [_next(layer, i, check, num_checks, seed, flicker, generator) for i, layer in enumerate(layers)]
        if check % 8 == 0:
            _move(model, generator)
        report = SymmetryReport(check * EVERY_N_STEPS, {layer.name: layer for layer in layers})
        started = time.perf_counter()
        tab.write([writer], report, [], looks, "findings")
        taken.append(time.perf_counter() - started)
    writer.close()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{folder.name}: {1000 * statistics.median(taken):.3f} ms per check (median), {1000 * max(taken):.0f} ms the "
        f"slowest, {size / 2**20:.1f} MiB, {size / num_checks / len(layers):.1f} bytes per layer and check",
        flush=True,
    )


def dense(num_layers: int) -> nn.Module:
    """Layers of 64 units."""
    return nn.ModuleDict({f"block{i}": nn.Linear(32, 64) for i in range(num_layers)})


def resnet18() -> nn.Module:
    """The layers of ResNet-18 that have units, in their sizes."""
    layers = [nn.Conv2d(3, 64, 7), *(nn.Conv2d(64, 64, 3) for _ in range(4))]
    for width in (128, 256, 512):
        layers += [nn.Conv2d(width // 2, width, 3), *(nn.Conv2d(width, width, 3) for _ in range(3))]
        layers.append(nn.Conv2d(width // 2, width, 1))
    return nn.Sequential(*layers, nn.Linear(512, 1000))


@torch.no_grad()
def _move(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _next(
    layer: LayerDiagnosis,
    place: int,
    check: int,
    num_checks: int,
    seed: int,
    flicker: int,
    generator: torch.Generator,
) -> LayerDiagnosis:
    if place % flicker == 3 % flicker:
        layer = replace(layer, dead=tuple(range(int(torch.randint(4, (), generator=generator)))))
    if place % 50 == seed % 50 and check == 0:
        return replace(layer, groups=[UnitGroup(tuple(range(layer.num_units)), Verdict.LOCKED, Cause.CONSTANT, 0.5, 0)])
    if place % 25 == 7 and check % (num_checks // 20) == 0:
        left = layer.num_units * (num_checks - check) // num_checks
        groups = [UnitGroup(tuple(range(left)), Verdict.BREAKING, Cause.ZERO, None, 0)] if left > 1 else []
        return replace(layer, groups=groups)
    return layer


def measure_start(logdir: Path, num_times: int = 5) -> None:
    """Print how long TensorBoard takes until it answers, without and with the plugin."""
    serve = "from tensorboard.main import run_main; run_main()"
    codes = {"without": f"import tensorboard.default as d; d.get_dynamic_plugins = list; {serve}", "with": serve}
    seconds: dict[str, list[float]] = {kind: [] for kind in codes}
    for i in range(num_times):
        for kind, code in codes.items():
            port = 6500 + 2 * i + (kind == "with")
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", code, f"--logdir={logdir}", f"--port={port}", "--host=127.0.0.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_for(lambda: is_up(Server(f"http://127.0.0.1:{port}", process)))  # noqa: B023
            seconds[kind].append(time.perf_counter() - started)
            process.terminate()
            process.wait()
    for kind, values in seconds.items():
        print(f"TensorBoard starts in {statistics.median(values):.2f} s {kind} the plugin")


def measure_opening(logdir: Path, *flags: str) -> None:
    """Print how long it takes from the address to ten cards with rows; TensorBoard's own page is part of it."""
    with (
        TemporaryDirectory() as profile,
        tensorboard(logdir, *flags, seconds=300) as server,
        open_browser(Path(profile)) as page,
    ):
        last = f"{(NUM_CHECKS - 1) * EVERY_N_STEPS}@"
        wait_for(lambda: all(run["version"].startswith(last) for run in server.json("runs")["runs"]), 300)
        for _ in range(3):
            started = time.perf_counter()
            page.open(server)
            wait_for(lambda: len(page.all(".card:has(.row)")) == NUM_RUNS)
            whole = time.perf_counter() - started
            ours = page.run("return performance.now()") / 1000
            how = " ".join(flags) or "default"
            print(f"{how}: {whole:.1f} s in all, {ours:.1f} s of it in the tab's frame", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Write the runs that are not there, and measure."""
    logdir = Path(arguments[0])
    write_run(Path(f"{logdir}_resnet18"), resnet18(), NUM_CHECKS, seed=0, flicker=1)
    write_run(Path(f"{logdir}_small"), dense(3), NUM_CHECKS, seed=9, flicker=1000)
    for i in range(NUM_RUNS):
        folder = logdir / f"run{i}"
        if not folder.exists():
            write_run(folder, dense(NUM_LAYERS), NUM_CHECKS, seed=i, flicker=10)
    measure_start(logdir)
    measure_opening(logdir)
    measure_opening(logdir, "--load_fast=false")


if __name__ == "__main__":
    main(sys.argv[1:])
