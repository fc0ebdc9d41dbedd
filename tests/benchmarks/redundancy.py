"""What mirror images, dead units and directions add to a check: ``python -m tests.benchmarks redundancy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.orientations import Orientations, count_orientations
from tests import zoo
from tests.benchmarks.models import resnet18
from tests.benchmarks.timing import alternate, show

_CHECKS = 128


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def many_small(count: int = 60) -> nn.Module:
    return nn.Sequential(*[layer for _ in range(count) for layer in (nn.Linear(32, 32), nn.Tanh())])


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-256-128-10": (perceptron, (64, 64)),
    "60 layers of 32 units": (many_small, (16, 32)),
    "2 layers of 2048 units": (lambda: nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(2)]), (8, 2048)),
    "ResNet of the zoo": (zoo.resnet, (8, zoo.INPUTS)),
    "ResNet-18": (resnet18, (2, 3, 32, 32)),
}


def take_in(history: History, looks: Sequence[Look]) -> None:
    for seen in looks:
        history[seen.layer.name].update(seen, 1)


def count(layers: Sequence[Comparable]) -> None:
    for seen in look(layers):
        count_orientations(seen)


def run() -> list[dict[str, float | str]]:
    """Time a whole check, one that counts directions, and the bookkeeping of dead units; print the table."""
    rows: list[tuple[str, ...]] = []
    results: list[dict[str, float | str]] = []
    orientations = Orientations()
    num_counted = 0
    for _ in range(_CHECKS):
        num_counted += orientations.is_due
        orientations.num_looks += 1
    for name, (make, shape) in MODELS.items():
        torch.manual_seed(0)
        model = make()
        model(torch.randn(shape)).square().mean().backward()
        layers = find_layers(model).layers
        history = History(3, 0.5)
        history.match_layers(layers, 0)
        looks = look(layers)
        times = alternate(
            {
                "look": partial(look, layers),
                "count": partial(count, layers),
                "update": partial(take_in, history, looks),
            },
            rounds=25,
        )
        seconds = {key: value.median for key, value in times.items()}
        whole = seconds["look"] + seconds["update"]
        counting = seconds["count"] - seconds["look"]
        share = 1 + num_counted / _CHECKS * counting / whole
        rows.append((name, f"{1e3 * whole:.2f} ms", f"{1e3 * counting:.2f} ms", f"{share:.3f}"))
        results.append({"model": name, "check": whole, "counting": counting, "ratio": share})
    head = ("model", "check without counting", "counting directions adds", f"a check, over {_CHECKS}")
    show("What counting directions adds to a check", head, rows)
    return results
