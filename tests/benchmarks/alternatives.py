"""What the monitor costs beside what people use instead: ``python -m tests.benchmarks alternatives``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import grad_norm
from torch.optim import Optimizer

from lightning_symmetry import SymmetryMonitor
from tests.benchmarks.callback import Hooked, train
from tests.benchmarks.models import MODELS
from tests.benchmarks.timing import Ratio, show

# By model, how many steps a turn has, and how many turns each side gets.
TURNS = {"MLP on digits, batch 64": (10, 40), "decoder, 8 x 128 tokens": (1, 10)}


class Histograms(Callback):
    """What many a training script does: histograms of all weights and gradients."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        [logger] = trainer.loggers
        assert isinstance(logger, TensorBoardLogger)
        writer = logger.experiment
        for name, parameter in pl_module.named_parameters():
            writer.add_histogram(name, parameter, trainer.global_step)
            writer.add_histogram(f"{name}.grad", parameter.grad, trainer.global_step)


class GradientNorms(Callback):
    """Lightning's own norms of all gradients."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Watch(Hooked):
    """Histograms of all weights and gradients by ``wandb.watch``.

    Its hooks are set before a turn and removed after it, neither of which is timed. They are set on the network, since
    the hook for the weights waits for a ``forward``, and the Trainer calls none of the LightningModule's.
    """

    def hook(self, pl_module: LightningModule) -> None:
        assert wandb.run is not None
        net = pl_module.get_submodule("net")
        wandb.run.watch(net, log="all", log_freq=1, idx=0)  # without a number the names would change with every turn

    def unhook(self, pl_module: LightningModule) -> None:
        assert wandb.run is not None
        wandb.run.unwatch(pl_module.get_submodule("net"))


@contextmanager
def tensorboard() -> Iterator[Logger]:
    with TemporaryDirectory() as folder:
        yield TensorBoardLogger(folder)


@contextmanager
def weights_and_biases() -> Iterator[Logger]:
    """A real run, written to a folder and sent nowhere."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its own process may still write
        try:
            yield WandbLogger(save_dir=folder, offline=True, settings=wandb.Settings(silent=True))
        finally:
            wandb.finish()


Contestant = tuple[Callable[[], Callback], Callable[[], AbstractContextManager[Logger]]]
CONTESTANTS: dict[str, Contestant] = {
    "monitor": (partial(SymmetryMonitor, every_n_steps=1, on_symmetry="ignore"), tensorboard),
    "gradient norms": (GradientNorms, tensorboard),
    "histograms": (Histograms, tensorboard),
    "wandb.watch": (Watch, weights_and_biases),
}


def measure(name: str, contestant: Contestant) -> tuple[Ratio, float]:
    """A training in which a contestant and nothing take turns, with the same logger, which writes at every step."""
    make_callback, open_logger = contestant
    steps_each, cycles = TURNS[name]
    turns: dict[str, list[Callback]] = {"nothing": [], "it": [make_callback()]}
    with open_logger() as logger:
        times = train(*MODELS[name](), turns, steps_each=steps_each, cycles=cycles, logger=logger, log_every_n_steps=1)
    return times["it"].over(times["nothing"]), times["nothing"].median / steps_each


def run() -> dict[str, dict[str, Any]]:
    """Train each model with each contestant, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: dict[str, dict[str, Any]] = {}
    for name in TURNS:
        measured = {who: measure(name, contestant) for who, contestant in CONTESTANTS.items()}
        rows.append((name, *(f"{ratio} of {1e3 * step:.3g} ms" for ratio, step in measured.values())))
        results[name] = {
            who: {**ratio.to_dict(), "step": step, "added": (ratio.value - 1) * step}
            for who, (ratio, step) in measured.items()
        }
    show("All at every step: time of a step over that without", ("model", *CONTESTANTS), rows)
    added = [(name, *(f"{1e3 * each['added']:.3g} ms" for each in of.values())) for name, of in results.items()]
    show("The same: what a step takes longer", ("model", *CONTESTANTS), added)
    return results
