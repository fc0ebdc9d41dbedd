"""pytorch-forecasting: models for one's own Trainer of `lightning.pytorch`."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import Fault, Library, Plant, constant, fit, library_tests


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    import pytorch_forecasting
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.metrics import NormalDistributionLoss

    from tests.wild.series import long_frame

    fixed = name in ("NBeats", "NHiTS")
    known = {} if name == "NBeats" else {"time_varying_known_reals": ["x"]}
    data = TimeSeriesDataSet(
        long_frame(),
        time_idx="ds",
        target="y",
        group_ids=["unique_id"],
        min_encoder_length=24 if fixed else 12,
        max_encoder_length=24,
        min_prediction_length=6 if fixed else 1,
        max_prediction_length=6,
        time_varying_unknown_reals=["y"],
        add_relative_time_idx=name == "TemporalFusionTransformer",
        **known,
    )
    if name == "DeepAR":
        options["loss"] = NormalDistributionLoss()
    model = getattr(pytorch_forecasting, name).from_dataset(data, learning_rate=1e-3, **options)
    return fit(model, data.to_dataloader(train=True, batch_size=32), fault)


LIBRARY = Library(
    "pytorch-forecasting",
    "`lightning.pytorch.Trainer(callbacks=[SymmetryMonitor()])`",
    {
        "TemporalFusionTransformer": partial(
            train, "TemporalFusionTransformer", hidden_size=16, attention_head_size=2, hidden_continuous_size=8
        ),
        "DeepAR": partial(train, "DeepAR", hidden_size=16),
        "NBeats": partial(train, "NBeats", widths=[16, 32], backcast_loss_ratio=0.1),
        "NHiTS": partial(train, "NHiTS", hidden_size=16),
    },
    Plant("NBeats", constant("net_blocks.0"), "all weights of a block are one number", "net_blocks.0.fc.4.1", "SYM101"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
