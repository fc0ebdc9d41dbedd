"""darts: `pl_trainer_kwargs` are the options of its Trainer, `pytorch_lightning`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import STEPS, Fault, Library, Plant, callbacks, constant, library_tests, monitor_of, needs


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    from darts import TimeSeries, models

    from tests.wild.series import values

    model = getattr(models, name)(
        **{
            "input_chunk_length": 24,
            **({"training_length": 30} if name == "RNNModel" else {"output_chunk_length": 6}),
            "batch_size": 32,
            "n_epochs": 50,
            "random_state": 0,
            "pl_trainer_kwargs": {
                "callbacks": callbacks(fault),
                "max_steps": STEPS,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            **options,
        }
    )
    model.fit([TimeSeries.from_values(row) for row in values()])
    return monitor_of(model.trainer)


LIBRARY = Library(
    "darts",
    '`NBEATSModel(..., pl_trainer_kwargs={"callbacks": [SymmetryMonitor()]})`',
    {
        "NBEATSModel": partial(train, "NBEATSModel", num_stacks=2, num_layers=2, layer_widths=16),
        "NHiTSModel": partial(train, "NHiTSModel", num_stacks=2, num_layers=2, layer_widths=64),
        "RNNModel": partial(train, "RNNModel", model="LSTM", hidden_dim=16),
        "BlockRNNModel": partial(train, "BlockRNNModel", model="GRU", hidden_dim=16),
        "TCNModel": partial(train, "TCNModel", num_filters=8, dropout=0.1),
        "TransformerModel": partial(
            train, "TransformerModel", d_model=16, nhead=2, num_encoder_layers=1, num_decoder_layers=1
        ),
        "TiDEModel": partial(train, "TiDEModel", hidden_size=16),
        "TSMixerModel": partial(train, "TSMixerModel", hidden_size=16, ff_size=16),
        "DLinearModel": partial(train, "DLinearModel"),
    },
    Plant("NBEATSModel", constant("stacks.0"), "all weights of a stack are one number", "fc_stack.0", "SYM101"),
)
pytestmark = needs(LIBRARY)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)


@pytest.mark.filterwarnings("ignore")
def test_a_saved_model_is_loaded_and_a_second_fit_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/wild.md says of darts."""
    from darts import TimeSeries
    from darts.models import NBEATSModel
    from darts.utils.serialization.base import UnpicklingError

    from tests.wild.series import values

    monkeypatch.chdir(tmp_path)
    monitor = SymmetryMonitor()
    options = {"callbacks": [monitor], "max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False}
    model = NBEATSModel(24, 6, num_stacks=1, num_layers=2, layer_widths=16, pl_trainer_kwargs=options)
    series = TimeSeries.from_values(values()[0])
    model.fit(series)
    first = model.trainer
    model.save("model.pt")
    loaded = NBEATSModel.load("model.pt", trusted=True)
    assert len(loaded.predict(6, series)) == 6
    with pytest.raises(UnpicklingError, match="trusted=True"):
        NBEATSModel.load("model.pt")
    model.fit(series)
    assert model.trainer is not first
    assert monitor.report is not None
    assert monitor.report.step == 3
