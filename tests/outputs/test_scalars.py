"""The curves of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor
from tests.outputs.test_tensorboard import read
from tests.training import Classifier, batches, fill, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
TOTALS = {
    "symmetry/working_units",
    "symmetry/redundant_units",
    "symmetry/effective_width_fraction",
    "symmetry/dead_units",
}


class Wide(nn.Module):
    """Any number of parallel layers; the first ones are symmetric."""

    def __init__(self, num_layers: int, num_sick: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(12, 5) for _ in range(num_layers))
        for layer in list(self.layers)[:num_sick]:
            fill(layer, 0.5)
        self.head = nn.Linear(1, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        # The mean keeps equal units of a layer equal.
        means = (torch.tanh(layer(inputs)).mean(1, keepdim=True) for layer in self.layers)
        out: Tensor = self.head(sum(means))
        return out


def curves(folder: Path, num_layers: int, num_sick: int, **options: Any) -> set[str]:
    monitor = SymmetryMonitor(heatmaps="none", **options)
    logger = TensorBoardLogger(folder, name="", version="")
    make_trainer([monitor], logger=logger, max_steps=3).fit(Classifier(Wide(num_layers, num_sick)), batches())
    return {tag for tag in read(folder).Tags()["scalars"] if tag.startswith("symmetry/")}


def widths(layers: range) -> set[str]:
    kinds = ("effective_width", "orientations")
    return {f"symmetry/{kind}/net.layers.{i}" for kind in kinds for i in layers}


def test_a_model_of_400_layers_has_at_most_20_curves_that_name_the_sick(tmp_path: Path) -> None:
    assert curves(tmp_path / "few", 40, 3) == TOTALS | widths(range(3))
    many = curves(tmp_path / "many", 400, 400)
    assert many == TOTALS | widths(range(8))
    assert len(many) <= 20


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ("findings", TOTALS | widths(range(12))),
        (
            "layers",
            TOTALS | widths(range(20)) | {"symmetry/effective_width/net.head", "symmetry/orientations/net.head"},
        ),
        ("none", set()),
    ],
)
def test_the_other_choices(scalars: str, expected: set[str], tmp_path: Path) -> None:
    assert curves(tmp_path, 20, 12, scalars=scalars) == expected
