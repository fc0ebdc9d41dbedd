"""Measures of redundancy as pure functions of tensors; :mod:`lightning_symmetry.metrics` has a class for each.

Weights are matrices ``(units, inputs)``, activations ``(N, units)`` with a row per sample. Samples that are not finite
are left out; if there are no others, a measure is NaN. Measures of activations use float64 where the device has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.arguments import check_number
from lightning_symmetry.matrices.grouping import duplicate_groups

__all__ = ["dead_activations", "duplicate_activations", "effective_rank", "effective_width", "redundant_units"]


def effective_width(weight: Tensor, tolerance: float | None = None) -> Tensor:
    """Return the number of distinct rows of a weight matrix.

    Args:
        weight: rows ``(units, inputs)``; further dimensions are flattened.
        tolerance: relative L2 distance of rows that count as equal; None: by dtype, as in :func:`duplicate_groups`.

    Returns:
        A whole number, as a scalar tensor of int64 on the device of the weight.

    Raises:
        ValueError: if ``weight`` has less than two dimensions, or ``tolerance`` is out of range.
        TypeError: if its dtype is not supported.

    Example:
        >>> effective_width(torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
        tensor(2)
    """
    return torch.tensor(len(weight), device=weight.device) - redundant_units(weight, tolerance)


def redundant_units(weight: Tensor, tolerance: float | None = None) -> Tensor:
    """Return the number of rows of a weight matrix equal to an earlier one; arguments as for :func:`effective_width`.

    Example:
        >>> redundant_units(torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
        tensor(1)
    """
    if weight.ndim < 2:
        raise ValueError(
            "Expected argument `weight` to have two dimensions or more but got a tensor of shape "
            f"{tuple(weight.shape)}."
        )
    groups = duplicate_groups(weight.detach().flatten(1), tolerance)
    return torch.tensor(sum(len(group) - 1 for group in groups), device=weight.device)


def duplicate_activations(activations: Tensor, threshold: float = 0.95) -> Tensor:
    """Return the share of units whose activations have a correlation above a threshold with those of another unit.

    Args:
        activations: ``(N, units)``. Constant units have no correlation with any other.
        threshold: Pearson's correlation, ``-1 <= threshold < 1``.

    Returns:
        Between 0 and 1, as a scalar tensor.

    Raises:
        ValueError: if ``activations`` has another shape, or ``threshold`` is out of range.

    Example:
        >>> duplicate_activations(torch.tensor([[1.0, 2.0, 5.0], [2.0, 4.0, 1.0], [3.0, 6.0, 2.0]]))
        tensor(0.6667, dtype=torch.float64)
    """
    check_threshold(threshold)
    return measured(partial(duplicate_share, threshold=threshold), moments_of(activations))


def dead_activations(activations: Tensor) -> Tensor:
    """Return the share of units whose activation is exactly zero for every sample, such as dead ReLUs.

    Args:
        activations: ``(N, units)``.

    Returns:
        Between 0 and 1, as a scalar tensor.

    Raises:
        ValueError: if ``activations`` has another shape.

    Example:
        >>> dead_activations(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    return measured(dead_share, moments_of(activations))


def effective_rank(activations: Tensor) -> Tensor:
    """Return the effective rank of activations: the exponential of the entropy of their singular values.

    With ``p_i = s_i / sum(s)`` for the singular values ``s`` of the matrix ``(N, units)``, not centred, it is
    ``exp(-sum(p_i log p_i))`` (Roy and Vetterli 2007, "The effective rank", definition 1), which Dohare et al. 2023
    (arXiv 2306.13812) use to follow the loss of plasticity.

    Args:
        activations: ``(N, units)``.

    Returns:
        Between 1 and ``min(N, units)``, as a scalar tensor; 0 if all activations are zero.

    Raises:
        ValueError: if ``activations`` has another shape.

    Example:
        >>> round(float(effective_rank(torch.eye(4))), 6)
        4.0
    """
    samples = _checked(activations)
    return rank_of(torch.linalg.svdvals(samples)) if len(samples) else samples.new_tensor(torch.nan)


def _checked(activations: Tensor) -> Tensor:
    if activations.ndim != 2 or not len(activations):
        raise ValueError(
            "Expected argument `activations` to have shape (N, units) with at least one sample but got "
            f"{tuple(activations.shape)}."
        )
    if activations.is_complex():
        raise TypeError(f"Expected argument `activations` to hold real numbers but got {activations.dtype}.")
    # Some accelerators have no float64.
    dtype = torch.float64 if activations.device.type in ("cpu", "cuda") else torch.float32
    return finite_samples(activations.detach().to(dtype))


def finite_samples(samples: Tensor) -> Tensor:
    """Return a copy of samples ``(N, units)`` without those that are not finite."""
    return samples[samples.isfinite().all(dim=1)]


def moments_of(activations: Tensor) -> Tensor:
    """Return the moments of activations ``(N, units)``: a matrix ``(units + 1, units + 1)``.

    It contains the number of samples (top left), the mean of each unit (the rest of the first row), the number of
    samples at which each unit is not zero (the rest of the first column), and the sums of products of deviations from
    the means (the rest).
    """
    samples = _checked(activations)
    moments = samples.new_zeros(samples.shape[1] + 1, samples.shape[1] + 1)
    mean = samples.sum(dim=0) / max(len(samples), 1)
    deviations = samples - mean
    moments[0, 0] = len(samples)
    moments[0, 1:] = mean
    moments[1:, 0] = (samples != 0).sum(dim=0)
    moments[1:, 1:] = deviations.T @ deviations
    return moments


def merge_moments(parts: Tensor) -> Tensor:
    """Merge the moments of several sets of samples into one matrix ``(units + 1, units + 1)``.

    The products of deviations are corrected for the different means (Chan, Golub and LeVeque 1983, "Algorithms for
    computing the sample variance", equation 2.1), so that large means cost no precision.

    Args:
        parts: ``(parts, units + 1, units + 1)``.
    """
    counts, means = parts[:, 0, 0], parts[:, 0, 1:]
    merged = parts.sum(dim=0)
    merged[0, 1:] = (counts[:, None] * means).sum(dim=0) / counts.sum().clamp(min=1)
    apart = means - merged[0, 1:]
    merged[1:, 1:] += (counts[:, None] * apart).T @ apart
    return merged


def measured(measure: Callable[[Tensor], Tensor], moments: Tensor) -> Tensor:
    """Return a measure of moments; NaN if there are no samples, or if the moments overflow."""
    is_known = moments[0, 0] > 0 and bool(moments.isfinite().all())
    return measure(moments) if is_known else moments.new_tensor(torch.nan)


def duplicate_share(moments: Tensor, threshold: float) -> Tensor:
    """Return the share of units with a correlation above a threshold, from moments ``(units + 1, units + 1)``."""
    products = moments[1:, 1:]
    deviations = products.diagonal().clamp(min=0).sqrt()
    # The deviations of a constant unit are rounding errors.
    size = moments[0, 1:].abs() * moments[0, 0].sqrt()
    varies = deviations > 64 * torch.finfo(moments.dtype).eps * size
    scale = torch.where(varies, deviations, torch.inf)
    correlations = products / scale[:, None] / scale
    correlations.fill_diagonal_(-torch.inf)
    is_duplicate = (correlations > threshold).any(dim=1) & varies
    return is_duplicate.to(moments.dtype).mean()


def dead_share(moments: Tensor) -> Tensor:
    """Return the share of units that are zero for every sample, from moments ``(units + 1, units + 1)``."""
    return (moments[1:, 0] == 0).to(moments.dtype).mean()


def rank_from_moments(moments: Tensor) -> Tensor:
    """Return the effective rank from moments; the singular values are the roots of the second moments' eigenvalues."""
    mean = moments[0, 1:]
    second = moments[1:, 1:] + moments[0, 0] * mean[:, None] * mean
    return rank_of(torch.linalg.eigvalsh(second).clamp(min=0).sqrt())


def rank_of(singular_values: Tensor) -> Tensor:
    """Return the exponential of the entropy of singular values ``(n,)``; 0 if all are zero."""
    total = singular_values.sum()
    if total == 0:
        return total
    shares = singular_values / total
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


def check_threshold(threshold: float) -> None:
    """Check that ``threshold`` is a correlation below 1."""
    check_number("threshold", threshold, lambda value: -1 <= value < 1, "-1 <= threshold < 1")
