"""Whole modules that are exact copies of one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_symmetry.layers import (
    Layer,
    NotUnderstoodError,
    check_tensor,
    is_trained,
    readable_gradient,
    readable_name,
)
from lightning_symmetry.rows import Rows

# So many numbers of one parameter are compared before whole tensors are.
_GLANCE = 16


@dataclass(frozen=True)
class Copies:
    """Modules of one class with equal parameters; compared like units, each module being one row.

    Attributes:
        row_names: of the modules, in the order of the model.
        modules: the modules.
    """

    row_names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    blocks: ClassVar[int] = 1
    also: ClassVar[tuple[str, ...]] = ()
    can_freeze: ClassVar[bool] = False  # experts may well go unused for a while

    @property
    def name(self) -> str:
        """All names."""
        return ", ".join(self.row_names)

    @property
    def num_units(self) -> int:
        """Number of modules."""
        return len(self.modules)

    @property
    def fan_in(self) -> int:
        """Number of parameters of one module."""
        return self.weights().width

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.modules[0].parameters()).device

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """Of all parameters."""
        return tuple(map(id, self.originals()))

    def weights(self) -> Rows:
        """One row per module: all of its parameters."""
        columns = zip(*(module.parameters() for module in self.modules), strict=True)
        return Rows([[parameter.detach() for parameter in column] for column in columns])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """The gradients of these rows, or None if there is nothing to see."""
        pieces: list[list[Tensor]] = []
        for column in zip(*(module.parameters() for module in self.modules), strict=True):
            if not all(is_trained(parameter, trained) for parameter in column):
                continue
            gradients = [gradient for p in column if (gradient := readable_gradient(p)) is not None]
            if len(gradients) < len(column):
                return None
            pieces.append(gradients)
        return Rows(pieces) if pieces else None

    def originals(self) -> list[Tensor]:
        """All parameters of all modules."""
        return [parameter for module in self.modules for parameter in module.parameters()]

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Whether the optimizer with these parameters updates any of them."""
        return not trained.isdisjoint(self.identity)

    def recurrent_rows(self) -> Tensor | None:
        """None: modules do not feed one another."""
        return None


def find_copies(model: nn.Module, layers: Iterable[Layer]) -> list[Copies]:
    """Find the outermost modules that are copies of one another and hold at least one of the layers.

    Modules whose parameters are constants are left out: that all zero-initialised heads are alike is no news.

    Args:
        model: any module.
        layers: its layers, as :func:`find_layers` gives them; modules without any are not worth a word.

    Returns:
        Sets of two or more modules with bitwise equal parameters, none of them shared.
    """
    readable = {id(original) for layer in layers for original in layer.originals()}
    alike: dict[object, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if any(id(parameter) in readable for parameter in module.parameters()) and _is_telling(module):
            alike.setdefault(_glance(module), []).append((readable_name(path, module), module))
    accepted: list[Copies] = []
    inside: list[str] = []
    for candidates in alike.values():
        outer = [(name, module) for name, module in candidates if not name.startswith(tuple(inside))]
        for group in _equal(outer) if len(outer) > 1 else ():
            accepted.append(Copies(*(tuple(part) for part in zip(*group, strict=True))))
            inside += [f"{name}." for name, _ in group]
    return accepted


def _is_telling(module: nn.Module) -> bool:
    """Whether the numbers of a module can be read, and are more than a constant for each parameter."""
    try:
        for parameter in module.parameters():
            check_tensor(parameter)
    except NotUnderstoodError:
        return False
    return any(bool((parameter != parameter.flatten()[:1]).any()) for parameter in module.parameters())


def _glance(module: nn.Module) -> object:
    """The same for copies, and as a rule for nothing else: class, shapes, and the first few numbers."""
    parameters = dict(module.named_parameters())
    shapes = tuple((name, parameter.shape, parameter.dtype) for name, parameter in parameters.items())
    first = max(parameters.values(), key=lambda parameter: parameter.ndim)
    return (type(module), shapes, tuple(first.detach().flatten()[:_GLANCE].tolist()))


def _equal(candidates: Sequence[tuple[str, nn.Module]]) -> Iterator[list[tuple[str, nn.Module]]]:
    groups: list[list[tuple[str, nn.Module]]] = []
    for name, module in candidates:
        for group in groups:
            if _are_copies(group[0][1], module):
                group.append((name, module))
                break
        else:
            groups.append([(name, module)])
    return (group for group in groups if len(group) > 1)


def _are_copies(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(p is not q and p.device == q.device and torch.equal(p, q) for p, q in pairs)
