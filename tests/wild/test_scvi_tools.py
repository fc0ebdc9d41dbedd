"""scvi-tools: `train` hands what it does not know to its Trainer, `lightning.pytorch`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import Fault, Library, Plant, callbacks, closed, library_tests


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryMonitor:
    import scvi
    from anndata import AnnData

    draws = np.random.default_rng(0)
    kinds = draws.integers(3, size=320)
    rates = draws.gamma(2.0, 1.0, (3, 60))
    cells = AnnData(draws.poisson(rates[kinds]).astype(np.float32))
    cells.obs["kind"] = [f"kind {kind}" for kind in kinds]
    cells.obs["batch"] = [f"batch {number}" for number in draws.integers(2, size=320)]
    model = getattr(scvi.model, name)
    more = {"labels_key": "kind", "unlabeled_category": "none"} if name == "SCANVI" else {}
    model.setup_anndata(cells, batch_key="batch", **more)
    given = callbacks(fault)
    model(cells, n_hidden=16, n_latent=4, **options).train(
        max_epochs=30,
        batch_size=64,
        train_size=1.0,
        accelerator="cpu",
        callbacks=given,
        logger=False,
        early_stopping=False,
        enable_progress_bar=False,
    )
    monitor: SymmetryMonitor = given[-1]
    return monitor


LIBRARY = Library(
    "scvi-tools",
    "`model.train(callbacks=[SymmetryMonitor()])`",
    {
        "SCVI": partial(train, "SCVI"),
        "SCVI, two layers": partial(train, "SCVI", n_layers=2, gene_likelihood="nb"),
        "SCANVI": partial(train, "SCANVI"),
        "PEAKVI": partial(train, "PEAKVI"),
        "LinearSCVI": partial(train, "LinearSCVI"),
    },
    Plant(
        "SCVI",
        closed("module.decoder.px_decoder.fc_layers.Layer 0.1"),
        "a BatchNorm before a ReLU gets a bias of -100",
        "px_decoder.fc_layers.Layer 0.0",
        "SYM301",
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
