"""Which layers read the units of a layer, as far as the model can be traced without data."""

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

# Operations in which each number depends on one number of the input, by their names without underscores.
_ELEMENTWISE = {
    *("relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "mul", "truediv", "div", "identity", "contiguous"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
}
_POOL = re.compile(r"(?:adaptive)?(?:max|avg)pool([123])d")
_BATCH_NORM = re.compile(r"batchnorm([123])d")


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units of another layer.

    Attributes:
        name: its path in the model.
        weight: its weight.
        dim: the dimension of the weight along which its inputs lie.
        repeats: how often the units follow one another along this dimension; more than once behind flattened tokens.
        neighbours: how many neighbouring inputs belong to one unit; more than one behind a flattened image.
        through: names of the operations between the units and the reader, in lower case without underscores.
    """

    name: str
    weight: nn.Parameter = field(compare=False)
    dim: int
    repeats: int
    neighbours: int
    through: tuple[str, ...]

    def inputs(self, units: Tensor) -> Tensor:
        """Return the inputs that belong to some units, ``(n, repeats * neighbours)`` for ``(n,)``."""
        inputs = torch.arange(self.weight.shape[self.dim]).reshape(self.repeats, -1, self.neighbours)
        return inputs[:, units].movedim(1, 0).flatten(1)


def input_dim(module: nn.Module) -> int:
    """Return the dimension of the weight of a linear layer or convolution along which its inputs lie.

    Its units lie along the other one of the first two dimensions.
    """
    return 0 if isinstance(module, _ConvNd) and module.transposed else 1


class ReadingGraph:
    """Which layers of a model read the units of which.

    A copy of the model without weights is traced symbolically (:mod:`torch.fx`): its ``forward`` runs without numbers,
    in training and in evaluation mode, with and without its optional arguments. What ``forward`` changes in modules, it
    changes in the copy; the generators of random numbers are put back. Of a module without a ``forward`` of its own,
    such as a LightningModule that calls its network in ``training_step``, each part is traced, and taken to be called
    as a whole.

    Args:
        model: the model.
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
        except Exception:  # any code of users may run in there
            nodes = []
        # A module that `forward` has made is none of the model.
        self._calls = [node for node in nodes if node.op == "call_module" and node.target in self._modules]
        called = {id(each) for node in self._calls for each in self._modules[node.target].parameters()}
        names = {str(node.target) for node in nodes if node.op == "get_attr"} & set(parameters)
        self._used_directly = {id(parameters[name]) for name in names}
        self._is_complete = set(self._holders) <= called | self._used_directly

    def readers_of(self, module: nn.Module, num_units: int) -> list[Reader] | None:
        """Return the linear layers and convolutions that read the units of a layer.

        A reader is named twice if it is reached through different operations.

        Args:
            module: the layer, a part of the model.
            num_units: its number of units.

        Returns:
            The layers; None if they cannot be told. Either the model cannot be traced, or it has parameters that no
            trace uses. Or the units reach the outputs of the model, or an operation that is not known to keep them
            apart. Or the layer, or a reader, shares its weight, has hooks, or reads other things as well.
        """
        try:
            place = _written_at(module, num_units)
            found = [pair for call in self._calls_of(module) for pair in self._follow(call, place, num_units)]
            reading = {node for node, _ in found}
            if not all(reading.issuperset(self._calls_of(self._modules[node.target])) for node in reading):
                return None
        except _CannotTellError:
            return None
        return list(dict.fromkeys(reader for _, reader in found))

    def _calls_of(self, module: nn.Module) -> list[fx.Node]:
        """Return all uses of a layer.

        Raises:
            _CannotTellError: if there may be others.
        """
        own = {id(parameter) for parameter in module.parameters()}
        calls = [node for node in self._calls if self._modules[node.target] is module]
        is_shared = any(self._holders[each] > 1 for each in own) or not own.isdisjoint(self._used_directly)
        if not calls or is_shared or not self._is_complete or _has_hooks(module):
            raise _CannotTellError
        return calls

    def _follow(self, node: fx.Node, place: _Place, num_units: int, *through: str) -> Iterator[tuple[fx.Node, Reader]]:
        """Find the calls of layers that read what a node puts out, given where the units lie in it."""
        for user in node.users:
            if user.all_input_nodes != [node] or user.args[:1] != (node,):
                raise _CannotTellError
            module = self._modules.get(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, nn.Linear | _ConvNd):
                yield user, _reader(str(user.target), module, place, num_units, through)
                continue
            name = _name_of(user, module)
            moved = _moved(place, name, user, module, num_units)
            yield from self._follow(user, moved, num_units, *through, name)


class _CannotTellError(Exception):
    """The readers of some units cannot be told."""


@dataclass(frozen=True)
class _Place:
    """Where units lie in a tensor.

    Convolutions are taken to be given batches: channels are dimension 1 of what they put out.

    Attributes:
        behind: number of dimensions behind that of the units.
        flat: what else the dimension of the units holds: positions behind each unit, or tokens before all units.
    """

    behind: int
    flat: Literal["", "positions", "tokens"] = ""


# Those of `torch.nn.Module` and of LightningModule raise.
_FORWARDS_OF_NOBODY = ("torch.nn.modules.module", "lightning.pytorch.core.module", "pytorch_lightning.core.module")


def _called_from_outside(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules that have a ``forward``, with their paths."""
    if type(module).forward.__module__ not in _FORWARDS_OF_NOBODY or "forward" in vars(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _called_from_outside(child, f"{path}.{name}" if path else name)


def _named_from(path: str, graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes of a graph, with names of modules and parameters as the whole model has them."""
    for node in graph.nodes:
        if path and node.op in ("call_module", "get_attr"):
            node.target = f"{path}.{node.target}"
        yield node


def _traces(model: nn.Module) -> Iterator[fx.Graph]:
    """Trace a copy of a model whose parameters hold no numbers."""
    if "forward" in vars(model):
        raise _CannotTellError  # torch.fx would trace the method of the class
    memo: dict[int, Any] = {
        id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in model.parameters()
    }
    # `copy.deepcopy` refuses tensors with a history, such as features that a module has kept.
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
    """Return whether something other than the class of a module may change its outputs, or read them."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(map(is_of_user, hooks)) or "forward" in vars(module)


def _written_at(module: nn.Module, num_units: int) -> _Place:
    """Return where a layer puts its units."""
    if isinstance(module, _ConvNd) and module.out_channels == num_units:
        return _Place(len(module.kernel_size))
    if isinstance(module, nn.Linear | nn.Bilinear) and module.out_features == num_units:
        return _Place(0)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.embedding_dim == num_units:
        return _Place(0)
    raise _CannotTellError


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
    """Return where units lie behind an operation.

    Raises:
        _CannotTellError: if one number of its outputs may depend on several units.
    """
    if name in _ELEMENTWISE:
        return place
    if name == "flatten" and module is None:
        return _flattened(place, *node.args[1:], **node.kwargs)
    if name == "flatten":
        return _flattened(place, module.start_dim, module.end_dim)
    if (pool := _POOL.fullmatch(name)) and not place.flat and place.behind >= int(pool[1]):
        return place
    if (norm := _BATCH_NORM.fullmatch(name)) and module is not None:
        # It normalises along dimension 1. Behind a linear layer, that is taken to be the dimension of the units if it
        # is as long.
        dims = int(norm[1])
        is_along_units = place.behind == dims or (place.behind == 0 and dims == 1)
        if place.flat == "positions" or (is_along_units and not place.flat and module.num_features == num_units):
            return place
    raise _CannotTellError


def _flattened(place: _Place, start_dim: Any = 0, end_dim: Any = -1) -> _Place:
    if end_dim == -1 and place.behind == 0 and place.flat != "positions":
        return _Place(0, "tokens")
    if end_dim == -1 and start_dim in (1, -1 - place.behind):
        return _Place(0, "positions")
    raise _CannotTellError


def _reader(name: str, module: nn.Linear | _ConvNd, place: _Place, num_units: int, through: tuple[str, ...]) -> Reader:
    """Return a reader of units that lie there.

    Raises:
        _CannotTellError: if it reads along another dimension, in groups, or through a weight that is computed.
    """
    weight = module._parameters.get("weight")
    if not isinstance(weight, nn.Parameter) or is_sharded(weight):
        raise _CannotTellError
    dim = input_dim(module)
    per_unit, rest = divmod(weight.shape[dim], num_units)
    if isinstance(module, _ConvNd):
        is_along_units = place == _Place(len(module.kernel_size)) and module.groups == 1
    else:
        is_along_units = place.behind == 0
    if not is_along_units or rest or (per_unit > 1 and not place.flat):
        raise _CannotTellError
    repeats, neighbours = (per_unit, 1) if place.flat == "tokens" else (1, per_unit)
    return Reader(name, weight, dim, repeats, neighbours, through)
