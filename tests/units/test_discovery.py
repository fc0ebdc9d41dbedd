from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_symmetry import Units, diagnose, register_layer
from lightning_symmetry.units.discovery import find_layers

AnyUnits: Any = Units  # for what its types forbid


def names(model: nn.Module, **options: list[str]) -> list[str]:
    return [layer.name for layer in find_layers(model, **options).layers]


class WithAdapter(nn.Linear):
    """A subclass with parameters of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.randn(4))


def test_parameters_the_adapter_does_not_know_are_named() -> None:
    layers, skipped, *_ = find_layers(nn.Sequential(WithAdapter(3, 4)))
    assert [layer.name for layer in layers] == ["0"]
    assert "scale" in skipped["0"]


def odd_module(adapter: Callable[[Tensor], Any]) -> nn.Module:
    """A module of a class of its own, whose adapter does with the weight what is given."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

    @register_layer(Odd)
    def odd(module: Odd) -> Any:
        return adapter(module.weight)

    return Odd()


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda weight: weight, "returns Tensor, expected Units"),
        (lambda weight: [weight], "returns Parameter, expected Units"),
        (lambda weight: {"weight": weight}, "returns str, expected Units"),
        (lambda weight: 3, "failed with TypeError: 'int' object is not iterable"),
        (lambda weight: Units(weight, blocks=0), "ZeroDivisionError"),
        (lambda weight: AnyUnits((weight,)), "its adapter failed with TypeError"),
        (lambda weight: Units((weight, torch.sum)), "its adapter failed with IndexError"),
        (lambda weight: AnyUnits((weight, lambda tensor: tensor.no_such_view)), "no_such_view"),
        (lambda weight: AnyUnits("weight"), "its tensors are strs"),
    ],
)
def test_adapters_that_return_something_else(result: Callable[[Tensor], Any], reason: str) -> None:
    layers, skipped, *_ = find_layers(nn.Sequential(odd_module(result), nn.Linear(2, 2)))
    assert [layer.name for layer in layers] == ["1"]
    assert reason in skipped["0"]


def test_adapter_that_fails_is_named() -> None:
    def fail(weight: Tensor) -> Units:
        raise KeyError("weights")

    skipped = find_layers(nn.Sequential(odd_module(fail))).skipped
    assert skipped == {"0": "its adapter failed with KeyError: 'weights'"}


def test_adapter_with_unequal_numbers_of_units_is_refused() -> None:
    class Crooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.bias = nn.Parameter(torch.randn(4))

    @register_layer(Crooked)
    def crooked(module: Crooked) -> Units:
        return Units(module.weight, module.bias)

    layers, skipped, *_ = find_layers(nn.Sequential(Crooked()))
    assert layers == []
    assert "[(3, 4), (4,)]" in skipped["0"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first


def test_shared_weight_is_looked_at_once() -> None:
    layers, skipped, *_ = find_layers(Tied())
    assert [(layer.name, layer.also) for layer in layers] == [("first", ("second",))]
    assert skipped == {}
    report = diagnose(Tied())
    assert list(report.layers) == ["first", "second"]
    assert report.layers["first"] is report.layers["second"]
    assert report.num_units == 4
    assert "first = second" in str(report)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LayerNorm(4), "LayerNorm has one scale and shift per unit and no incoming row to compare"),
        (nn.PReLU(4), "no adapter for PReLU, whose parameters hold one number per unit at most"),
        (nn.LazyLinear(4), "not initialised yet"),
        (nn.Linear(3, 4, device="meta"), "meta device"),
        (nn.Linear(3, 4, dtype=torch.complex64), "torch.complex64"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_inspected_is_named_with_a_reason(module: nn.Module, reason: str) -> None:
    layers, skipped, *_ = find_layers(nn.Sequential(module))
    assert layers == []
    assert list(skipped) == ["0"]
    assert reason in skipped["0"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0)])
def test_layers_without_inputs_or_units(inputs: int, outputs: int) -> None:
    skipped = find_layers(nn.Sequential(nn.Linear(inputs, outputs))).skipped
    assert skipped == {"0": "it has no units or no inputs"}


def test_pruned_layer_is_skipped() -> None:
    module = nn.Linear(3, 4)
    prune.l1_unstructured(module, "weight", amount=0.5)
    skipped = find_layers(nn.Sequential(module)).skipped
    assert "computed from other tensors" in skipped["0"]


def test_include_and_exclude() -> None:
    model = nn.ModuleDict({"fc1": nn.Linear(2, 2), "fc2": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert names(model, include=["fc*"]) == ["fc1", "fc2"]
    assert names(model, exclude=["fc*"]) == ["head"]
    assert names(model, include=["fc*"], exclude=["fc2"]) == ["fc1"]
    assert find_layers(model, include=["fc1"]).skipped["head"] == "left out by `include` or `exclude`"


def test_compiled_submodules_keep_their_names() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2))})
    model["body"] = torch.compile(model["body"], backend="eager")  # type: ignore[assignment]
    assert names(model) == ["body.0"]


def test_a_bare_layer_goes_by_its_class() -> None:
    assert list(diagnose(nn.Linear(2, 3)).layers) == ["Linear"]


def test_parts_of_one_name_are_refused() -> None:
    layers, skipped, *_ = find_layers(nn.Sequential(odd_module(lambda weight: [Units(weight), Units(weight)])))
    assert layers == []
    assert skipped == {"0": "its adapter gives several parts the same name; expected each to have a `part` of its own"}
