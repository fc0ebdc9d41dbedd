"""An optimizer of the merged network that carries on where that of the original one stands."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.brief import brief
from lightning_symmetry.merging.edits import Edit
from lightning_symmetry.merging.errors import MergeError

# What optimizers of PyTorch keep for each parameter, by its name in their state.
_LINEAR = frozenset({"momentum_buffer", "exp_avg", "grad_avg", "ax", "prev"})
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Refuse what is no optimizer over parameters of the model.

    Raises:
        TypeError: if it is no optimizer.
        ValueError: if it updates other parameters too.
    """
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"Expected argument `optimizer` to be a torch.optim.Optimizer or None but got {brief(optimizer)}."
        )
    known = set(map(id, model.parameters()))
    strange = sum(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"])
    if strange:
        raise ValueError(
            "Expected argument `optimizer` to be an optimizer over the parameters of `model` "
            f"but {strange} of its parameters belong to no module of it."
        )


def carried_over(
    optimizer: torch.optim.Optimizer, model: nn.Module, merged: nn.Module, edits: Iterable[Edit]
) -> torch.optim.Optimizer:
    """An optimizer of the same class and settings over the parameters of the merged network, with its state.

    The state is what it would be if the gradients had been multiplied by ``Merged.gradient_scale`` all along: momentum
    goes as the weights do, averages of squared gradients are multiplied by the square of the factor, and counts of
    steps stay.

    Args:
        optimizer: that of the original network; it stays as it is.
        model: the original network.
        merged: the merged one, whose parameters have the same names.
        edits: what was done, in this order.

    Raises:
        MergeError: if the optimizer keeps something of which it is not known how it goes with the weights.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MergeError("the state of LBFGS belongs to no single parameter; merge without `optimizer`, make a new one")
    edits_of: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        edits_of[edit.name].append(edit)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(merged.named_parameters())
    state: dict[Tensor, Any] = defaultdict(dict)
    groups = []
    for group in optimizer.param_groups:
        groups.append({**group, "params": [parameters[names[id(parameter)]] for parameter in group["params"]]})
        for parameter in group["params"]:
            name = names[id(parameter)]
            if parameter in optimizer.state:
                state[parameters[name]] = _carry(optimizer.state[parameter], parameter, edits_of[name])
    # An optimizer is rebuilt as after unpickling: not every class takes its own `defaults` as arguments.
    twin: Any = type(optimizer).__new__(type(optimizer))
    twin.__setstate__({"defaults": dict(optimizer.defaults), "state": state, "param_groups": groups})
    rebuilt: torch.optim.Optimizer = twin
    return rebuilt


def _carry(state: Mapping[str, Any], parameter: Tensor, edits: list[Edit]) -> dict[str, Any]:
    return {name: _carry_one(name, value, parameter, edits) for name, value in state.items()}


def _carry_one(name: str, value: Any, parameter: Tensor, edits: list[Edit]) -> Any:
    if not edits or not isinstance(value, Tensor | list | dict) or (isinstance(value, Tensor) and not value.ndim):
        return copy.deepcopy(value)
    if isinstance(value, Tensor) and value.shape == parameter.shape and name in _LINEAR | _SQUARES:
        for edit in edits:
            value = edit.apply(value) if name in _LINEAR else edit.apply_to_squares(value)
        return value
    raise MergeError(
        f"it is not known how `{name}`, which the optimizer keeps for each parameter, goes with the weights; "
        "merge without `optimizer` and make a new one"
    )
