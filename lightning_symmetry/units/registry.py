"""The registry of layer types: each has an adapter, which describes the units of such a layer.

An adapter is a function from a module to :class:`Units`: the tensors that feed the units, each with a view whose first
dimension counts units. The same view is applied to weights and to gradients; it should not copy.
:func:`register_layer` adds an adapter for a class and its subclasses without an adapter of their own. The adapters of
PyTorch's layers are in :mod:`lightning_symmetry.units.adapters`. Of parameters that no adapter knows, the slices along
each dimension count as units: equal slices with equal gradients train as one, whatever the module computes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.brief import brief
from lightning_symmetry.modules import class_of, held, is_script, own_parameters
from lightning_symmetry.ranks.pieces import View

_MIN_NUMBERS = 2  # of a slice: single numbers are often equal by chance


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Units:
    """The units of a layer, or of one part of it.

    Args:
        *tensors: the tensors that feed the units: the weight first, then, for example, the bias. Each is a tensor whose
            first dimension counts units, or a pair of a tensor and a view ``tensor -> (num_units, ...)``. ``None`` is
            dropped, so that ``Units(module.weight, module.bias)`` also describes layers without a bias.
        blocks: number of equal blocks of consecutive units. Units of different blocks have different inputs and are
            never compared, like the groups of a convolution.
        part: name of this part of the layer, if the layer has several; it is reported as ``name.part``.
        recurrent: the tensor that feeds the units back into themselves, with its view
            ``tensor -> (num_units, gates, num_units)``. Two units are then equal if exchanging them does not change the
            layer's output, although their rows of this tensor may differ.
        may_go_unused: whether the units may be unused for long, like an expert without tokens. Repeated zero gradients
            are then no evidence against them.
        odd_gates: the gates whose weights change sign in a unit that outputs the negative of another one, such as the
            cell gate of an LSTM, which is followed by a tanh. Gates are counted along the second dimension of each
            view, ``tensor -> (num_units, gates, ...)``. None: all weights change sign, as in units without gates.
    """

    tensors: tuple[tuple[Tensor, View], ...]
    blocks: int
    part: str
    recurrent: tuple[Tensor, View] | None
    may_go_unused: bool
    odd_gates: tuple[int, ...] | None

    def __init__(
        self,
        *tensors: Tensor | tuple[Tensor, View] | None,
        blocks: int = 1,
        part: str = "",
        recurrent: tuple[Tensor, View] | None = None,
        may_go_unused: bool = False,
        odd_gates: Sequence[int] | None = None,
    ) -> None:
        pairs = tuple(item if isinstance(item, tuple) else (item, _as_it_is) for item in tensors if item is not None)
        vars(self).update(  # assignments would fail, since the class is frozen
            tensors=pairs,
            blocks=blocks,
            part=part,
            recurrent=recurrent,
            may_go_unused=may_go_unused,
            odd_gates=None if odd_gates is None else tuple(odd_gates),
        )


Adapter = Callable[[Any], Units | Iterable[Units]]
AdapterT = TypeVar("AdapterT", bound=Adapter)


class NotUnderstoodError(Exception):
    """Raised by an adapter for a module that cannot be inspected; the message says why."""


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Return the tensor that a module holds under a name; None if there is none.

    Properties are not evaluated: their value is no parameter, and computing it may draw random numbers or count calls.
    Raise :class:`NotUnderstoodError` for these.
    """
    for kind in ("_parameters", "_buffers"):
        tensors: dict[str, Tensor | None] = held(module, kind)
        if name in tensors:
            return tensors[name]
    value = inspect.getattr_static(module, name, None)
    if value is None or isinstance(value, Tensor):
        return value
    raise NotUnderstoodError(f"its {name} is computed at every access, and is no parameter")


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """Return the tensor that a module holds under a name; raise :class:`NotUnderstoodError` if there is none."""
    weight = tensor_of(module, name)
    if weight is None:
        raise NotUnderstoodError(f"it has no {name}")
    return weight


# The adapters by class, or by the qualified name of a class.
_ADAPTERS: dict[type[nn.Module] | str, Adapter] = {}
# Pairs of a function that recognises modules and the adapter of these.
_ADAPTERS_BY_SHAPE: list[tuple[Callable[[nn.Module], bool], Adapter]] = []


def register_layer(*layer_types: type[nn.Module], replace: bool = False) -> Callable[[AdapterT], AdapterT]:
    """Register an adapter for layer types; subclasses without an adapter use it, too.

    It replaces an earlier adapter of the same type, with a warning. There is no warning with ``replace``, or if both
    functions have the same module and name, as when the cell of a notebook is run again.

    Args:
        *layer_types: classes of layers.
        replace: do not warn if a type already has an adapter.

    Returns:
        A decorator for a function that takes a module of these types and returns its :class:`Units`, or several of
        them for a layer of several parts.

    Raises:
        TypeError: if no type is given, if a type is no subclass of ``torch.nn.Module``, or if the decorated object is
            no function.

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
    if not layer_types:
        raise TypeError("Expected at least one layer type, as in register_layer(MyLayer), but got none.")
    for layer_type in layer_types:
        if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
            raise TypeError(
                "Expected argument `layer_type` to be a subclass of torch.nn.Module but got "
                f"{brief(layer_type)}.{_usage_for(layer_type)}"
            )

    return _decorator(layer_types, replace)


def register_layer_by_name(*qualified_names: str, replace: bool = False) -> Callable[[AdapterT], AdapterT]:
    """Register an adapter for classes by their names, ``package.module.Class``, so that they need not be imported.

    An adapter of the class itself takes precedence. See :func:`register_layer`.
    """
    if not qualified_names:
        raise TypeError("Expected at least one name, as in register_layer_by_name('package.module.Class').")
    for name in qualified_names:
        if not isinstance(name, str):
            raise TypeError(
                f"Expected argument `qualified_name` to be a str, 'package.module.Class', but got {brief(name)}."
            )

    return _decorator(qualified_names, replace)


def _decorator(keys: Sequence[type[nn.Module] | str], replace: bool) -> Callable[[AdapterT], AdapterT]:
    def register(adapter: AdapterT) -> AdapterT:
        if not callable(adapter):
            raise TypeError(f"Expected a function that takes a module and returns its Units but got {brief(adapter)}.")
        for key in keys:
            _add(key, adapter, replace)
        return adapter

    return register


def register_layer_by_shape(recognises: Callable[[nn.Module], bool]) -> Callable[[AdapterT], AdapterT]:
    """Register an adapter for modules that ``recognises`` accepts, by names and shapes of parameters.

    It is used if neither the class of a module nor an ancestor has an adapter.
    """

    def register(adapter: AdapterT) -> AdapterT:
        _ADAPTERS_BY_SHAPE.append((recognises, adapter))
        return adapter

    return register


def units_of(module: nn.Module) -> list[Units]:
    """Return the units of a module, by the adapter of its class, of its nearest ancestor or of its shape.

    Raise :class:`NotUnderstoodError` if there is no adapter, or if it cannot describe this module.
    """
    for ancestor in class_of(module).__mro__:
        adapter = _adapter_of(ancestor)
        if adapter is not None:
            return _described(adapter, module)
    for recognises, adapter in _ADAPTERS_BY_SHAPE:
        if recognises(module):
            return _described(adapter, module)
    parameters = [parameter for parameter in own_parameters(module).values() if not is_lazy(parameter)]
    others = "other " if any(parameter.ndim > 1 for parameter in parameters) else ""
    kind = class_of(module).__name__
    raise NotUnderstoodError(f"no adapter for {kind}, whose {others}parameters hold one number per unit at most")


def _described(adapter: Adapter, module: nn.Module) -> list[Units]:
    try:
        described = adapter(module)
        return [described] if isinstance(described, Units) else list(described)
    except AttributeError as error:
        if not is_script(module):
            raise
        raise NotUnderstoodError(f"TorchScript has dropped an attribute that its adapter needs: {error}") from error


def _adapter_of(layer_type: type) -> Adapter | None:
    """Return the adapter of this class itself, registered by class or by name."""
    module = getattr(layer_type, "__module__", "")  # classes that `exec` has made may have none
    return _ADAPTERS.get(layer_type, _ADAPTERS.get(f"{module}.{layer_type.__qualname__}"))


def _add(key: type[nn.Module] | str, adapter: Adapter, replace: bool) -> None:
    """Register an adapter, and warn if it replaces a known one."""
    known = _adapter_of(key) if isinstance(key, type) else _ADAPTERS.get(key)
    if known is not None and not replace and not _is_same(known, adapter):
        call = f"register_layer({key.__name__}" if isinstance(key, type) else f'register_layer_by_name("{key}"'
        warnings.warn(
            f"The adapter {_describe(adapter)} replaces {_describe(known)}. "
            f"If that is intended, write {call}, replace=True) to be rid of this warning.",
            stacklevel=3,  # the line with the decorator
        )
    _ADAPTERS[key] = adapter


def _is_same(a: Adapter, b: Adapter) -> bool:
    """Return whether two adapters are the same function, which may have been defined twice."""
    return a is b or (hasattr(a, "__qualname__") and _name_of(a) == _name_of(b))


def _name_of(adapter: Adapter) -> str:
    return f"{adapter.__module__}.{adapter.__qualname__}" if hasattr(adapter, "__qualname__") else repr(adapter)


def _describe(adapter: Adapter) -> str:
    code = getattr(adapter, "__code__", None)
    return _name_of(adapter) + (f" (line {code.co_firstlineno})" if code else "")


def _usage_for(wrong: object) -> str:
    """Return the call that was probably intended with an object that is no layer type; empty if it is unknown."""
    if isinstance(wrong, nn.Module):
        return f" To register its class: register_layer({type(wrong).__name__})."
    if callable(wrong) and not isinstance(wrong, type):
        return " Name the layer type above the function: @register_layer(MyLayer)."
    return ""


class Slicing(NamedTuple):
    """A way to cut a parameter into comparable slices."""

    label: str  # suffix of the parameter's name in the name of the layer, such as `[dim 0]`
    dim: int | None  # the dimension that counts slices; None if several do
    view: View  # `parameter -> (num_slices, ...)`, without a copy
    blocks: int = 1  # number of blocks of consecutive slices; slices of different blocks are never compared


def slicings_of(shape: Sequence[int]) -> Iterator[Slicing]:
    """Yield all ways to slice a parameter of this shape: along each dimension, and as a stack of matrices.

    A parameter of three dimensions may be such a stack, like the weights of experts: rows are compared within each
    matrix.

    Example:
        >>> [slicing.label for slicing in slicings_of((6, 4))]
        ['[dim 0]', '[dim 1]']
        >>> [slicing.label for slicing in slicings_of((8, 6, 4))]
        ['[dim 0]', '[dim 1]', '[dim 2]', '[dims 0, 1]']
        >>> list(slicings_of((1, 1, 4)))  # one number per unit
        []
    """
    numbers = prod(shape)
    for dim, size in enumerate(shape):
        if size > 1 and numbers // size >= _MIN_NUMBERS:
            yield Slicing(f"[dim {dim}]", dim, partial(torch.movedim, source=dim, destination=0))
    if len(shape) == 3 and min(shape[:2]) > 1 and shape[2] >= _MIN_NUMBERS:
        yield Slicing("[dims 0, 1]", None, lambda stack: stack.flatten(0, 1), blocks=shape[0])


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a parameter of this shape has slices to compare, and not only one number per unit.

    Example:
        >>> is_matrix((3, 4)), is_matrix((1, 1, 4)), is_matrix((4,))
        (True, False, False)
    """
    return any(True for _ in slicings_of(shape))
