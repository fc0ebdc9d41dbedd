"""The first check of a training, with the first picture: ``python -m tests.benchmarks first``."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor
from tests.benchmarks.fresh import in_new_process
from tests.benchmarks.models import Classifier, Decoder, Loader, mlp_on_digits
from tests.benchmarks.timing import Times, show

_PROCESSES = 3
_STEPS, _QUIET_FROM = 15, 8  # by then layers are read quickly, and directions were counted at steps 0 and 7


def conv_net_on_images() -> tuple[LightningModule, Loader]:
    """Two convolutions and a linear layer on random 32 x 32 images, batch 32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU())
    net.extend([nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10)])
    data = TensorDataset(torch.randn(640, 3, 32, 32), torch.randint(0, 10, (640,)))
    return Classifier(net), DataLoader(data, batch_size=32)


def transformer_on_tokens() -> tuple[LightningModule, Loader]:
    """GPT-2-like decoder, 4 layers of width 256, on 8 sequences of 128 random bytes a batch."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (64, 129))
    net = Decoder(width=256, layers=4, heads=4)
    return Classifier(net), DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=8)


MODELS: dict[str, Callable[[], tuple[LightningModule, Loader]]] = {
    "MLP 64-256-128-10": mlp_on_digits,
    "2 convolutions, 1 linear": conv_net_on_images,
    "Transformer, 4 layers of width 256": transformer_on_tokens,
}


class Timed(SymmetryMonitor):
    """Notes how long each of its checks holds up the training, and how long the rest of the step takes."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1, on_symmetry="ignore")
        self.checks: list[float] = []
        self.steps: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def _before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        began = time.perf_counter()
        super()._before_step(trainer, pl_module, optimizer)
        self.checks.append(time.perf_counter() - began)

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.perf_counter() - self._began - self.checks[-1])


def measure(name: str) -> list[float]:
    """In a process of its own: seconds of the first check, a quiet check, and a step without its check."""
    module, data = MODELS[name]()
    monitor = Timed()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=_STEPS,
            max_epochs=-1,
            callbacks=[monitor],
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
    quiet, step = (statistics.median(seconds[_QUIET_FROM:]) for seconds in (monitor.checks, monitor.steps))
    return [monitor.checks[0], quiet, step]


def run() -> dict[str, dict[str, Any]]:
    """Train each model in several new processes, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        seconds = zip(*(in_new_process(measure, name) for _ in range(_PROCESSES)), strict=True)
        first, quiet, step = map(Times, seconds)
        over_quiet, over_step = first.over(quiet), first.over(step)
        cells = [f"{1e3 * times.median:.3g} ms" for times in (first, quiet, step)]
        rows.append((name, *cells, str(over_quiet), str(over_step)))
        results[name] = {
            "first": first.median,
            "quiet": quiet.median,
            "step": step.median,
            "over_quiet": over_quiet.to_dict(),
            "over_step": over_step.to_dict(),
        }
    head = ("model", "first check", "quiet check", "step without", "first / quiet", "first / step")
    show("The first check of a training, on the training thread, in new processes", head, rows)
    return results
