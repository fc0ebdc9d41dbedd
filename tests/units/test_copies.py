"""Whole modules that are copies."""

from __future__ import annotations

import copy

from torch import nn

from lightning_symmetry.units.copies import find_copies
from lightning_symmetry.units.discovery import find_layers


def test_parts_of_copies_are_no_copies_of_their_own_whatever_comes_first() -> None:
    # The first layer is of the same kind as a part of the experts.
    expert = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(3))
    model = nn.ModuleDict({"first": nn.Linear(4, 6), "experts": experts})
    [found] = find_copies(model, find_layers(model).layers)
    assert found.row_names == ("experts.0", "experts.1", "experts.2")
