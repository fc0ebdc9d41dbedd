"""Which modules have units, and where the incoming row of each unit lies.

An adapter describes one layer type: it takes a module and says which tensors feed its units and how to turn each
tensor so that its first dimension counts units. The same turn serves the weights and their gradients, and it makes
views, never copies. :func:`register_layer` adds an adapter; subclasses use that of their nearest ancestor. The adapters
of PyTorch's own layers are in :mod:`lightning_symmetry.units.adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, singledispatch
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.ranks.fsdp1 import FlatPart, flat_parts, without_numbers
from lightning_symmetry.ranks.pieces import Piece, UnreadableError, View, is_sharded, part_of_rows, piece_of_part
from lightning_symmetry.ranks.sharded import matrix_of


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
def _units(module: nn.Module) -> Units | Iterable[Units]:
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
        _units.register(layer_type, adapter)
        return adapter

    return register


def is_trained(parameter: Tensor, trained: Set[int] | None) -> bool:
    """Whether the gradient of a parameter counts; ``trained`` are the identities of those that do, None: all."""
    return parameter.requires_grad and (trained is None or id(parameter) in trained)


def readable_gradient(parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter, if it has one, and not a sparse one."""
    gradient = parameter.grad
    return None if gradient is None or gradient.layout != torch.strided else gradient.detach()


@dataclass(frozen=True)
class Incoming:
    """One tensor that feeds the units of a layer.

    Attributes:
        weights: the tensor as the layer uses it.
        view: what makes its first dimension count units, ``tensor -> (num_units, ...)``.
        originals: the parameters that it is computed from; itself, unless the layer is parametrized or flattened.
        part: what this rank holds of it, if FSDP1 has flattened it; ``weights`` then has no more than its shape.
    """

    weights: Tensor
    view: View
    originals: tuple[Tensor, ...]
    part: FlatPart | None = None

    def rows(self) -> Tensor | Piece:
        """``(num_units, ...)``."""
        if self.part is not None:
            return piece_of_part(self.part, self.part.source, self.view)
        return part_of_rows(self.weights, self.view)

    def gradients(self, trained: Set[int] | None) -> list[Tensor | Piece | None]:
        """``(num_units, ...)`` of every original that is trained; None for one that has no gradient to see."""
        return [self._gradient(original) for original in self.originals if is_trained(original, trained)]

    def _gradient(self, original: Tensor) -> Tensor | Piece | None:
        gradient = readable_gradient(original)
        if self.part is not None and (gradient is not None or not self.part.length):
            return piece_of_part(self.part, gradient, self.view)
        if gradient is None:
            return None
        if gradient.shape == self.weights.shape:
            return part_of_rows(gradient, self.view)
        # For example the norms of weight_norm: one number per unit.
        return gradient if len(gradient) == len(self.rows()) else None


@dataclass(frozen=True)
class Layer:
    """One set of units whose rows can be compared with one another.

    Attributes:
        name: name of the module in the model, with the part if it has several.
        tensors: what feeds the units.
        blocks: units of different blocks are never compared.
        recurrent: what feeds the units back into themselves; its view gives ``(num_units, gates, num_units)``.
        also: names of layers that share the weight.
        num_units: number of rows.
        fan_in: number of weights that feed one unit, without the bias.
    """

    name: str
    tensors: tuple[Incoming, ...]
    blocks: int = 1
    recurrent: Incoming | None = None
    also: tuple[str, ...] = ()
    num_units: int = field(init=False)
    fan_in: int = field(init=False)
    can_freeze: ClassVar[bool] = True
    row_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        shapes = [tensor.rows().shape for tensor in self._all_tensors()]
        if len({shape[0] for shape in shapes}) != 1 or shapes[0][0] % self.blocks:
            raise NotUnderstoodError(
                f"its adapter gives tensors of shapes {[tuple(shape) for shape in shapes]} in {self.blocks} blocks; "
                "expected the same number of units first in each, divisible by the number of blocks"
            )
        object.__setattr__(self, "num_units", shapes[0][0])
        feeds = [shapes[0], *(shapes[-1:] if self.recurrent else [])]
        object.__setattr__(self, "fan_in", sum(shape[1:].numel() for shape in feeds))

    def _all_tensors(self) -> list[Incoming]:
        return [*self.tensors, *([self.recurrent] if self.recurrent else [])]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors[0].originals[0].device

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """Of the parameters that this layer is made of."""
        return tuple(map(id, self.originals()))

    def weights(self) -> Rows:
        """The incoming rows, without the recurrent tensor."""
        return matrix_of([tensor.rows() for tensor in self.tensors])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """The gradient rows, with the recurrent tensor, or None if there is nothing to see.

        Args:
            trained: identities (``id``) of the parameters that the optimizer at work updates; None: all. The gradients
                of others may be stale or partial and are left out.
        """
        pieces: list[Tensor | Piece] = []
        for tensor in self._all_tensors():
            for gradient in tensor.gradients(trained):
                if gradient is None:
                    return None
                pieces.append(gradient)
        return matrix_of(pieces) if pieces else None

    def recurrent_rows(self) -> Rows | None:
        """What feeds the units back into themselves, ``(num_units, gates * num_units)``, gate by gate."""
        return matrix_of([self.recurrent.rows()]) if self.recurrent else None

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Whether the optimizer with these parameters updates any of this layer's tensors."""
        return not trained.isdisjoint(self.identity)

    def originals(self) -> list[Tensor]:
        """The parameters that this layer is made of."""
        return [original for tensor in self._all_tensors() for original in tensor.originals]


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
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    first_with: dict[object, tuple[nn.Module, str]] = {}
    described: set[int] = set()
    flattened = flat_parts(model)
    sources = {id(part.source) for parts in flattened.values() for part in parts.values()}
    for path, module in model.named_modules():
        parts = flattened.get(module, {})
        own = {key: part.source for key, part in parts.items()} or _own_parameters(module)
        if not own or (not parts and sources.issuperset(map(id, own.values()))):  # the modules inside have them
            continue
        name = readable_name(path, module)
        try:
            if is_parametrized(module) and not flattened.keys().isdisjoint(module.modules()):
                raise NotUnderstoodError(_PARAMETRIZED_AND_SHARDED)
            found = _layers_of(name, module, parts)
        except NotUnderstoodError as reason:
            if not described.issuperset(map(id, own.values())):
                skipped[name] = str(reason)
            described.update(map(id, own.values()))
            continue
        for layer in found:
            described.update(map(id, layer.originals()))
            if not _is_chosen(layer.name, include, exclude):
                skipped[layer.name] = "left out by `include` or `exclude`"
                continue
            first_module, first_name = first_with.setdefault(_place_of(layer), (module, layer.name))
            if first_module is module:
                layers[layer.name] = layer
            else:  # tied
                layers[first_name] = replace(layers[first_name], also=(*layers[first_name].also, layer.name))
        extra = [key for key, parameter in own.items() if id(parameter) not in described]
        if extra:
            skipped[name] = f"the adapter of {type(module).__name__} does not know its parameters {', '.join(extra)}"
    return list(layers.values()), skipped


def structure_of(model: nn.Module) -> object | None:
    """All that :func:`find_layers` depends on, to compare with that of another time; None if it must be asked anew.

    The weights of parametrized layers are computed, so that they are others each time.
    """
    structure: list[object] = []
    for path, module in model.named_modules():
        if is_parametrized(module):
            return None
        structure += (path, id(module), type(module))
        for parameter in module._parameters.values():
            if parameter is not None:
                # Materialising a lazy parameter and moving a model change these, and leave the object the same.
                structure += (id(parameter), type(parameter), parameter.dtype, parameter.device)
                structure.append(None if is_lazy(parameter) else parameter.shape)
    return structure


_PARAMETRIZED_AND_SHARDED = "parametrized and sharded: its weight cannot be computed without gathering it"
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def readable_name(path: str, module: nn.Module) -> str:
    """The name of a module as reports give it."""
    # That torch.compile or activation checkpointing wraps a submodule is no concern of the reader.
    return ".".join(step for step in path.split(".") if step not in _WRAPPED) or type(module).__name__


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module, with the originals of those that are parametrized, but not of its children."""
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if is_parametrized(module):
        own |= dict(cast("nn.ModuleDict", module.parametrizations).named_parameters(prefix="parametrizations"))
    return own


def _place_of(layer: Layer) -> object:
    """The same for layers that look at the same parameter in the same way."""
    weight = layer.tensors[0]
    rows = weight.rows()
    place = (rows.storage_offset(), rows.shape, rows.stride()) if isinstance(rows, Tensor) else rows.layout
    if weight.part is not None:
        return place
    return (id(weight.originals[0]), place if len(weight.originals) == 1 else layer.name)


def _layers_of(name: str, module: nn.Module, parts: Mapping[str, FlatPart]) -> list[Layer]:
    originals: dict[int, tuple[Tensor, ...]] = {}
    flat: dict[int, FlatPart] = {}
    if parts:
        module, flat = without_numbers(module, parts)
    if is_parametrized(module):
        if any(is_sharded(parameter) for parameter in module.parameters()):
            raise NotUnderstoodError(_PARAMETRIZED_AND_SHARDED)
        module, originals = _without_parametrizations(module)
    try:
        described = _units(module)
        several = [described] if isinstance(described, Units) else list(described)
        return [_layer_of(name, units, originals, flat) for units in several]
    except NotUnderstoodError:
        raise
    except Exception as error:  # adapters are other people's code
        raise NotUnderstoodError(f"its adapter failed with {type(error).__name__}: {error}") from error


def _layer_of(
    name: str, units: Units, originals: Mapping[int, tuple[Tensor, ...]], flat: Mapping[int, FlatPart]
) -> Layer:
    if not isinstance(units, Units):
        raise NotUnderstoodError(f"its adapter returns {type(units).__name__}, expected Units or several of them")

    def incoming(tensor: Tensor, view: View) -> Incoming:
        part = flat.get(id(tensor))
        if part is not None:
            check_tensor(part.source)
            return Incoming(tensor, view, (part.source,), part)
        check_tensor(tensor)
        return Incoming(tensor, view, originals.get(id(tensor), (tensor,)))

    tensors = tuple(incoming(*pair) for pair in units.tensors)
    if not tensors or any(0 in tensor.weights.shape for tensor in tensors):
        raise NotUnderstoodError("it has no units or no inputs")
    recurrent = incoming(*units.recurrent) if units.recurrent else None
    try:
        return Layer(f"{name}.{units.part}" if units.part else name, tensors, units.blocks, recurrent)
    except UnreadableError as error:
        raise NotUnderstoodError(str(error)) from error


def _without_parametrizations(module: nn.Module) -> tuple[nn.Module, dict[int, tuple[Tensor, ...]]]:
    """A stand-in with the weights as the layer computes them, and the originals of each by its identity."""
    parametrizations = cast("nn.ModuleDict", module.parametrizations)
    # In training some parametrizations write: spectral_norm moves its estimate on whenever the weight is computed.
    parts = list(parametrizations.modules())
    was_training = [part.training for part in parts]
    # Of the class it was before torch.nn.utils.parametrize took it over; a parametrized module cannot be copied.
    stand_in = cast("nn.Module", object.__new__(type(module).__bases__[0]))
    stand_in.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    originals: dict[int, tuple[Tensor, ...]] = {}
    try:
        for part in parts:
            part.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for name, chain in parametrizations.items():
                weight = nn.Parameter(chain(), requires_grad=False)  # not `module.weight`, which may fill a cache
                stand_in._parameters[name] = weight
                originals[id(weight)] = tuple(chain.parameters(recurse=False))
    except Exception as error:
        reason = f"parametrized, and its weight cannot be computed: {type(error).__name__}: {error}"
        raise NotUnderstoodError(reason) from error
    finally:
        for part, training in zip(parts, was_training, strict=True):
            part.training = training
    return stand_in, originals


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor whose numbers cannot be read, or are not those that are trained.

    Raises:
        NotUnderstoodError: saying why.
    """
    if is_lazy(tensor):
        raise NotUnderstoodError("not initialised yet")
    if hasattr(tensor, "ds_id"):
        raise NotUnderstoodError("its tensors are partitioned by DeepSpeed ZeRO-3, which this package does not read")
    numbers = tensor
    if is_sharded(tensor):
        numbers = cast("Any", tensor).to_local()
    elif type(tensor) not in (Tensor, nn.Parameter):
        raise NotUnderstoodError(f"its tensors are {type(tensor).__name__}s, which this package does not read")
    if type(numbers.data) is not Tensor:
        raise NotUnderstoodError(f"its data are {type(numbers.data).__name__}s, which this package does not read")
    if not isinstance(tensor, nn.Parameter):
        raise NotUnderstoodError("its weight is computed from other tensors, as by weight_norm or pruning")
    if tensor.is_meta:
        raise NotUnderstoodError("on the meta device: there are no numbers to read")
    if tensor.dtype not in TOLERANCES:
        raise NotUnderstoodError(f"its dtype {tensor.dtype} is not a floating point type this package reads")
    if tensor.layout != torch.strided:
        raise NotUnderstoodError(f"its layout {tensor.layout} is not strided")


def _is_chosen(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return False
    return include is None or any(fnmatchcase(name, pattern) for pattern in include)
