"""The monitor for training loops of any kind."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lightning_symmetry.arguments import check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import OnSymmetry, Options
from lightning_symmetry.engine.steps import unwrap, watch_steps
from lightning_symmetry.outputs.console import ConsoleSummary
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.outputs.output import Heatmaps, Output, Scalars
from lightning_symmetry.ranks.reading import device_to_send_from, has_group, team_of_all
from lightning_symmetry.repair.breaking import Change
from lightning_symmetry.verdicts.report import Finding, SymmetryReport

_EVERY_N_STEPS = 50

logger = logging.getLogger(__name__)


class SymmetryTracker:
    """Watch a training loop of any kind for units that are updated as one.

    The tracker hooks into the steps of the optimizers; the loop stays as it is. It looks at the weights and gradients
    of all supported layers before the optimizer steps 0, 1, 3, 7, ... and then every ``every_n_steps``. What is found
    is warned of once. The training is not touched: with and without the tracker, weights, optimizer states and random
    numbers are the same to the last bit.

    With several processes, make a tracker on each of them: they answer one another at every check. The first one warns
    and writes.

    Args:
        model: the model, or what DDP, FSDP, ``torch.compile``, Fabric or accelerate have made of it.
        optimizer: what updates it, or a sequence of several; wrapped by Fabric or accelerate or not.
        output: where to write: a folder, which gets TensorBoard events, pictures, ``findings.json`` and
            ``report.html``; a ``SummaryWriter``; a run of Weights & Biases; a logger of Lightning or Fabric; or a
            sequence of these. None: nowhere.
        every_n_steps: steps of an optimizer between checks after the first ones; None: 50.
        tolerance: relative L2 distance of rows that count as equal; None: by dtype.
        patience: checks in a row that must agree before units are called frozen or lockstep, or locked if they were
            distinct at first.
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
        exclude: patterns of layer names to leave out.
        heatmaps: pictures of layers: of those with findings, when these change; of all, at every check; or none.
        on_symmetry: what a new finding leads to: a warning; a warning and :attr:`should_stop`; a warning and a
            :class:`SymmetryError` out of ``optimizer.step()``; a warning and new weights for these units, see
            :func:`break_symmetry`, which is the one choice that changes the training; or nothing but the records.
        scalars: totals, and the layers that have findings or are condensed, at most eight of them; totals and all
            layers; totals and all layers with findings; or none.
        require_conclusion: whether :meth:`close` raises if nothing could be concluded of the model.
        dead_share: the share of a layer's units that must be dead before the user is warned of them.

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

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        output: object = None,
        every_n_steps: int | None = None,
        tolerance: float | None = None,
        patience: int = 3,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        heatmaps: Heatmaps = "findings",
        on_symmetry: OnSymmetry = "warn",
        scalars: Scalars = "summary",
        require_conclusion: bool = False,
        dead_share: float = 0.5,
    ) -> None:
        self.options = Options(
            every_n_steps,
            tolerance,
            patience,
            include,
            exclude,
            heatmaps,
            on_symmetry,
            scalars,
            require_conclusion,
            dead_share,
        )
        check_module(model)
        self._model = model
        self._optimizers = _optimizers_of(model, optimizer)
        self._outputs = self._outputs_of(output) if _rank() == 0 else []
        self._engine = SymmetryEngine(self.options, who="SymmetryTracker", tell=logger.info)
        self._is_started = False
        self._is_closed = False
        self._should_stop = False
        self._handles = [watch_steps(optimizer, self._before_update) for optimizer in self._optimizers]

    @property
    def report(self) -> SymmetryReport | None:
        """The latest report; None before the first check."""
        return self._engine.report

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of, with layer, units, verdict, and when it was seen and broken."""
        return self._engine.findings

    @property
    def changes(self) -> list[Change]:
        """What was changed in the model, with ``on_symmetry="break"``."""
        return self._engine.changes

    @property
    def should_stop(self) -> bool:
        """Whether something was found, and ``on_symmetry`` is ``"stop"``: a loop of your own may want to end."""
        return self._should_stop

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, so that a resumed training keeps schedule and findings, and does not warn again.

        Returns:
            Plain numbers, strings, lists and dicts, which ``torch.load`` reads with ``weights_only=True``.
        """
        return self._engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; if that fails, the user is warned and the tracker starts anew.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            RuntimeError: if the tracker is closed.
        """
        self._refuse_if_closed("load_state_dict")
        self._engine.load_state_dict(state)
        self._is_started = False  # the other ranks must have loaded the same

    def close(self) -> None:
        """End the watch: write what outputs write at the end, and say what became of the model.

        A second call does nothing.

        Raises:
            SymmetryError: if nothing could be concluded of the model, and ``require_conclusion`` is set.
        """
        if not self._is_closed:
            self._end()
            self._engine.confirm()

    def __enter__(self) -> Self:
        self._refuse_if_closed("a with statement")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._is_closed:  # an error on its way must not be replaced by another
            self._end()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<SymmetryTracker of {type(self._model).__name__}, {state}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self._engine.to_html()

    def _before_update(self, optimizer: Optimizer) -> None:
        if not self._is_started:
            # Only now is it certain that the processes of the training have found one another.
            self._is_started = True
            team = team_of_all(_num_ranks(), device_to_send_from(self._model))
            self._engine.start(self._optimizers, team, is_speaking=_rank() == 0)
        every_n_steps = self.options.every_n_steps or _EVERY_N_STEPS
        conclusion = self._engine.before_step(
            self._model, optimizer, self._engine.num_steps, every_n_steps, self._outputs
        )
        if conclusion is not None and self._engine.act(conclusion, self._model):
            self._should_stop = True

    def _end(self) -> None:
        self._is_closed = True
        for handle in self._handles:
            handle.remove()
        summary = [] if self.options.on_symmetry == "ignore" else [ConsoleSummary(logger.info)]
        self._engine.finish([*self._outputs, *summary])

    def _outputs_of(self, output: object) -> list[Output]:
        several = output if isinstance(output, list | tuple) else [output]
        heatmaps, scalars = self.options.heatmaps, self.options.scalars
        return [found for target in several if target is not None for found in outputs_of(target, heatmaps, scalars)]

    def _refuse_if_closed(self, what: str) -> None:
        if self._is_closed:
            raise RuntimeError(f"Expected an open SymmetryTracker for {what} but this one is closed: make a new one.")


def _optimizers_of(model: nn.Module, optimizer: object) -> list[Optimizer]:
    """The raw optimizers among what a user has passed in."""
    several = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    raw: list[Optimizer] = []
    for one in map(unwrap, several):
        if not isinstance(one, Optimizer):
            raise TypeError(
                "Expected argument `optimizer` to be a torch.optim.Optimizer or a sequence of optimizers but got "
                f"{brief(optimizer)}."
            )
        raw.append(one)
    if not raw:
        raise ValueError(f"Expected argument `optimizer` to hold at least one optimizer but got {brief(optimizer)}.")
    own = {id(parameter) for parameter in model.parameters()}
    for one in raw:
        if own.isdisjoint(id(parameter) for group in one.param_groups for parameter in group["params"]):
            raise ValueError(
                "Expected argument `optimizer` to update parameters of `model` but none of the parameters of "
                f"{type(one).__name__} belongs to this {type(model).__name__}."
            )
    return raw


def _num_ranks() -> int:
    return dist.get_world_size() if has_group() else 1


def _rank() -> int:
    # Before the processes have found one another, torchrun and its like have told each of them its number.
    return dist.get_rank() if has_group() else int(os.environ.get("RANK", "0"))
