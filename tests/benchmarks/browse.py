"""How fast the Symmetry tab shows many runs and layers: ``python -m tests.benchmarks.browse``.

Writes made-up runs of 20 checks, opens them in a real browser inside TensorBoard, and prints a row of a table for each
size: the time from the address to the first content and to the whole table of runs, of which TensorBoard's own page has
its share; the time to open all runs as cards; and the longest time that drawing takes after a new check.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.verdicts.diagnoses import Cause, Finding, LayerDiagnosis, Origin, UnitGroup
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict
from tests.browsing import Page, open_browser
from tests.serving import tensorboard, wait_for
from tests.tab_runs import TabWriter

SIZES = [(1, 3), (1, 1201), (10, 100), (80, 100), (200, 100)]
NUM_CHECKS = 20
PARTS = ("attention.q_proj", "attention.out_proj", "mlp.up", "mlp.down")
# Resolves as soon as the cards in sight show their layers; tells the time and the longest time without a frame.
OPEN_ALL = """
    const done = arguments[0], started = performance.now();
    document.querySelector('.picker').open = true;
    document.querySelector('.actions button').click();
    let longest = 0, last = started;
    const look = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      const cards = [...document.querySelectorAll('.card')];
      const seen = cards.filter((card) => card.getBoundingClientRect().top < innerHeight);
      if (seen.length && seen.every((card) => card.querySelector('.row'))) done([now - started, longest]);
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
"""
# The times that drawing takes from now on.
MEASURE_DRAWING = """
    window.drawn = [];
    const request = window.requestAnimationFrame;
    window.requestAnimationFrame = (draw) => request((now) => {
      const started = performance.now();
      draw(now);
      window.drawn.push(performance.now() - started);
    });
"""


class Run:
    """A run whose layers lose and win dead units; in every seventh run some layers are locked."""

    def __init__(self, folder: Path, seed: int, num_layers: int) -> None:
        self._writer, self._tab = SummaryWriter(str(folder)), TabWriter()
        self._random = torch.Generator().manual_seed(seed)
        self._seed, self._check = seed, 0
        self._dead = {f"encoder.layers.{i // 4}.{PARTS[i % 4]}": 0 for i in range(num_layers)}

    def write(self, num_checks: int) -> None:
        """Write some more checks."""
        locked = [name for i, name in enumerate(self._dead) if self._seed % 7 == 0 and i % 25 == 3]
        units = tuple(range(32))
        for _ in range(num_checks):
            step, self._check = 50 * self._check, self._check + 1
            for i, name in enumerate(self._dead):
                if (i + self._seed) % 3 == 0 and self._check % 2:
                    self._dead[name] = int(torch.randint(20, (), generator=self._random))
            layers = {
                name: LayerDiagnosis(
                    name,
                    64,
                    64,
                    tuple(range(64 - dead, 64)),
                    [UnitGroup(units, Verdict.LOCKED, Cause.CONSTANT, 0.5, 0)] if name in locked else [],
                )
                for name, dead in self._dead.items()
            }
            findings = [
                Finding(name, units, Verdict.LOCKED, Cause.CONSTANT, 0.5, 0, step, None, Origin.START)
                for name in locked
            ]
            self._tab.write([self._writer], SymmetryReport(step, layers), findings, [], "none")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def measure(page: Page, folder: Path, num_runs: int, num_layers: int) -> str:
    """A row of the table for so many runs of so many layers."""
    runs = [Run(folder / f"run{seed}", seed, num_layers) for seed in range(num_runs)]
    for run in runs:
        run.write(NUM_CHECKS)
    with tensorboard(folder, seconds=300) as server:
        wait_for(lambda: not any(run["pending"] for run in server.json("runs")["runs"]), 300)
        started = time.perf_counter()
        page.open(server)
        page.wait(".row")
        first = time.perf_counter() - started
        wait_for(lambda: num_runs < 3 or len(page.all(".runs .bar")) == num_runs)
        whole = time.perf_counter() - started
        took, longest = page.driver.execute_async_script(OPEN_ALL)
        page.run(MEASURE_DRAWING)
        page.run("document.querySelector('.picker').open = false")
        runs[0].write(1)
        wait_for(lambda: str(50 * NUM_CHECKS) in page.text(".totals div:last-child dd").replace(",", ""))
        refresh = max(page.run("return window.drawn"))
        heap = page.run("return performance.memory.usedJSHeapSize") / 2**20
        page.clear()
    for run in runs:
        run.close()
    return (
        f"| {num_runs} | {num_layers:,} | {first:.1f} s | {whole:.1f} s | {took / 1000:.2f} s | {longest:.0f} ms | "
        f"{refresh:.0f} ms | {heap:.0f} MiB |"
    )


def main() -> None:
    """Print the table."""
    print("| runs | layers | first content | all runs listed | all cards | longest wait | refresh | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as profile, open_browser(Path(profile), 1400, 1000) as page:
        for num_runs, num_layers in SIZES:
            with TemporaryDirectory() as folder:
                print(measure(page, Path(folder), num_runs, num_layers), flush=True)


if __name__ == "__main__":
    main()
