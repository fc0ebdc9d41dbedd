"""The moment right before an optimizer updates the weights, in any training loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.ranks.zero import groups_of, is_zero_optimizer

# Classes around an optimizer that hand `step` on to it: its hooks are the ones that are called. By name, since none of
# these libraries should be imported for that.
_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}


def unwrap(optimizer: object) -> object:
    """The optimizer inside of what accelerate, Fabric and Lightning put around it; anything else as it is."""
    while _WRAPPERS.intersection(kind.__name__ for kind in type(optimizer).__mro__):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""
        ...


class _Wrapped:
    """A call before each step of an optimizer that has no hooks, until it is removed."""

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
        """Call it no more, and put back the step that was there, unless it has been wrapped again."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is None or optimizer.__dict__.get("step") is not self._watched:
            return
        if self._own_before is None:
            del optimizer.step
        else:
            optimizer.step = self._own_before


def watch_steps(optimizer: Any, before_update: Callable[[Any], None]) -> Handle | None:
    """Have a function called once in every step of an optimizer, when the gradients of the step are there.

    That is before the step, or, if the step is handed a closure that computes them, after the closure has been
    evaluated for the first time: LBFGS evaluates it several times in one step, of which only the first is at the
    weights that the step starts from.

    Args:
        optimizer: any optimizer of PyTorch, not wrapped, or one of another class around such an optimizer. Those of
            DeepSpeed make several steps of the one inside of a step of their own, and are watched themselves.
        before_update: called with the optimizer. What it raises ends the step before anything has been updated.

    Returns:
        A handle; its method ``remove`` ends the watch. None if there is no optimizer inside that tells of its steps.

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
        # The first of the positional arguments is the stepping optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            before_update(optimizer)
            return None
        watched = _then_once(closure, before_update, optimizer)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    # A step that is compiled would else be traced through all of the check.
    hook = torch.compiler.disable(pre_hook)
    for candidate in (optimizer, *_inner_optimizers(optimizer)):
        with suppress(Exception):  # many optimizers around others never call `Optimizer.__init__`, and have no hooks
            handle: RemovableHandle = candidate.register_step_pre_hook(hook)
            return handle
    return None


def _inner_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return the optimizers that an optimizer around others holds, and that update parameters of its own."""
    inner = [each for each in getattr(optimizer, "__dict__", {}).values() if isinstance(each, Optimizer)]
    return [each for each in inner if not updated_by([optimizer]).isdisjoint(updated_by([each]))]


def updated_by(optimizers: Iterable[Any]) -> set[int]:
    """Return the identities (``id``) of all parameters that some optimizers update."""
    return {id(parameter) for each in optimizers for _, parameters in groups_of(each) for parameter in parameters}


def _then_once(
    closure: Callable[..., Any], before_update: Callable[[Optimizer], None], optimizer: Optimizer
) -> Callable[..., Any]:
    """A closure that calls ``before_update`` after it has been evaluated for the first time."""
    is_first = True

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        result = closure(*args, **kwargs)
        if is_first:
            is_first = False
            before_update(optimizer)
        return result

    return watched
