"""A small network, trained on scikit-learn's digits from healthy and sick initialisations."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry.callback import SymmetryMonitor
from lightning_symmetry.engine.options import OnSymmetry

_EPOCHS = 12
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
_SGD: MakeOptimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=3e-4)


class DigitsNet(LightningModule):
    """A network of 64 inputs, two hidden layers of 64 and 32 units, and 10 outputs."""

    def __init__(self, activation: Callable[[Tensor], Tensor], optimizer: MakeOptimizer) -> None:
        super().__init__()
        self._activation, self._optimizer = activation, optimizer
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, 10)`` of images ``(n, 64)``."""
        hidden = self._activation(self.fc2(self._activation(self.fc1(images))))
        logits: Tensor = self.fc3(hidden)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of images and labels."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self._optimizer(self.parameters())

    def layers(self) -> list[nn.Linear]:
        """Return the layers in forward order."""
        return [self.fc1, self.fc2, self.fc3]


def _all_weights(initialise_weight: Callable[[Tensor], object]) -> Callable[[DigitsNet], None]:
    def initialise(net: DigitsNet) -> None:
        for layer in net.layers():
            initialise_weight(layer.weight)
            nn.init.zeros_(layer.bias)

    return initialise


def _copy_half(sign: float) -> Callable[[DigitsNet], None]:
    """Return a function that copies half of each hidden layer, times ``sign``, to the other half.

    Outgoing weights are copied too: if they differed, the copies would get different gradients and diverge.
    """

    def initialise(net: DigitsNet) -> None:
        for layer, following in zip(net.layers()[:-1], net.layers()[1:], strict=True):
            half = layer.out_features // 2
            layer.weight[half:] = sign * layer.weight[:half]
            layer.bias[half:] = sign * layer.bias[:half]
            following.weight[:, half:] = sign * following.weight[:, :half]

    return initialise


@dataclass(frozen=True)
class Start:
    """The initialisation, activation and optimizer of a run of the gallery."""

    initialise: Callable[[DigitsNet], object]
    activation: Callable[[Tensor], Tensor] = torch.relu
    optimizer: MakeOptimizer = _SGD


GALLERY: dict[str, Start] = {
    "zeros": Start(_all_weights(nn.init.zeros_)),
    "constant 0.02": Start(_all_weights(partial(nn.init.constant_, val=0.02))),
    "constant -0.02": Start(_all_weights(partial(nn.init.constant_, val=-0.02))),
    "copied half": Start(_copy_half(1.0)),
    "mirrored half, tanh": Start(_copy_half(-1.0), torch.tanh),
    "bias -10": Start(lambda net: nn.init.constant_(net.fc2.bias, -10.0)),
    "normal, std 0.001": Start(_all_weights(partial(nn.init.normal_, std=1e-3))),
    "tiny, tanh, Adam": Start(_all_weights(partial(nn.init.normal_, std=1e-4)), torch.tanh, _ADAM),
    "PyTorch default": Start(lambda net: None),
    "He normal": Start(_all_weights(partial(nn.init.kaiming_normal_, nonlinearity="relu"))),
}


@dataclass(frozen=True)
class Digits:
    """Images of digits, ``(n, 64)`` with values in ``[0, 1]``, and their labels, ``(n,)``."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training images in batches of 64, shuffled in every epoch."""
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=64, shuffle=True)

    def predictions(self, net: nn.Module) -> Tensor:
        """Return a network's predictions for the test images, ``(n,)``."""
        with torch.no_grad():
            digits: Tensor = net(self.test_images).argmax(dim=1)
        return digits

    def accuracy(self, net: nn.Module) -> float:
        """Return a network's test accuracy."""
        return float((self.predictions(net) == self.test_labels).double().mean())


def load() -> Digits:
    """Load scikit-learn's digits, three quarters of them as training images."""
    data = load_digits()
    parts = train_test_split(data.data / 16, data.target, random_state=0)
    images, test_images, labels, test_labels = map(torch.tensor, parts)
    return Digits(images.float(), labels, test_images.float(), test_labels)


def started(start: Start, seed: int = 0) -> DigitsNet:
    """Seed the global random generator, and return an initialised network."""
    torch.manual_seed(seed)
    net = DigitsNet(start.activation, start.optimizer)
    with torch.no_grad():
        start.initialise(net)
    return net


def train(
    net: DigitsNet, digits: Digits, run: Path | None = None, on_symmetry: OnSymmetry = "ignore"
) -> SymmetryMonitor:
    """Train a network for 12 epochs; overwrite the TensorBoard run ``run``, unless it is None."""
    if run is None:
        monitor = SymmetryMonitor(on_symmetry=on_symmetry, heatmaps="none", scalars="none")
    else:
        monitor = SymmetryMonitor(on_symmetry=on_symmetry)
        for old in run.glob("events.out.tfevents.*"):  # of an earlier demo
            old.unlink()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=_EPOCHS,
        callbacks=[monitor],
        logger=False if run is None else TensorBoardLogger(run.parent, name=run.name, version=""),
        log_every_n_steps=20,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(net, digits.batches())
    return monitor


def run_name(name: str) -> str:
    """Return the name of the TensorBoard run of an initialisation."""
    return name.replace(" ", "_").replace(",", "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, and the messages of Lightning about each training."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show only a progress bar on the console. Yield a function to call with the name of each run that begins."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} runs"),
        TimeElapsedColumn(),
    )
    with bar, _quiet():
        task = bar.add_task("", total=total)
        started = itertools.count()
        yield lambda name: bar.update(task, description=f"training: {name:20}", completed=next(started))
        bar.update(task, description="trained", completed=total)
