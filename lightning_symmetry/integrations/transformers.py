"""The monitor as a callback of the Hugging Face Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_stack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.messages import warn
from lightning_symmetry.engine.watcher import Watcher
from lightning_symmetry.outputs.folder import folder_outputs
from lightning_symmetry.ranks.team import describe
from lightning_symmetry.tracker import SymmetryTracker
from lightning_symmetry.verdicts.diagnoses import Finding

__all__ = ["SymmetryCallback"]


class SymmetryCallback(Watcher, TrainerCallback, ExportableState):
    """Watch a training of the Hugging Face Trainer for units that are updated as one.

    It writes where the Trainer logs (``report_to``): TensorBoard, Weights & Biases, MLflow; if there is none, into the
    folder ``symmetry`` of ``output_dir``, from the first finding on. Its state is part of the checkpoints, and is
    restored with ``restore_callback_states_from_checkpoint=True``.

    The options are those of :class:`lightning_symmetry.SymmetryMonitor`.

    Example:
        >>> from transformers import Trainer
        >>> from lightning_symmetry.integrations.transformers import SymmetryCallback
        >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[SymmetryCallback()])  # doctest: +SKIP
    """

    def _set_up(self) -> None:
        self.resumed_state: dict[str, Any] = {}  # set by the Trainer when it resumes
        self._tracker: SymmetryTracker | None = None
        if self.on_finding is None:
            self.on_finding = _on_finding_of_predecessor()

    @property
    def _engine(self) -> SymmetryEngine | None:  # type: ignore[override] # the engine of the tracker
        return None if self._tracker is None else self._tracker._engine

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._tracker is not None:  # of an earlier training that ended with an error
            self._tracker.abandon()
        self._tracker, resumed_state, self.resumed_state = None, self.resumed_state, {}
        options: dict[str, Any] = {**vars(self.options), "every_n_steps": self._every_n_steps(args)}
        try:
            outputs = self._outputs(args) if state.is_world_process_zero else []
            self._tracker = SymmetryTracker(kwargs["model"], kwargs["optimizer"], output=outputs, **options)
        except Exception as error:  # for example, for an optimizer of another library
            if self.options.on_symmetry == "raise" or self.options.require_conclusion:
                raise
            warn(f"SymmetryCallback cannot watch this training ({describe(error)}). Training goes on.")
            return
        if resumed_state:
            self._tracker.load_state_dict(resumed_state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._tracker is not None and self._tracker.should_stop:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def state(self) -> dict[str, Any]:
        resumed_state = {} if self._tracker is None else self._tracker.state_dict()
        arguments = {name: value for name, value in vars(self.options).items() if name != "on_finding"}  # not JSON
        return {"args": arguments, "attributes": {"resumed_state": resumed_state}}

    def _every_n_steps(self, args: TrainingArguments) -> int | None:
        # A value of `logging_steps` below 1 is a fraction of all steps.
        logs_by_steps = args.logging_strategy == "steps" and args.logging_steps >= 1
        return self.options.every_n_steps or (int(args.logging_steps) if logs_by_steps else None)

    def _outputs(self, args: TrainingArguments) -> list[object]:
        outputs: list[object] = list(_loggers_of(_callbacks_of_caller()))
        if outputs:
            return outputs
        folder = Path(args.output_dir or ".") / "symmetry"
        return [*folder_outputs(folder, self.options.heatmaps, self.options.scalars, only_findings=True)]


def _callbacks_of_caller() -> list[TrainerCallback]:
    """Return all callbacks of the calling Trainer, from the call stack, since hooks do not get them."""
    handlers = (frame.f_locals.get("self") for frame, _ in walk_stack(sys._getframe()))
    return next((list(handler.callbacks) for handler in handlers if isinstance(handler, CallbackHandler)), [])


def _on_finding_of_predecessor() -> Callable[[Finding], object] | None:
    """Return the ``on_finding`` of the callback that a resuming Trainer replaces; checkpoints hold no functions."""
    for frame, _ in walk_stack(sys._getframe()):
        if frame.f_code.co_name == "_load_callback_state":
            replaced = frame.f_locals.get("callback")
            return replaced.on_finding if isinstance(replaced, SymmetryCallback) else None
    return None


def _loggers_of(callbacks: list[TrainerCallback]) -> Iterator[object]:
    """Yield the writers and runs that logging callbacks have opened."""
    callback: Any
    for callback in callbacks:
        match type(callback).__name__:
            case "TensorBoardCallback" if callback.tb_writer is not None:
                yield callback.tb_writer
            case "WandbCallback" if callback._wandb is not None and callback._wandb.run is not None:
                yield callback._wandb.run
            case "MLflowCallback" if callback._ml_flow is not None and callback._ml_flow.active_run() is not None:
                yield callback._ml_flow.active_run()
