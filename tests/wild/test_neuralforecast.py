"""neuralforecast: options that a model does not know go to its Trainer, `pytorch_lightning`."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import STEPS, Fault, Library, Plant, callbacks, constant, library_tests, needs

OPTIONS = {
    "windows_batch_size": 64,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def used(forecast: Any) -> SymmetryMonitor:
    """Return the monitor that has watched the first model: the model that was trained, and all in it, are copies."""
    (monitor,) = (each for each in forecast.models[0].trainer_kwargs["callbacks"] if isinstance(each, SymmetryMonitor))
    return monitor


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    from neuralforecast import NeuralForecast, models

    from tests.wild.series import SERIES, long_frame

    if name in ("iTransformer", "TSMixer"):
        options["n_series"] = SERIES
    model = getattr(models, name)(h=6, input_size=24, max_steps=STEPS, callbacks=callbacks(fault), **OPTIONS, **options)
    forecast = NeuralForecast(models=[model], freq=1)
    forecast.fit(long_frame()[["unique_id", "ds", "y"]])
    return used(forecast)


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
    bugs={
        "Informer": (
            frozenset({"SYM309"}),
            "`ProbAttention` returns heads before positions and `AttentionLayer` views them as positions before heads: "
            "the forecast, the last 6 of 18 positions, is made of the second head only, and all 8 units of the first "
            "head of the cross-attention (query, key, value) have gradients of exactly zero",
        ),
        "TiDE": (
            frozenset({"SYM305"}),
            "the LayerNorm of the temporal decoder normalises a single number, whose result is its bias: the gradients "
            "of all layers before it are rounding noise, below 3e-6, where the global skip has 0.1",
        ),
    },
)
pytestmark = needs(LIBRARY)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)


def test_copies_of_the_monitor_are_trained() -> None:
    """What docs/wild.md says of neuralforecast."""
    from neuralforecast import NeuralForecast
    from neuralforecast.models import MLP

    from tests.wild.series import long_frame

    given = SymmetryMonitor()
    model = MLP(h=6, input_size=24, hidden_size=16, max_steps=4, callbacks=[given], **OPTIONS)
    forecast = NeuralForecast(models=[model], freq=1)
    forecast.fit(long_frame()[["unique_id", "ds", "y"]])
    monitor = used(forecast)
    first = monitor.report
    assert given.report is None
    assert first is not None
    forecast.fit(long_frame()[["unique_id", "ds", "y"]])
    assert used(forecast) is monitor
    assert monitor.report is not first
