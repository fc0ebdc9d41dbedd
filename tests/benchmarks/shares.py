"""Where the time of a check goes: ``python -m tests.benchmarks shares``."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import torch
from torch import nn

import lightning_symmetry
from lightning_symmetry.matrices.sieve import sift, suspects
from lightning_symmetry.outputs.output import Heatmaps
from tests.benchmarks.quick import check_of
from tests.benchmarks.redundancy import many_small, perceptron
from tests.benchmarks.timing import show

_OURS = Path(lightning_symmetry.__file__).parent
_CHECKS = 20  # none of which counts directions, after those that `check_of` has made
_MODULES = ("PyTorch", "numpy", "matrices", "units", "verdicts", "engine", "the rest of Python")
_SIEVE = "in these: the sieve"


def shares_of(model: nn.Module, heatmaps: Heatmaps) -> dict[str, float]:
    """The share of the time of a check that is spent in each folder, and in PyTorch and numpy, by the profiler.

    The last one is that of the sieve, with all that it calls.
    """
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    check = check_of(model, heatmaps)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(_CHECKS):
        check()
    profile.disable()
    seconds = dict.fromkeys(_MODULES, 0.0)
    in_sieve = 0.0
    for entry in profile.getstats():
        seconds[_room_of(entry.code)] += entry.inlinetime
        if entry.code in (sift.__code__, suspects.__code__):
            in_sieve = max(in_sieve, entry.totaltime)
    total = sum(seconds.values())
    return {**{room: seconds[room] / total for room in _MODULES}, _SIEVE: in_sieve / total}


def _room_of(code: CodeType | str) -> str:
    """Where a function belongs; of one that is not written in Python there is only a text, with its library in it."""
    text = code if isinstance(code, str) else code.co_filename
    if _OURS in Path(text).parents:
        room = Path(text).relative_to(_OURS).parts[0]
        return room if room in _MODULES else "the rest of Python"
    return "PyTorch" if "torch" in text.lower() else "numpy" if "numpy" in text else "the rest of Python"


def run() -> dict[str, dict[str, float]]:
    """Print the table: healthy models, read quickly, and looked at as the first checks do."""
    torch.manual_seed(0)
    ways: dict[str, Heatmaps] = {"all looked at": "all", "read quickly": "findings"}
    models: dict[str, Callable[[], nn.Module]] = {"MLP": perceptron, "500 layers": lambda: many_small(500)}
    columns = {
        f"{name}, {way}": shares_of(make(), heatmaps) for name, make in models.items() for way, heatmaps in ways.items()
    }
    rows = [(name, *(f"{100 * shares[name]:.0f} %" for shares in columns.values())) for name in (*_MODULES, _SIEVE)]
    show("Where the time of a check goes", ("", *columns), rows)
    return columns
