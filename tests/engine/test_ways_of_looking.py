"""Quick looks, steady looks and reused reports have the same results as full looks, for random networks."""

from __future__ import annotations

import warnings
from random import Random
from typing import Any

import pytest

from lightning_symmetry import SymmetryTracker
from tests.random_networks import training

# Among these are dead units of grouped transposed convolutions, units that come to train in lockstep, and groups that
# settle.
SEEDS = range(50, 90)
NUM_STEPS = 60
# Heatmaps of all layers at every check need full looks.
CLOSE: Any = {"heatmaps": "all"}


def compare(seed: int) -> None:
    """Train a random network, watched in both ways."""
    net, optimizers, steps = training(seed, NUM_STEPS)
    random = Random(seed)
    options: dict[str, Any] = {
        "every_n_steps": random.choice([1, 1, 2]),
        "patience": random.choice([1, 3, 3, 6]),
        "tolerance": random.choice([None, None, 1e-2]),
        "scalars": "none",
        "on_symmetry": "ignore",
    }
    with (
        warnings.catch_warnings(action="ignore"),
        SymmetryTracker(net, optimizers, **options) as quick,
        SymmetryTracker(net, optimizers, **options, **CLOSE) as close,
    ):
        for step in steps:
            assert quick.report is not None
            assert close.report is not None
            assert quick.report.to_dict() == close.report.to_dict(), step
            assert quick.findings == close.findings, step


@pytest.mark.parametrize("seed", SEEDS)
def test_every_way_says_the_same_as_a_close_look(seed: int) -> None:
    compare(seed)
