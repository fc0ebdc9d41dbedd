"""lightly: heads and losses for one's own module and Trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor
from tests.wild.watching import Fault, Library, Plant, closed, fit, library_tests


def train(name: str, fault: Fault | None) -> SymmetryMonitor:
    import pytorch_lightning as pl
    from lightly import loss
    from lightly.models import modules

    class SelfSupervised(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 16, 3, stride=2, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            self.head = getattr(modules.heads, f"{name}ProjectionHead")(32, 32, 16)
            self.predictor = modules.SimSiamPredictionHead(16, 8, 16) if name == "SimSiam" else None
            self.loss: Any = {
                "SimCLR": loss.NTXentLoss,
                "SimSiam": loss.NegativeCosineSimilarity,
                "BarlowTwins": loss.BarlowTwinsLoss,
                "VICReg": loss.VICRegLoss,
            }[name]()

        def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
            first, second = (self.head(self.backbone(view)) for view in batch)
            if self.predictor is None:
                return self.loss(first, second)
            predicted = [self.predictor(each) for each in (first, second)]
            return self.loss(predicted[0], second.detach()) / 2 + self.loss(predicted[1], first.detach()) / 2

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # VICReg multiplies two of its terms by 25, and diverges with the rate of the others.
            return torch.optim.SGD(self.parameters(), lr=0.002 if name == "VICReg" else 0.05, momentum=0.9)

    images = torch.randn(64, 3, 16, 16)
    views = torch.utils.data.TensorDataset(images, images + 0.2 * torch.randn_like(images))
    return fit(SelfSupervised(), torch.utils.data.DataLoader(views, batch_size=16), fault, namespace=pl)


LIBRARY = Library(
    "lightly",
    "`pytorch_lightning.Trainer(callbacks=[SymmetryMonitor()])`",
    {name: partial(train, name) for name in ("SimCLR", "SimSiam", "BarlowTwins", "VICReg")},
    Plant("SimCLR", closed("backbone.1"), "a BatchNorm before a ReLU gets a bias of -100", "backbone.0", "SYM301"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
