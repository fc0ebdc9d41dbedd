"""Finding the layers of a model: the modules that have units, their names, and the modules that are skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from math import prod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_symmetry.modules import (
    class_of,
    modules_of,
    named_parameters_of,
    own_parameters,
    parameters_of,
    parametrizations_of,
)
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.ranks.flat import FlatPart, without_numbers
from lightning_symmetry.ranks.flattening import flat_parts
from lightning_symmetry.ranks.pieces import UnreadableError, View, is_sharded
from lightning_symmetry.ranks.zero import whole_shape
from lightning_symmetry.units.layers import Incoming, Layer, WrongShapesError, check_tensor, real_rows
from lightning_symmetry.units.naming import free_name, is_chosen, readable_modules, readable_names, unmatched_patterns
from lightning_symmetry.units.parametrized import without_parametrizations
from lightning_symmetry.units.registry import NotUnderstoodError, Units, is_matrix, slicings_of, units_of

_FlatParts = Mapping[int, Mapping[str, FlatPart]]  # by ``id`` of the module and name of the parameter
_Read = Callable[[Tensor, View], Incoming]


class Found(NamedTuple):
    """The layers of a model."""

    layers: list[Layer]  # in the order of `model.named_modules()`; layers that share a weight are one
    skipped: dict[str, str]  # why parameters of a module are not checked, by name of the module
    coverage: float  # share of the model's weights that the layers read, see `_coverage_of`
    unmatched: dict[str, tuple[str, ...]]  # by argument, the patterns in `include` and `exclude` that match no name
    # The entries of `skipped` for modules with weights that could train as one unnoticed: parameters of two or more
    # dimensions that require a gradient, cannot be read and are not excluded by the user.
    unread: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The names of all layers and skipped modules, which a pattern can match."""
        of_layers = [name for layer in self.layers for name in (layer.name, *layer.also)]
        return list(dict.fromkeys([*of_layers, *self.skipped]))


def find_layers(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> Found:
    """Find all layers of a model whose units can be compared.

    ``include`` and ``exclude`` are patterns (:mod:`fnmatch`) of names of layers; slices of a parameter that no adapter
    knows also match by the names of the parameter and of its module. If FSDP1 has flattened parameters, all ranks have
    to call this.
    """
    flattened = flat_parts(model)
    elsewhere = {id(module): module for module in modules_of(model)}
    with preserved_random_numbers():  # adapters and parametrizations may be code of users
        described = [_describe(owner, flattened, elsewhere) for owner in _owners(model, flattened)]
    descriptions = _under_free_names(_each_parameter_once(described), {name for name, _ in readable_modules(model)})
    names = [aliases for description in descriptions for aliases in description.names]
    chosen = {aliases[0] for aliases in names if is_chosen(aliases, include, exclude)}
    modules = {description.owner.name for description in descriptions}
    chosen |= {name for name in modules if is_chosen([name], include, exclude)}
    layers = _unite(
        (description.owner.module, layer)
        for description in descriptions
        for layer in description.layers
        if layer.name in chosen
    )
    skipped, unread = _left_out(descriptions, chosen)
    coverage = _coverage_of((description.owner.shapes for description in descriptions), layers)
    unmatched = unmatched_patterns([name for aliases in names for name in aliases], include, exclude)
    return Found(layers, skipped, coverage, unmatched, unread)


def structure_of(model: nn.Module) -> object | None:
    """Return a value that changes whenever :func:`find_layers` might return other layers of a model.

    Return None if some layer is parametrized, since its weights are new tensors at every call, or if some parameter
    cannot be described.
    """
    structure: list[object] = []
    try:
        return structure if _add_structure(model, structure, set()) else None
    except Exception:  # tensors may be code of users
        return None


def _add_structure(module: nn.Module, structure: list[object], seen: set[int]) -> bool:
    """Append the structure of a module and its descendants; return whether none of them is parametrized.

    This runs at every check. ``named_modules`` would be slower, since it builds all paths.
    """
    structure += (id(module), type(module))
    if id(module) in seen:
        return True
    seen.add(id(module))
    for parameter in module._parameters.values():
        if parameter is not None:
            # These properties change when a lazy parameter is initialised or a model is moved; the identity does not.
            shape = None if is_lazy(parameter) else whole_shape(parameter)
            structure += (id(parameter), type(parameter), parameter.dtype, parameter.device, shape)
    children = module._modules
    if "parametrizations" in children and parametrizations_of(module):
        return False
    for name, child in children.items():
        if child is not None:
            structure.append(name)
            if not _add_structure(child, structure, seen):
                return False
    structure.append(None)  # the end of the module
    return True


@dataclass(frozen=True)
class _Owner:
    """A module with parameters of its own."""

    name: str  # its readable name
    path: str  # its readable path; empty for the model itself
    module: nn.Module
    parameters: Mapping[str, Tensor]  # by name; in place of a flattened parameter, the source of this rank's part
    # By name, this rank's parts of the parameters that FSDP1 or DeepSpeed's ZeRO has flattened.
    parts: Mapping[str, FlatPart]

    @cached_property
    def shapes(self) -> dict[object, tuple[int, ...]]:
        """The shapes of all initialised parameters, by key as in :attr:`Incoming.keys`."""
        of_parts: dict[object, tuple[int, ...]] = {part.key: part.shape for part in self.parts.values()}
        whole = [one for name, one in self.parameters.items() if name not in self.parts and not is_lazy(one)]
        return of_parts | {id(parameter): tuple(parameter.shape) for parameter in whole}

    def is_weight(self, name: str) -> bool:
        """Return whether a parameter requires a gradient and may have more than one number per unit."""
        parameter = self.parameters[name]
        shape = self.shapes.get(self.parts[name].key if name in self.parts else id(parameter))
        return parameter.requires_grad and (shape is None or is_matrix(shape))


@dataclass(frozen=True)
class _Description:
    """The layers of a module, with slices of the parameters that its adapter does not know.

    ``reason`` says why other parameters cannot be read; None if they can, or if the adapter does not mention them.
    """

    owner: _Owner
    layers: list[Layer]
    reason: str | None

    @property
    def names(self) -> list[tuple[str, ...]]:
        """For each layer, all names that a pattern can match; without layers, the name of the module."""
        return [
            (layer.name, layer.slices_of, self.owner.name) if layer.slices_of else (layer.name,)
            for layer in self.layers
        ] or [(self.owner.name,)]


class _AdapterError(NotUnderstoodError):
    """A mistake in an adapter; the message is for its author."""


def _owners(model: nn.Module, flattened: _FlatParts) -> list[_Owner]:
    """Return the modules with parameters of their own, in the order of the model."""
    sources = {id(part.source) for parts in flattened.values() for part in parts.values()}
    owners = []
    for name, path, module in readable_names(model):
        parts = flattened.get(id(module), {})
        own: dict[str, Tensor] = {**own_parameters(module), **{key: part.source for key, part in parts.items()}}
        for key, chain in parametrizations_of(module).items():
            own |= {f"parametrizations.{key}.{name}": parameter for name, parameter in named_parameters_of(chain)}
        # A wrapper of FSDP1 holds the flattened parameters of the modules inside, and no others.
        is_wrapper = not parts and sources.issuperset(map(id, own.values()))
        if own and not is_wrapper:
            owners.append(_Owner(name, path, module, own, parts))
    return owners


def _incoming(
    tensor: Tensor, view: View, originals: Mapping[int, tuple[Tensor, ...]], flat: Mapping[int, FlatPart]
) -> Incoming:
    """Return a tensor as a layer reads it; raise :class:`NotUnderstoodError` if it cannot be read.

    ``originals`` maps the ``id`` of a computed tensor to the parameters from which it is computed. ``flat`` maps the
    ``id`` of a flattened tensor to this rank's part.
    """
    part = flat.get(id(tensor))
    if part is not None:
        check_tensor(part.source)
        if part.source.is_complex():
            raise NotUnderstoodError("its numbers are complex, and flattened")
        return Incoming(tensor, view, (part.source,), part)
    check_tensor(tensor)
    in_units = (lambda numbers: real_rows(view(numbers))) if tensor.is_complex() else view
    return Incoming(tensor, in_units, originals.get(id(tensor), (tensor,)))


def _describe(owner: _Owner, flattened: _FlatParts, elsewhere: Mapping[int, nn.Module]) -> _Description:
    try:
        return _Description(owner, *_layers_and_reason(owner, flattened, elsewhere))
    except NotUnderstoodError as error:
        reason = str(error)
    except Exception as error:  # modules and tensors may be code of users
        reason = f"it cannot be read: {type(error).__name__}: {error}"
    return _Description(owner, [], reason)


def _layers_and_reason(
    owner: _Owner, flattened: _FlatParts, elsewhere: Mapping[int, nn.Module]
) -> tuple[list[Layer], str | None]:
    """Return the layers of a module, and why other parameters cannot be read; raise if none can be read."""
    module, layers, reason = owner.module, [], None
    originals: dict[int, tuple[Tensor, ...]] = {}
    flat: dict[int, FlatPart] = {}
    chains = parametrizations_of(module)
    if chains:
        is_flattened = any(id(part) in flattened for part in modules_of(module))
        if is_flattened or any(is_sharded(parameter) for parameter in parameters_of(module)):
            raise NotUnderstoodError("parametrized and sharded: its weight cannot be computed without gathering it")
        try:
            module, originals = without_parametrizations(module, elsewhere)
            chains = {}
        except NotUnderstoodError as error:
            reason = str(error)
    elif owner.parts:
        module, flat = without_numbers(module, owner.parts)
    read = partial(_incoming, originals=originals, flat=flat)
    try:
        layers = [] if chains else _layers_of(owner.name, module, read)
    except _AdapterError:
        raise
    except NotUnderstoodError as error:
        reason = str(error)
    if issubclass(type(module), ParametrizationList):  # its parameters are checked with the module that holds it
        return layers, reason
    start = f"{owner.path}." if owner.path else ""
    unknown = {f"{start}{name}": parameter for name, parameter in own_parameters(module).items()}
    for name, chain in chains.items():  # left only if the weights cannot be computed
        unknown |= {f"{start}parametrizations.{name}.{own}": one for own, one in own_parameters(chain).items()}
    slices, failure = _slices_of(unknown, layers, read)
    return layers + slices, failure or reason


def _each_parameter_once(descriptions: Sequence[_Description]) -> list[_Description]:
    """Drop the slices of shared parameters that the adapter of another module knows."""
    known = {key for one in descriptions for layer in one.layers if not layer.slices_of for key, _ in layer.shares()}

    def is_needed(layer: Layer) -> bool:
        return not layer.slices_of or not known.issuperset(layer.tensors[0].keys)

    return [replace(one, layers=list(filter(is_needed, one.layers))) for one in descriptions]


def _layers_of(name: str, module: nn.Module, read: _Read) -> list[Layer]:
    """Return the layers of a module, as its adapter describes them."""
    try:
        layers = [_layer_of(name, units, read) for units in units_of(module)]
    except NotUnderstoodError:
        raise
    except Exception as error:  # adapters may be code of users
        raise _AdapterError(f"its adapter failed with {type(error).__name__}: {error}") from error
    if len({layer.name for layer in layers}) < len(layers):
        raise _AdapterError("its adapter gives several parts the same name; expected each to have a `part` of its own")
    return layers


def _layer_of(name: str, units: Units, read: _Read) -> Layer:
    if not isinstance(units, Units):
        raise _AdapterError(f"its adapter returns {type(units).__name__}, expected Units or several of them")
    for pair in units.tensors:
        if not isinstance(pair[0], Tensor):
            raise _AdapterError(f"its tensors are {type(pair[0]).__name__}s, which this package does not read")
    incoming = tuple(read(*pair) for pair in units.tensors)
    if not incoming or any(0 in tensor.weights.shape for tensor in incoming):
        raise NotUnderstoodError("it has no units or no inputs")
    recurrent = read(*units.recurrent) if units.recurrent else None
    try:
        return Layer(
            name=f"{name}.{units.part}" if units.part else name,
            tensors=incoming,
            blocks=units.blocks,
            recurrent=recurrent,
            can_freeze=not units.may_go_unused,
            odd_gates=units.odd_gates,
        )
    except UnreadableError as error:
        raise NotUnderstoodError(str(error)) from error
    except WrongShapesError as error:
        raise _AdapterError(str(error)) from error


def _slices_of(
    parameters: Mapping[str, Tensor], layers: Iterable[Layer], read: _Read
) -> tuple[list[Layer], str | None]:
    """Return the slices of the parameters that no layer reads, and why some cannot be sliced."""
    known = {id(tensor.weights) for layer in layers for tensor in layer.all_tensors()}
    slices: list[Layer] = []
    failure = None
    for name, parameter in parameters.items():
        if id(parameter) not in known:
            try:
                slices += _slices_of_one(name, parameter, read)
            except NotUnderstoodError as error:
                failure = str(error)
    return slices, failure


def _slices_of_one(name: str, parameter: Tensor, read: _Read) -> Iterator[Layer]:
    if is_lazy(parameter):
        raise NotUnderstoodError("not initialised yet")
    is_first = True
    for slicing in slicings_of(parameter.shape):
        incoming = read(parameter, slicing.view)
        # An original of another shape than the computed tensor has numbers only for slices along dimension 0.
        is_of_other_shape = any(original.shape != parameter.shape for original in incoming.originals)
        if incoming.part is None and is_of_other_shape and slicing.dim != 0:
            continue
        try:
            yield Layer(
                name=name + slicing.label,
                tensors=(incoming,),
                blocks=slicing.blocks,
                can_freeze=False,  # slices may never be used, such as positions beyond the longest text
                dies_as_a_whole=is_first,  # the other slicings would repeat the finding
                slices_of=name,
            )
            is_first = False
        except UnreadableError:  # the view would copy a sharded tensor
            continue


def _under_free_names(descriptions: Sequence[_Description], modules: set[str]) -> list[_Description]:
    """Rename parts and slices that have the name of a module, a parameter or another part."""
    taken = set(modules)

    def renamed(layer: Layer, owner: _Owner) -> Layer:
        if layer.name == owner.name:
            return layer
        start = f"{owner.path}." if owner.path else ""
        others = {start + name for name, each in owner.parameters.items() if id(each) not in layer.identity}
        if layer.name in taken or layer.name in others:
            layer = replace(layer, name=free_name(layer.name, "part", taken | others))
        taken.add(layer.name)
        return layer

    return [replace(one, layers=[renamed(layer, one.owner) for layer in one.layers]) for one in descriptions]


def _unite(chosen: Iterable[tuple[nn.Module, Layer]]) -> list[Layer]:
    """Unite layers of different modules that read the same weight in the same way: keep the first."""
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
    """Return a key that layers share if they read the same parameter in the same way."""
    weight = layer.tensors[0]
    if weight.part is not None:
        return layer.place
    return (id(weight.originals[0]), layer.place if len(weight.originals) == 1 else layer.name)


def _left_out(descriptions: Sequence[_Description], chosen: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return :attr:`Found.skipped` and :attr:`Found.unread`.

    A module is omitted if all of its parameters belong to layers or to modules before it in the model. ``chosen`` holds
    the names of layers and modules that the user has not excluded.
    """
    skipped: dict[str, str] = {}
    unread: dict[str, str] = {}
    # The parameters of layers and of modules so far, by ``id``.
    known = {identity for description in descriptions for layer in description.layers for identity in layer.identity}
    for description in descriptions:
        owner = description.owner
        own = {id(parameter): name for name, parameter in owner.parameters.items()}
        for layer in description.layers:
            if layer.name not in chosen:
                skipped[layer.name] = "left out by `include` or `exclude`"
        unknown = [name for identity, name in own.items() if identity not in known]
        if unknown:
            kind = class_of(owner.module).__name__
            unmentioned = f"the adapter of {kind} does not know its parameters {', '.join(unknown)}"
            skipped[owner.name] = description.reason or unmentioned
            if owner.name in chosen and any(map(owner.is_weight, unknown)):
                unread[owner.name] = skipped[owner.name]
        known.update(own)
    return skipped, unread


def _coverage_of(shapes: Iterable[Mapping[object, Sequence[int]]], layers: Iterable[Layer]) -> float:
    """Return the share of a model's weights that the layers read, in [0, 1]; 1 for a model without weights.

    Weights are the numbers in parameters with two or more numbers per unit: those of shape ``(1, 1, n)`` do not count.
    Shared parameters count once, sharded ones with their global shape, parametrized ones with their originals.
    Parameters that are not initialised yet do not count. ``shapes`` has the shapes of each module's parameters, keyed
    as in :attr:`Incoming.keys`.
    """
    shares: dict[object, Fraction] = defaultdict(Fraction)
    for layer in layers:
        for key, share in layer.shares():
            shares[key] += share
    sizes = {
        key: prod(shape)
        for of_module in shapes
        for key, shape in of_module.items()
        if len(shape) > 1 and (key in shares or is_matrix(shape))
    }
    # Several layers may read the same numbers, such as an embedding that shares its weight with a head.
    num_read = sum(size * min(Fraction(1), shares[key]) for key, size in sizes.items())
    total = sum(sizes.values())
    return float(num_read / total) if total else 1.0
