"""The question that a check answers for every matrix: which of its rows agree within a tolerance?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import Sketch

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
"""Relative L2 distance within which two rows of a dtype are taken for equal; ``docs/reference.md`` says why."""

NEAR_IN_KEYS = 1.01
"""Keys that differ by more than this belong to rows that disagree; it leaves room for rounding."""

LEAVE_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""The looser tolerance at which a group, once found, is left: truly symmetric units drift apart by rounding."""


@dataclass(frozen=True)
class Question:
    """Which rows of a matrix agree?"""

    rows: Rows  # the matrix `(n, d)`
    sketch: Sketch
    tolerance: float  # relative distance, `0 <= tolerance < 1`
    blocks: int = 1  # number of runs of `n / blocks` rows; rows of different blocks are never compared

    def loosened(self) -> Question:
        """Return the same question at the looser tolerance at which a known group is given up."""
        tolerance = min(max(100 * self.tolerance, LEAVE_TOLERANCES[self.rows.dtype]), 0.5)
        return replace(self, tolerance=tolerance)

    def agree(self, index: Indices, others: Indices, factors: Floats | None = None) -> Mask:
        """Compare the rows at ``index`` in full with ``factors`` times those at ``others``; all ``(m,)``."""
        return self.distances(index, others, factors) <= self.tolerance

    def distances(self, index: Indices, others: Indices, factors: Floats | None = None) -> Floats:
        """Return L2 distances of rows, relative to the larger of both norms, ``(m,)``; factors are 1 or -1."""
        norms = self.sketch.norms
        return self.rows.distances(index, others, np.maximum(norms[others], norms[index]), factors)

    def keys(self, index: Indices) -> Floats:
        """Return the keys of the sketch for rows that are not zero, ``(k + 1, m)``, see :func:`keys_of`."""
        windows = np.array(self.rows.windows(self.tolerance))[:, None]
        return keys_of(self.sketch.norms[index], self.sketch.projections[:, index], windows)

    def further_keys(self, index: Indices, products: Floats) -> tuple[Floats, float]:
        """Return keys that distinguish rows that are not zero more sharply than :meth:`keys`.

        Args:
            index: the rows, ``(m,)``.
            products: their products with the further random vectors, ``(k, m)``.

        Returns:
            The keys ``(k + 1, m)``, and the largest L2 distance, over all keys but the last, of rows that agree.
        """
        window, joint_window = self.rows.further_windows(self.tolerance)
        windows = np.array([[window], [self.rows.windows(self.tolerance)[1]]])
        return keys_of(self.sketch.norms[index], products, windows), joint_window / window


def keys_of(norms: Floats, projections: Floats, windows: Floats) -> Floats:
    """Return keys ``(k + 1, m)``: numbers that differ by at most one between rows that agree.

    Args:
        norms: the norms of the rows, ``(m,)``, none of them zero.
        projections: the projections of the rows, ``(k, m)``.
        windows: the largest differences of rows that agree: of projections divided by norms, and of logarithms of
            norms, ``(2, m)`` or ``(2, 1)``.
    """
    norms = norms.astype(np.float64)
    return np.concatenate([projections / (norms * windows[0]), np.log(norms)[None] / windows[1]])
