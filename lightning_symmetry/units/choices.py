"""Modules that a forward pass may leave out: the members of lists and dicts of modules, such as experts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_symmetry.units.naming import readable_modules

LISTS = (nn.ModuleList, nn.ModuleDict)


def members_of_lists(model: nn.Module, layers: Iterable[str]) -> dict[str, list[str]]:
    """Which members of lists and dicts of modules some layers belong to.

    Args:
        model: any module.
        layers: names of its layers.

    Returns:
        By member, the names of its layers.

    Example:
        >>> experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 2)])
        >>> members_of_lists(nn.Sequential(experts), ["0.0.0", "0.0.1", "0.1"])
        {'0.0': ['0.0.0', '0.0.1'], '0.1': ['0.1']}
    """
    lists = {name for name, module in readable_modules(model) if issubclass(type(module), LISTS)}
    members: dict[str, list[str]] = {}
    for layer in layers:
        path = layer.split(".")
        for length in range(1, len(path)):
            if ".".join(path[:length]) in lists:
                members.setdefault(".".join(path[: length + 1]), []).append(layer)
    return members
