"""What has numbers for the units of a layer, according to the dependency graph of torch-pruning.

Everything that depends on torch-pruning is in this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.merging.errors import NotMergedError, describe
from lightning_symmetry.merging.verification import Inputs, tensors_in
from lightning_symmetry.modules import num_holders
from lightning_symmetry.units.readers import ReadingGraph, input_dim


class Part(NamedTuple):
    """A tensor of a module with slices for units.

    Attributes:
        name: attribute of the module.
        dim: the dimension along which the slices lie.
        is_odd: whether mirror images hold the negative of each other's numbers.
    """

    name: str
    dim: int
    is_odd: bool = True


_NORM = (Part("weight", 0, False), Part("bias", 0), Part("running_mean", 0), Part("running_var", 0, False))
# By the names of torch-pruning for kinds of nodes: what goes with a unit that a module puts out or passes on.
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
_UNTOLD = "torch-pruning cannot tell which of the numbers that go with them belong to which unit"
_MAX_VISITS = 100  # to one node of the graph; a node of a residual network is visited a handful of times
_WITHOUT_NUMBERS = ("ELEMENTWISE", "RESHAPE", "CONCAT", "SPLIT", "UNBIND", "EXPAND", "SLICE")


@dataclass(frozen=True)
class Coupled:
    """A module with numbers for each of some units, or a parameter that belongs to no known module.

    Attributes:
        name: its name in the model, as users read it.
        kind: its class.
        tensors: the tensors by name in the model, each with the description of its slices.
        places: of each unit, the indices of its slices.
        is_reader: whether the numbers are multiplied by the outputs of the units, which are then summed.
        is_layer: whether it loses units of its own.
    """

    name: str
    kind: str
    tensors: Mapping[str, tuple[Part, Tensor]]
    places: Mapping[int, tuple[int, ...]]
    is_reader: bool
    is_layer: bool

    def row(self, unit: int, sign: int) -> Tensor:
        """All numbers for a unit as one vector, those that are odd times the sign."""
        return torch.cat(
            [
                self._slices(tensor, part.dim, unit).flatten() * (sign if part.is_odd else 1)
                for part, tensor in self.tensors.values()
            ]
        )

    def _slices(self, tensor: Tensor, dim: int, unit: int) -> Tensor:
        return tensor.detach().index_select(dim, torch.tensor(self.places[unit], device=tensor.device))


class _BoundedList(list[Any]):
    """The dependencies of a node, which can be gone through a limited number of times.

    torch-pruning follows them until it meets no new indices. In the operations of an LSTM it may never come to an end.
    """

    visits = 0

    def __iter__(self) -> Iterator[Any]:
        self.visits += 1
        if self.visits > _MAX_VISITS:
            raise RecursionError("it goes in circles")
        return super().__iter__()


class Graph:
    """How the tensors of a model depend on one another.

    Args:
        model: the model; all of its floating point parameters have to require a gradient. It is put into evaluation
            mode.
        inputs: what it is called with.

    Attributes:
        readers_are_told: whether a symbolic trace of both modes has found all that reads the units last asked for.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        NotMergedError: if torch-pruning cannot follow the model.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        pruning = torch_pruning()
        self._model = model
        self.readers_are_told = False
        self._paths = {module: path for path, module in model.named_modules()}
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
        except Exception as error:  # it follows some models only, and fails on others in many ways
            raise NotMergedError(f"torch-pruning cannot follow the model ({describe(error)})") from error
        for node in self._graph.module2node.values():
            node.dependencies = _BoundedList(node.dependencies)

    def num_units(self, module: nn.Module) -> int:
        """Return how many units a layer has."""
        return int(self._graph.get_out_channels(module) or 0) if module in self._graph.module2node else 0

    def coupled(self, module: nn.Module, units: Sequence[int]) -> list[Coupled]:
        """All that has numbers for these units, the module itself first.

        Args:
            module: the layer whose units they are.
            units: their indices.

        Raises:
            NotMergedError: if the units cannot be removed, or not without changing what the model computes.
        """
        group = self._group(module, units)
        coupled = [each for item in group for each in self._coupled(item, units)]
        readers = [each for each in coupled if each.is_reader]
        if not readers:
            raise NotMergedError("they are outputs of the model, or torch-pruning does not know what reads them")
        self._check_readers(readers, module, units)
        return coupled

    def _check_readers(self, readers: Iterable[Coupled], module: nn.Module, units: Sequence[int]) -> None:
        """Refuse units that other layers read as well, such as one that is used in training mode only."""
        expected = ReadingGraph(self._model).readers_of(module, self._graph.get_out_channels(module))
        self.readers_are_told = expected is not None
        if expected is None:  # it cannot follow units that are added to others, for example
            return
        found = {id(tensor): (part.dim, each.places) for each in readers for part, tensor in each.tensors.values()}
        for reader in expected:
            places = map(tuple, reader.inputs(torch.tensor(units)).tolist())
            if found.get(id(reader.weight)) != (reader.dim, dict(zip(units, places, strict=True))):
                raise NotMergedError(f"`{reader.name}` reads them at inputs that torch-pruning does not find")

    def remove(self, module: nn.Module, units: Sequence[int]) -> None:
        """Remove units of a layer, and what goes with them. Afterwards this graph is no longer of use.

        Raises:
            NotMergedError: if torch-pruning fails.
        """
        try:
            self._group(module, units).prune()
        except Exception as error:
            raise NotMergedError(f"torch-pruning fails to remove them ({describe(error)})") from error

    def _group(self, module: nn.Module, units: Sequence[int]) -> Any:
        if module not in self._graph.module2node:
            raise NotMergedError("torch-pruning does not find the layer in what leads to the outputs of the model")
        if self._graph.module2node[module].type.name not in _ROOTS:
            raise NotMergedError(f"torch-pruning removes no single units of {type(module).__name__}")
        for node in self._graph.module2node.values():
            node.dependencies.visits = 0
        remove = self._graph.get_pruner_of_module(module).prune_out_channels
        try:
            return self._graph.get_pruning_group(module, remove, list(units))
        except Exception as error:
            raise NotMergedError(f"torch-pruning cannot tell what goes with them ({describe(error)})") from error

    def _coupled(self, item: Any, units: Sequence[int]) -> list[Coupled]:
        """What an item of a pruning group stands for: nothing, if it has no numbers."""
        node, handler = item.dep.target, item.dep.handler
        kind = node.type.name
        if kind in _WITHOUT_NUMBERS:
            # Behind weights of zero its outputs make no difference yet, so running the model would not tell.
            if "Softmax" in str(node.module):
                raise NotMergedError("a softmax runs over them, or over what is computed from them")
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
            raise NotMergedError(f"`{name}` ({class_name}) takes statistics over them, which would be others")
        if parts is None:
            raise NotMergedError(f"torch-pruning removes no single units of `{name}` ({class_name})")
        _check_convolution(module, kind, name)
        if kind == "IN" and getattr(module, "running_mean", None) is not None:
            raise NotMergedError(f"torch-pruning does not shorten the statistics of `{name}` ({class_name})")
        tensors = self._tensors(module, name, parts)
        # A PReLU may have one number for all of its units.
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
            if self._uses[id(tensor)] > 1:
                raise NotMergedError(f"`{name}.{part.name}` is tied to another parameter")
            found[f"{name}.{part.name}" if name else part.name] = (part, tensor)
        return found

    def _coupled_parameter(self, parameter: Tensor, dim: int, places: dict[int, tuple[int, ...]]) -> Coupled:
        path = next(name for name, other in self._model.named_parameters() if other is parameter)
        owner_path, _, attribute = path.rpartition(".")
        owner = self._model.get_submodule(owner_path)
        if type(owner).__module__.startswith("torch.nn."):  # such as a GRU, of which torch-pruning sees tensors only
            raise NotMergedError(f"torch-pruning does not know `{owner_path}` ({type(owner).__name__})")
        tensors = self._tensors(owner, owner_path, [Part(attribute, dim % parameter.ndim, is_odd=False)])
        _check_places(places, tensors)
        return Coupled(path, "Parameter", tensors, places, is_reader=False, is_layer=False)

    @cached_property
    def _uses(self) -> Counter[int]:
        return num_holders(self._model)


def torch_pruning() -> Any:
    """The package torch-pruning.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
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
            raise NotMergedError(_UNTOLD)
        found[unit].append(place)
    return {unit: tuple(sorted(places)) for unit, places in found.items()}


def _check_places(places: Mapping[int, tuple[int, ...]], tensors: Mapping[str, tuple[Part, Tensor]]) -> None:
    all_places = [place for of_unit in places.values() for place in of_unit]
    size = min(tensor.shape[part.dim] for part, tensor in tensors.values())
    if len(set(all_places)) < len(all_places) or not all(0 <= place < size for place in all_places):
        raise NotMergedError(_UNTOLD)


def _check_convolution(module: nn.Module, kind: str, name: str) -> None:
    groups, inputs = getattr(module, "groups", 1), getattr(module, "in_channels", 1)
    if (kind == "CONV" and groups > 1) or (kind == "DEPTHWISE_CONV" and groups != inputs):
        raise NotMergedError(f"`{name}` is a convolution in {groups} groups, which have to stay of equal size")
