"""New rows for units: from a default initialisation, in a random direction at the old norm, or with noise added."""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_symmetry.modules import is_script
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.units.layers import Incoming, Layer, complex_rows, real_rows
from lightning_symmetry.units.parametrized import without_parametrizations

NOISE = 0.01
"""Size of the noise added to copies, relative to the root mean square of the row.

A little noise suffices, because equal units diverge as soon as their weights and so their gradients differ. Net2Net
(Chen et al. 2016, arXiv 1511.05641) separates the units that it copies in the same way."""


def fresh_copy(module: nn.Module, generator: Generator) -> nn.Module | None:
    """Return a module of the same class and shapes with the default initialisation and plain parameters, on the CPU.

    The global random generators are restored. Returns None for TorchScript and classes without ``reset_parameters``.
    """
    if is_script(module):
        return None
    with preserved_random_numbers(), torch.no_grad():
        blank = _blank(without_parametrizations(module)[0] if is_parametrized(module) else module)
        reset = getattr(blank, "reset_parameters", None) or getattr(blank, "_reset_parameters", None)
        if not callable(reset):
            return None
        seed = int(torch.randint(2**62, (1,), generator=generator))
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed all devices
        reset()
    return blank


def _blank(module: nn.Module) -> nn.Module:
    """Return a copy of a module and its children, with new parameters of zeros."""
    blank = copy.copy(module)
    blank.__dict__ = {**module.__dict__}
    blank._parameters = {
        name: None
        if parameter is None
        else nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    blank._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    blank._modules = {name: None if child is None else _blank(child) for name, child in module._modules.items()}
    return blank


def fresh_rows(
    layer: Layer, tensor: Incoming, fresh: nn.Module | None, name: str | None, units: Tensor, generator: Generator
) -> Tensor:
    """Return rows of a freshly initialised layer for ``units`` ``(n,)``, of shape ``(n, ...)``, on the CPU.

    They are taken from the tensor ``name`` of ``fresh``, the result of :func:`fresh_copy`. If ``fresh`` is None, or has
    equal rows for these units, too, weights are drawn uniformly from ``[-1 / sqrt(fan_in), 1 / sqrt(fan_in)]``, as
    ``torch.nn.Linear`` does, and biases are zero.
    """
    rows = current_rows(tensor, units)
    is_a_number_each = is_number_each(tensor)
    drawn = None if fresh is None or name is None else fresh._parameters.get(name)
    if drawn is not None and drawn.shape == tensor.weights.shape:
        new = tensor.view(drawn.detach())[units]
        if is_a_number_each or len(units) == 1 or bool((new != new[:1]).any()):
            return new
    if is_a_number_each:
        return torch.zeros_like(rows)
    bound = layer.fan_in**-0.5
    return (2 * torch.rand(rows.shape, generator=generator) - 1).mul_(bound).to(rows.dtype)


def rows_at_scale(tensor: Incoming, units: Tensor, generator: Generator) -> Tensor:
    """Return rows in random directions with the norms of the current ones, ``(n, ...)``, on the CPU.

    Biases and other single numbers per unit have no direction; they are returned unchanged.
    """
    rows = current_rows(tensor, units)
    if is_number_each(tensor):
        return rows
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float32).flatten(1)
    length = torch.linalg.vector_norm(rows.flatten(1).double(), dim=1, keepdim=True)
    drawn *= (length / torch.linalg.vector_norm(drawn.double(), dim=1, keepdim=True)).float()
    return drawn.reshape(rows.shape).to(rows.dtype)


def rows_with_noise(rows: Tensor, scale_of: Tensor, generator: Generator) -> Tensor:
    """Return ``rows`` ``(n, ...)`` plus Gaussian noise, of 0.01 times the root mean square of the rows ``scale_of``."""
    if rows.is_complex():
        return complex_rows(rows_with_noise(real_rows(rows), real_rows(scale_of), generator))
    size = scale_of.flatten(1).double().square().mean(dim=1).sqrt().float()
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float32).flatten(1) * (NOISE * size)[:, None]
    return rows + noise.reshape(rows.shape).to(rows.dtype)


def is_number_each(tensor: Incoming) -> bool:
    """Return whether a tensor has one number per unit, such as a bias."""
    return tensor.rows()[0].numel() == (2 if tensor.weights.is_complex() else 1)  # type: ignore[index]


def current_rows(tensor: Incoming, units: Tensor) -> Tensor:
    """Return a copy of the current rows of some units, ``(n, ...)``, on the CPU."""
    weights = tensor.weights.detach()
    return tensor.view(weights)[units.to(weights.device)].to("cpu", copy=True)
