"""Measures of redundancy as metrics of torchmetrics, which accumulate over batches and ranks.

They can be logged with ``self.log``, put into a ``MetricCollection``, reset, moved and plotted like any other metric;
:mod:`lightning_symmetry.functional` has the same measures as pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_symmetry.arguments import check_count, check_tolerance
from lightning_symmetry.functional import (
    check_threshold,
    dead_share,
    duplicate_share,
    effective_width,
    measured,
    merge_moments,
    moments_of,
    rank_from_moments,
    redundant_units,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DeadActivations", "DuplicateActivations", "EffectiveRank", "EffectiveWidth", "RedundantUnits"]


class _Measure(Metric):
    """The base of all measures."""

    is_differentiable = False
    plot_lower_bound = 0.0

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw a value, or several over time.

        Args:
            val: the values; None: the result of :meth:`compute`.
            ax: the axes; None: those of a new figure.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
        """
        return self._plot(val, ax)  # type: ignore[return-value]


class _OfWeights(_Measure):
    """A measure of a weight matrix, averaged over updates and ranks."""

    full_state_update = False
    total: Tensor
    num_updates: Tensor
    _number: Callable[[Tensor, float | None], Tensor]  # set by subclasses

    def __init__(self, tolerance: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_tolerance(tolerance)
        self.tolerance = tolerance
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_updates", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, weight: Tensor) -> None:
        """Add a weight matrix ``(units, inputs)``; further dimensions are flattened."""
        self.total += self._number(weight, self.tolerance)
        self.num_updates += 1

    def compute(self) -> Tensor:
        """Return the mean over all updates; NaN if there was none."""
        return self.total / self.num_updates


class RedundantUnits(_OfWeights):
    """The number of rows of a weight matrix that are equal to an earlier one.

    Args:
        tolerance: relative L2 distance of rows that count as equal; None: by dtype.
        **kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``tolerance`` is not a number.
        ValueError: if ``tolerance`` is out of range.

    Example:
        >>> metric = RedundantUnits()
        >>> metric.update(torch.ones(5, 3))
        >>> metric.compute()
        tensor(4.)
    """

    higher_is_better = False
    _number = staticmethod(redundant_units)


class EffectiveWidth(_OfWeights):
    """The number of distinct rows of a weight matrix; arguments as for :class:`RedundantUnits`.

    Example:
        >>> EffectiveWidth()(torch.ones(5, 3))
        tensor(1.)
    """

    higher_is_better = True
    _number = staticmethod(effective_width)


class _OfActivations(_Measure):
    """A measure of streamed activations ``(N, units)``.

    Its state is a matrix of first and second moments, ``(units + 1, units + 1)`` in float64 whatever ``N`` is.
    """

    full_state_update = True  # before the first batch the number of units may be unknown
    moments: Tensor
    _measure: Callable[[Tensor], Tensor]  # set by subclasses

    def __init__(self, num_units: int | None = None, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": _gather, **kwargs})
        if num_units is not None:
            check_count("num_units", num_units)
        side = 1 + (num_units or 0)
        self.num_units = num_units
        self.add_state("moments", torch.zeros(side, side, dtype=torch.float64), dist_reduce_fx=merge_moments)

    def update(self, activations: Tensor) -> None:
        """Add activations ``(N, units)``.

        Raises:
            ValueError: if they have another shape, or another number of units than before.
        """
        new = moments_of(activations).to(self.moments)
        num_units = len(self.moments) - 1 or len(new) - 1
        if len(new) - 1 != num_units:
            raise ValueError(
                f"Expected argument `activations` to have {num_units} units but got a tensor of shape "
                f"{tuple(activations.shape)}."
            )
        self.moments = new if len(self.moments) == 1 else merge_moments(torch.stack([self.moments, new]))

    def compute(self) -> Tensor:
        """Return the measure of all samples so far; NaN if there were none."""
        return measured(self._measure, self.moments)


def _gather(moments: Tensor, group: Any) -> list[Tensor]:
    """Return the moments of all ranks; those of a rank without batches, which may not know ``units``, are zeros."""
    parts = gather_all_tensors(moments, group)
    side = max(map(len, parts))
    return [part if len(part) > 1 else part.new_zeros(side, side) for part in parts]


class DuplicateActivations(_OfActivations):
    """The share of units whose activations have a correlation above a threshold with those of another unit.

    Args:
        threshold: Pearson's correlation.
        num_units: number of units; None: as in the first batch.
        **kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``threshold`` or ``num_units`` is of the wrong type.
        ValueError: if ``threshold`` or ``num_units`` is out of range.

    Example:
        >>> metric = DuplicateActivations()
        >>> for batch in torch.tensor([[[1.0, 2.0, 5.0], [2.0, 4.0, 1.0]], [[3.0, 6.0, 2.0], [4.0, 8.0, 9.0]]]):
        ...     metric.update(batch)
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = 1.0

    def __init__(self, threshold: float = 0.95, num_units: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_units, **kwargs)
        check_threshold(threshold)
        self.threshold = threshold

    def _measure(self, moments: Tensor) -> Tensor:
        return duplicate_share(moments, self.threshold)


class DeadActivations(_OfActivations):
    """The share of units whose activation is exactly zero for every sample; arguments as for :class:`EffectiveRank`.

    Example:
        >>> DeadActivations()(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = 1.0
    _measure = staticmethod(dead_share)


class EffectiveRank(_OfActivations):
    """The exponential of the entropy of the singular values of activations, as in :func:`.functional.effective_rank`.

    Args:
        num_units: number of units; None: as in the first batch.
        **kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``num_units`` is not an integer.
        ValueError: if ``num_units`` is not positive.

    Example:
        >>> round(float(EffectiveRank()(torch.eye(4))), 6)
        4.0
    """

    higher_is_better = True
    _measure = staticmethod(rank_from_moments)
