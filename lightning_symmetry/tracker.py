"""The monitor for training loops of any kind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lightning_symmetry.arguments import check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.messages import warn
from lightning_symmetry.engine.steps import unwrap, updated_by, watch_steps
from lightning_symmetry.engine.watcher import Watcher
from lightning_symmetry.modules import parameters_of
from lightning_symmetry.outputs.console import ConsoleSummary, above_bars
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.outputs.output import Output
from lightning_symmetry.ranks.sketches import has_group, is_replicated
from lightning_symmetry.ranks.zero import zero_modules

_EVERY_N_STEPS = 50

logger = logging.getLogger(__name__)


class SymmetryTracker(Watcher):
    """Watch a training loop of any kind for units that are updated as one.

    The tracker hooks into the steps of the optimizers; the loop does not change. It checks the weights and gradients of
    all supported layers before the optimizer steps 0, 1, 3, 7, ... and then every ``every_n_steps``. Each finding leads
    to one warning. The training is unaffected: with and without the tracker, weights, optimizer states and random
    numbers are identical to the last bit.

    With several processes, make a tracker on each. Each checks its own copy of the model; the first one warns and
    writes. If the model is sharded, they communicate at every check, so all must make the same steps.

    Args:
        model: the model, or its wrapper by DDP, FSDP, DeepSpeed, ``torch.compile``, Fabric or accelerate.
        optimizer: the optimizer of the model, or a sequence of several; Fabric and accelerate may have wrapped it. For
            DeepSpeed pass ``engine.optimizer``.
        output: where to write: a folder, which gets TensorBoard events, pictures, ``findings.json`` and
            ``report.html``; a ``SummaryWriter``; a run of Weights & Biases; a logger of Lightning or Fabric; or a
            sequence of these. None: nowhere.
        **options: the options of :class:`SymmetryMonitor`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range, or an optimizer updates no parameter of the model.
        OSError: if the folder cannot be written.

    Example:
        >>> import torch
        >>> from lightning_symmetry import SymmetryTracker
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with SymmetryTracker(model, optimizer) as tracker:
        ...     for step in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(16, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> tracker.report.status, tracker.findings
        ('healthy', [])
    """

    _engine: SymmetryEngine

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        output: object = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_module(model)
        self._model: nn.Module | None = model
        self._kind = type(model).__name__
        optimizers = _optimizers_of(model, optimizer)
        self._outputs = self._outputs_of(output) if _rank() == 0 else []
        self._engine = SymmetryEngine(self.options, who="SymmetryTracker", notify=_notify)
        self._engine.prepare(model)
        self._is_closed = False
        self._should_stop = False
        self._has_started = False
        self._optimizers: Sequence[Any] = optimizers
        handles = [watch_steps(optimizer, self._before_update) for optimizer in optimizers]
        self._handles = [handle for handle in handles if handle is not None]
        hookless = [type(each).__name__ for each, handle in zip(optimizers, handles, strict=True) if handle is None]
        if hookless:
            names = ", ".join(hookless)
            warn(f"SymmetryTracker cannot watch {names}, which has no hooks for its steps. Training goes on.")

    @property
    def should_stop(self) -> bool:
        """Whether there is a finding and ``on_symmetry`` is ``"stop"``, so that your loop should end."""
        return self._should_stop

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, so that a resumed training keeps schedule and findings.

        Returns:
            Plain numbers, strings, lists and dicts, which ``torch.load`` reads with ``weights_only=True``.
        """
        return self._engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from :meth:`state_dict`; if that fails, warn and start without it.

        Raises:
            RuntimeError: if the tracker is closed.
        """
        self._refuse_if_closed("load_state_dict")
        self._engine.load_state_dict(state)

    def close(self) -> None:
        """End the watch: finish the outputs and summarise the model. A second call does nothing.

        Raises:
            SymmetryError: if there is no conclusion about the model and ``require_conclusion`` is set.
        """
        if not self._is_closed:
            self.abandon()
            self._engine.confirm()

    def abandon(self) -> None:
        """End the watch of a training that has failed, like :meth:`close`, but without requiring a conclusion."""
        if self._is_closed:
            return
        self._is_closed = True
        for handle in self._handles:
            handle.remove()
        self._engine.guarded(self._finish)
        self._handles, self._outputs, self._optimizers, self._model = [], [], (), None

    def __enter__(self) -> Self:
        self._refuse_if_closed("a with statement")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # `close` may raise, which would hide the exception of the training
            self.abandon()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<SymmetryTracker of {self._kind}, {state}: {self.report!r}>"

    def _before_update(self, optimizer: Any) -> None:
        self._engine.guarded(self._before_step, optimizer)

    def _before_step(self, optimizer: Any) -> None:
        assert self._model is not None
        self._start(self._model)
        every_n_steps = self.options.every_n_steps or _EVERY_N_STEPS
        step = self._engine.num_steps
        conclusion = self._engine.before_step(self._model, optimizer, step, every_n_steps, lambda: self._outputs)
        if conclusion is not None and self._engine.act(conclusion, self._model):
            self._should_stop = True

    def _start(self, model: nn.Module) -> None:
        """Begin the watch unless it has begun: before the first step, or at the end if there was none."""
        if not self._has_started:
            # The model may be wrapped after the tracker was made, so `__init__` cannot do this.
            num_ranks = dist.get_world_size() if is_replicated(model) and has_group() else 1
            self._engine.start(self._optimizers, num_ranks=num_ranks, is_speaking=_rank() == 0)
            self._has_started = True

    def _finish(self) -> None:
        if self._model is not None:
            self._start(self._model)
        summary = [] if self.options.on_symmetry == "ignore" else [ConsoleSummary(_notify)]
        self._engine.finish([*self._outputs, *summary])

    def _outputs_of(self, output: object) -> list[Output]:
        several = output if isinstance(output, list | tuple) else [output]
        heatmaps, scalars = self.options.heatmaps, self.options.scalars
        return [found for target in several if target is not None for found in outputs_of(target, heatmaps, scalars)]

    def _refuse_if_closed(self, what: str) -> None:
        if self._is_closed:
            raise RuntimeError(f"Expected an open SymmetryTracker for {what} but this one is closed: make a new one.")


def _notify(text: str) -> None:
    with above_bars(__name__):
        logger.info(text)


def _optimizers_of(model: nn.Module, optimizer: object) -> list[Any]:
    """Check the argument ``optimizer``. Return the optimizers in it, unwrapped."""
    raw: list[Any] = list(map(unwrap, optimizer if isinstance(optimizer, Sequence) else [optimizer]))
    for one in raw:
        if not (isinstance(one, Optimizer) or (hasattr(one, "param_groups") and callable(getattr(one, "step", None)))):
            raise TypeError(
                "Expected argument `optimizer` to be a torch.optim.Optimizer or a sequence of optimizers but got "
                f"{brief(optimizer)}."
            )
    if not raw:
        raise ValueError(f"Expected argument `optimizer` to hold at least one optimizer but got {brief(optimizer)}.")
    own = set(map(id, parameters_of(model)))
    for one in raw:
        if own.isdisjoint(updated_by([one])):
            hint = " Pass the one that deepspeed.initialize returns, engine.optimizer." if zero_modules(model) else ""
            raise ValueError(
                "Expected argument `optimizer` to update parameters of `model` but none of the parameters of "
                f"{type(one).__name__} belongs to this {type(model).__name__}.{hint}"
            )
    return raw


def _rank() -> int:
    # Without a process group each process is a separate training, whatever the environment variables say.
    return dist.get_rank() if has_group() else 0
