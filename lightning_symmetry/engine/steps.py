"""Optimizer steps: which are checked, and hooks that run right before each, in any training loop."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.ranks.zero import groups_of, is_zero_optimizer

# Wrappers whose `step` calls that of the optimizer inside, with its hooks. By name, to import none of the libraries.
_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}


class Schedule:
    """Decides which steps of each optimizer are checked: 0, 1, 3, 7, ..., and then every ``every_n_steps``.

    Attributes:
        num_steps: by index of the optimizer, how many steps it has begun.

    Example:
        >>> schedule, checked = Schedule(), []
        >>> for step in range(24):
        ...     if schedule.is_due(0, every_n_steps=10):
        ...         checked.append(step)
        ...     schedule.count(0, step)
        >>> checked
        [0, 1, 3, 7, 10, 20]
    """

    def __init__(self) -> None:
        self.num_steps: dict[int, int] = {}
        self._latest: dict[int, int] = {}  # by index of the optimizer, the training's step at its latest step

    def is_repeated(self, index: int, step: int) -> bool:
        """Return whether this step was counted before; LBFGS evaluates its closure several times in one step.

        Args:
            index: the index of the optimizer in the training.
            step: completed optimizer steps of the training.
        """
        return self._latest.get(index) == step

    def is_due(self, index: int, every_n_steps: int) -> bool:
        """Return whether the optimizer's next step is to be checked; ``every_n_steps`` 0: only 0, 1, 3, 7, ... are."""
        own_step = self.num_steps.get(index, 0)
        if every_n_steps and own_step >= every_n_steps:
            return own_step % every_n_steps == 0
        return own_step & (own_step + 1) == 0

    def load(self, num_steps: Mapping[Any, Any]) -> None:
        """Restore the numbers of steps; from a checkpoint in JSON, the indices come back as strings.

        Raises:
            TypeError: if a number of steps is not an integer.
            ValueError: if an index is not an integer.
        """
        self.num_steps = {int(index): operator.index(number) for index, number in num_steps.items()}

    def count(self, index: int, step: int) -> None:
        """Count a step of an optimizer."""
        self._latest[index] = step
        self.num_steps[index] = self.num_steps.get(index, 0) + 1


def unwrap(optimizer: object) -> object:
    """Return the optimizer inside a wrapper of accelerate, Fabric or Lightning; anything else as it is."""
    while _WRAPPERS.intersection(kind.__name__ for kind in type(optimizer).__mro__):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


class Handle(Protocol):
    """Removes a hook."""

    def remove(self) -> None:
        """Remove the hook."""
        ...


class _Wrapped:
    """Calls a function before each step of an optimizer without hooks, until removed."""

    def __init__(self, optimizer: Any, before_update: Callable[[Any], None]) -> None:
        self._optimizer: Any = optimizer
        step = optimizer.step

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._optimizer is not None:
                before_update(optimizer)
            return step(*args, **kwargs)

        self._own_before = optimizer.__dict__.get("step")
        self._watched = optimizer.step = watched

    def remove(self) -> None:
        """Stop calling the function; restore the original ``step`` unless somebody has wrapped it again."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is None or optimizer.__dict__.get("step") is not self._watched:
            return
        if self._own_before is None:
            del optimizer.step
        else:
            optimizer.step = self._own_before


def watch_steps(optimizer: Any, before_update: Callable[[Any], None]) -> Handle | None:
    """Call a function once in every step of an optimizer, when the gradients of the step are present.

    That is before the step or, if the step gets a closure that computes the gradients, after its first evaluation:
    LBFGS evaluates the closure several times per step, only the first time at the weights before the step.

    Args:
        optimizer: any unwrapped optimizer of PyTorch, or one of another class around it. A DeepSpeed optimizer steps
            the one inside several times per step, and is hooked itself.
        before_update: called with the optimizer. An exception ends the step before anything is updated.

    Returns:
        A handle, whose method ``remove`` removes the hook; None if no optimizer has hooks.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> handle = watch_steps(optimizer, lambda optimizer: print("about to move from", weight.tolist()))
        >>> weight.sum().backward()
        >>> optimizer.step()
        about to move from [1.0, 1.0]
        >>> handle.remove()
        >>> weight.tolist()
        [0.5, 0.5]
    """
    if is_zero_optimizer(optimizer):
        return _Wrapped(optimizer, before_update)

    def pre_hook(
        stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # The first positional argument is the stepping optimizer.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            before_update(optimizer)
            return None
        watched = _then_once(closure, before_update, optimizer)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    # Otherwise a compiled step would compile the whole check.
    hook = torch.compiler.disable(pre_hook)
    for candidate in (optimizer, *_inner_optimizers(optimizer)):
        with suppress(Exception):  # many wrappers never call `Optimizer.__init__` and have no hooks
            handle: RemovableHandle = candidate.register_step_pre_hook(hook)
            return handle
    return None


def _inner_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return the optimizers among the attributes of another one that share parameters with it."""
    inner = [each for each in getattr(optimizer, "__dict__", {}).values() if isinstance(each, Optimizer)]
    return [each for each in inner if not updated_by([optimizer]).isdisjoint(updated_by([each]))]


def updated_by(optimizers: Iterable[Any]) -> set[int]:
    """Return the ids of all parameters that some optimizers update."""
    return {id(parameter) for each in optimizers for _, parameters in groups_of(each) for parameter in parameters}


def _then_once(
    closure: Callable[..., Any], before_update: Callable[[Optimizer], None], optimizer: Optimizer
) -> Callable[..., Any]:
    """Wrap a closure such that its first evaluation is followed by a call of ``before_update``."""
    is_first = True

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        result = closure(*args, **kwargs)
        if is_first:
            is_first = False
            before_update(optimizer)
        return result

    return watched
