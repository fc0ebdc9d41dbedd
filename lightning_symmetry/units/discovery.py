"""Finding the layers of a model: which of its modules have units, what each is called, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from lightning_symmetry.units.coverage import coverage_of
from lightning_symmetry.units.layers import Incoming, Layer, WrongShapesError, check_tensor, real_rows
from lightning_symmetry.units.naming import free_name, readable_modules, readable_names
from lightning_symmetry.units.parametrized import without_parametrizations
from lightning_symmetry.units.patterns import is_chosen, unmatched_patterns
from lightning_symmetry.units.registry import NotUnderstoodError, Units, units_of
from lightning_symmetry.units.slices import is_matrix, slicings_of

_FlatParts = Mapping[int, Mapping[str, FlatPart]]  # by the identity of the module, and the name of the parameter


class Found(NamedTuple):
    """The layers of a model.

    Attributes:
        layers: in the order of ``model.named_modules()``; layers that share a weight are one.
        skipped: by name, the modules with parameters of their own that are not looked at, and why.
        coverage: share of the weights of the model that the layers look at, see :func:`coverage_of`.
        unmatched: by argument, the patterns in ``include`` and ``exclude`` that match no name.
        unread: those of ``skipped`` that hold weights which could train as one unseen: parameters of two or more
            dimensions that need a gradient and cannot be read, in modules that the user has not left out.
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
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all. Slices of a parameter that no adapter
            knows go by the name of the parameter and that of its module, too.
        exclude: patterns of layer names to leave out.
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
    return Found(
        layers,
        skipped,
        coverage_of((description.owner.shapes for description in descriptions), layers),
        unmatched_patterns([name for aliases in names for name in aliases], include, exclude),
        {name: skipped[name] for name in unread},
    )


def structure_of(model: nn.Module) -> object | None:
    """A value that stays equal as long as :func:`find_layers` would find the same in a model.

    It is None if the model has parametrized layers: their weights are computed, and are other tensors at every call.
    It is None, too, if some parameter cannot be described.
    """
    structure: list[object] = []
    try:
        return structure if _describe_structure(model, structure, set()) else None
    except Exception:  # tensors may be code of users
        return None


def _describe_structure(module: nn.Module, structure: list[object], seen: set[int]) -> bool:
    """Add what :func:`structure_of` says of a module and those in it; whether none of them is parametrized.

    It is asked at every check, and faster than a walk over ``named_modules``, which puts all paths together.
    """
    structure += (id(module), type(module))
    if id(module) in seen:
        return True
    seen.add(id(module))
    for parameter in module._parameters.values():
        if parameter is not None:
            # Initialising a lazy parameter or moving a model changes these properties of the same object.
            shape = None if is_lazy(parameter) else whole_shape(parameter)
            structure += (id(parameter), type(parameter), parameter.dtype, parameter.device, shape)
    children = module._modules
    if "parametrizations" in children and parametrizations_of(module):
        return False
    for name, child in children.items():
        if child is not None:
            structure.append(name)
            if not _describe_structure(child, structure, seen):
                return False
    structure.append(None)  # here the module ends
    return True


@dataclass(frozen=True)
class _Owner:
    """A module with parameters of its own.

    Attributes:
        name: of the module in reports.
        path: of the module in the model; empty for the model itself.
        module: the module.
        parameters: by name; of a parameter that is flattened, the source of its part.
        parts: by name, what this rank holds of the parameters that FSDP1 or DeepSpeed's ZeRO has flattened.
    """

    name: str
    path: str
    module: nn.Module
    parameters: Mapping[str, Tensor]
    parts: Mapping[str, FlatPart]

    @cached_property
    def shapes(self) -> dict[object, tuple[int, ...]]:
        """The shapes of the parameters, by key as in :attr:`Incoming.keys`, without those that are not initialised."""
        of_parts: dict[object, tuple[int, ...]] = {part.key: part.shape for part in self.parts.values()}
        whole = [one for name, one in self.parameters.items() if name not in self.parts and not is_lazy(one)]
        return of_parts | {id(parameter): tuple(parameter.shape) for parameter in whole}

    def is_weight(self, name: str) -> bool:
        """Return whether a parameter needs a gradient, and has more than one number per unit, or no shape so far."""
        parameter = self.parameters[name]
        shape = self.shapes.get(self.parts[name].key if name in self.parts else id(parameter))
        return parameter.requires_grad and (shape is None or is_matrix(shape))


@dataclass(frozen=True)
class _Description:
    """What is known of a module.

    Attributes:
        owner: the module.
        layers: its layers; of the parameters that its adapter does not know, their slices.
        reason: why nothing is known of the parameters that none of these layers looks at; None if the adapter does not
            mention them.
    """

    owner: _Owner
    layers: list[Layer]
    reason: str | None

    @property
    def names(self) -> list[tuple[str, ...]]:
        """For every layer, all names by which a pattern can choose it; if there are none, that of the module."""
        return [self.names_of(layer) for layer in self.layers] or [(self.owner.name,)]

    def names_of(self, layer: Layer) -> tuple[str, ...]:
        """All names by which a pattern can choose a layer: slices go by their parameter and its module, too."""
        return (layer.name, layer.slices_of, self.owner.name) if layer.slices_of else (layer.name,)


class _AdapterError(NotUnderstoodError):
    """A mistake of an adapter, of which its author is to hear."""


def _owners(model: nn.Module, flattened: _FlatParts) -> list[_Owner]:
    """Return the modules with parameters of their own, in the order of the model."""
    sources = {id(part.source) for parts in flattened.values() for part in parts.values()}
    owners = []
    for name, path, module in readable_names(model):
        parts = flattened.get(id(module), {})
        own: dict[str, Tensor] = {**own_parameters(module), **{key: part.source for key, part in parts.items()}}
        for key, chain in parametrizations_of(module).items():
            own |= {f"parametrizations.{key}.{name}": parameter for name, parameter in named_parameters_of(chain)}
        # A wrapper of FSDP1 has the flattened parameters of the modules inside, and none of its own.
        is_wrapper = not parts and sources.issuperset(map(id, own.values()))
        if own and not is_wrapper:
            owners.append(_Owner(name, path, module, own, parts))
    return owners


@dataclass(frozen=True)
class _Tensors:
    """Where the tensors that an adapter names have their numbers from.

    Attributes:
        originals: by the identity of a tensor that is computed, the parameters that it is computed from.
        flat: by the identity of a tensor that is flattened, what this rank holds of it.
    """

    originals: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)
    flat: Mapping[int, FlatPart] = field(default_factory=dict)

    def incoming(self, tensor: Tensor, view: View) -> Incoming:
        """The tensor as a layer reads it.

        Raises:
            NotUnderstoodError: if it cannot be read.
        """
        part = self.flat.get(id(tensor))
        if part is not None:
            check_tensor(part.source)
            if part.source.is_complex():
                raise NotUnderstoodError("its numbers are complex, and flattened")
            return Incoming(tensor, view, (part.source,), part)
        check_tensor(tensor)
        in_units = (lambda numbers: real_rows(view(numbers))) if tensor.is_complex() else view
        return Incoming(tensor, in_units, self.originals.get(id(tensor), (tensor,)))


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
    """Return what :class:`_Description` holds of a module.

    Raises:
        NotUnderstoodError: if nothing of the module can be read.
    """
    module, tensors, layers = owner.module, _Tensors(), []
    reason = None
    chains = parametrizations_of(module)
    if chains:
        is_flattened = any(id(part) in flattened for part in modules_of(module))
        if is_flattened or any(is_sharded(parameter) for parameter in parameters_of(module)):
            raise NotUnderstoodError("parametrized and sharded: its weight cannot be computed without gathering it")
        try:
            module, originals = without_parametrizations(module, elsewhere)
            tensors, chains = _Tensors(originals=originals), {}
        except NotUnderstoodError as error:
            reason = str(error)
    elif owner.parts:
        module, flat = without_numbers(module, owner.parts)
        tensors = _Tensors(flat=flat)
    try:
        layers = [] if chains else _layers_of(owner.name, module, tensors)
    except _AdapterError:
        raise
    except NotUnderstoodError as error:
        reason = str(error)
    if issubclass(type(module), ParametrizationList):  # the module that it belongs to is looked at
        return layers, reason
    start = f"{owner.path}." if owner.path else ""
    unknown = {f"{start}{name}": parameter for name, parameter in own_parameters(module).items()}
    for name, chain in chains.items():  # which cannot be computed
        unknown |= {f"{start}parametrizations.{name}.{own}": one for own, one in own_parameters(chain).items()}
    slices, failure = _slices_of(unknown, layers, tensors)
    return layers + slices, failure or reason


def _each_parameter_once(descriptions: Iterable[_Description]) -> list[_Description]:
    """Leave out the slices of parameters that another module shares whose adapter knows them."""
    descriptions = list(descriptions)
    known = {key for one in descriptions for layer in one.layers if not layer.slices_of for key, _ in layer.shares()}

    def is_needed(layer: Layer) -> bool:
        return not layer.slices_of or not known.issuperset(layer.tensors[0].keys)

    return [replace(one, layers=[layer for layer in one.layers if is_needed(layer)]) for one in descriptions]


def _layers_of(name: str, module: nn.Module, tensors: _Tensors) -> list[Layer]:
    """The layers of a module, as its adapter describes them."""
    try:
        described = units_of(module)
        several = [described] if isinstance(described, Units) else list(described)
        layers = [_layer_of(name, units, tensors) for units in several]
    except NotUnderstoodError:
        raise
    except Exception as error:  # adapters may be code of users
        raise _AdapterError(f"its adapter failed with {type(error).__name__}: {error}") from error
    if len({layer.name for layer in layers}) < len(layers):
        raise _AdapterError("its adapter gives several parts the same name; expected each to have a `part` of its own")
    return layers


def _layer_of(name: str, units: Units, tensors: _Tensors) -> Layer:
    if not isinstance(units, Units):
        raise _AdapterError(f"its adapter returns {type(units).__name__}, expected Units or several of them")
    for pair in units.tensors:
        if not isinstance(pair[0], Tensor):
            raise _AdapterError(f"its tensors are {type(pair[0]).__name__}s, which this package does not read")
    incoming = tuple(tensors.incoming(*pair) for pair in units.tensors)
    if not incoming or any(0 in tensor.weights.shape for tensor in incoming):
        raise NotUnderstoodError("it has no units or no inputs")
    recurrent = tensors.incoming(*units.recurrent) if units.recurrent else None
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
    parameters: Mapping[str, Tensor], layers: Iterable[Layer], tensors: _Tensors
) -> tuple[list[Layer], str | None]:
    """Return the slices of those parameters that no layer looks at, and why there are none of some of them."""
    known = {id(tensor.weights) for layer in layers for tensor in layer.all_tensors()}
    slices: list[Layer] = []
    failure = None
    for name, parameter in parameters.items():
        if id(parameter) not in known:
            try:
                slices += _slices_of_one(name, parameter, tensors)
            except NotUnderstoodError as error:
                failure = str(error)
    return slices, failure


def _slices_of_one(name: str, parameter: Tensor, tensors: _Tensors) -> Iterator[Layer]:
    if is_lazy(parameter):
        raise NotUnderstoodError("not initialised yet")
    is_first = True
    for slicing in slicings_of(parameter.shape):
        incoming = tensors.incoming(parameter, slicing.view)
        # What a parametrization computes a tensor from may hold a number per slice along dimension 0, but of no others.
        is_of_other_shape = any(original.shape != parameter.shape for original in incoming.originals)
        if incoming.part is None and is_of_other_shape and slicing.dim != 0:
            continue
        try:
            yield Layer(
                name=name + slicing.label,
                tensors=(incoming,),
                blocks=slicing.blocks,
                can_freeze=False,  # slices may go unused, like the positions that no text is long enough for
                dies_as_a_whole=is_first,  # of the other ways to look at it the same would be said again
                slices_of=name,
            )
            is_first = False
        except UnreadableError:  # a view that would copy a tensor of which every rank holds a part
            continue


def _under_free_names(descriptions: Sequence[_Description], modules: set[str]) -> list[_Description]:
    """Give parts and slices that have the name of a module, of another part or parameter, a name of their own."""
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
    if weight.part is not None:
        return layer.place
    return (id(weight.originals[0]), layer.place if len(weight.originals) == 1 else layer.name)


def _left_out(descriptions: Sequence[_Description], chosen: set[str]) -> tuple[dict[str, str], list[str]]:
    """Say by name why modules, or parts of modules, are not looked at.

    A module is not mentioned if other modules, or modules before it in the model, account for all of its parameters.

    Args:
        descriptions: what is known of each module.
        chosen: the names of layers and of modules that the user has not left out.

    Returns:
        The reasons by name, and the names of those that make :attr:`Found.unread`.
    """
    skipped: dict[str, str] = {}
    unread: list[str] = []
    # Identities of the parameters that are accounted for.
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
                unread.append(owner.name)
        known.update(own)
    return skipped, unread
