"""pytorch-tabular: `fit(callbacks=...)` goes to its Trainer, `pytorch_lightning`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import STEPS, Fault, Library, Plant, callbacks, closed, library_tests, monitor_of


def train(name: str, fault: Fault | None, kinds: tuple[str, ...] = ("kind",), **options: Any) -> SymmetryMonitor:
    import pandas as pd
    from pytorch_tabular import TabularModel, models
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig

    draws = np.random.default_rng(0)
    numbers = draws.normal(size=(256, 4))
    frame = pd.DataFrame(numbers, columns=list("abcd"))
    for kind in kinds:
        frame[kind] = draws.choice(["x", "y", "z"], 256)
    frame["target"] = np.where(numbers[:, 0] + numbers[:, 1] > 0, "yes", "no")
    model = TabularModel(
        data_config=DataConfig(["target"], continuous_cols=list("abcd"), categorical_cols=list(kinds)),
        model_config=getattr(models, f"{name}Config")(task="classification", **options),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=32,
            max_epochs=40,
            accelerator="cpu",
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            progress_bar="none",
            trainer_kwargs={"max_steps": STEPS, "enable_model_summary": False},
        ),
        verbose=False,
    )
    return monitor_of(model.fit(train=frame, callbacks=callbacks(fault)))


LIBRARY = Library(
    "pytorch-tabular",
    "`tabular_model.fit(train, callbacks=[SymmetryMonitor()])`",
    {
        "CategoryEmbeddingModel": partial(train, "CategoryEmbeddingModel", layers="16-16"),
        "GANDALF": partial(train, "GANDALF", gflu_stages=2),
        "FTTransformer": partial(
            train, "FTTransformer", input_embed_dim=16, num_heads=2, num_attn_blocks=2, attn_dropout=0.0
        ),
        # It attends to the categorical columns: with a single one, no query or key gets a gradient (SYM305).
        "TabTransformer": partial(
            train, "TabTransformer", kinds=("kind", "other"), input_embed_dim=16, num_heads=2, num_attn_blocks=2
        ),
        "AutoInt": partial(train, "AutoInt", attn_embed_dim=8, num_heads=2, num_attn_blocks=2),
    },
    Plant(
        "CategoryEmbeddingModel",
        closed("_backbone.linear_layers.0"),
        "the first layer gets a bias of -100",
        "linear_layers.0",
        "SYM301",
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
