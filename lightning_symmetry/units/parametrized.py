"""Layers whose weights are computed from other tensors by ``torch.nn.utils.parametrize``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lightning_symmetry.units.registry import NotUnderstoodError


def without_parametrizations(module: nn.Module) -> tuple[nn.Module, dict[int, tuple[Tensor, ...]]]:
    """A stand-in with the weights as the layer computes them, and the originals of each by its identity."""
    parametrizations = cast("nn.ModuleDict", module.parametrizations)
    # In training some parametrizations write: spectral_norm moves its estimate on whenever the weight is computed.
    parts = list(parametrizations.modules())
    was_training = [part.training for part in parts]
    # Of the class it was before torch.nn.utils.parametrize took it over; a parametrized module cannot be copied.
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
