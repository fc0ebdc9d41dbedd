"""What can be looked at: sets of rows that are compared with one another."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

import torch
from torch import Tensor

from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.units.updates import Updates


class Comparable(Protocol):
    """Rows to compare: those of a layer's units, or whole modules, each taken for one row.

    Attributes:
        name: the same at every look.
        num_units: number of rows.
        fan_in: number of weights in a row.
        blocks: rows of different blocks are never compared.
        also: other names of the same.
        device: where the weights are.
        can_freeze: whether zero gradients, again and again, are worth a word.
        slices_of: the parameter that the rows are slices of, if no adapter knows it.
        originals: the parameters that the rows consist of, or are computed from.
        row_names: what the rows are called, if not by their index.
    """

    # fmt: off
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_units(self) -> int: ...  # noqa: D102
    @property
    def fan_in(self) -> int: ...  # noqa: D102
    @property
    def blocks(self) -> int: ...  # noqa: D102
    @property
    def also(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def can_freeze(self) -> bool: ...  # noqa: D102
    @property
    def slices_of(self) -> str: ...  # noqa: D102
    @property
    def originals(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def row_names(self) -> tuple[str, ...]: ...  # noqa: D102
    # fmt: on

    def weights(self) -> Rows:
        """The rows."""
        ...

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """Their gradients; ``trained`` are the identities of the parameters whose gradients count."""
        ...

    def recurrent_rows(self) -> Rows | None:
        """What feeds the units back into themselves, ``(num_units, gates * num_units)``."""
        ...

    def are_updated_alike(self, units: Sequence[int], updates: Updates) -> bool:
        """Whether equal gradients of some rows make equal updates: with equal options, from equal state."""
        ...
