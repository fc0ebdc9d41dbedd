"""The tracker under accelerate."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lightning_symmetry import SymmetryTracker, SymmetryWarning
from tests.test_tracker import loss_of
from tests.training import assert_same, batches, fill, mlp


def train(net: nn.Module, *, is_tracked: bool, accumulate: int = 1, **options: Any) -> SymmetryTracker | None:
    """An ordinary accelerate loop of 8 batches."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, data = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=1e-2), batches())
    tracker = SymmetryTracker(model, optimizer, **options) if is_tracked else None
    for batch in data:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    if tracker:
        tracker.close()
    return tracker


def test_the_training_is_the_same_to_the_last_bit() -> None:
    states = []
    for is_tracked in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(fill(nn.Linear(12, 16), 0.1), nn.Dropout(0.2), nn.Tanh(), fill(nn.Linear(16, 4), 0.1))
        train(net, is_tracked=is_tracked, every_n_steps=1, on_symmetry="ignore")
        states.append((dict(net.state_dict()), torch.get_rng_state()))
    assert_same(*states)


def test_findings() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SymmetryWarning)
        tracker = train(fill(mlp(), 0.0), is_tracked=True)
    assert tracker is not None
    assert {finding.layer: str(finding.verdict) for finding in tracker.findings} == {"0": "frozen", "2": "frozen"}
    assert sum(issubclass(warning.category, SymmetryWarning) for warning in caught) == 1


def test_accumulated_gradients_count_once() -> None:
    tracker = train(mlp(), is_tracked=True, accumulate=4, every_n_steps=1)
    assert tracker is not None
    assert tracker.state_dict()["num_steps"] == {0: 2}
    assert tracker.report is not None
    assert (tracker.report.step, tracker.report.status) == (1, "inconclusive")
