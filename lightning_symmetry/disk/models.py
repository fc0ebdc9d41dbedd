"""Models that hold the tensors of a checkpoint: stand-ins of unknown classes, or the user's own model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_symmetry.brief import brief
from lightning_symmetry.disk.checkpoints import Contents
from lightning_symmetry.disk.files import CheckpointError, Place

Model = nn.Module | Callable[..., nn.Module]
"""A module, whose own numbers are ignored, or a class or function that makes one."""

_PARAMETRIZED = ".parametrizations."
# Tensors of these dtypes are buffers, such as positions, masks and counters, unless they are called `weight`.
_NO_WEIGHTS = (torch.bool, torch.int64)
_MAX_DEPTH = 100  # of modules in a name; deeper trees exceed the recursion limit of code that walks them
_MAX_LINES = 4  # of PyTorch's message on tensors that do not fit: a head, and a line for each
_EXPECTED = "a torch.nn.Module, or a class or function that makes one without arguments"


class Filled(NamedTuple):
    """A model with the tensors of a checkpoint."""

    model: nn.Module
    # the parameters and buffers that hold tensors of the checkpoint, by their names in the checkpoint
    tensors: dict[str, Tensor]
    skipped: dict[str, str]  # by name, why a tensor of the checkpoint or of the model was left out
    num_unread: int = 0  # number of weights that stand-ins leave out; 0 for the user's own model


# ----------------------------------------------------------------- without the model: stand-ins


class StoredModule(nn.Module):
    """A stand-in with the tensors of one module, whose class is unknown."""

    def __init__(self, path: str, relatives: dict[str, StoredModule]) -> None:
        super().__init__()
        self.path = path  # in the checkpoint; empty for the model itself
        self.relatives = relatives  # all modules of the checkpoint by path
        relatives[path] = self

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The module's own tensors by name, such as ``weight`` or ``parametrizations.weight.original0``."""
        return cast("dict[str, Tensor]", self._parameters)

    def child(self, name: str) -> StoredModule:
        """Return the child of this name; make it if it does not exist."""
        if name not in self._modules:
            # `add_module` refuses names of attributes, such as `path`.
            self._modules[name] = StoredModule(f"{self.path}.{name}" if self.path else name, self.relatives)
        return cast("StoredModule", self._modules[name])


class Checkpoint(StoredModule):
    """The stand-in of the model; reports use the name of this class for tensors that no inner module has."""

    def __init__(self) -> None:
        super().__init__("", {})


def as_modules(tensors: Mapping[str, Tensor], places: Mapping[str, Place] | None = None) -> Filled:
    """Put the tensors of a state dict into a tree of stand-ins, by the dots in their names.

    Tensors that share their numbers, in memory or in ``places``, become one parameter. Tensors that cannot be weights,
    such as counters, are left out.

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
        if len(steps) > _MAX_DEPTH:
            skipped[name] = f"its name has {len(steps) + 1:,} parts, more than {_MAX_DEPTH}"
            num_unread += tensor.numel()
            continue
        if tensor.dtype in _NO_WEIGHTS:
            if own == "weight":
                skipped[path] = f"its dtype {tensor.dtype} is not a floating point type this package reads"
                num_unread += tensor.numel()
            continue
        key = (places or {}).get(name) or _place_of(tensor) or name
        parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        parameters[name] = parameter = known.setdefault(key, parameter)
        module: StoredModule = tree
        for step in steps:
            module = module.child(step)
        module._parameters[own] = parameter
    return Filled(tree, parameters, skipped, num_unread)


def _owner_of(name: str) -> tuple[str, str]:
    """Split the name of a tensor into the path of its module and its name there."""
    path, found, own = f".{name}".partition(_PARAMETRIZED)
    if found:
        return path[1:], _PARAMETRIZED[1:] + own
    path, _, own = name.rpartition(".")
    return path, own


def _place_of(tensor: Tensor) -> object | None:
    """Return a key that is equal for tensors that share their numbers; None if that is unknown."""
    if tensor.layout != torch.strided or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


# ----------------------------------------------------------------- with the user's model


def fill(model: Model, contents: Contents, path: Path) -> Filled:
    """Build a model without numbers, and assign it the tensors of a checkpoint without copying them.

    A prefix that all names of the checkpoint share, such as ``module.``, is ignored. A class is called with those of
    the checkpoint's hyperparameters that it accepts. A module given as ``model`` is not changed.

    Raises:
        TypeError: if ``model`` is no module and makes none, or calling it fails.
        CheckpointError: if the tensors do not fit.
    """
    tensors = contents.tensors
    built = _build(model, contents.hyper_parameters)
    names = list(built.state_dict(keep_vars=True))
    prefix = _shared_prefix(names, tensors)
    fitting = {name: tensors[prefix + name] for name in names if prefix + name in tensors}
    expected = f"Expected {str(path)!r} to be a checkpoint of a {type(built).__name__}"
    if not fitting:
        raise CheckpointError(
            f"{expected}, with tensors like {_some(names)}, but got tensors like {_some(list(tensors))}."
        )
    ties = _ties(built)
    try:
        built.load_state_dict(fitting, strict=False, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        rest = len(lines) - _MAX_LINES
        shown = " ".join(lines[:_MAX_LINES]) + (f" and {rest} more" if rest > 0 else "")
        raise CheckpointError(f"{expected}, but: {shown}") from error
    missing = _tie(built, ties, [name for name in names if name not in fitting])
    loaded = built.state_dict(keep_vars=True)
    filled = {prefix + name: loaded[name] for name in fitting}
    others = [name for name in tensors if name not in filled]
    skipped = dict.fromkeys(missing, "the model has it, the checkpoint does not")
    skipped |= dict.fromkeys(others, "the checkpoint has it, the model does not")
    return Filled(built, filled, {**skipped, **contents.left_out})


def _build(model: Model, hyper_parameters: Mapping[str, Any] | None) -> nn.Module:
    if isinstance(model, nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        return copy.deepcopy(model, {id(tensor): _without_numbers(tensor) for tensor in tensors})
    if not callable(model):
        raise TypeError(f"Expected argument `model` to be {_EXPECTED}, but got {brief(model)}.")
    arguments = _known_arguments(model, hyper_parameters or {}) if isinstance(model, type) else {}
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                built = model(**arguments)
        except Exception:  # some models read their own numbers while they are built, which fails on the meta device
            built = _build_with_numbers(model, arguments)
    if not isinstance(built, nn.Module):
        raise TypeError(f"Expected argument `model` to be {_EXPECTED}, but {brief(model)} makes {brief(built)}.")
    return built


def _build_with_numbers(model: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return model(**arguments)
    except Exception as error:
        how = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise TypeError(
            f"Expected argument `model` to be {_EXPECTED}, but {brief(model)}, called {how}, failed with "
            f"{type(error).__name__}: {error}"
        ) from error


def _known_arguments(model: type, hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(hyper_parameters)
    return {name: value for name, value in hyper_parameters.items() if name in parameters}


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _shared_prefix(names: Collection[str], tensors: Collection[str]) -> str:
    """Return the prefix that turns most of the model's names into names of stored tensors."""
    prefixes = {""}
    for name in names:
        prefixes |= {stored.removesuffix(name) for stored in tensors if stored.endswith(f".{name}")}
        if len(prefixes) > 1:
            break
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in tensors for name in names))


def _ties(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _tie(model: nn.Module, ties: list[list[str]], missing: list[str]) -> list[str]:
    """Tie parameters again after loading; move those still missing to the meta device, and return their names."""
    for names in ties:
        loaded = [name for name in names if name not in missing]
        for name in names if loaded else ():
            _set_parameter(model, name, model.get_parameter(loaded[0]))
        missing = [name for name in missing if not loaded or name not in names]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in missing:
        if name in parameters:
            _set_parameter(model, name, nn.Parameter(parameters[name].to("meta"), parameters[name].requires_grad))
    return missing


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, own = name.rpartition(".")
    model.get_submodule(path)._parameters[own] = parameter


def _some(names: list[str]) -> str:
    return ", ".join(map(brief, names[:3])) or "none that can be read"
