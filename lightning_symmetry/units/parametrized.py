"""Layers whose weights are computed from other tensors by ``torch.nn.utils.parametrize``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lightning_symmetry.units.registry import NotUnderstoodError


def without_parametrizations(module: nn.Module) -> tuple[nn.Module, dict[int, tuple[Tensor, ...]]]:
    """Copy a parametrized module into a plain one, whose weights are computed once and do not change any more.

    The parametrized module stays as it is, and so does the state of the random number generator of the CPU.

    Args:
        module: a module for which ``torch.nn.utils.parametrize.is_parametrized`` holds.

    Returns:
        A module of the class that the module had before, with the computed weights as parameters, and, by the identity
        (``id``) of each computed weight, the parameters that it is computed from.

    Raises:
        NotUnderstoodError: if a weight cannot be computed.
    """
    parametrizations = cast("nn.ModuleDict", module.parametrizations)
    # Some parametrizations change their buffers in training mode: spectral_norm takes a step of its power iteration
    # whenever the weight is computed.
    parts = list(parametrizations.modules())
    was_training = [part.training for part in parts]
    # torch.nn.utils.parametrize has derived the class of the module from the one it had before, and refuses copies.
    stand_in = cast("nn.Module", object.__new__(type(module).__bases__[0]))
    stand_in.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    originals: dict[int, tuple[Tensor, ...]] = {}
    try:
        for part in parts:
            part.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for name, chain in parametrizations.items():
                weight = nn.Parameter(chain(), requires_grad=False)  # not `module.weight`, which may fill a cache
                stand_in._parameters[name] = weight
                originals[id(weight)] = tuple(chain.parameters(recurse=False))
    except Exception as error:
        reason = f"parametrized, and its weight cannot be computed: {type(error).__name__}: {error}"
        raise NotUnderstoodError(reason) from error
    finally:
        for part, training in zip(parts, was_training, strict=True):
            part.training = training
    return stand_in, originals
