"""Prints what an install brings: packages, sizes, and how long imports take; the tables of ``docs/install.md``.

It makes an environment and installs the wheel of ``make dist`` into it, then each extra: ``python -m
tests.release.installed``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.release.index import ROOT, wheel

EXTRAS = ("demo", "merge", "plot")
STATEMENTS = (
    "import torch",
    "from lightning_symmetry import diagnose",
    "from lightning_symmetry import SymmetryTracker",
    "import lightning.pytorch",
    "from lightning_symmetry import SymmetryMonitor",
)
_RUNS = 7


def install(python: Path, *packages: str) -> None:
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, *packages], check=True)


def sizes(python: Path) -> dict[NormalizedName, int]:
    """The bytes that each installed package takes, by name, without what an environment starts with."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    found = {}
    for info in folder.glob("*.dist-info"):
        distribution = PathDistribution(info)
        files = (folder / str(file) for file in distribution.files or ())
        size = sum(file.stat().st_size for file in files if file.is_file())
        found[canonicalize_name(distribution.name)] = size
    return {name: size for name, size in found.items() if name not in {"pip", "setuptools"}}


def required(python: Path) -> set[NormalizedName]:
    """The names of the packages that the package itself asks for, without those of extras."""
    code = "import json, importlib.metadata as m; print(json.dumps(m.requires('lightning-symmetry')))"
    lines = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {canonicalize_name(line.name) for line in map(Requirement, lines) if "extra" not in str(line.marker)}


def seconds(python: Path, statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([python, "-c", code], capture_output=True, text=True, check=True) for _ in range(_RUNS)]
    return statistics.median(float(run.stdout) for run in runs)


def megabytes(size: int) -> str:
    return f"{size / 2**20:.1f}" if size < 2**24 else f"{size / 2**20:.0f}"


def print_packages(python: Path) -> None:
    brought, asked = sizes(python), required(python)
    named = [canonicalize_name("lightning-symmetry"), *sorted(asked, key=lambda name: -brought[name])]
    rest = [size for name, size in brought.items() if name not in named]
    print("| package | MB |\n| --- | --- |")
    for name in named:
        print(f"| {name} | {megabytes(brought[name])} |")
    print(f"| {len(rest)} more, which these ask for | {megabytes(sum(rest))} |")
    print(f"| **{len(brought)} in all** | {megabytes(sum(brought.values()))} |\n")


def print_imports(python: Path) -> None:
    print("| statement | seconds |\n| --- | --- |")
    for statement in STATEMENTS:
        print(f"| `{statement}` | {seconds(python, statement):.2f} |")


def print_extras(python: Path) -> None:
    print("\n| extra | packages | MB |\n| --- | --- | --- |")
    for extra in EXTRAS:
        before = sizes(python)
        install(python, f"{wheel()}[{extra}]")
        more = {name: size for name, size in sizes(python).items() if name not in before}
        print(f"| `{extra}` | {', '.join(sorted(more)) or 'none'} | {megabytes(sum(more.values()))} |")


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder, "bin", "python")
        install(python, str(wheel()))
        print_packages(python)
        print_imports(python)
        print_extras(python)


if __name__ == "__main__":
    main()
