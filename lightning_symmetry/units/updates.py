"""How optimizers update parameters: the options and the state of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.matrices.question import LEAVE_TOLERANCES
from lightning_symmetry.ranks.pieces import View, is_sharded
from lightning_symmetry.ranks.zero import groups_of

# Options of a parameter group without effect on its updates.
_WITHOUT_EFFECT = {"params", "param_names", "initial_lr"}


class Updates:
    """Tells whether optimizers turn equal gradients into equal updates, of parameters or of units of a parameter.

    Equal weights diverge at the next step if a weight decay, a learning rate or a running average differs.

    Example:
        >>> a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        >>> groups = [{"params": [a]}, {"params": [b], "lr": 0.5}]
        >>> Updates([torch.optim.SGD(groups, lr=0.1)]).are_alike([a, b])
        False
    """

    def __init__(self, optimizers: Iterable[Any] = ()) -> None:
        self._optimizers = list(optimizers)

    @cached_property
    def _groups(self) -> dict[int, tuple[Any, dict[str, Any]]]:
        """The optimizer and the parameter group of each parameter, keyed by ``id``."""
        return {
            id(parameter): (optimizer, group)
            for optimizer in self._optimizers
            for group, parameters in groups_of(optimizer)
            for parameter in parameters
        }

    @property
    def parameters(self) -> Set[int]:
        """The identities (``id``) of all parameters that an optimizer updates."""
        return frozenset(self._groups)  # a view would keep the optimizers alive

    def are_alike(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether parameters of one shape have equal options and equal optimizer state."""
        first, *others = parameters
        options, state = self._options_of(first), self._state_of(first, with_counts=True)
        return all(
            options == self._options_of(each) and _are_equal(state, self._state_of(each, with_counts=True))
            for each in others
        )

    def share_a_group(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether parameters are in one parameter group, so that no schedule can treat them differently."""
        groups = [self._groups.get(id(parameter)) for parameter in parameters]
        return all(each is not None and groups[0] is not None and each[1] is groups[0][1] for each in groups)

    def are_alike_along(self, parameter: Tensor, view: View, units: Sequence[int]) -> bool:
        """Return whether units of one parameter have equal optimizer state; ``view`` puts units first."""
        states = self._state_of(parameter, with_counts=False).values()
        several = (view(state)[list(units)] for state in states)
        return all(_are_close(rows, rows[:1]) for rows in several)

    def _options_of(self, parameter: Tensor) -> tuple[object, dict[str, object]]:
        optimizer, group = self._groups.get(id(parameter), (None, {}))
        options = {name: _plain(value) for name, value in group.items() if name not in _WITHOUT_EFFECT}
        return type(optimizer), {name: value for name, value in options.items() if not isinstance(value, str)}

    def _state_of(self, parameter: Tensor, *, with_counts: bool) -> dict[str, Tensor]:
        """Return the optimizer's tensors of the parameter's shape; with ``with_counts`` also its single numbers."""
        optimizer, _ = self._groups.get(id(parameter), (None, {}))
        state = getattr(optimizer, "state", {}).get(parameter, {}) if optimizer is not None else {}
        shapes = (parameter.shape, torch.Size()) if with_counts else (parameter.shape,)
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, Tensor) and value.shape in shapes and not is_sharded(value)
        }


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_are_close(a[name][None], b[name][None].to(a[name].device)) for name in a)


def _are_close(rows: Tensor, others: Tensor) -> bool:
    """Return whether rows ``(n, ...)`` agree with others, ``(n, ...)`` or ``(1, ...)``, up to accumulated rounding."""
    limit = LEAVE_TOLERANCES.get(rows.dtype.to_real(), 0.0)
    apart, *sizes = (each.abs().float().reshape(len(each), -1).norm(dim=1) for each in (rows - others, rows, others))
    return not bool((apart > limit * torch.maximum(*sizes)).any())
