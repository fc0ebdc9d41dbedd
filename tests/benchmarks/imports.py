"""How long the package takes to import, over what it rests on: ``python -m tests.benchmarks imports``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

from tests.benchmarks.timing import alternate, show

# What is imported anyway, and what of this package is imported after it.
STATEMENTS = {
    "SymmetryMonitor": ("import lightning.pytorch", "from lightning_symmetry import SymmetryMonitor"),
    "SymmetryTracker": ("import torch", "from lightning_symmetry import SymmetryTracker"),
}
_ROUNDS = 3


def run_in_new_process(base: str, ours: str, seconds: list[float]) -> None:
    """Run two statements, and note what the second one takes by itself."""
    code = f"import time; {base}; began = time.perf_counter(); {ours}; print(time.perf_counter() - began)"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # compiled by the first round, as for users
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    seconds.append(float(done.stdout.splitlines()[-1]))


def run() -> dict[str, dict[str, Any]]:
    """Run the first statement and both in new processes in turn, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: dict[str, dict[str, Any]] = {}
    for name, (base, ours) in STATEMENTS.items():
        second: list[float] = []
        candidates = {
            "alone": partial(run_in_new_process, base, "pass", []),
            "both": partial(run_in_new_process, base, ours, second),
        }
        times = alternate(candidates, rounds=_ROUNDS)
        ratio = times["both"].over(times["alone"])
        extra = times["both"].median - times["alone"].median
        within = statistics.median(second[-_ROUNDS:])
        seconds = [f"{each.median:.2f} s" for each in times.values()]
        rows.append((ours, base, *seconds, f"{extra:+.2f} s", str(ratio), f"{within:.2f} s"))
        results[name] = {
            **{kind: each.median for kind, each in times.items()},
            "second_statement": within,
            "ratio": ratio.to_dict(),
        }
    head = ("import", "after", "alone", "both", "difference", "ratio", "by itself, in one process")
    show("Seconds of a new process", head, rows)
    return results
