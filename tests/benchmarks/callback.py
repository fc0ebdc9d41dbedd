"""What the monitor costs a training, beside what people use today."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import grad_norm
from torch.optim import Optimizer

from lightning_symmetry import SymmetryMonitor
from tests.benchmarks.models import MODELS, Loader
from tests.benchmarks.timing import Ratio, Times, show

DEFAULT_STEPS = 50  # Trainer.log_every_n_steps
CYCLES = {"MLP on digits, batch 64": 300, "ResNet-18, 32 images of 32 x 32": 24, "decoder, 8 x 128 tokens": 12}


class Histograms(Callback):
    """What many a training script does: histograms of all weights and gradients."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.num_steps = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.num_steps % self.every_n_steps == 0:
            [logger] = trainer.loggers
            assert isinstance(logger, TensorBoardLogger)
            writer = logger.experiment
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(name, parameter, trainer.global_step)
                writer.add_histogram(f"{name}.grad", parameter.grad, trainer.global_step)
        self.num_steps += 1


class GradientNorms(Callback):
    """Lightning's own norms of all gradients."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Turns(Callback):
    """Gives each of several sets of callbacks so many steps in turn, and notes how long they take."""

    def __init__(self, contestants: Mapping[str, Sequence[Callback]], steps_each: int) -> None:
        self.contestants = dict(contestants)
        self.steps_each = steps_each
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        self._names = list(contestants)
        self._began = 0.0

    def _current(self, trainer: Trainer) -> Sequence[Callback]:
        return self.contestants[self._names[trainer.global_step // self.steps_each % len(self._names)]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callbacks in self.contestants.values():
            for callback in callbacks:
                callback.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.steps_each == 0:
            now = time.perf_counter()
            if step:
                previous = self._names[step // self.steps_each % len(self._names) - 1]
                self.seconds[previous].append(now - self._began)
            self._began = time.perf_counter()
        for callback in self._current(trainer):
            callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for callback in self._current(trainer):
            callback.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for callback in self._current(trainer):
            callback.on_train_batch_end(trainer, pl_module, *args)


def train(
    module: LightningModule,
    data: Loader,
    contestants: Mapping[str, Sequence[Callback]],
    *,
    steps_each: int,
    cycles: int,
    **settings: Any,
) -> dict[str, Times]:
    """Train with the contestants in turn; the times of each, without its first two turns."""
    turns = Turns(contestants, steps_each)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            **{"accelerator": "cpu", **settings},
            max_steps=steps_each * len(contestants) * (cycles + 2) + 1,
            max_epochs=-1,
            callbacks=[turns],
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
    return {name: Times(tuple(seconds[2 : cycles + 2])) for name, seconds in turns.seconds.items()}


def run() -> dict[str, Any]:
    every: dict[str, dict[str, Ratio]] = {}
    steps: dict[str, float] = {}
    others = ("histograms", "learning rate and gradient norms")
    for name, make in MODELS.items():
        contestants: dict[str, list[Callback]] = {
            "monitor": [SymmetryMonitor(every_n_steps=1, on_symmetry="ignore")],
            "histograms": [Histograms(1)],
            "learning rate and gradient norms": [LearningRateMonitor(), GradientNorms()],
        }
        every[name] = {}
        for who, callbacks in contestants.items():
            # A training each: the thread that writes events is still busy when the next steps have begun.
            times = train(*make(), {"nothing": [], who: callbacks}, steps_each=1, cycles=CYCLES[name])
            every[name][who] = times[who].over(times["nothing"])
            steps.setdefault(name, times["nothing"].median)
    show(
        "Callback at every step: time of a step over that without; median [quartiles]",
        ("model", "monitor", *others, "step without"),
        [(name, *map(str, ratios.values()), f"{steps[name] * 1e3:.3g} ms") for name, ratios in every.items()],
    )
    default = {name: _at_default_schedule(name) for name in MODELS}
    cheaper = {name: (r["histograms"].value - 1) / max(1e-9, r["monitor"].value - 1) for name, r in every.items()}
    show(
        "Callback at the default schedule, and what histograms cost at the same steps, in costs of a check",
        ("model", "monitor", "histograms / monitor"),
        [(name, str(default[name]), f"{cheaper[name]:.3g}") for name in MODELS],
    )
    return {
        "every_step": {name: {who: r.to_dict() for who, r in ratios.items()} for name, ratios in every.items()},
        "default_schedule": {name: ratio.to_dict() for name, ratio in default.items()},
        "histograms_over_monitor": cheaper,
        "step_seconds": steps,
    }


def _at_default_schedule(name: str) -> Ratio:
    """Blocks of 50 steps with one check over blocks without; of slow models shorter blocks, scaled to 50 steps."""
    is_fast = name.startswith("MLP")
    steps_each, cycles = (DEFAULT_STEPS, 40) if is_fast else (2, 12)
    contestants = {"nothing": [], "monitor": [SymmetryMonitor(every_n_steps=steps_each, on_symmetry="ignore")]}
    times = train(*MODELS[name](), contestants, steps_each=steps_each, cycles=cycles)
    ratio = times["monitor"].over(times["nothing"])
    share = steps_each / DEFAULT_STEPS
    value, low, high = (1 + (number - 1) * share for number in (ratio.value, ratio.low, ratio.high))
    return Ratio(value, low, high, ratio.rounds)
