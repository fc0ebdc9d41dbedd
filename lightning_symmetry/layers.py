"""Which modules have units, and where the incoming row of each unit lies.

An adapter describes one layer type: it takes a module and says which tensors feed its units and how to turn each
tensor so that its first dimension counts units. The same turn serves the weights and their gradients, and it makes
views, never copies. :func:`register_layer` adds an adapter; subclasses use that of their nearest ancestor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import singledispatch
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.grouping import TOLERANCES, Rows

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
    """

    tensors: tuple[tuple[Tensor, View], ...]
    blocks: int
    part: str

    def __init__(self, *tensors: Tensor | tuple[Tensor, View] | None, blocks: int = 1, part: str = "") -> None:
        pairs = tuple(item if isinstance(item, tuple) else (item, _as_it_is) for item in tensors if item is not None)
        object.__setattr__(self, "tensors", pairs)
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "part", part)


Adapter = Callable[[Any], Units | Iterable[Units]]
AdapterT = TypeVar("AdapterT", bound=Adapter)


@singledispatch
def _units(module: nn.Module) -> Units | Iterable[Units]:
    raise _NotUnderstoodError(
        f"no adapter for {type(module).__name__}; see lightning_symmetry.register_layer to add one"
    )


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
        _units.register(layer_type, adapter)
        return adapter

    return register


@dataclass(frozen=True)
class Layer:
    """One set of units whose rows can be compared with one another.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        tensors: what feeds the units, each with the view that puts units first.
        num_units: number of rows.
        fan_in: number of weights that feed one unit, without the bias.
        blocks: units of different blocks are never compared.
    """

    name: str
    tensors: tuple[tuple[Tensor, View], ...]
    blocks: int
    num_units: int = field(init=False)
    fan_in: int = field(init=False)

    def __post_init__(self) -> None:
        shapes = [view(tensor.detach()).shape for tensor, view in self.tensors]
        if len({shape[0] for shape in shapes}) != 1 or shapes[0][0] % self.blocks:
            raise _NotUnderstoodError(
                f"its adapter gives tensors of shapes {[tuple(shape) for shape in shapes]} in {self.blocks} blocks; "
                "expected the same number of units first in each, divisible by the number of blocks"
            )
        object.__setattr__(self, "num_units", shapes[0][0])
        object.__setattr__(self, "fan_in", shapes[0][1:].numel())

    def weights(self) -> Rows:
        """The incoming rows."""
        return Rows([view(tensor.detach()) for tensor, view in self.tensors])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """The gradient rows, or None if there is nothing to see.

        Args:
            trained: identities (``id``) of the parameters that the optimizer at work updates; None: all. The gradients
                of others may be stale or partial and are left out.
        """
        pieces = []
        for tensor, view in self.tensors:
            if not tensor.requires_grad or (trained is not None and id(tensor) not in trained):
                continue
            if tensor.grad is None or tensor.grad.layout != torch.strided:
                return None
            pieces.append(view(tensor.grad.detach()))
        return Rows(pieces) if pieces else None

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Whether the optimizer with these parameters updates any of this layer's tensors."""
        return any(id(tensor) in trained for tensor, _ in self.tensors)


def find_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[list[Layer], dict[str, str]]:
    """All layers of a model whose units can be compared.

    Args:
        model: any module.
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
        exclude: patterns of layer names to leave out.

    Returns:
        The layers in the order of ``model.named_modules()``, and, by name, the modules with parameters of their own
        that were left out, with the reason.
    """
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    seen: dict[int, tuple[nn.Module, str]] = {}
    described: set[int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own and not is_parametrized(module):
            continue
        # torch.compile wraps a submodule; its name is no concern of the reader.
        name = ".".join(step for step in path.split(".") if step != "_orig_mod") or type(module).__name__
        try:
            found = _layers_of(name, module)
        except _NotUnderstoodError as reason:
            if not described.issuperset(map(id, own.values())) or not own:
                skipped[name] = str(reason)
            if is_parametrized(module):  # said once, not again for each of the modules that hold its originals
                described.update(map(id, module.parameters()))
            continue
        for layer in found:
            described.update(id(tensor) for tensor, _ in layer.tensors)
            if not _is_chosen(layer.name, include, exclude):
                skipped[layer.name] = "left out by `include` or `exclude`"
                continue
            first_module, first_name = seen.setdefault(id(layer.tensors[0][0]), (module, layer.name))
            if first_module is module:
                layers.append(layer)
            else:
                skipped[layer.name] = f"shares its weight with {first_name}"
        extra = [key for key, parameter in own.items() if id(parameter) not in described]
        if extra:
            skipped[name] = f"the adapter of {type(module).__name__} does not know its parameters {', '.join(extra)}"
    return layers, skipped


class _NotUnderstoodError(Exception):
    """A module that is left out; the message says why."""


def _layers_of(name: str, module: nn.Module) -> list[Layer]:
    if is_parametrized(module):
        # Computing the weight could update buffers, as spectral_norm's power iteration does.
        raise _NotUnderstoodError("parametrized: its weight is computed from other tensors")
    try:
        described = _units(module)
        parts = [described] if isinstance(described, Units) else list(described)
    except _NotUnderstoodError:
        raise
    except Exception as error:  # adapters are other people's code
        raise _NotUnderstoodError(f"its adapter failed with {type(error).__name__}: {error}") from error
    layers = []
    for units in parts:
        for tensor, _ in units.tensors:
            _check_tensor(tensor)
        if not units.tensors or any(0 in tensor.shape for tensor, _ in units.tensors):
            raise _NotUnderstoodError("it has no units or no inputs")
        layers.append(Layer(f"{name}.{units.part}" if units.part else name, units.tensors, units.blocks))
    return layers


def _check_tensor(tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise _NotUnderstoodError("not initialised yet")
    if type(tensor) not in (Tensor, nn.Parameter):
        raise _NotUnderstoodError(f"its tensors are {type(tensor).__name__}s, which this package does not read")
    if type(tensor.data) is not Tensor:
        raise _NotUnderstoodError(f"its data are {type(tensor.data).__name__}s, which this package does not read")
    if not isinstance(tensor, nn.Parameter):
        raise _NotUnderstoodError("its weight is computed from other tensors, as by weight_norm or pruning")
    if tensor.is_meta:
        raise _NotUnderstoodError("on the meta device: there are no numbers to read")
    if tensor.dtype not in TOLERANCES:
        raise _NotUnderstoodError(f"its dtype {tensor.dtype} is not a floating point type this package reads")
    if tensor.layout != torch.strided:
        raise _NotUnderstoodError(f"its layout {tensor.layout} is not strided")


def _is_chosen(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return False
    return include is None or any(fnmatchcase(name, pattern) for pattern in include)


@register_layer(nn.Linear)
def _linear(module: nn.Linear) -> Units:
    return Units(module.weight, module.bias)


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Units:
    return Units(module.weight, module.bias, blocks=module.groups)


def _transposed_convolution(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> Units:
    # (inputs, units / groups, ...) -> (units, inputs / groups, ...); unit = group * units / groups + place in group.
    # With more than one group the last step has to copy.
    def by_unit(weight: Tensor) -> Tensor:
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        return by_group.transpose(1, 2).flatten(0, 1)

    return Units((module.weight, by_unit), module.bias, blocks=module.groups)


for _convolution_type in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_layer(_convolution_type)(_convolution)
for _transposed_type in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_layer(_transposed_type)(_transposed_convolution)
