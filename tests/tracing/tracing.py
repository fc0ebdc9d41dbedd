"""Helpers for tests of traces: one traced step of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_symmetry.tracing.trace import GradientTrace, Suspected
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.stops import Stopped, Traced

Loss = Callable[[], Tensor]


def suspects_of(net: nn.Module) -> list[Suspected]:
    """Return the units without a gradient after a backward pass."""
    suspects = []
    for layer in find_layers(net).layers:
        is_zero = np.ones(layer.num_units, dtype=np.bool_)
        for part in layer.tensors:
            gradient = part.originals[0].grad
            if gradient is not None:
                rows = part.view(gradient).reshape(layer.num_units, -1)
                is_zero &= ~rows.any(dim=1).numpy()
        if is_zero.any():
            suspects.append(Suspected(layer, np.flatnonzero(is_zero), may_be_rounding=False))
    return suspects


def everything(net: nn.Module) -> list[Suspected]:
    """Return all units, as suspects whose gradients may be rounding errors."""
    return [Suspected(layer, np.arange(layer.num_units), may_be_rounding=True) for layer in find_layers(net).layers]


def trace(net: nn.Module, loss: Loss, *, is_known: bool = False, num_passes: int = 1) -> dict[str, list[Traced]]:
    """Return where gradients stop in one step.

    Args:
        net: the network.
        loss: runs the forward pass.
        is_known: whether the trace is handed the loss.
        num_passes: how many backward passes the step has.
    """
    loss().backward()
    suspects = suspects_of(net)
    net.zero_grad()
    traced = GradientTrace(net, suspects)
    for _ in range(num_passes):
        value = loss()
        if is_known:
            traced.expect(value)
        value.backward()
    return traced.finish()


def stops(net: nn.Module, loss: Loss, **options: Any) -> dict[str, Stopped]:
    """Return by layer where the gradient of most units without one stops."""
    return {name: every[0].stopped for name, every in trace(net, loss, **options).items()}


def loss_of(net: Callable[[Tensor], Tensor], inputs: Tensor) -> Loss:
    """Return a loss with a gradient in all outputs."""
    return lambda: (net(inputs) - 1.0).square().mean()


def images(size: int = 8) -> Tensor:
    """Return a batch of images with two channels."""
    return torch.randn(16, 2, size, size, generator=torch.Generator().manual_seed(0))


def rows(width: int = 12) -> Tensor:
    """Return a batch of vectors."""
    return torch.randn(32, width, generator=torch.Generator().manual_seed(0))
