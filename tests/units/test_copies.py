"""Whole modules that are copies."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from lightning_symmetry.units.copies import copies_named, find_copies
from lightning_symmetry.units.discovery import find_layers


def test_parts_of_copies_are_no_copies_of_their_own_whatever_comes_first() -> None:
    # The first layer is of the same kind as a part of the experts.
    expert = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(3))
    model = nn.ModuleDict({"first": nn.Linear(4, 6), "experts": experts})
    [found] = find_copies(model, find_layers(model).layers)
    assert found.row_names == ("experts.0", "experts.1", "experts.2")


def test_copies_that_are_wrapped_are_found_once() -> None:
    expert = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    compiled = (torch.compile(copy.deepcopy(expert), backend="eager") for _ in range(3))
    experts = nn.ModuleDict({str(i): cast("nn.Module", expert) for i, expert in enumerate(compiled)})
    [found] = find_copies(experts, find_layers(experts).layers)
    assert found.row_names == ("0", "1", "2")
    assert copies_named(experts, found.row_names) == found
