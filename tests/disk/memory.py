"""How much memory a scan takes: ``python -m tests.disk.memory`` writes files of 600 MB and prints a table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

MEBIBYTE = 2**20

_MEASURE = """
import sys, threading, time
from lightning_symmetry import scan

def status(key):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

def sample():
    while not done.wait(0.0005):
        seen.append(status("RssAnon"))

scan(sys.argv[2])  # imports what is needed
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # resets VmHWM
done, seen, anonymous, highest = threading.Event(), [], status("RssAnon"), status("VmHWM")
sampling = threading.Thread(target=sample)
sampling.start()
start = time.perf_counter()
report = scan(sys.argv[1])
seconds = time.perf_counter() - start
done.set()
sampling.join()
print(max([*seen, status("RssAnon")]) - anonymous, status("VmHWM") - highest, seconds, report.redundant_units)
"""


class Usage(NamedTuple):
    """Cost and result of a scan.

    Attributes:
        anonymous: growth of the process's own memory in bytes, sampled every half millisecond.
        resident: growth of all of its memory in bytes, as the system counts it.
        seconds: duration.
        redundant_units: number of redundant units found.
    """

    anonymous: int
    resident: int
    seconds: float
    redundant_units: int


def measure(tensors: dict[str, Tensor], name: str) -> Usage:
    """Save tensors to a temporary file of this name, and scan it in a process of its own."""
    save: Callable[[dict[str, Tensor], Path], None] = save_file if name.endswith(".safetensors") else torch.save
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / name, Path(folder) / f"small_{name}"
        save(tensors, path)
        save({"fc.weight": torch.randn(4, 3)}, small)
        command = [sys.executable, "-c", _MEASURE, str(path), str(small)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return Usage(int(printed[0]), int(printed[1]), float(printed[2]), int(printed[3]))


def matrices(num_bytes: int, number: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random weights of linear layers."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_bytes // (2560 * dtype.itemsize), 2560)
    return {f"layers.{i}.weight": torch.randn(shape, generator=generator).to(dtype) for i in range(number)}


def _main() -> None:
    size, number = 50 * MEBIBYTE, 12
    random = matrices(size, number)
    copied = {name: torch.cat([weight[: len(weight) // 2]] * 2) for name, weight in random.items()}
    cases = {
        "random, .safetensors": (random, "model.safetensors"),
        "random, .ckpt": (random, "model.ckpt"),
        "float16": (matrices(size, number, torch.float16), "model.safetensors"),
        "embeddings": ({name.replace("layers", "embed"): random[name] for name in random}, "model.safetensors"),
        "half of the units copied": (copied, "model.safetensors"),
        "all one number": (
            {name: torch.full_like(weight, 0.1) for name, weight in random.items()},
            "model.safetensors",
        ),
    }
    print("| 12 tensors of 50 MiB | anonymous, MiB | all, MiB | seconds |\n| --- | --- | --- | --- |")
    for title, (tensors, name) in cases.items():
        used = measure(tensors, name)
        print(f"| {title} | {used.anonymous / MEBIBYTE:.1f} | {used.resident / MEBIBYTE:.1f} | {used.seconds:.1f} |")


if __name__ == "__main__":
    _main()
