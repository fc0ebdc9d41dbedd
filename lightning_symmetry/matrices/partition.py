"""Refines groups of recurrent units until all units of a group receive the same sum from every group."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import find_groups
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all


def stable_groups(
    groups: Sequence[tuple[int, ...]],
    recurrent: Rows,
    tolerance: float,
    negative: Set[int] = frozenset(),
    odd_gates: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """Split groups of recurrent units until every group feeds all units of any one group alike.

    Units of a group can be exchanged if they receive the same sum from every group: then all of them hold the same
    value for ever, whichever units of a group feed them. The result is the coarsest such partition (Paige and Tarjan
    1987, doi:10.1137/0216062; "balanced" in Stewart, Golubitsky and Pivato 2003, doi:10.1137/S1111111103419896).

    Units that are the negative of the others in their group hold the negative of their value, and feed others with it.

    Args:
        groups: units that are equal up to sign in all else; the others are alone.
        recurrent: weights ``(num_units, gates * num_units)``, receiving unit first, gate by gate.
        tolerance: relative L2 distance of equal sums.
        negative: the units that are the negative of the others in their group.
        odd_gates: the gates that receive the negative in such a unit; the others receive the same. None: all gates.

    Returns:
        The groups of two or more that are left.

    Example:
        >>> stable_groups([(0, 1, 2)], DenseRows([torch.eye(3)]), 1e-5)
        [(0, 1, 2)]
        >>> stable_groups([(0, 1, 2)], DenseRows([torch.diag(torch.tensor([1.0, 1.0, 5.0]))]), 1e-5)
        [(0, 1)]
    """
    groups = sorted(groups)
    sign = np.where(np.isin(np.arange(recurrent.num_rows), list(negative)), -1, 1)
    num_gates = recurrent.width // recurrent.num_rows
    is_odd = np.ones(num_gates, dtype=np.bool_) if odd_gates is None else np.isin(np.arange(num_gates), odd_gates)
    while groups:
        label = np.arange(recurrent.num_rows)
        for group in groups:
            label[list(group)] = group[0]
        # Inputs from units of each group are summed by sign, and the two sums subtracted.
        label += recurrent.num_rows * (sign < 0)
        of_sums = np.unique(label)
        number, place = np.unique(of_sums % recurrent.num_rows, return_inverse=True)
        fold = np.zeros((len(of_sums), len(number)))
        fold[np.arange(len(of_sums)), place] = np.where(of_sums < recurrent.num_rows, 1.0, -1.0)
        refined: list[tuple[int, ...]] = []
        for group in groups:
            sums, sizes = recurrent.sums_by(np.array(group), label)
            if negative:
                # By PyTorch: a thread of numpy's OpenBLAS would wait busily afterwards.
                of_group = torch.from_numpy(sums.reshape(len(group), -1, len(of_sums)))
                runs = (of_group @ torch.from_numpy(fold)).numpy()
                received = np.where(is_odd, sign[list(group), None], 1)  # (units, gates)
                sums = (runs * received[:, :, None]).reshape(len(group), -1)
            # Sums may cancel out, so equality is relative to the norms of what is summed.
            matrix = DenseRows([torch.from_numpy(sums), torch.from_numpy(np.full_like(sizes, sizes.max()))])
            [sketch] = sketch_all([matrix])
            parts = find_groups(Question(matrix, sketch, tolerance))
            refined += [tuple(group[i] for i in part) for part in parts]
        if sorted(refined) == groups:
            break
        groups = sorted(refined)
    return groups
