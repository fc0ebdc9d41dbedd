"""Which layers read the units of a layer, found by tracing the model without data."""

from __future__ import annotations

import copy
import inspect
import operator
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from lightning_symmetry.modules import num_holders
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.units.hooks import is_of_user

# Elementwise operations of one input, by name without underscores.
_ELEMENTWISE = {
    *("relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "mul", "truediv", "div", "identity", "contiguous"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
}
_POOL = re.compile(r"(?:adaptive)?(?:max|avg)pool([123])d")
_BATCH_NORM = re.compile(r"batchnorm([123])d")


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units of another layer."""

    name: str  # its path in the model
    weight: nn.Parameter = field(compare=False)
    dim: int  # the dimension of the weight that counts inputs
    repeats: int  # how often the sequence of units repeats along this dimension: once per token that was flattened
    neighbours: int  # number of adjacent inputs per unit: one per position of a flattened image
    # Names of the operations between the units and the reader, in lower case without underscores.
    through: tuple[str, ...]

    def inputs(self, units: Tensor) -> Tensor:
        """Return the inputs ``(n, repeats * neighbours)`` that come from units ``(n,)``."""
        inputs = torch.arange(self.weight.shape[self.dim]).reshape(self.repeats, -1, self.neighbours)
        return inputs[:, units].movedim(1, 0).flatten(1)


def input_dim(module: nn.Module) -> int:
    """Return which of the first two dimensions of a weight counts inputs; the other one counts units."""
    return 0 if isinstance(module, _ConvNd) and module.transposed else 1


class ReadingGraph:
    """The graph of a model: which layers read the units of which other layers.

    A copy of the model without weights is traced symbolically (:mod:`torch.fx`), in training and in evaluation mode,
    with and without its optional arguments. Side effects of ``forward`` stay in the copy, and the random generators are
    restored. If a module has no ``forward`` of its own, like a LightningModule that calls its network in
    ``training_step``, each child is traced and assumed to be called as a whole.
    """

    def __init__(self, model: nn.Module) -> None:
        while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        self._modules = dict(model.named_modules(remove_duplicate=False))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._holders = num_holders(model)
        try:
            nodes = [
                node
                for path, part in _called_from_outside(model)
                for graph in _traces(part)
                for node in _named_from(path, graph)
            ]
        except Exception:  # tracing runs code of users
            nodes = []
        # `forward` may create modules, which are no part of the model.
        self._calls = [node for node in nodes if node.op == "call_module" and node.target in self._modules]
        called = {id(each) for node in self._calls for each in self._modules[node.target].parameters()}
        names = {str(node.target) for node in nodes if node.op == "get_attr"} & set(parameters)
        self._used_directly = {id(parameters[name]) for name in names}
        self._is_complete = set(self._holders) <= called | self._used_directly

    def readers_of(self, module: nn.Module, num_units: int) -> list[Reader] | None:
        """Return the linear layers and convolutions that read the units of a layer of the model.

        A reader appears twice if it is reached through different operations. Return None if the readers are unknown: if
        the model cannot be traced or has parameters that no trace uses; if the units reach the outputs of the model, or
        an operation that may mix them; or if the layer or a reader shares its weight, has hooks or reads other inputs
        as well.
        """
        try:
            place = _written_at(module, num_units)
            found = [pair for call in self._calls_of(module) for pair in self._follow(call, place, num_units)]
            reading = {node for node, _ in found}
            if not all(reading.issuperset(self._calls_of(self._modules[node.target])) for node in reading):
                return None
        except _UnknownReadersError:
            return None
        return list(dict.fromkeys(reader for _, reader in found))

    def _calls_of(self, module: nn.Module) -> list[fx.Node]:
        """Return all uses of a layer; raise if there may be others."""
        own = {id(parameter) for parameter in module.parameters()}
        calls = [node for node in self._calls if self._modules[node.target] is module]
        is_shared = any(self._holders[each] > 1 for each in own) or not own.isdisjoint(self._used_directly)
        if not calls or is_shared or not self._is_complete or _has_hooks(module):
            raise _UnknownReadersError
        return calls

    def _follow(self, node: fx.Node, place: _Place, num_units: int, *through: str) -> Iterator[tuple[fx.Node, Reader]]:
        """Yield the calls of layers that read the output of a node, given the place of the units in it."""
        for user in node.users:
            if user.all_input_nodes != [node] or user.args[:1] != (node,):
                raise _UnknownReadersError
            module = self._modules.get(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, nn.Linear | _ConvNd):
                yield user, _reader(str(user.target), module, place, num_units, through)
                continue
            name = _name_of(user, module)
            moved = _moved(place, name, user, module, num_units)
            yield from self._follow(user, moved, num_units, *through, name)


class _UnknownReadersError(Exception):
    """The readers of some units are unknown; raised and caught in this module."""


@dataclass(frozen=True)
class _Place:
    """The place of units in a tensor; the inputs of convolutions are assumed to be batches."""

    behind: int  # number of dimensions after the dimension of the units
    # What was flattened into the dimension of the units. "positions": those of one unit are adjacent; "tokens": the
    # units of one token are adjacent.
    flat: Literal["", "positions", "tokens"] = ""


# `Module.forward` and `LightningModule.forward` only raise.
_WITHOUT_FORWARD = ("torch.nn.modules.module", "lightning.pytorch.core.module", "pytorch_lightning.core.module")


def _called_from_outside(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules with a ``forward`` of their own, and their paths."""
    if type(module).forward.__module__ not in _WITHOUT_FORWARD or "forward" in vars(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _called_from_outside(child, f"{path}.{name}" if path else name)


def _named_from(path: str, graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes of a graph, with the paths of modules and parameters in the whole model."""
    for node in graph.nodes:
        if path and node.op in ("call_module", "get_attr"):
            node.target = f"{path}.{node.target}"
        yield node


def _traces(model: nn.Module) -> Iterator[fx.Graph]:
    """Yield traces of a copy of a model whose parameters hold no numbers."""
    if "forward" in vars(model):
        raise _UnknownReadersError  # torch.fx would trace the method of the class
    memo: dict[int, Any] = {
        id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in model.parameters()
    }
    # `copy.deepcopy` refuses tensors with a graph, such as features that a module has stored.
    kept = [each for module in model.modules() for each in vars(module).values() if isinstance(each, Tensor)]
    memo |= {id(each): each.detach().to("meta") for each in kept}
    with preserved_random_numbers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy.deepcopy(model, memo)
        arguments = inspect.signature(twin.forward).parameters.values()
        defaults = {each.name: each.default for each in arguments if each.default is not each.empty}
        for is_training in (True, False):
            twin.train(is_training)
            for given in [None, defaults] if defaults else [None]:
                yield fx.Tracer().trace(twin, given)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether hooks or a replaced ``forward`` may change or read the outputs of a module."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(map(is_of_user, hooks)) or "forward" in vars(module)


def _written_at(module: nn.Module, num_units: int) -> _Place:
    """Return the place of the units in the output of a layer."""
    if isinstance(module, _ConvNd) and module.out_channels == num_units:
        return _Place(len(module.kernel_size))
    is_linear = isinstance(module, nn.Linear | nn.Bilinear) and module.out_features == num_units
    if is_linear or (isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.embedding_dim == num_units):
        return _Place(0)
    raise _UnknownReadersError


def _name_of(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name of an operation of PyTorch, in lower case without underscores; empty for others."""
    if module is not None:
        name = type(module).__name__
        is_known = getattr(nn, name, None) is type(module) and not _has_hooks(module)
    elif node.op == "call_method":
        name, is_known = str(node.target), True
    else:
        name = getattr(node.target, "__name__", "")
        is_known = any(getattr(place, name, None) is node.target for place in (torch, functional, operator))
    return name.replace("_", "").lower() if is_known else ""


def _moved(place: _Place, name: str, node: fx.Node, module: Any, num_units: int) -> _Place:
    """Return the place of units after an operation; raise if it may mix several units into one number."""
    if name in _ELEMENTWISE:
        return place
    if name == "flatten" and module is None:
        return _flattened(place, *node.args[1:], **node.kwargs)
    if name == "flatten":
        return _flattened(place, module.start_dim, module.end_dim)
    if (pool := _POOL.fullmatch(name)) and not place.flat and place.behind >= int(pool[1]):
        return place
    if (norm := _BATCH_NORM.fullmatch(name)) and module is not None:
        # BatchNorm normalises along dimension 1. After a linear layer, this is assumed to be the dimension of the units
        # if the sizes agree.
        dims = int(norm[1])
        is_along_units = place.behind == dims or (place.behind == 0 and dims == 1)
        if place.flat == "positions" or (is_along_units and not place.flat and module.num_features == num_units):
            return place
    raise _UnknownReadersError


def _flattened(place: _Place, start_dim: Any = 0, end_dim: Any = -1) -> _Place:
    if end_dim == -1 and place.behind == 0 and place.flat != "positions":
        return _Place(0, "tokens")
    if end_dim == -1 and start_dim in (1, -1 - place.behind):
        return _Place(0, "positions")
    raise _UnknownReadersError


def _reader(name: str, module: nn.Linear | _ConvNd, place: _Place, num_units: int, through: tuple[str, ...]) -> Reader:
    """Return a layer as a reader of units; raise if it reads another dimension, in groups or with a computed weight."""
    weight = module._parameters.get("weight")
    if not isinstance(weight, nn.Parameter) or is_sharded(weight):
        raise _UnknownReadersError
    dim = input_dim(module)
    per_unit, rest = divmod(weight.shape[dim], num_units)
    is_along_units = place.behind == 0
    if isinstance(module, _ConvNd):
        is_along_units = place == _Place(len(module.kernel_size)) and module.groups == 1
    if not is_along_units or rest or (per_unit > 1 and not place.flat):
        raise _UnknownReadersError
    repeats, neighbours = (per_unit, 1) if place.flat == "tokens" else (1, per_unit)
    return Reader(name, weight, dim, repeats, neighbours, through)
