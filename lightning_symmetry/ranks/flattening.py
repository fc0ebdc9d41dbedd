"""Which parameters of a model are cut into flat parts, by whichever library, and what this rank holds of them."""

from __future__ import annotations

from torch import nn

from lightning_symmetry.ranks import fsdp1
from lightning_symmetry.ranks.flat import FlatPart
from lightning_symmetry.ranks.zero import zero_modules, zero_parts


def flattened_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return the modules whose parameters FSDP1 or DeepSpeed's ZeRO manages, by ``id``."""
    return fsdp1.flattened_modules(model) | zero_modules(model)


def flat_parts(model: nn.Module) -> dict[int, dict[str, FlatPart]]:
    """Return what this rank holds of these parameters, by the ``id`` of the module and name.

    All ranks have to call this if FSDP1 manages any of them.
    """
    return fsdp1.flat_parts(model) | zero_parts(model)
