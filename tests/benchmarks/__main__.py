"""``python -m tests.benchmarks [part ...]``: run the benchmarks, print tables, write ``build/benchmarks.json``."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import torch

from tests.benchmarks import (
    alternatives,
    callback,
    copied,
    events,
    first,
    gpu,
    growth,
    imports,
    kernel,
    memory,
    quick,
    redundancy,
    relu,
    resident,
    sharded,
    shares,
    trace,
    worst,
)

PARTS = {
    "kernel": kernel.run,
    "worst": worst.run,
    "callback": callback.run,
    "alternatives": alternatives.run,
    "first": first.run,
    "imports": imports.run,
    "events": events.run,
    "quick": quick.run,
    "relu": relu.run,
    "shares": shares.run,
    "redundancy": redundancy.run,
    "copied": copied.run,
    "sharded": sharded.run,
    "memory": memory.run,
    "resident": resident.run,
    "growth": growth.run,
    "trace": trace.run,
    "gpu": gpu.run,
}
RESULTS = Path("build/benchmarks.json")


def main(names: list[str]) -> int:
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"Expected parts among {', '.join(PARTS)} but got {', '.join(sorted(unknown))}.")
        return 2
    results: dict[str, object] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    for name in names or PARTS:
        began = time.perf_counter()
        results[name] = PARTS[name]()
        print(f"\n{name}: {time.perf_counter() - began:.0f} s", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))
    print(f"\nWritten to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
