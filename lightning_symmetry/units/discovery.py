"""Finding the layers of a model: which of its modules have units, what each is called, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.ranks.fsdp1 import FlatPart, flat_parts, without_numbers
from lightning_symmetry.ranks.pieces import UnreadableError, View, is_sharded
from lightning_symmetry.units.coverage import coverage_of
from lightning_symmetry.units.layers import Incoming, Layer, check_tensor
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.units.parametrized import without_parametrizations
from lightning_symmetry.units.patterns import is_chosen, unmatched_patterns
from lightning_symmetry.units.registry import NotUnderstoodError, Units, units_of

_FlatParts = Mapping[nn.Module, Mapping[str, FlatPart]]


class Found(NamedTuple):
    """The layers of a model.

    Attributes:
        layers: in the order of ``model.named_modules()``; layers that share a weight are one.
        skipped: by name, the modules with parameters of their own that are not looked at, and why.
        coverage: share of the weights of the model that the layers look at, see :func:`coverage_of`.
        unmatched: by argument, the patterns in ``include`` and ``exclude`` that match no name.
        unread: those of ``skipped`` that hold weights which could train as one unseen: parameters of two or more
            dimensions that need a gradient, in modules that the user has not left out.
    """

    layers: list[Layer]
    skipped: dict[str, str]
    coverage: float
    unmatched: dict[str, tuple[str, ...]]
    unread: dict[str, str]

    @property
    def names(self) -> list[str]:
        """What a pattern can match: the names of all layers and of modules that were left out."""
        of_layers = [name for layer in self.layers for name in (layer.name, *layer.also)]
        return list(dict.fromkeys([*of_layers, *self.skipped]))


def find_layers(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> Found:
    """Find all layers of a model whose units can be compared.

    If parameters are flattened by FSDP1, all ranks have to call this.

    Args:
        model: any module.
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
        exclude: patterns of layer names to leave out.
    """
    flattened = flat_parts(model)
    descriptions = [_describe(owner, flattened) for owner in _owners(model, flattened)]
    names = [name for description in descriptions for name in description.names]
    chosen = {name for name in names if is_chosen(name, include, exclude)}
    layers = _unite(
        (description.owner.module, layer)
        for description in descriptions
        for layer in description.layers
        if layer.name in chosen
    )
    skipped, unread = _left_out(descriptions, chosen)
    return Found(
        layers,
        skipped,
        coverage_of(model, flattened, layers),
        unmatched_patterns(names, include, exclude),
        {name: skipped[name] for name in unread},
    )


def structure_of(model: nn.Module) -> object | None:
    """A value that stays equal as long as :func:`find_layers` would find the same in a model.

    It is None if the model has parametrized layers: their weights are computed, and are other tensors at every call.
    """
    structure: list[object] = []
    for path, module in model.named_modules():
        if is_parametrized(module):
            return None
        structure += (path, id(module), type(module))
        for parameter in module._parameters.values():
            if parameter is not None:
                # Initialising a lazy parameter or moving a model changes these properties of the same object.
                structure += (id(parameter), type(parameter), parameter.dtype, parameter.device)
                structure.append(None if is_lazy(parameter) else parameter.shape)
    return structure


@dataclass(frozen=True)
class _Owner:
    """A module with parameters of its own.

    Attributes:
        name: of the module in reports.
        module: the module.
        parameters: by name; of a parameter that FSDP1 has flattened, the tensor with this rank's numbers.
        parts: by name, the parameters that FSDP1 has flattened.
    """

    name: str
    module: nn.Module
    parameters: Mapping[str, Tensor]
    parts: Mapping[str, FlatPart]

    def is_weight(self, name: str) -> bool:
        """Whether a parameter has two or more dimensions, or none so far, and needs a gradient."""
        parameter = self.parameters[name]
        num_dimensions = len(self.parts[name].shape) if name in self.parts else 2
        if name not in self.parts and not is_lazy(parameter):
            num_dimensions = parameter.ndim
        return parameter.requires_grad and num_dimensions > 1


@dataclass(frozen=True)
class _Description:
    """What is known of a module.

    Attributes:
        owner: the module.
        layers: its layers.
        reason: why it could not be understood; None if it could.
    """

    owner: _Owner
    layers: list[Layer] = field(default_factory=list)
    reason: str | None = None

    @property
    def names(self) -> list[str]:
        return [self.owner.name] if self.reason is not None else [layer.name for layer in self.layers]


def _owners(model: nn.Module, flattened: _FlatParts) -> list[_Owner]:
    """The modules with parameters of their own, in the order of ``model.named_modules()``."""
    sources = {id(part.source) for parts in flattened.values() for part in parts.values()}
    owners = []
    for name, module in readable_modules(model):
        parts = flattened.get(module, {})
        own = {key: part.source for key, part in parts.items()} or _own_parameters(module)
        # A wrapper of FSDP1 has the flattened parameters of the modules inside, and none of its own.
        is_wrapper = not parts and sources.issuperset(map(id, own.values()))
        if own and not is_wrapper:
            owners.append(_Owner(name, module, own, parts))
    return owners


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module without those of its children, but with the originals of parametrized ones."""
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if is_parametrized(module):
        own |= dict(cast("nn.ModuleDict", module.parametrizations).named_parameters(prefix="parametrizations"))
    return own


def _describe(owner: _Owner, flattened: _FlatParts) -> _Description:
    try:
        return _Description(owner, _layers_of(owner, flattened))
    except NotUnderstoodError as reason:
        return _Description(owner, reason=str(reason))


def _layers_of(owner: _Owner, flattened: _FlatParts) -> list[Layer]:
    """The layers of a module, as its adapter describes them."""
    module = owner.module
    originals: dict[int, tuple[Tensor, ...]] = {}
    flat: dict[int, FlatPart] = {}
    if is_parametrized(module):
        is_flattened = not flattened.keys().isdisjoint(module.modules())
        if is_flattened or any(is_sharded(parameter) for parameter in module.parameters()):
            raise NotUnderstoodError("parametrized and sharded: its weight cannot be computed without gathering it")
        module, originals = without_parametrizations(module)
    elif owner.parts:
        module, flat = without_numbers(module, owner.parts)
    try:
        described = units_of(module)
        several = [described] if isinstance(described, Units) else list(described)
        layers = [_layer_of(owner.name, units, originals, flat) for units in several]
    except NotUnderstoodError:
        raise
    except Exception as error:  # adapters may be code of users
        raise NotUnderstoodError(f"its adapter failed with {type(error).__name__}: {error}") from error
    if len({layer.name for layer in layers}) < len(layers):
        raise NotUnderstoodError(
            "its adapter gives several parts the same name; expected each to have a `part` of its own"
        )
    return layers


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


def _unite(chosen: Iterable[tuple[nn.Module, Layer]]) -> list[Layer]:
    """Keep the first of the layers of different modules that look at the same weight in the same way."""
    layers: list[Layer] = []
    first_at: dict[object, tuple[nn.Module, int]] = {}
    for module, layer in chosen:
        first_module, index = first_at.setdefault(_place_of(layer), (module, len(layers)))
        if first_module is module:
            layers.append(layer)
        else:
            layers[index] = replace(layers[index], also=(*layers[index].also, layer.name))
    return layers


def _place_of(layer: Layer) -> object:
    """A value that is equal for layers that look at the same parameter in the same way."""
    weight = layer.tensors[0]
    rows = weight.rows()
    place = (rows.storage_offset(), rows.shape, rows.stride()) if isinstance(rows, Tensor) else rows.layout
    if weight.part is not None:
        return place
    return (id(weight.originals[0]), place if len(weight.originals) == 1 else layer.name)


def _left_out(descriptions: Iterable[_Description], chosen: set[str]) -> tuple[dict[str, str], list[str]]:
    """Say by name why modules, or parts of modules, are not looked at.

    A module all of whose parameters belong to modules before it in the model is not mentioned.

    Returns:
        The reasons by name, and the names of those that make :attr:`Found.unread`.
    """
    skipped: dict[str, str] = {}
    unread: list[str] = []
    known: set[int] = set()  # identities of parameters that an earlier module has accounted for
    for description in descriptions:
        owner = description.owner
        own = {id(parameter): name for name, parameter in owner.parameters.items()}
        if description.reason is not None:
            if not known.issuperset(own):
                skipped[owner.name] = description.reason
                if owner.name in chosen and any(owner.is_weight(own[key]) for key in own.keys() - known):
                    unread.append(owner.name)
            known.update(own)
            continue
        for layer in description.layers:
            known.update(layer.identity)
            if layer.name not in chosen:
                skipped[layer.name] = "left out by `include` or `exclude`"
        unknown = [name for identity, name in own.items() if identity not in known]
        if unknown:
            kind = type(owner.module).__name__
            skipped[owner.name] = f"the adapter of {kind} does not know its parameters {', '.join(unknown)}"
            if any(map(owner.is_weight, unknown)):
                unread.append(owner.name)
    return skipped, unread
