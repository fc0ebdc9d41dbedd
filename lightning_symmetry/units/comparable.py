"""What can be looked at: sets of rows that are compared with one another."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

import torch
from torch import Tensor

from lightning_symmetry.matrices.mirrors import Parity
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
        dies_as_a_whole: whether those of all rows at once are, though those of some are not.
        slices_of: the parameter that the rows are slices of, if no adapter knows it.
        originals: the parameters that the rows consist of, or are computed from.
        row_names: what the rows are called, if not by their index.
        odd_gates: which gates of its units a mirror image changes the sign of; None: all weights.
        is_computed: whether the weights that are used are computed from those that are compared.
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
    def dies_as_a_whole(self) -> bool: ...  # noqa: D102
    @property
    def slices_of(self) -> str: ...  # noqa: D102
    @property
    def originals(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def row_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def odd_gates(self) -> tuple[int, ...] | None: ...  # noqa: D102
    @property
    def is_computed(self) -> bool: ...  # noqa: D102
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

    def computed_rows(self) -> Rows:
        """The rows that are used, where they are computed from those that are compared."""
        ...

    def parity(self) -> Parity | None:
        """All rows in which equal units agree, by what a mirror image does to them; None: all change sign."""
        ...

    def gradients_by_parity(self, trained: Set[int] | None = None) -> Parity | None:
        """Their gradients, likewise."""
        ...
