from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_symmetry import Units, diagnose, register_layer
from lightning_symmetry.units.finding import find_layers


class Scaled(nn.Linear):
    """A subclass that says nothing of itself."""


def test_subclasses_use_the_adapter_of_their_ancestor() -> None:
    assert [layer.name for layer in find_layers(nn.Sequential(Scaled(3, 4)))[0]] == ["0"]


class Experts(nn.Module):
    """Stacked expert weights (experts, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5))


def test_register_layer_with_parts() -> None:
    assert find_layers(Experts())[1] == {
        "Experts": "no adapter for Experts; if units come first in `weight`: "
        "register_layer(Experts)(lambda module: Units(module.weight))"
    }

    @register_layer(Experts)
    def experts(module: Experts) -> list[Units]:
        def expert(i: int) -> Units:
            return Units((module.weight, lambda weight: weight[i].T), part=f"expert{i}")

        return [expert(i) for i in range(3)]

    stack = Experts()
    with torch.no_grad():
        stack.weight[1, :, 4] = stack.weight[1, :, 2]
    report = diagnose(nn.Sequential(stack))
    assert list(report.layers) == ["0.expert0", "0.expert1", "0.expert2"]
    assert [group.units for group in report.layers["0.expert1"].groups] == [(2, 4)]
    assert report.skipped == {}


@pytest.mark.parametrize("layer_type", [3, "Linear", int, None])
def test_register_layer_refuses_what_is_no_module(layer_type: type) -> None:
    with pytest.raises(TypeError, match=r"`layer_type` to be a subclass of torch.nn.Module but got"):
        register_layer(layer_type)
