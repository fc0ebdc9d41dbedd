"""An automatically added monitor. It deactivates itself if the user passed one."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_symmetry.callback import SymmetryMonitor


class AutoloadedMonitor(SymmetryMonitor):
    """A monitor that is inactive if there is any other, and stores nothing in checkpoints.

    Users pass the callbacks of one Trainer, this monitor among them, to the next, which adds another such monitor.
    Lightning would refuse the two if they had state.
    """

    # Lightning considers a callback with these methods of the base class stateless.
    state_dict = Callback.state_dict
    load_state_dict = Callback.load_state_dict
    _is_active = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_active = self._is_needed(trainer)
        if self._is_active:
            super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._is_active and not self._is_needed(trainer):  # another monitor has been added since
            self._is_active = False
            self._abandon()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._is_active:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_active:
            super().on_fit_end(trainer, pl_module)

    def _is_needed(self, trainer: Trainer) -> bool:
        """Return whether the user has passed no monitor, and this is the first one added."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        monitors = [callback for callback in callbacks if isinstance(callback, SymmetryMonitor)]
        return all(isinstance(monitor, AutoloadedMonitor) for monitor in monitors) and monitors[:1] == [self]
