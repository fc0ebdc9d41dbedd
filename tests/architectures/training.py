"""Short trainings of networks of any architecture, as they are and with copies of half of their units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, Verdict
from lightning_symmetry.verdicts.report import SymmetryReport
from tests.architectures.families import Family

STEPS = 6
# In so many of the layers copies must be found. In the others the neighbours differ: queries and keys that rotary
# positions turn, the filters of depthwise convolutions, which see different inputs, tables of positions, and experts
# that no token was sent to.
LEAST_SHARE = 0.4


def healthy(family: Family, steps: int = STEPS) -> SymmetryTracker:
    """Train a member of a family as it is initialised."""
    torch.manual_seed(17)
    return _train(family, family.build().train(), steps, is_planted=False)


def planted(family: Family) -> SymmetryTracker:
    """Train a member half of whose units are copies of their neighbours, which nothing after them tells apart.

    Along every dimension of a parameter but those of space, each odd index holds what the even one before it holds.
    So the network stays the same if the features ``2 i`` and ``2 i + 1`` are exchanged throughout, as long as no
    operation does different things to the two: what is random does, as dropout, and so do rotary positions.
    """
    torch.manual_seed(17)
    model = family.build().eval()  # which switches off what is random
    with torch.no_grad():
        for parameter in model.parameters():
            for dim in range(min(parameter.ndim, 2 if parameter.ndim > 3 else parameter.ndim)):
                copy_halves(parameter, dim)
    return _train(family, model, STEPS, is_planted=True)


def copy_halves(tensor: Tensor, dim: int) -> None:
    """Copy every number with an even index along a dimension onto the next one."""
    number = tensor.shape[dim] // 2
    slices = tensor.movedim(dim, 0)
    slices[1 : 2 * number : 2] = slices[0 : 2 * number : 2].clone()


def check_healthy(family: Family) -> None:
    """A member as it is initialised is looked at in full, and in silence."""
    tracker = healthy(family)
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.coverage >= 0.99
    assert tracker.report.status != "symmetric"


def check_planted(family: Family) -> None:
    """Copies of half of the units are found."""
    report = planted(family).report
    assert report is not None
    assert report.status == "symmetric"
    assert share_in(report) >= LEAST_SHARE


def check_number(families: Sequence[Family]) -> None:
    """There are enough families."""
    assert len({family.name for family in families}) == len(families) >= 30
    assert sum(not family.cannot_plant for family in families) >= 30


def share_in(report: SymmetryReport) -> float:
    """The share of the layers in which units were found locked."""
    layers = report.counted_layers
    return sum(layer.count(Verdict.LOCKED) > 0 for layer in layers) / len(layers)


def _train(family: Family, model: nn.Module, steps: int, *, is_planted: bool) -> SymmetryTracker:
    inputs = [family.inputs() for _ in range(2)]
    head, importance, target = None, torch.ones(()), torch.randn(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(), SymmetryTracker(model, optimizer, every_n_steps=1) as tracker:
        warnings.simplefilter("ignore")
        for step in range(steps):
            outputs = features_of(model(**inputs[step % 2]))
            if head is None:
                head = torch.randn(outputs.shape[-1], 4) / outputs.shape[-1] ** 0.5
                importance = 0.5 + torch.rand(outputs.shape[1:-1])  # which tells places apart that start alike
                if is_planted:
                    copy_halves(head, 0)
            optimizer.zero_grad()
            (importance[..., None] * (outputs @ head - target).square()).mean().backward()
            # Copies double what layers send, which would drive some of the networks to infinity.
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return tracker


def features_of(outputs: Any) -> Tensor:
    """What a network computes, its features last."""
    if isinstance(outputs, tuple):  # of several heads, alike in shape
        outputs = torch.stack(outputs, dim=1)
    if not isinstance(outputs, Tensor):
        outputs = next(value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point())
    features: Tensor = outputs.movedim(1, -1) if outputs.ndim == 4 else outputs
    return features
