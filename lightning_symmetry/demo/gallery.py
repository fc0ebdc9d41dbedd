"""Comparison of healthy and sick initialisations."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from lightning_symmetry.callback import SymmetryMonitor
from lightning_symmetry.demo.digits import GALLERY, load, progress, run_name, started, train
from lightning_symmetry.outputs.console import print_table
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.verdict import Verdict


def run(logdir: Path) -> dict[str, SymmetryMonitor]:
    """Train from each initialisation, with TensorBoard runs in ``logdir``, and print the results.

    Returns:
        The monitor of each run, by the name of the initialisation.
    """
    clock = time.monotonic()
    digits = load()
    monitors: dict[str, SymmetryMonitor] = {}
    rows: list[tuple[str, ...]] = []
    with progress(len(GALLERY)) as begin:
        for name, start in GALLERY.items():
            begin(name)
            net = started(start)
            monitors[name] = train(net, digits, logdir / run_name(name))
            rows.append(_row(name, digits.accuracy(net), monitors[name]))
    _print_result(monitors, rows, logdir, time.monotonic() - clock)
    return monitors


def _row(name: str, accuracy: float, monitor: SymmetryMonitor) -> tuple[str, ...]:
    assert monitor.report is not None
    layers = monitor.report.layers.values()
    widths = [f"{layer.working_units}/{layer.num_units}" for layer in layers]
    found = {verdict: [f.layer for f in monitor.findings if f.verdict is verdict] for verdict in Verdict}
    verdicts = [f"{verdict}: {', '.join(dict.fromkeys(names))}" for verdict, names in found.items() if names]
    condensed = [f"{layer.name} to {layer.orientations}" for layer in layers if layer.is_condensed]
    if condensed and not verdicts:
        verdicts = [f"condensed: {', '.join(condensed)}"]
    return (name, f"{accuracy:.1%}", *widths, "; ".join(verdicts) or "no symmetry")


def _print_result(
    monitors: dict[str, SymmetryMonitor], rows: list[tuple[str, ...]], logdir: Path, seconds: float
) -> None:
    print_table(("initialisation", "test accuracy", "fc1", "fc2", "fc3", "verdict"), rows)
    print("fc1, fc2, fc3: working units, neither redundant nor dead, of all units of the layer after training.")
    print("condensed: no finding, but most units point in the same few directions, up to sign.\n")
    print("The monitor's messages on the console, one per verdict:\n")
    for name, monitor in monitors.items():
        for verdict in Verdict:
            findings = [finding for finding in monitor.findings if finding.verdict is verdict]
            if monitor.report is not None and findings:
                print(f"  [{name}] {messages(findings, monitor.report)[0]}\n")
    print(f"{len(rows)} runs in {seconds:.0f} s. Look at them with:\n\n  {tensorboard_command()} --logdir {logdir}\n")


def tensorboard_command() -> str:
    """Return the command that starts TensorBoard in this environment."""
    beside = Path(sys.executable).parent / "tensorboard"
    if shutil.which("tensorboard") or not beside.exists():
        return "tensorboard"
    return os.path.relpath(beside)
