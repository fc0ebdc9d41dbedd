"""A small network, trained on scikit-learn's digits from healthy and from sick initialisations."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-4)


class DigitsNet(LightningModule):
    """64 pixels, two hidden layers of 64 and 32 units, 10 classes.

    Args:
        activation: of the hidden layers.
        optimizer: makes the optimizer from the parameters.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], optimizer: MakeOptimizer) -> None:
        super().__init__()
        self._activation, self._optimizer = activation, optimizer
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, 10)`` of images ``(n, 64)``."""
        hidden = self._activation(self.fc2(self._activation(self.fc1(images))))
        logits: Tensor = self.fc3(hidden)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the parameters."""
        return self._optimizer(self.parameters())

    def layers(self) -> list[nn.Linear]:
        """The layers in the order of the data."""
        return [self.fc1, self.fc2, self.fc3]


def _fill(value: float) -> Callable[[DigitsNet], None]:
    def initialise(net: DigitsNet) -> None:
        for layer in net.layers():
            nn.init.constant_(layer.weight, value)
            nn.init.zeros_(layer.bias)

    return initialise


def _copy_half(sign: float) -> Callable[[DigitsNet], None]:
    """Copy the first half of every hidden layer, with that sign, onto the second.

    The outgoing weights are copied too: else the gradients of the copies differ, and the copies part by themselves.
    """

    def initialise(net: DigitsNet) -> None:
        for layer, following in zip(net.layers()[:-1], net.layers()[1:], strict=True):
            half = layer.out_features // 2
            layer.weight[half:] = sign * layer.weight[:half]
            layer.bias[half:] = sign * layer.bias[:half]
            following.weight[:, half:] = sign * following.weight[:, :half]

    return initialise


def _low_bias(net: DigitsNet) -> None:
    nn.init.constant_(net.fc2.bias, -10.0)


def _normal(std: float) -> Callable[[DigitsNet], None]:
    def initialise(net: DigitsNet) -> None:
        for layer in net.layers():
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    return initialise


def _he(net: DigitsNet) -> None:
    for layer in net.layers():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Start:
    """How a run of the gallery starts.

    Attributes:
        initialise: changes the weights in place.
        activation: of the hidden layers.
        optimizer: makes the optimizer from the parameters.
    """

    initialise: Callable[[DigitsNet], None]
    activation: Callable[[Tensor], Tensor] = torch.relu
    optimizer: MakeOptimizer = _sgd


GALLERY: dict[str, Start] = {
    "zeros": Start(_fill(0.0)),
    "constant 0.02": Start(_fill(0.02)),
    "constant -0.02": Start(_fill(-0.02)),
    "copied half": Start(_copy_half(1.0)),
    "mirrored half, tanh": Start(_copy_half(-1.0), torch.tanh),
    "bias -10": Start(_low_bias),
    "normal, std 0.001": Start(_normal(1e-3)),
    "tiny, tanh, Adam": Start(_normal(1e-4), torch.tanh, _adam),
    "PyTorch default": Start(lambda net: None),
    "He normal": Start(_he),
}


@dataclass(frozen=True)
class Digits:
    """Images of digits, ``(n, 64)`` with values in ``[0, 1]``, and the digits, ``(n,)``.

    Attributes:
        images: for the training.
        labels: their digits.
        test_images: for the accuracy.
        test_labels: their digits.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self) -> DataLoader[tuple[Tensor, ...]]:
        """The training part, in batches of 64, in a new order in every epoch."""
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=64, shuffle=True)

    def predictions(self, net: nn.Module) -> Tensor:
        """The digits that a network sees in the test images."""
        with torch.no_grad():
            digits: Tensor = net(self.test_images).argmax(dim=1)
        return digits

    def accuracy(self, net: nn.Module) -> float:
        """The share of the test images that a network is right about."""
        return float((self.predictions(net) == self.test_labels).double().mean())


def load() -> Digits:
    """The digits of scikit-learn, three quarters of them for the training."""
    data = load_digits()
    images, test_images, labels, test_labels = train_test_split(data.data / 16, data.target, random_state=0)
    return Digits(
        torch.tensor(images, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(test_images, dtype=torch.float32),
        torch.tensor(test_labels),
    )


def started(start: Start, seed: int = 0) -> DigitsNet:
    """A network that starts in this way; the global random numbers go on from the seed."""
    torch.manual_seed(seed)
    net = DigitsNet(start.activation, start.optimizer)
    with torch.no_grad():
        start.initialise(net)
    return net


def train(
    net: DigitsNet, digits: Digits, run: Path | None = None, on_symmetry: OnSymmetry = "ignore"
) -> SymmetryMonitor:
    """Train a network for 12 epochs.

    Args:
        net: the network.
        digits: the data.
        run: a TensorBoard run, which is written anew; None: nothing is written.
        on_symmetry: what the monitor does about findings.
    """
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
    """The name of the TensorBoard run of an initialisation."""
    return name.replace(" ", "_").replace(",", "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor what Lightning says of each training; afterwards both are as they were."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar, and nothing else on the console; it gives a function to be called with the name of each run."""
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
