"""Norms over a single number: their output is constant, and the gradient that they return is enlarged rounding."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from lightning_symmetry.modules import modules_of


def rounding_gain(model: nn.Module) -> float:
    """Return the factor by which norms over a single number enlarge rounding errors of gradients; 0 without such norms.

    The gradient of such a norm is zero but for rounding. It is divided by ``sqrt(eps)``, the standard deviation of a
    single number.

    Example:
        >>> round(rounding_gain(nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1))))
        316
        >>> rounding_gain(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))
        0.0
    """
    over_one: list[Any] = [module for module in modules_of(model) if _may_be_over_one(module)]
    return max(((module.eps or torch.finfo(torch.float32).eps) ** -0.5 for module in over_one), default=0.0)


def _may_be_over_one(module: Any) -> bool:
    if issubclass(type(module), (nn.LayerNorm, nn.RMSNorm)):
        return bool(prod(module.normalized_shape) == 1)
    # With a group per channel it normalises over a single number where maps have one pixel.
    return issubclass(type(module), nn.GroupNorm) and bool(module.num_groups == module.num_channels)
