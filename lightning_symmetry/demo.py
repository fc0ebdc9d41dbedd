"""The same small network, trained on scikit-learn's digits from healthy and from sick initialisations."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
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
from lightning_symmetry.outputs.console import print_table
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.verdict import Verdict

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


def run(logdir: Path) -> dict[str, SymmetryMonitor]:
    """Train the gallery, each a TensorBoard run below ``logdir``, and print what came of it.

    Returns:
        The monitor of every run, by the name of the initialisation.
    """
    started = time.monotonic()
    images, test_images, digits, test_digits = _digits()
    train = DataLoader(TensorDataset(images, digits), batch_size=64, shuffle=True)
    monitors: dict[str, SymmetryMonitor] = {}
    rows: list[tuple[str, ...]] = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} runs"),
        TimeElapsedColumn(),
    )
    with bar, _quiet():
        task = bar.add_task("", total=len(GALLERY))
        for name, start in GALLERY.items():
            bar.update(task, description=f"training: {name:20}")
            torch.manual_seed(0)
            net = DigitsNet(start.activation, start.optimizer)
            with torch.no_grad():
                start.initialise(net)
            monitors[name] = _train(net, train, logdir, name)
            with torch.no_grad():
                right = (net(test_images).argmax(dim=1) == test_digits).double().mean()
            rows.append(_row(name, float(right), monitors[name]))
            bar.advance(task)
        bar.update(task, description="trained")
    _print_result(monitors, rows, logdir, time.monotonic() - started)
    return monitors


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


def _digits() -> list[Tensor]:
    """Images of the training and the test part, then digits of both."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    return [torch.as_tensor(part) for part in train_test_split(images.numpy(), data.target, random_state=0)]


def _train(net: DigitsNet, data: DataLoader[tuple[Tensor, ...]], logdir: Path, name: str) -> SymmetryMonitor:
    monitor = SymmetryMonitor(on_symmetry="ignore")  # the table tells of all runs; warnings would hide it
    folder = name.replace(" ", "_").replace(",", "")
    for old in (logdir / folder).glob("events.out.tfevents.*"):  # of an earlier demo
        old.unlink()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=_EPOCHS,
        callbacks=[monitor],
        logger=TensorBoardLogger(logdir, name=folder, version=""),
        log_every_n_steps=20,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(net, data)
    return monitor


def _row(name: str, accuracy: float, monitor: SymmetryMonitor) -> tuple[str, ...]:
    assert monitor.report is not None
    widths = [f"{layer.effective_width}/{layer.num_units}" for layer in monitor.report.layers.values()]
    found = {verdict: [f.layer for f in monitor.findings if f.verdict is verdict] for verdict in Verdict}
    verdicts = [f"{verdict}: {', '.join(dict.fromkeys(layers))}" for verdict, layers in found.items() if layers]
    condensed = [
        f"{layer.name} to {layer.orientations}" for layer in monitor.report.layers.values() if layer.is_condensed
    ]
    if condensed and not verdicts:
        verdicts = [f"condensed: {', '.join(condensed)}"]
    return (name, f"{accuracy:.1%}", *widths, "; ".join(verdicts) or "no symmetry")


def _print_result(
    monitors: dict[str, SymmetryMonitor], rows: list[tuple[str, ...]], logdir: Path, seconds: float
) -> None:
    print_table(("initialisation", "test accuracy", "fc1", "fc2", "fc3", "verdict"), rows)
    print("fc1, fc2, fc3: distinct units of all units of the layer after training.")
    print("condensed: no finding, but most units point in the same few directions, up to sign.\n")
    print("What the monitor says on the console, one message per verdict:\n")
    for name, monitor in monitors.items():
        for verdict in Verdict:
            findings = [finding for finding in monitor.findings if finding.verdict is verdict]
            if monitor.report is not None and findings:
                print(f"  [{name}] {messages(findings, monitor.report)[0]}\n")
    print(f"{len(rows)} runs in {seconds:.0f} s. Look at them with:\n\n  {_tensorboard()} --logdir {logdir}\n")


def _tensorboard() -> str:
    """The command that starts TensorBoard in this environment."""
    beside = Path(sys.executable).parent / "tensorboard"
    if shutil.which("tensorboard") or not beside.exists():
        return "tensorboard"
    return os.path.relpath(beside)
