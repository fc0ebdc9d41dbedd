"""chemprop: models for one's own Trainer of `lightning.pytorch`."""

from __future__ import annotations

from functools import partial

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import Fault, Library, Plant, closed, fit, library_tests

MOLECULES = ["C" * i + ring + "O" * j for i in range(1, 9) for ring in ("", "c1ccccc1", "C(=O)") for j in (0, 1)]


def train(message_passing: str, predictor: str, fault: Fault | None) -> SymmetryMonitor:
    from chemprop import data, models, nn

    molecules = [
        data.MoleculeDatapoint.from_smi(text, [float(len(text) % 2 if "Class" in predictor else len(text) / 10)])
        for text in MOLECULES
    ]
    loader = data.build_dataloader(data.MoleculeDataset(molecules), batch_size=16)
    passing = getattr(nn, message_passing)(d_h=16)
    model = models.MPNN(passing, nn.MeanAggregation(), getattr(nn, predictor)(input_dim=16, hidden_dim=16))
    return fit(model, loader, fault)


LIBRARY = Library(
    "chemprop",
    "`lightning.pytorch.Trainer(callbacks=[SymmetryMonitor()])`",
    {
        "bonds, regression": partial(train, "BondMessagePassing", "RegressionFFN"),
        "atoms, regression": partial(train, "AtomMessagePassing", "RegressionFFN"),
        "bonds, classification": partial(train, "BondMessagePassing", "BinaryClassificationFFN"),
        "bonds, mean and variance": partial(train, "BondMessagePassing", "MveFFN"),
    },
    Plant(
        "bonds, regression",
        closed("predictor.ffn.0.0"),
        "the first layer of the predictor gets a bias of -100",
        "predictor.ffn.0.0",
        "SYM301",
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
