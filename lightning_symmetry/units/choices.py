"""Modules that a forward pass may leave out: the members of lists and dicts of modules, such as experts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_symmetry.units.naming import readable_modules

LISTS = (nn.ModuleList, nn.ModuleDict)


def members_of_lists(model: nn.Module, layers: Iterable[str]) -> set[str]:
    """Return which of some layers belong to members of lists and dicts of modules.

    Args:
        model: any module.
        layers: names of its layers.

    Example:
        >>> experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 2)])
        >>> sorted(members_of_lists(nn.Sequential(experts, nn.Linear(2, 2)), ["0.0.0", "0.0.1", "0.1", "1"]))
        ['0.0.0', '0.0.1', '0.1']
    """
    lists = {name for name, module in readable_modules(model) if issubclass(type(module), LISTS)}
    members = set()
    for layer in layers:
        path = layer.split(".")
        if any(".".join(path[:length]) in lists for length in range(1, len(path))):
            members.add(layer)
    return members
