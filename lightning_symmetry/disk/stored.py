"""The tensors of a checkpoint as modules: a tree of stand-ins that have the names, but not the code, of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_symmetry.disk.files import Place

_PARAMETRIZED = ".parametrizations."
# Such tensors are buffers, unless they are called weights: positions, masks, counters.
_NO_WEIGHTS = (torch.bool, torch.int64)
# More steps than this has no model; code that walks a tree this deep calls itself too often.
_MAX_STEPS = 100


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
        skipped: by name, what only one of both has, and which of them; and what cannot be a part of the model.
        num_unread: how many weights are in the checkpoint and not in the model.
    """

    model: nn.Module
    tensors: dict[str, Tensor]
    skipped: dict[str, str]
    num_unread: int = 0


def as_modules(tensors: Mapping[str, Tensor], places: Mapping[str, Place] | None = None) -> Filled:
    """Put tensors into a tree of modules, by the dots in their names.

    Args:
        tensors: by name, as in a state dict. Those that cannot be weights, such as counters, are left out.
        places: by name, where the numbers of tensors lie that have none of their own.

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
    skipped: dict[str, str] = {}
    num_unread = 0
    for name, tensor in tensors.items():
        path, own = _owner_of(name)
        steps = path.split(".") if path else []
        if len(steps) > _MAX_STEPS:
            skipped[name] = f"its name has {len(steps) + 1:,} parts, more than {_MAX_STEPS}"
            num_unread += tensor.numel()
            continue
        if tensor.dtype in _NO_WEIGHTS:
            if own == "weight":
                skipped[path] = f"its dtype {tensor.dtype} is not a floating point type this package reads"
                num_unread += tensor.numel()
            continue
        key = (places or {}).get(name) or _place_of(tensor) or name
        parameters[name] = parameter = known.setdefault(key, _parameter(tensor))
        module: StoredModule = tree
        for step in steps:
            module = module.child(step)
        module._parameters[own] = parameter
    return Filled(tree, parameters, skipped, num_unread)


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
