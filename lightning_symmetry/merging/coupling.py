"""The tensors with numbers for the units of a layer, according to the dependency graph of torch-pruning.

Only this module depends on torch-pruning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.merging.verification import Inputs, NotMergedError, describe, tensors_in
from lightning_symmetry.modules import num_holders
from lightning_symmetry.units.readers import ReadingGraph, input_dim


class Part(NamedTuple):
    """A tensor of a module with slices for units."""

    name: str  # attribute of the module
    dim: int  # dimension along which the slices lie
    is_odd: bool = True  # whether the slices of mirror images are negatives of each other


_NORM = (Part("weight", 0, False), Part("bias", 0), Part("running_mean", 0), Part("running_var", 0, False))
# Tensors with slices for the units that a module outputs or passes on, by torch-pruning's names for kinds of nodes.
_WRITTEN = {
    "DEPTHWISE_CONV": (Part("weight", 0, False), Part("bias", 0)),
    "BN": _NORM,
    "IN": _NORM,
    "PRELU": (Part("weight", 0, False),),
    "EMBED": (Part("weight", 1),),
}
_READERS = ("LINEAR", "CONV")
_ROOTS = (*_READERS, "EMBED")  # layers whose units can be merged
_LAYERS = (*_ROOTS, "DEPTHWISE_CONV")  # layers that have units
_MIXERS = ("LN", "GN")
_UNCLEAR = "torch-pruning cannot assign the numbers that belong to them to single units"
_MAX_VISITS = 100  # to one node of the graph; a node of a residual network is visited a handful of times
_WITHOUT_NUMBERS = ("ELEMENTWISE", "RESHAPE", "CONCAT", "SPLIT", "UNBIND", "EXPAND", "SLICE")


class Coupled(NamedTuple):
    """A module with numbers for each of some units, or a parameter that belongs to no known module."""

    name: str  # name in the model
    kind: str  # name of the class
    # the tensors by name in the model, each with the description of its slices
    tensors: Mapping[str, tuple[Part, Tensor]]
    places: Mapping[int, tuple[int, ...]]  # the indices of each unit's slices
    is_reader: bool  # whether the outputs of the units are multiplied by the numbers and summed
    is_layer: bool  # whether the module loses units of its own

    def row(self, unit: int, sign: int) -> Tensor:
        """Return all numbers for a unit as a vector, the odd ones times the sign."""
        rows = []
        for part, tensor in self.tensors.values():
            places = torch.tensor(self.places[unit], device=tensor.device)
            rows.append(tensor.detach().index_select(part.dim, places).flatten() * (sign if part.is_odd else 1))
        return torch.cat(rows)


class _BoundedList(list[Any]):
    """The dependencies of a node; raises after too many iterations.

    torch-pruning follows dependencies until it meets no new indices, which may never happen in an LSTM.
    """

    visits = 0

    def __iter__(self) -> Iterator[Any]:
        self.visits += 1
        if self.visits > _MAX_VISITS:
            raise RecursionError("it goes in circles")
        return super().__iter__()


class Graph:
    """The dependencies between the tensors of a model.

    All floating point parameters must require a gradient. The model is put into evaluation mode.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        NotMergedError: if torch-pruning cannot trace the model.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        pruning = torch_pruning()
        self._model = model
        # Whether a symbolic trace of both modes found all readers of the latest units passed to `coupled`.
        self.knows_all_readers = False
        self._paths = {module: path for path, module in model.named_modules()}
        self._num_holders = num_holders(model)
        try:
            with torch.enable_grad():
                self._graph: Any = pruning.DependencyGraph().build_dependency(
                    model,
                    inputs.args or inputs.kwargs,
                    forward_fn=lambda traced, _: inputs.call(traced),
                    output_transform=lambda output: [each for each in tensors_in(output) if each.requires_grad],
                    ignored_params=[],  # release 1.5 fails on its own default
                    verbose=False,
                )
        except Exception as error:  # torch-pruning fails on unsupported models in many ways
            raise NotMergedError(f"torch-pruning cannot trace the model ({describe(error)})") from error
        for node in self._graph.module2node.values():
            node.dependencies = _BoundedList(node.dependencies)

    def num_units(self, module: nn.Module) -> int:
        """Return the number of units of a layer; 0 if it is not in the graph."""
        return int(self._graph.get_out_channels(module) or 0) if module in self._graph.module2node else 0

    def coupled(self, module: nn.Module, units: Sequence[int]) -> list[Coupled]:
        """Return all modules with numbers for some units of a layer, the layer itself first."""
        group = self._group(module, units)
        coupled = [each for item in group for each in self._coupled(item, units)]
        readers = [each for each in coupled if each.is_reader]
        if not readers:
            raise NotMergedError("they are outputs of the model, or torch-pruning does not find what reads them")
        self._check_readers(readers, module, units)
        return coupled

    def _check_readers(self, readers: Iterable[Coupled], module: nn.Module, units: Sequence[int]) -> None:
        """Check that torch-pruning found all readers, including layers that are used only in training mode."""
        expected = ReadingGraph(self._model).readers_of(module, self._graph.get_out_channels(module))
        self.knows_all_readers = expected is not None  # unknown, for example, if the units are added to others
        found = {id(tensor): (part.dim, each.places) for each in readers for part, tensor in each.tensors.values()}
        for reader in expected or ():
            places = map(tuple, reader.inputs(torch.tensor(units)).tolist())
            if found.get(id(reader.weight)) != (reader.dim, dict(zip(units, places, strict=True))):
                raise NotMergedError(f"`{reader.name}` reads them at inputs that torch-pruning does not find")

    def remove(self, module: nn.Module, units: Sequence[int]) -> None:
        """Remove units of a layer and everything that belongs to them. The graph must not be used afterwards."""
        try:
            self._group(module, units).prune()
        except Exception as error:
            raise NotMergedError(f"torch-pruning fails to remove them ({describe(error)})") from error

    def _group(self, module: nn.Module, units: Sequence[int]) -> Any:
        if module not in self._graph.module2node:
            raise NotMergedError("torch-pruning does not find the layer on a path to the outputs of the model")
        if self._graph.module2node[module].type.name not in _ROOTS:
            raise NotMergedError(f"torch-pruning removes no single units of {type(module).__name__}")
        for node in self._graph.module2node.values():
            node.dependencies.visits = 0
        remove = self._graph.get_pruner_of_module(module).prune_out_channels
        try:
            return self._graph.get_pruning_group(module, remove, list(units))
        except Exception as error:
            raise NotMergedError(f"torch-pruning cannot find what belongs to them ({describe(error)})") from error

    def _coupled(self, item: Any, units: Sequence[int]) -> list[Coupled]:
        """Return the module or parameter that a pruning-group item touches; empty for operations without numbers."""
        node, handler = item.dep.target, item.dep.handler
        kind = node.type.name
        if kind in _WITHOUT_NUMBERS:
            # Weights of zero behind a softmax would hide the change from a comparison of outputs.
            if "Softmax" in str(node.module):
                raise NotMergedError("a softmax runs over them, or over values computed from them")
            return []
        if kind == "OUTPUT":
            raise NotMergedError("they are outputs of the model")
        places = _places(item, units)
        if kind == "PARAMETER":
            return [self._coupled_parameter(node.module, node.pruning_dim, places)]
        module: nn.Module = node.module
        name, class_name = self._paths[module], type(module).__name__
        is_reader = kind in _READERS and not self._graph.is_out_channel_pruning_fn(handler)
        parts = _WRITTEN.get(kind)
        if kind in _READERS:
            dim = input_dim(module)
            parts = (Part("weight", dim),) if is_reader else (Part("weight", 1 - dim), Part("bias", 0))
        if kind in _MIXERS:
            raise NotMergedError(f"`{name}` ({class_name}) computes statistics over them, which would change")
        if parts is None:
            raise NotMergedError(f"torch-pruning removes no single units of `{name}` ({class_name})")
        groups, inputs = getattr(module, "groups", 1), getattr(module, "in_channels", 1)
        if (kind == "CONV" and groups > 1) or (kind == "DEPTHWISE_CONV" and groups != inputs):
            raise NotMergedError(f"`{name}` is a convolution in {groups} groups, which have to stay of equal size")
        if kind == "IN" and getattr(module, "running_mean", None) is not None:
            raise NotMergedError(f"torch-pruning does not shorten the statistics of `{name}` ({class_name})")
        tensors = self._tensors(module, name, parts)
        # A PReLU may share one number among its units.
        tensors = {key: (part, tensor) for key, (part, tensor) in tensors.items() if tensor.shape[part.dim] > 1}
        if not tensors:
            return []
        _check_places(places, tensors)
        return [Coupled(name, class_name, tensors, places, is_reader, is_layer=kind in _LAYERS and not is_reader)]

    def _tensors(self, module: nn.Module, name: str, parts: Iterable[Part]) -> dict[str, tuple[Part, Tensor]]:
        if is_parametrized(module):
            raise NotMergedError(f"`{name}` is parametrized")
        found: dict[str, tuple[Part, Tensor]] = {}
        for part in parts:
            tensor = getattr(module, part.name, None)
            if tensor is None:
                continue
            if part.name not in module._parameters and part.name not in module._buffers:
                raise NotMergedError(f"`{name}.{part.name}` is computed from other tensors")
            if self._num_holders[id(tensor)] > 1:
                raise NotMergedError(f"`{name}.{part.name}` is tied to another parameter")
            found[f"{name}.{part.name}" if name else part.name] = (part, tensor)
        return found

    def _coupled_parameter(self, parameter: Tensor, dim: int, places: dict[int, tuple[int, ...]]) -> Coupled:
        path = next(name for name, other in self._model.named_parameters() if other is parameter)
        owner_path, _, attribute = path.rpartition(".")
        owner = self._model.get_submodule(owner_path)
        if type(owner).__module__.startswith("torch.nn."):  # of a GRU, for example, torch-pruning finds only tensors
            raise NotMergedError(f"torch-pruning does not know `{owner_path}` ({type(owner).__name__})")
        tensors = self._tensors(owner, owner_path, [Part(attribute, dim % parameter.ndim, is_odd=False)])
        _check_places(places, tensors)
        return Coupled(path, "Parameter", tensors, places, is_reader=False, is_layer=False)


def torch_pruning() -> Any:
    """Import and return the package torch-pruning; raises a ModuleNotFoundError if it is not installed."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`merge_duplicates` expects torch-pruning to be installed: pip install 'lightning-symmetry[merge]'"
        ) from error
    return torch_pruning


def _places(item: Any, units: Sequence[int]) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = {unit: [] for unit in units}
    for place, unit in zip(item.idxs, item.root_idxs, strict=True):
        if unit not in found:
            raise NotMergedError(_UNCLEAR)
        found[unit].append(place)
    return {unit: tuple(sorted(places)) for unit, places in found.items()}


def _check_places(places: Mapping[int, tuple[int, ...]], tensors: Mapping[str, tuple[Part, Tensor]]) -> None:
    all_places = [place for of_unit in places.values() for place in of_unit]
    size = min(tensor.shape[part.dim] for part, tensor in tensors.values())
    if len(set(all_places)) < len(all_places) or not all(0 <= place < size for place in all_places):
        raise NotMergedError(_UNCLEAR)
