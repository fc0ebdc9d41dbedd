from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import Units, diagnose, duplicate_groups, register_layer
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.units.layers import find_layers
from tests.oracle import brute_force_groups

AnyUnits: Any = Units  # for what its types forbid
CONVOLUTIONS = [
    (nn.Conv1d, nn.ConvTranspose1d, 1),
    (nn.Conv2d, nn.ConvTranspose2d, 2),
    (nn.Conv3d, nn.ConvTranspose3d, 3),
]


def names(model: nn.Module, **options: list[str]) -> list[str]:
    return [layer.name for layer in find_layers(model, **options)[0]]


def test_bias_belongs_to_the_incoming_row() -> None:
    layer = nn.Linear(3, 4)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    report = diagnose(nn.Sequential(layer))
    assert [group.units for group in report.layers["0"].groups] == [(0, 2)]
    assert (report.layers["0"].num_units, report.layers["0"].fan_in) == (4, 3)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("plain", "transposed", "dims"), CONVOLUTIONS)
def test_silencing_a_row_changes_one_output_channel(plain: type, transposed: type, dims: int, groups: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, 8, *([5] * dims))
    for conv_type in (plain, transposed):
        conv = conv_type(8, 12, 3, groups=groups)
        (layer,), skipped = find_layers(nn.Sequential(conv))
        assert not skipped
        assert (layer.num_units, layer.blocks) == (12, groups)
        assert layer.fan_in == 8 // groups * 3**dims
        before = conv(inputs)
        for unit in (0, 5, 11):
            row = layer.weights().fetch(np.array([unit]))[0]
            copy = conv_type(8, 12, 3, groups=groups)
            copy.load_state_dict(conv.state_dict())
            (copied,), _ = find_layers(nn.Sequential(copy))
            with torch.no_grad():
                for tensor, view in [(item.weights, item.view) for item in copied.tensors]:
                    mask = torch.ones_like(tensor)
                    units_first = view(mask)
                    if units_first.data_ptr() == mask.data_ptr():
                        units_first[unit] = 0.0
                    else:  # the view of a grouped transposed convolution is a copy: find the elements by their marks
                        marks = torch.arange(tensor.numel()).reshape(tensor.shape)
                        mask.view(-1)[view(marks)[unit].flatten()] = 0.0
                    tensor.mul_(mask)
            changed = (copy(inputs) != before).flatten(2).any(dim=2)[0].nonzero().flatten().tolist()
            assert changed == [unit]
            assert row.abs().sum() > 0


@pytest.mark.parametrize(("plain", "transposed", "dims"), CONVOLUTIONS)
def test_rows_of_different_conv_groups_are_never_compared(plain: type, transposed: type, dims: int) -> None:
    for conv_type in (plain, transposed):
        conv = conv_type(4, 8, 3, groups=2)
        nn.init.constant_(conv.weight, 0.5)
        nn.init.zeros_(conv.bias)
        groups = diagnose(nn.Sequential(conv)).layers["0"].groups
        assert [group.units for group in groups] == [(0, 1, 2, 3), (4, 5, 6, 7)]
        depthwise = conv_type(8, 8, 3, groups=8)
        nn.init.constant_(depthwise.weight, 0.5)
        nn.init.zeros_(depthwise.bias)
        assert diagnose(nn.Sequential(depthwise)).layers["0"].groups == []


def test_planted_filters_are_found_in_every_convolution() -> None:
    torch.manual_seed(0)
    for plain, transposed, _ in CONVOLUTIONS:
        for conv_type in (plain, transposed):
            conv = conv_type(4, 12, 2, groups=2)
            (layer,), _ = find_layers(nn.Sequential(conv))
            rows = layer.weights().fetch(np.arange(12))
            assert brute_force_groups(rows, 1e-5) == []
            for tensor, view in [(item.weights, item.view) for item in layer.tensors]:
                marks = view(torch.arange(tensor.numel()).reshape(tensor.shape))
                tensor.data.view(-1)[marks[4].flatten()] = tensor.data.view(-1)[marks[1].flatten()]
            groups = diagnose(nn.Sequential(conv)).layers["0"].groups
            assert [group.units for group in groups] == [(1, 4)]


def test_gradients_have_the_shape_of_the_weights() -> None:
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    conv(torch.randn(2, 4, 5, 5)).square().sum().backward()
    (layer,), _ = find_layers(nn.Sequential(conv))
    gradients = layer.gradients()
    assert gradients is not None
    assert (gradients.num_rows, gradients.width) == (layer.weights().num_rows, layer.weights().width)
    assert layer.gradients(trained=set()) is None
    only_bias = layer.gradients(trained={id(conv.bias)})
    assert only_bias is not None
    assert only_bias.width == 1


class Scaled(nn.Linear):
    """A subclass that says nothing of itself."""


class WithAdapter(nn.Linear):
    """A subclass with parameters of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(2, 3))


def test_subclasses_use_the_adapter_of_their_ancestor() -> None:
    assert names(nn.Sequential(Scaled(3, 4))) == ["0"]


def test_parameters_the_adapter_does_not_know_are_named() -> None:
    layers, skipped = find_layers(nn.Sequential(WithAdapter(3, 4)))
    assert [layer.name for layer in layers] == ["0"]
    assert "lora_a" in skipped["0"]


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


def test_adapter_with_unequal_numbers_of_units_is_refused() -> None:
    class Crooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.bias = nn.Parameter(torch.randn(4))

    @register_layer(Crooked)
    def crooked(module: Crooked) -> Units:
        return Units(module.weight, module.bias)

    layers, skipped = find_layers(nn.Sequential(Crooked()))
    assert layers == []
    assert "[(3, 4), (4,)]" in skipped["0"]


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
    layers, skipped = find_layers(nn.Sequential(odd_module(result), nn.Linear(2, 2)))
    assert [layer.name for layer in layers] == ["1"]
    assert reason in skipped["0"]


def test_adapter_that_fails_is_named() -> None:
    def fail(weight: Tensor) -> Units:
        raise KeyError("weights")

    _, skipped = find_layers(nn.Sequential(odd_module(fail)))
    assert skipped == {"0": "its adapter failed with KeyError: 'weights'"}


@pytest.mark.parametrize("layer_type", [3, "Linear", int, None])
def test_register_layer_refuses_what_is_no_module(layer_type: type) -> None:
    with pytest.raises(TypeError, match=r"`layer_type` to be a subclass of torch.nn.Module but got"):
        register_layer(layer_type)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first


def test_shared_weight_is_looked_at_once() -> None:
    layers, skipped = find_layers(Tied())
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
    layers, skipped = find_layers(nn.Sequential(module))
    assert layers == []
    assert list(skipped) == ["0"]
    assert reason in skipped["0"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0)])
def test_layers_without_inputs_or_units(inputs: int, outputs: int) -> None:
    _, skipped = find_layers(nn.Sequential(nn.Linear(inputs, outputs)))
    assert skipped == {"0": "it has no units or no inputs"}


def test_looking_at_a_spectral_norm_leaves_its_power_iteration_alone() -> None:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    diagnose(nn.Sequential(module))
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())


def test_pruned_layer_is_skipped() -> None:
    module = nn.Linear(3, 4)
    nn.utils.prune.l1_unstructured(module, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    _, skipped = find_layers(nn.Sequential(module))
    assert "computed from other tensors" in skipped["0"]


def test_include_and_exclude() -> None:
    model = nn.ModuleDict({"fc1": nn.Linear(2, 2), "fc2": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert names(model, include=["fc*"]) == ["fc1", "fc2"]
    assert names(model, exclude=["fc*"]) == ["head"]
    assert names(model, include=["fc*"], exclude=["fc2"]) == ["fc1"]
    assert find_layers(model, include=["fc1"])[1]["head"] == "left out by `include` or `exclude`"


def test_compiled_submodules_keep_their_names() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2))})
    model["body"] = torch.compile(model["body"], backend="eager")  # type: ignore[assignment]
    assert names(model) == ["body.0"]


def test_a_bare_layer_goes_by_its_class() -> None:
    assert list(diagnose(nn.Linear(2, 3)).layers) == ["Linear"]


def test_views_are_not_copies() -> None:
    for module in (nn.Linear(8, 8), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3)):
        (layer,), _ = find_layers(nn.Sequential(module))
        rows = layer.weights()
        assert isinstance(rows, DenseRows)
        piece = rows.pieces[0]
        assert isinstance(piece, Tensor)
        assert piece.data_ptr() == layer.tensors[0].weights.data_ptr()


def test_frozen_and_half_precision_rows() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight[7] = layer.weight[3]
        layer.bias[7] = layer.bias[3]
    layer.requires_grad_(False)
    assert [group.units for group in diagnose(nn.Sequential(layer)).layers["0"].groups] == [(3, 7)]
    assert duplicate_groups(layer.weight) == [(3, 7)]


def test_chance_collisions_are_no_groups() -> None:
    torch.manual_seed(0)
    narrow = nn.Linear(1, 4096).to(torch.bfloat16)
    rows: Tensor = torch.cat([narrow.weight, narrow.bias[:, None]], dim=1)
    assert duplicate_groups(rows) != []  # they do coincide
    assert diagnose(nn.Sequential(narrow)).layers["0"].groups == []
    nn.init.constant_(narrow.weight, 0.5)
    nn.init.zeros_(narrow.bias)
    assert diagnose(nn.Sequential(narrow)).layers["0"].effective_width == 1


def test_a_constant_weight_tells_no_more_than_one_number() -> None:
    # Zero weights with random biases, two of which coincide in bfloat16, as they often do.
    layer = nn.Linear(64, 64).to(torch.bfloat16)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(0.5, 0.7, 64))
    assert duplicate_groups(torch.cat([layer.weight, layer.bias[:, None]], dim=1)) != []
    assert diagnose(nn.Sequential(layer)).layers["0"].groups == []
