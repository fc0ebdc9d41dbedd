"""gluonts: `trainer_kwargs` are the options of its Trainer, `lightning.pytorch`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import STEPS, Fault, Library, Plant, callbacks, closed, library_tests, needs


def series() -> Any:
    import pandas as pd
    from gluonts.dataset.common import ListDataset

    from tests.wild.series import values

    start = pd.Period("2020-01-01", freq="D")
    return ListDataset([{"start": start, "target": row} for row in values()], freq="D")


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    from gluonts import torch

    given = callbacks(fault)
    getattr(torch, name)(
        **{
            "prediction_length": 6,
            "context_length": 24,
            **({"freq": "D"} if name in ("DeepAREstimator", "TemporalFusionTransformerEstimator") else {}),
            "batch_size": 16,
            "num_batches_per_epoch": STEPS,
            "trainer_kwargs": {
                "callbacks": given,
                "max_epochs": 1,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            **options,
        }
    ).train(series())
    monitor: SymmetryMonitor = given[-1]
    return monitor


LIBRARY = Library(
    "gluonts",
    '`DeepAREstimator(..., trainer_kwargs={"callbacks": [SymmetryMonitor()]})`',
    {
        "SimpleFeedForwardEstimator": partial(train, "SimpleFeedForwardEstimator", hidden_dimensions=[16, 16]),
        "DeepAREstimator": partial(train, "DeepAREstimator", hidden_size=16),
        "TemporalFusionTransformerEstimator": partial(train, "TemporalFusionTransformerEstimator", hidden_dim=16),
        "DLinearEstimator": partial(train, "DLinearEstimator", hidden_dimension=16),
        "PatchTSTEstimator": partial(train, "PatchTSTEstimator", patch_len=4, d_model=16, nhead=2, dim_feedforward=32),
        "LagTSTEstimator": partial(train, "LagTSTEstimator", freq="D", d_model=16, nhead=2, dim_feedforward=32),
    },
    Plant("SimpleFeedForwardEstimator", closed("model.nn.0"), "the first layer gets a bias of -100", "nn.0", "SYM301"),
)
pytestmark = needs(LIBRARY)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)


@pytest.mark.filterwarnings("ignore")
def test_a_second_training_is_watched_if_the_callbacks_are_passed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/wild.md says of gluonts."""
    from gluonts.torch import SimpleFeedForwardEstimator

    monkeypatch.chdir(tmp_path)
    monitor = SymmetryMonitor()
    options = {"callbacks": [monitor], "max_epochs": 1, "accelerator": "cpu", "logger": False}
    estimator = SimpleFeedForwardEstimator(6, 24, num_batches_per_epoch=4, trainer_kwargs=options)
    estimator.train(series())
    first = monitor.report
    assert first is not None
    estimator.train(series())
    assert monitor.report is first
    estimator.trainer_kwargs["callbacks"] = [monitor]
    estimator.train(series())
    assert monitor.report is not None
    assert monitor.report is not first
