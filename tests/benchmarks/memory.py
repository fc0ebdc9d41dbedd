"""Extra memory of a check, over the bytes of the parameters, for a model of 300 million parameters in float32."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.evidence import look
from tests.benchmarks.timing import show

# GPT-2 medium without its places: 24 blocks of width 1024, and the embedding of 50257 tokens.
SHAPES = [shape for _ in range(20) for shape in [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]]


def model() -> nn.ModuleList:
    generator = torch.Generator().manual_seed(0)
    net = nn.ModuleList([nn.Embedding(50257, 1024), *(nn.Linear(i, o) for o, i in SHAPES)])
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return net


def peak_bytes() -> int:
    """The largest resident set of this process since the last reset."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure() -> None:
    """In a process of its own: print bytes of the parameters, extra resident bytes, extra bytes of Python and numpy."""
    net = model()
    layers = find_layers(net).layers
    look(layers[:2])  # what is imported and cached at the first look is no part of a check
    reset_peak()
    before = peak_bytes()
    look(layers)
    extra = peak_bytes() - before
    tracemalloc.start()
    look(layers)
    _, traced = tracemalloc.get_traced_memory()
    print(sum(4 * parameter.numel() for parameter in net.parameters()), extra, traced)


def run() -> dict[str, Any]:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}  # so that what is freed is no longer resident
    command = [sys.executable, "-c", "from tests.benchmarks.memory import measure; measure()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    parameters, extra, traced = map(int, done.stdout.split())
    show(
        "Peak extra memory of a check over the bytes of the parameters",
        ("parameters", "resident set", "share", "Python and numpy", "share"),
        [
            (
                f"{parameters / 4e6:.0f} M",
                f"{extra / 1e6:.1f} MB",
                f"{extra / parameters:.2%}",
                f"{traced / 1e6:.1f} MB",
                f"{traced / parameters:.2%}",
            )
        ],
    )
    return {"parameter_bytes": parameters, "resident_bytes": extra, "traced_bytes": traced}
