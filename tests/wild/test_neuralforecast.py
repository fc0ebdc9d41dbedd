"""neuralforecast: options that a model does not know go to its Trainer, `pytorch_lightning`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import (
    STEPS,
    Fault,
    Library,
    Plant,
    callbacks,
    check_healthy,
    check_planted,
    constant,
    monitor_of,
    needs,
)


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    from neuralforecast import NeuralForecast, models

    from tests.wild.series import SERIES, long_frame

    if name in ("iTransformer", "TSMixer"):
        options["n_series"] = SERIES
    model = getattr(models, name)(
        h=6,
        input_size=24,
        max_steps=STEPS,
        callbacks=callbacks(fault),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    forecast = NeuralForecast(models=[model], freq=1)
    forecast.fit(long_frame()[["unique_id", "ds", "y"]])
    return monitor_of(forecast.models[0].trainer)


_SMALL: dict[str, Any] = {"hidden_size": 16}
_HEADS: dict[str, Any] = {"hidden_size": 16, "n_head": 2}
LIBRARY = Library(
    "neuralforecast",
    "`NHITS(..., callbacks=[SymmetryMonitor()])`",
    {
        "MLP": partial(train, "MLP", **_SMALL),
        "NHITS": partial(train, "NHITS", mlp_units=[[16, 16]] * 3),
        "NBEATS": partial(train, "NBEATS", mlp_units=[[16, 16]] * 3),
        "LSTM": partial(train, "LSTM", encoder_hidden_size=16, decoder_hidden_size=16),
        "TCN": partial(train, "TCN", encoder_hidden_size=16, decoder_hidden_size=16),
        "TFT": partial(train, "TFT", **_HEADS),
        "PatchTST": partial(train, "PatchTST", hidden_size=16, n_heads=2, linear_hidden_size=32),
        "iTransformer": partial(train, "iTransformer", hidden_size=16, n_heads=2, d_ff=32),
        "TSMixer": partial(train, "TSMixer", ff_dim=16),
        "DLinear": partial(train, "DLinear"),
        "Informer": partial(train, "Informer", **_HEADS),
        "TiDE": partial(train, "TiDE", hidden_size=16, decoder_output_dim=8, temporal_decoder_dim=16),
    },
    Plant("MLP", constant("mlp"), "all weights of the MLP are one number", "mlp.0", "SYM101"),
)
pytestmark = needs(LIBRARY)


@pytest.mark.parametrize("model", LIBRARY.models)
def test_a_healthy_model_trains_in_silence(model: str) -> None:
    check_healthy(LIBRARY, model)


def test_a_planted_fault_is_named() -> None:
    check_planted(LIBRARY)
