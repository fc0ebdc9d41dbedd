"""Which modules of a model have units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.matrices.rows import UnreadableError
from lightning_symmetry.ranks.fsdp1 import FlatPart, flat_parts, without_numbers
from lightning_symmetry.ranks.pieces import View, is_sharded
from lightning_symmetry.units.layers import Incoming, Layer, check_tensor
from lightning_symmetry.units.parametrized import without_parametrizations
from lightning_symmetry.units.registry import NotUnderstoodError, Units, units_of

_PARAMETRIZED_AND_SHARDED = "parametrized and sharded: its weight cannot be computed without gathering it"
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


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
        module, originals = without_parametrizations(module)
    try:
        described = units_of(module)
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


def _is_chosen(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return False
    return include is None or any(fnmatchcase(name, pattern) for pattern in include)
