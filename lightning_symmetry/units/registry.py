"""Layer types and their adapters.

An adapter describes one layer type: it takes a module and says which tensors feed its units and how to turn each
tensor so that its first dimension counts units. The same turn serves the weights and their gradients, and it makes
views, never copies. :func:`register_layer` adds an adapter; subclasses use that of their nearest ancestor. The adapters
of PyTorch's own layers are in :mod:`lightning_symmetry.units.adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

View = Callable[[Tensor], Tensor]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Units:
    """The units of a layer, or of one part of it.

    Args:
        *tensors: what feeds the units, the weight first, then for example the bias; each a tensor whose first dimension
            counts units, or a pair of a tensor and the view that makes it so, ``tensor -> (num_units, ...)``. ``None``
            is dropped, so that ``Units(module.weight, module.bias)`` serves layers without a bias too.
        blocks: units of different blocks see different inputs and are never compared; the groups of a convolution.
        part: name of this part of the layer, if there are several; the layer is reported as ``name.part``.
        recurrent: a tensor that feeds the units back into themselves, with the view
            ``tensor -> (num_units, gates, num_units)``. Units are then the same if they can be exchanged without
            changing what the layer computes, though their rows of this tensor may differ.
    """

    tensors: tuple[tuple[Tensor, View], ...]
    blocks: int
    part: str
    recurrent: tuple[Tensor, View] | None

    def __init__(
        self,
        *tensors: Tensor | tuple[Tensor, View] | None,
        blocks: int = 1,
        part: str = "",
        recurrent: tuple[Tensor, View] | None = None,
    ) -> None:
        pairs = tuple(item if isinstance(item, tuple) else (item, _as_it_is) for item in tensors if item is not None)
        object.__setattr__(self, "tensors", pairs)
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "recurrent", recurrent)


Adapter = Callable[[Any], Units | Iterable[Units]]
AdapterT = TypeVar("AdapterT", bound=Adapter)


class NotUnderstoodError(Exception):
    """Raised by an adapter for a module that cannot be inspected; the message says why."""


@singledispatch
def units_of(module: nn.Module) -> Units | Iterable[Units]:
    """What the adapter of a module says of it; raises :class:`NotUnderstoodError` without one."""
    for ancestor in type(module).__mro__:
        adapter = _ADAPTERS_BY_NAME.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if adapter is not None:
            return adapter(module)
    raise NotUnderstoodError(_how_to_register(module))


# For layers of packages that are not imported here.
_ADAPTERS_BY_NAME: dict[str, Adapter] = {}


def register_layer_by_name(qualified_name: str) -> Callable[[AdapterT], AdapterT]:
    """:func:`register_layer` for a class that need not be importable, such as ``package.module.Class``."""

    def register(adapter: AdapterT) -> AdapterT:
        _ADAPTERS_BY_NAME[qualified_name] = adapter
        return adapter

    return register


def _how_to_register(module: nn.Module) -> str:
    kind = type(module).__name__
    for name, parameter in module.named_parameters(recurse=False):
        if not is_lazy(parameter) and parameter.ndim > 1:
            line = f"register_layer({kind})(lambda module: Units(module.{name}))"
            return f"no adapter for {kind}; if units come first in `{name}`: {line}"
    return f"no adapter for {kind}, whose parameters hold one number per unit at most"


def register_layer(layer_type: type[nn.Module]) -> Callable[[AdapterT], AdapterT]:
    """Teach the package a layer type of yours; subclasses are covered too.

    Args:
        layer_type: the class of the layer.

    Returns:
        A decorator for a function that takes a module of this type and returns its :class:`Units`, or several of them
        for a layer of several parts.

    Raises:
        TypeError: if ``layer_type`` is no subclass of ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> from lightning_symmetry import Units, diagnose, register_layer
        >>> class Transposed(torch.nn.Module):  # weight of shape (inputs, units)
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.ones(3, 4))
        >>> @register_layer(Transposed)
        ... def transposed_units(module):
        ...     return Units((module.weight, torch.t))
        >>> diagnose(torch.nn.Sequential(Transposed())).layers["0"].effective_width
        1
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise TypeError(f"Expected argument `layer_type` to be a subclass of torch.nn.Module but got {layer_type!r}.")

    def register(adapter: AdapterT) -> AdapterT:
        units_of.register(layer_type, adapter)
        return adapter

    return register
