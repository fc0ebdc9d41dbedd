"""gluonts: `trainer_kwargs` are the options of its Trainer, `lightning.pytorch`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import STEPS, Fault, Library, Plant, callbacks, check_healthy, check_planted, closed, needs


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    import pandas as pd
    from gluonts import torch
    from gluonts.dataset.common import ListDataset

    from tests.wild.series import values

    start = pd.Period("2020-01-01", freq="D")
    data = ListDataset([{"start": start, "target": row} for row in values()], freq="D")
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
    ).train(data)
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


@pytest.mark.parametrize("model", LIBRARY.models)
def test_a_healthy_model_trains_in_silence(model: str) -> None:
    check_healthy(LIBRARY, model)


def test_a_planted_fault_is_named() -> None:
    check_planted(LIBRARY)
