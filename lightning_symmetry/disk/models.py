"""A model of the user's with the tensors of a checkpoint in it, so that its own layers say what their units are."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.brief import brief
from lightning_symmetry.disk.checkpoints import Contents
from lightning_symmetry.disk.files import CheckpointError
from lightning_symmetry.disk.stored import Filled

Model = nn.Module | Callable[..., nn.Module]
"""A module, whose own numbers do not count, or a class or function that makes one."""

_MAX_LINES = 4  # of what PyTorch says of tensors that do not fit: a head, and a line for each
_EXPECTED = "a torch.nn.Module, or a class or function that makes one without arguments"


def fill(model: Model, contents: Contents, path: Path) -> Filled:
    """Build a model without numbers of its own, and have it use the tensors of a checkpoint; none is copied.

    Args:
        model: a module, which stays as it is, or what makes one.
        contents: the checkpoint. A prefix that its names share, such as ``module.``, is no hindrance. If the model is a
            class, it is made with the hyperparameters; those that it does not know are left out.
        path: of the checkpoint, for messages.

    Raises:
        TypeError: if ``model`` is neither, or cannot be called like that.
        CheckpointError: if the tensors do not fit.
    """
    tensors = contents.tensors
    built = _build(model, contents.hyper_parameters)
    names = list(built.state_dict(keep_vars=True))
    prefix = _shared_prefix(names, tensors)
    fitting = {name: tensors[prefix + name] for name in names if prefix + name in tensors}
    if not fitting:
        raise CheckpointError(
            f"Expected {str(path)!r} to be a checkpoint of a {type(built).__name__}, with tensors like {_some(names)}, "
            f"but got tensors like {_some(list(tensors))}."
        )
    ties = _ties(built)
    try:
        built.load_state_dict(fitting, strict=False, assign=True)
    except RuntimeError as error:
        expected = f"Expected {str(path)!r} to be a checkpoint of a {type(built).__name__}"
        lines = [line.strip() for line in str(error).splitlines()]
        rest = len(lines) - _MAX_LINES
        told = " ".join(lines[:_MAX_LINES]) + (f" and {rest} more" if rest > 0 else "")
        raise CheckpointError(f"{expected}, but: {told}") from error
    missing = _tie(built, ties, [name for name in names if name not in fitting])
    loaded = built.state_dict(keep_vars=True)
    skipped = dict.fromkeys(missing, "the model has it, the checkpoint does not")
    of_both = {prefix + name for name in fitting}
    skipped |= {name: "the checkpoint has it, the model does not" for name in tensors if name not in of_both}
    filled = {prefix + name: loaded[name] for name in fitting}
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
        except Exception:  # some models need numbers to be built, which the meta device has not
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
    """What has to be put before the names of a model to get those of most tensors."""
    prefixes = {""}
    for name in names:
        prefixes |= {stored.removesuffix(name) for stored in tensors if stored.endswith(f".{name}")}
        if len(prefixes) > 1:
            break
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in tensors for name in names))


def _ties(model: nn.Module) -> list[list[str]]:
    """The names of parameters that are one and the same, for each of those that have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _tie(model: nn.Module, ties: list[list[str]], missing: list[str]) -> list[str]:
    """Make parameters one again that were, and take the numbers away from those that are missing; returns which are."""
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
