"""A test of a model for symmetry, for test suites."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_symmetry.arguments import check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.engine.messages import SymmetryError, SymmetryWarning, warn
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.ranks.team import describe
from lightning_symmetry.tracker import SymmetryTracker
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.doubts import may_be_dead
from lightning_symmetry.verdicts.report import SymmetryReport

T = TypeVar("T")
Batch = TypeVar("Batch")
ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Maximal number of steps after the first `patience` ones.
_MAX_STEPS = 8
_DEAD_STEPS = 50  # if some units may be dead: the verdict takes more than 50 steps


def assert_no_symmetry(
    model: ModuleT,
    loss: Callable[[ModuleT, Batch], Tensor],
    batches: Iterable[Batch],
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    **options: Any,
) -> SymmetryReport:
    """Train a copy of a model for a few steps, and raise if units of it train as one or do not train at all.

    The model, the optimizer and the global random numbers (of torch, numpy and Python) are unaffected. With the
    default ``patience`` it takes 4 optimizer steps, up to 12 while something is undecided, and up to 54 while units may
    be dead. If there are fewer batches, they are repeated.

    Args:
        model: the model, in the mode (``train`` or ``eval``) in which it will be trained.
        loss: computes the loss of a batch, with gradients, from the copy of the model and the batch.
        batches: at least one batch, of any kind that ``loss`` accepts.
        optimizer: an optimizer of the model, which is copied; or a function that makes one from parameters; None: plain
            gradient descent with a learning rate of 0.01.
        **options: ``tolerance``, ``patience``, ``include``, ``exclude`` and ``require_conclusion`` of
            :class:`lightning_symmetry.SymmetryMonitor`.

    Returns:
        The report; its ``status`` is ``"healthy"``, or ``"inconclusive"`` if parts of the model could not be checked.

    Raises:
        SymmetryError: with the report and the findings, if there are any; or if the report is inconclusive and
            ``require_conclusion`` is set.
        TypeError: if an argument is of the wrong type, or cannot be copied.
        ValueError: if there are no batches, or the loss is not one number with a gradient.

    Warns:
        SymmetryWarning: if the report is inconclusive.

    Example:
        >>> import torch
        >>> from lightning_symmetry import assert_no_symmetry
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> assert_no_symmetry(model, loss, [torch.randn(16, 4)]).status
        'healthy'
        >>> _ = torch.nn.init.constant_(model[0].weight, 0.5), torch.nn.init.constant_(model[0].bias, 0.0)
        >>> _ = torch.nn.init.constant_(model[2].weight, 0.5)
        >>> assert_no_symmetry(model, loss, [torch.randn(16, 4)])
        Traceback (most recent call last):
        lightning_symmetry.SymmetryError: 0: all 8 units are identical in weights and gradients ...
    """
    __tracebackhide__ = True  # makes pytest show the line of the test instead of this function
    check_module(model)
    _check_loss_function(loss)
    if not isinstance(batches, Iterable):
        raise TypeError(f"Expected argument `batches` to be an iterable of batches but got {brief(batches)}.")
    unknown = options.keys() - {"tolerance", "patience", "include", "exclude", "require_conclusion"}
    if unknown:
        raise TypeError(f"assert_no_symmetry got an unexpected keyword argument {min(unknown)!r}.")
    require_conclusion = options.pop("require_conclusion", False)
    with preserved_random_numbers(), torch.enable_grad():
        tracker = _train_copy(model, loss, batches, optimizer, options)
    report = tracker.report
    assert report is not None
    if tracker.findings:
        raise SymmetryError("\n".join(messages(tracker.findings, report)), report, tracker.findings)
    if report.status == "inconclusive":
        text = f"assert_no_symmetry comes to no conclusion ({'; '.join(report.reasons)})."
        if require_conclusion or report.untrained:
            raise SymmetryError(text, report, [])
        warn(f"{text} That it raised nothing does not mean that the model is healthy.", SymmetryWarning)
    return report


def _train_copy(
    model: ModuleT,
    loss: Callable[[ModuleT, Batch], Tensor],
    batches: Iterable[Batch],
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    options: dict[str, Any],
) -> SymmetryTracker:
    """Train a copy of the model until there is a conclusion or the maximal number of steps. Return its tracker."""
    trained, its_optimizer = _copies(model, optimizer)
    needs_closure = False
    with SymmetryTracker(trained, its_optimizer, every_n_steps=1, on_symmetry="ignore", **options) as tracker:
        for step, batch in enumerate(cycle(batches)):

            def closure(batch: Batch = batch) -> Tensor:
                its_optimizer.zero_grad()
                value = loss(trained, batch)
                _check_loss(value)
                value.backward()
                return value

            needs_closure = _step(its_optimizer, closure, needs_closure)
            assert tracker.report is not None
            is_decided = tracker.report.status != "inconclusive" and step >= tracker.options.patience
            is_waiting = may_be_dead(tracker.report.layers.values(), tracker.options.dead_share)
            max_steps = _DEAD_STEPS if is_waiting else _MAX_STEPS
            if is_decided or step >= max_steps + tracker.options.patience:
                return tracker
        raise ValueError("Expected argument `batches` to hold at least one batch but it is empty.")


def _copies(
    model: ModuleT, optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None
) -> tuple[ModuleT, Optimizer]:
    """Copy the model, and make an optimizer of the copy."""
    # The memo of `copy.deepcopy` is shared, so that the copied optimizer updates the copied model. PyTorch refuses to
    # copy tensors with a graph, which `torch.nn.utils.weight_norm` or a forward pass may leave: copies are put in here.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in (*vars(module).values(), *module._buffers.values())
        if isinstance(value, Tensor) and not value.is_leaf
    }
    trained = _copy("model", model, memo)
    if isinstance(optimizer, Optimizer):
        its_optimizer = _copy("optimizer", optimizer, memo)
        for name, value in vars(optimizer).items():
            # PyTorch copies only three attributes of an optimizer. Attributes that replace methods are not copied.
            if not hasattr(its_optimizer, name):
                setattr(its_optimizer, name, _copy("optimizer", value, memo))
        return trained, its_optimizer
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"Expected argument `model` to have parameters that train but got {brief(model)}.")
    if optimizer is None:
        return trained, SGD(parameters, lr=0.01)
    if not callable(optimizer):
        raise TypeError(
            "Expected argument `optimizer` to be a torch.optim.Optimizer, a function that makes one from parameters, "
            f"or None but got {brief(optimizer)}."
        )
    return trained, optimizer(parameters)


_ALTERNATIVES = {
    "model": "Pass the model before its first use, or define `__deepcopy__` on the part that cannot be copied.",
    "optimizer": "Pass a function that makes the optimizer from parameters.",
}


def _copy(argument: str, value: T, memo: dict[int, Any]) -> T:
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise TypeError(
            f"Expected argument `{argument}` to be something that copy.deepcopy can copy but it failed with "
            f"{describe(error)}. {_ALTERNATIVES[argument]}"
        ) from error


def _step(optimizer: Optimizer, closure: Callable[[], Any], needs_closure: bool) -> bool:
    """Compute gradients and step. Return whether ``step`` needs the closure, as in LBFGS and SAM."""
    closure()  # SAM also needs gradients before its step
    if needs_closure:
        optimizer.step(closure)
        return True
    try:
        optimizer.step()
    except Exception as error:  # a missing closure raises different types of errors
        try:
            optimizer.step(closure)
        except Exception:
            raise error from None
        return True
    return False


def _check_loss_function(loss: object) -> None:
    """Check that ``loss`` can be called with a model and a batch."""
    expected = "Expected argument `loss` to be a function of a model and a batch"
    hint = "Pass, for example, lambda model, batch: criterion(model(batch[0]), batch[1])."
    if not callable(loss):
        raise TypeError(f"{expected} but got {brief(loss)}. {hint}")
    kind = loss if isinstance(loss, type) else type(loss)
    if kind.__module__ == "torch.nn.modules.loss" or getattr(loss, "__module__", "") == "torch.nn.functional":
        raise TypeError(f"{expected} but got {brief(loss)}, a function of outputs and targets. {hint}")
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError as error:
        raise TypeError(f"{expected} but {brief(loss)} cannot be called with two arguments: {error}. {hint}") from error
    except ValueError:  # no signature, like some functions in C
        return


def _check_loss(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected argument `loss` to return a tensor but got {brief(value)}.")
    if value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"Expected argument `loss` to return one number with a gradient but got {brief(value)}.")
