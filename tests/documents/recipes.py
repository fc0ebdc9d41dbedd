"""What the hidden blocks of the pages use."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.documents.commands import ROOT
from tests.training import fill


class Perceptron(LightningModule):
    """A network for :func:`tests.training.batches`; its trainings end after an epoch, whatever the Trainer was told."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 64)
        self.fc2 = nn.Linear(64, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.fc1(inputs).relu())
        return outputs

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def sick() -> Perceptron:
    """The network as somebody has made it whose layers train as one unit each."""
    return fill(Perceptron(), 0.02)


def names_in(module: ModuleType) -> dict[str, Any]:
    """The names that a block can use that is to be pasted into a module."""
    return {name: value for name, value in vars(module).items() if not name.startswith("__")}


def columns(page: str, section: str) -> int:
    """The number of columns of the first table in a section of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    row = re.search(rf"^#+ {re.escape(section)}\n(?:(?!#).*\n)*?(\|.*)$", text, re.MULTILINE)
    assert row is not None, f"{page} has no table under {section!r}"
    return cells(row[1])


def cells(row: str) -> int:
    """The number of cells in a row of a table."""
    return row.strip().strip("|").count("|") + 1
