"""The monitor as a callback of Lightning's Trainer."""

from __future__ import annotations

from lightning_symmetry.namespaces import OtherCallback  # first, because importing Lightning sets globals

# isort: split
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.messages import SymmetryError as SymmetryError
from lightning_symmetry.engine.messages import SymmetryWarning as SymmetryWarning
from lightning_symmetry.engine.steps import Handle, watch_steps
from lightning_symmetry.engine.watcher import Watcher
from lightning_symmetry.outputs.console import ConsoleSummary, above_bars
from lightning_symmetry.outputs.folder import folder_outputs, is_remote
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.outputs.output import NAME, Heatmaps, Output, Scalars
from lightning_symmetry.outputs.scalars import renamed
from lightning_symmetry.verdicts.report import SymmetryReport


class SymmetryMonitor(Watcher, Callback, OtherCallback):
    """Watch a training for units that are updated as one.

    The weights and gradients of all supported layers are checked before the optimizer steps 0, 1, 3, 7, ... and then
    every ``every_n_steps``; with several optimizers, each has its own count. Each finding leads to one warning, and is
    written to the loggers of the Trainer. The training is unaffected: with and without the callback, weights, optimizer
    states and random numbers are identical to the last bit.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_symmetry import SymmetryMonitor
        >>> monitor = SymmetryMonitor()
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> monitor.findings
        []
    """

    _engine: SymmetryEngine
    _is_active = True

    def _set_up(self) -> None:
        self._engine = SymmetryEngine(self.options, who="SymmetryMonitor", notify=_notify)
        include, exclude = self.options.include, self.options.exclude
        named = {"include": None if include is None else list(include), "exclude": list(exclude)}
        self._state_key: str = self._generate_state_key(**named)
        self._handles: list[Handle] = []
        self._hooked: set[int] = set()  # ids of the optimizers with a hook
        self._num_raw_steps = 0  # steps of optimizers that bypass the Trainer
        self._seen: int | None = None  # the id of the optimizer whose step the Trainer has announced
        self._stage: str | None = None  # stage of the Trainer, such as "fit"; None outside of one
        self._is_resumed = False
        # Weak references to the Trainer and the module of the latest training.
        self._training: tuple[weakref.ref[Any], ...] = ()

    @property
    def state_key(self) -> str:
        return self._state_key  # the Trainer asks for it before each hook

    def state_dict(self) -> dict[str, Any]:
        return self._engine.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage in (None, "fit"):  # validating a checkpoint resumes no training
            self._is_resumed = self._engine.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._engine.guarded(self._begin, trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._engine.guarded(self._engine.before_backward, loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Hooks of the module or clipping may change the gradients after this hook, but not after that of the optimizer.
        if id(optimizer) in self._hooked:
            self._seen = id(optimizer)
        else:
            self._engine.guarded(self._before_step, trainer, pl_module, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._engine.guarded(self._unhook)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        summary = [] if self.options.on_symmetry == "ignore" else [ConsoleSummary(_notify)]
        self._engine.guarded(self._engine.finish, summary)
        self._engine.confirm()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._abandon()

    def __getstate__(self) -> dict[str, Any]:
        # Handles refer to the optimizers. `log` and `log_dict`, which the Trainer sets, refer to the module.
        kept = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return {**kept, "_handles": [], "_hooked": set(), "_seen": None, "_training": ()}

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unhook()
        latest = [reference() for reference in self._training] or [None, None]
        if latest[0] is not trainer or latest[1] is not pl_module:
            self._num_raw_steps = 0
            if not self._is_resumed:
                self._engine.reset()
        self._training = weakref.ref(trainer), weakref.ref(pl_module)
        self._is_resumed = False
        wrapped = trainer.model
        self._engine.prepare(pl_module if wrapped is None else wrapped)
        self._engine.start(trainer.optimizers, num_ranks=trainer.world_size, is_speaking=trainer.is_global_zero)
        self._outputs_for(trainer)  # imports the libraries now, to keep the first step fast
        before_update = partial(self._before_update, trainer, pl_module)
        handles = {id(optimizer): watch_steps(optimizer, before_update) for optimizer in trainer.optimizers}
        self._handles = [handle for handle in handles.values() if handle is not None]
        self._hooked = {identity for identity, handle in handles.items() if handle is not None}

    def _before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check before a step, also of a raw optimizer (``self.optimizers(use_pl_optimizer=False)``)."""
        is_known, self._seen = self._seen == id(optimizer), None
        # While the Trainer searches for a learning rate or batch size, this callback is not among its callbacks.
        if is_known or any(callback is self for callback in trainer.callbacks):  # type: ignore[attr-defined] # set by a connector
            self._engine.guarded(self._before_step, trainer, pl_module, optimizer)
            self._num_raw_steps += not is_known

    def _before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._engine.set_optimizers(trainer.optimizers)  # they may have been replaced
        step = trainer.global_step + self._num_raw_steps
        # `log_every_n_steps` is 0 in barebones mode.
        every_n_steps = self.options.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined] # set by a connector
        outputs = partial(self._outputs_for, trainer)
        conclusion = self._engine.before_step(pl_module, optimizer, step, every_n_steps, outputs)
        if conclusion is None:
            return
        if self.options.scalars != "none":
            # `log` would write them to the loggers a second time.
            metrics = renamed(conclusion.report.metrics(layers=()), self._name_in(trainer))
            trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in metrics.items()})
        if self.options.on_symmetry != "ignore":
            key = "working_units" + self._name_in(trainer).removeprefix(NAME)
            _show_in_bar(trainer, key, conclusion.report)
        if self._engine.act(conclusion, pl_module):
            trainer.should_stop = True

    def _abandon(self) -> None:
        """Stop watching a training that has failed or that another monitor watches."""
        self._engine.guarded(self._unhook)
        self._engine.guarded(self._engine.finish, [])

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked = [], set()

    def _outputs_for(self, trainer: Trainer) -> list[Output]:
        """Return the outputs of all loggers, and a folder if none of these stores findings; none on other ranks."""
        outputs: list[Output] = []
        if not trainer.is_global_zero:
            return outputs
        for logger in trainer.loggers:
            make = partial(self._make, outputs_of, trainer, logger)
            outputs += self._engine.outputs_of(logger, f"output to {type(logger).__name__}", make)
        if not any(output.keeps_findings for output in outputs):
            without_logger = partial(self._make, _outputs_without_logger, trainer, trainer)
            outputs += self._engine.outputs_of(None, "output to a folder", without_logger)
        return outputs

    def _make(self, make: Callable[..., list[Output]], trainer: Trainer, target: object) -> list[Output]:
        """Make outputs under the name of this monitor, which is looked up only when outputs are made."""
        return make(target, self.options.heatmaps, self.options.scalars, self._name_in(trainer))

    def _name_in(self, trainer: Trainer) -> str:
        """Return the name of tags and folders; the second and later monitors of a Trainer add a number."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        monitors = [each for each in callbacks if isinstance(each, SymmetryMonitor) and each._is_active]
        index = next((index for index, monitor in enumerate(monitors) if monitor is self), 0)
        return f"{NAME}-{index + 1}" if index else NAME


def _outputs_without_logger(trainer: Trainer, heatmaps: Heatmaps, scalars: Scalars, name: str) -> list[Output]:
    """Return a folder in ``default_root_dir``; none for a trial run or a remote directory."""
    is_trial = trainer.barebones or trainer.fast_dev_run  # type: ignore[attr-defined] # set by a connector
    root = trainer.default_root_dir
    if is_trial or is_remote(root):
        return []
    return folder_outputs(Path(root) / name, heatmaps, scalars, only_findings=True)


def _show_in_bar(trainer: Trainer, key: str, report: SymmetryReport) -> None:
    """Show the number of working units in the progress bar while the model is symmetric."""
    shown: dict[str, Any] = trainer.progress_bar_metrics
    if report.status == "symmetric":
        shown[key] = f"{report.working_units}/{report.num_units}"
    else:
        shown.pop(key, None)


def _notify(text: str) -> None:
    with above_bars("lightning.pytorch.utilities.rank_zero"):
        rank_zero_info(text)
