"""The tensors of a checkpoint as modules: a tree of stand-ins that have the names, but not the code, of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

_PARAMETRIZED = ".parametrizations."
# Such tensors are buffers: positions, masks, counters. Weights of whole numbers are narrower ones.
_NO_WEIGHTS = (torch.bool, torch.int64)


class StoredModule(nn.Module):
    """Holds the tensors that a checkpoint has of one module, whose class is not known.

    Args:
        path: of the module in the checkpoint; empty for the model itself.
        relatives: all modules of the checkpoint by path, to which this one is added.
    """

    def __init__(self, path: str, relatives: dict[str, StoredModule]) -> None:
        super().__init__()
        self.path = path
        self.relatives = relatives
        relatives[path] = self

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its own tensors by name; those of a parametrized weight are ``parametrizations.weight.original`` and such."""
        return cast("dict[str, Tensor]", self._parameters)

    def child(self, name: str) -> StoredModule:
        """The module of this name inside this one, made if there is none so far."""
        if name not in self._modules:
            # Not by `add_module`, which refuses names that modules of PyTorch use themselves, such as `path` here.
            self._modules[name] = StoredModule(f"{self.path}.{name}" if self.path else name, self.relatives)
        return cast("StoredModule", self._modules[name])


class Checkpoint(StoredModule):
    """The model itself: a report calls tensors that belong to no module inside by the name of this class."""

    def __init__(self) -> None:
        super().__init__("", {})


class Filled(NamedTuple):
    """A model with the tensors of a checkpoint.

    Attributes:
        model: the model.
        tensors: those that it has from the checkpoint, by the names they have there.
        skipped: by name, what only one of both has, and which of them.
    """

    model: nn.Module
    tensors: dict[str, Tensor]
    skipped: dict[str, str]


def as_modules(tensors: Mapping[str, Tensor]) -> Filled:
    """Put tensors into a tree of modules, by the dots in their names.

    Args:
        tensors: by name, as in a state dict. Those that cannot be weights, such as counters, are left out.

    Returns:
        The tree. Tensors that are the same numbers are one parameter of it.

    Example:
        >>> filled = as_modules({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)})
        >>> [name for name, _ in filled.model.named_parameters()]
        ['fc.weight', 'fc.bias']
    """
    tree = Checkpoint()
    parameters: dict[str, Tensor] = {}
    known: dict[object, nn.Parameter] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in _NO_WEIGHTS:
            continue
        place = _place_of(tensor) or name
        parameters[name] = parameter = known.setdefault(place, _parameter(tensor))
        path, own = _owner_of(name)
        module: StoredModule = tree
        for step in path.split(".") if path else ():
            module = module.child(step)
        module._parameters[own] = parameter
    return Filled(tree, parameters, {})


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def _owner_of(name: str) -> tuple[str, str]:
    """The path of the module that a tensor belongs to, and what the tensor is called there."""
    path, found, own = f".{name}".partition(_PARAMETRIZED)
    if found:
        return path[1:], _PARAMETRIZED[1:] + own
    path, _, own = name.rpartition(".")
    return path, own


def _place_of(tensor: Tensor) -> object | None:
    """A value that is equal for tensors that are the same numbers; None if it cannot be told."""
    if tensor.layout != torch.strided or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
