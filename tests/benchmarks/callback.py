"""What the monitor costs a training."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.optim import Optimizer

from lightning_symmetry import SymmetryMonitor
from tests.benchmarks.models import MODELS, Loader
from tests.benchmarks.timing import Ratio, Times, show

DEFAULT_STEPS = 50  # Trainer.log_every_n_steps
CYCLES = {"MLP on digits, batch 64": 300, "ResNet-18, 32 images of 32 x 32": 24, "decoder, 8 x 128 tokens": 12}


class Hooked(Callback):
    """A callback that also hooks into the module, during its own turns only."""

    def hook(self, pl_module: LightningModule) -> None:
        """Begin a turn; not timed."""

    def unhook(self, pl_module: LightningModule) -> None:
        """End it."""


class Turns(Callback):
    """Gives each of several sets of callbacks so many steps in turn, and notes how long they take.

    What a callback hooks into the optimizers when the training starts is there during its own turns only.
    """

    def __init__(self, contestants: Mapping[str, Sequence[Callback]], steps_each: int) -> None:
        self.contestants = dict(contestants)
        self.steps_each = steps_each
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        self._names = list(contestants)
        self._hooks: dict[str, list[dict[int, Any]]] = {}  # by name, of each optimizer
        self._began = 0.0

    def _current(self, trainer: Trainer) -> Sequence[Callback]:
        return self.contestants[self._names[trainer.global_step // self.steps_each % len(self._names)]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        of_trainer = [dict(hooks) for hooks in _step_hooks(trainer)]
        for name, callbacks in self.contestants.items():
            for callback in callbacks:
                callback.on_train_start(trainer, pl_module)
            self._hooks[name] = [dict(hooks) for hooks in _step_hooks(trainer)]
            _set_step_hooks(trainer, of_trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.steps_each == 0:
            now = time.perf_counter()
            if step:
                previous = self._names[step // self.steps_each % len(self._names) - 1]
                self.seconds[previous].append(now - self._began)
                for callback in self.contestants[previous]:
                    if isinstance(callback, Hooked):
                        callback.unhook(pl_module)
            _set_step_hooks(trainer, self._hooks[self._names[step // self.steps_each % len(self._names)]])
            for callback in self._current(trainer):
                if isinstance(callback, Hooked):
                    callback.hook(pl_module)
            self._began = time.perf_counter()
        for callback in self._current(trainer):
            callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for callback in self._current(trainer):
            callback.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for callback in self._current(trainer):
            callback.on_train_batch_end(trainer, pl_module, *args)


def _step_hooks(trainer: Trainer) -> list[dict[int, Any]]:
    """What each optimizer calls before its step."""
    return [optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers]


def _set_step_hooks(trainer: Trainer, of_each: Sequence[Mapping[int, Any]]) -> None:
    for hooks, chosen in zip(_step_hooks(trainer), of_each, strict=True):
        hooks.clear()
        hooks.update(chosen)


def train(
    module: LightningModule,
    data: Loader,
    contestants: Mapping[str, Sequence[Callback]],
    *,
    steps_each: int,
    cycles: int,
    logger: Logger | None = None,
    **settings: Any,
) -> dict[str, Times]:
    """Train with the contestants in turn; the times of each, without its first two turns.

    Where no logger is given, it is a ``TensorBoardLogger``.
    """
    turns = Turns(contestants, steps_each)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            **{"accelerator": "cpu", **settings},
            max_steps=steps_each * len(contestants) * (cycles + 2) + 1,
            max_epochs=-1,
            callbacks=[turns],
            logger=logger or TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
    return {name: Times(tuple(seconds[2 : cycles + 2])) for name, seconds in turns.seconds.items()}


def run() -> dict[str, Any]:
    every: dict[str, Ratio] = {}
    steps: dict[str, float] = {}
    for name, make in MODELS.items():
        contestants = {"nothing": [], "monitor": [SymmetryMonitor(every_n_steps=1, on_symmetry="ignore")]}
        times = train(*make(), contestants, steps_each=1, cycles=CYCLES[name])
        every[name] = times["monitor"].over(times["nothing"])
        steps[name] = times["nothing"].median
    default = {name: _at_default_schedule(name) for name in MODELS}
    show(
        "Time of a step with the monitor over that without; median [quartiles]",
        ("model", "at every step", "at the default schedule", "step without"),
        [(name, str(every[name]), str(default[name]), f"{steps[name] * 1e3:.3g} ms") for name in MODELS],
    )
    return {
        "every_step": {name: ratio.to_dict() for name, ratio in every.items()},
        "default_schedule": {name: ratio.to_dict() for name, ratio in default.items()},
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
