from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_symmetry import SymmetryTracker, Units, diagnose, register_layer
from lightning_symmetry.units.discovery import find_layers, structure_of
from tests.training import fill

AnyUnits: Any = Units  # for arguments of wrong types


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
    """Return a module of a new class, whose adapter applies a function to the weight."""

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
        (nn.Linear(3, 4).to(torch.float8_e5m2), "torch.float8_e5m2"),
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


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("not to be called")


class OverridesAll(nn.Linear):
    """A layer whose methods must not be called."""

    parameters = named_parameters = modules = named_modules = children = named_children = buffers = named_buffers = fail
    get_parameter = get_submodule = _named_members = __len__ = __eq__ = __bool__ = fail
    __hash__ = nn.Module.__hash__


class ListsWithoutArguments(nn.Linear):
    def named_parameters(self) -> Any:  # type: ignore[override]
        return iter([("weight", self.weight), ("bias", self.bias)])


class Guarded(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            return super().__getattr__(name)
        raise RuntimeError(f"no attribute {name}")


class AnswersAll(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("weight", "bias") else self


class Unhashable(nn.Linear):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class OfAnotherClass(nn.Linear):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("which class it is nobody knows")


def hidden() -> nn.Module:
    """A layer in a module that does not list it."""

    class Hiding(nn.Sequential):
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            return iter([("", self)])

        def parameters(self, recurse: bool = True) -> Any:
            return iter([])

    return Hiding(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "odd", [OverridesAll, ListsWithoutArguments, Guarded, AnswersAll, Unhashable, OfAnotherClass, lambda *_: hidden()]
)
def test_methods_of_modules_are_not_called(odd: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    fill(net[0], 0.5)
    parameters = list(net.parameters())
    last = odd(4, 4)
    net.add_module("odd", last)
    weights = last._modules.get("0", last)
    assert weights is not None
    weight, bias = weights.weight, weights.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    nn.init.constant_(weight, 0.5)
    parameters += [weight, bias]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with SymmetryTracker(net, optimizer, every_n_steps=1, on_symmetry="ignore") as tracker:
        for _ in range(5):
            optimizer.zero_grad()
            outputs = nn.functional.linear(net[1](net[0](torch.randn(16, 8))), weight, bias)
            outputs.square().mean().backward()
            optimizer.step()
        report = tracker.report
    assert report is not None
    names = ["0", "odd" if weights is last else "odd.0"]
    assert "0" in {finding.layer for finding in tracker.findings}
    assert list(report.layers) == list(diagnose(net).layers) == names
    assert report.skipped == {}


class WithProperty(nn.Linear):
    """A layer whose weight is drawn at every access."""

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.mu, self.sigma = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.ones(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.mu + self.sigma * torch.randn_like(self.sigma)


def test_a_weight_that_is_a_property_is_not_asked_for() -> None:
    model = nn.Sequential(WithProperty(3, 4))
    before = torch.get_rng_state()
    found = find_layers(model)
    assert torch.equal(before, torch.get_rng_state())
    assert [layer.name for layer in found.layers] == ["0.mu[dim 0]", "0.mu[dim 1]", "0.sigma[dim 0]", "0.sigma[dim 1]"]
    assert found.skipped == {"0": "its weight is computed at every access, and is no parameter"}
    assert found.unread == {}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(3, 4), "bias"),
        (nn.Conv2d(3, 4, 2), "weight"),
        (nn.ConvTranspose1d(3, 4, 2), "bias"),
        (nn.Embedding(5, 4), "weight"),
        (nn.Bilinear(2, 3, 4), "weight"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (nn.MultiheadAttention(4, 2), "in_proj_bias"),
        (nn.MultiheadAttention(4, 2, kdim=3), "k_proj_weight"),
        (nn.LSTM(3, 4), "weight_ih_l0"),
        (nn.LSTM(3, 4), "weight_hh_l0"),
        (nn.LSTM(3, 4), "bias_hh_l0"),
        (nn.LSTM(3, 4, proj_size=2), "weight_hr_l0"),
        (nn.GRUCell(3, 4), "weight_hh"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_tensor_that_is_a_property_is_asked_for(module: nn.Module, name: str) -> None:
    parameter = module._parameters.pop(name)
    assert parameter is not None
    module._parameters["moved"] = parameter
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {name: property(fail)})
    found = find_layers(nn.Sequential(module))
    assert {layer.slices_of for layer in found.layers if layer.slices_of.startswith("0.")} >= (
        {"0.moved"} if parameter.ndim > 1 else set()
    )
    assert "0" not in [layer.name for layer in found.layers]
    assert found.unread == {}


def test_the_random_numbers_of_an_adapter_are_put_back() -> None:
    def drawn(weight: Tensor) -> Units:
        torch.rand(3), np.random.rand(), random.random()
        return Units(weight)

    model = nn.Sequential(odd_module(drawn))
    states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert len(find_layers(model).layers) == 1
    assert states == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


class WithModules(nn.Module):
    """A module with a weight, and with children under given names."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        for name, module in modules.items():
            self.add_module(name, module)


class AttentionWith(nn.MultiheadAttention):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__(8, 2)
        for name, module in modules.items():
            self.add_module(name, module)


def with_parameter(module: nn.Module, name: str, *shape: int) -> nn.Module:
    module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


def wrapping(inner: nn.Module, *, has_weight: bool = False) -> nn.Module:
    wrapper = WithModules() if has_weight else nn.Module()
    wrapper.add_module("_orig_mod", inner)
    return wrapper


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            nn.Sequential(AttentionWith(q=nn.Linear(8, 8))),
            ["0.q (part)", "0.k", "0.v", "0.out_proj", "0.q"],
        ),
        (
            nn.ModuleDict({"a": AttentionWith(q=AttentionWith(k=nn.LayerNorm(4)))}),
            [*("a.q (part)", "a.k", "a.v", "a.out_proj"), *("a.q.q", "a.q.k (part)", "a.q.v", "a.q.out_proj")],
        ),
        (  # modules without parameters count as taken names, too
            nn.Sequential(AttentionWith(q=nn.Sequential(nn.Linear(8, 8)))),
            ["0.q (part)", "0.k", "0.v", "0.out_proj", "0.q.0"],
        ),
        (
            nn.Sequential(with_parameter(AttentionWith(), "q", 4, 5)),
            ["0.q (part)", "0.k", "0.v", "0.q[dim 0]", "0.q[dim 1]", "0.out_proj"],
        ),
        (
            nn.Sequential(with_parameter(AttentionWith(), "q", 4)),
            ["0.q (part)", "0.k", "0.v", "0.out_proj"],
        ),
        (nn.Sequential(wrapping(nn.Linear(4, 5))), ["0"]),
        (
            nn.Sequential(wrapping(nn.Linear(4, 5), has_weight=True)),
            ["0.weight[dim 0]", "0.weight[dim 1]", "0._orig_mod"],
        ),
        (
            wrapping(nn.Sequential(WithModules()), has_weight=True),
            [f"{of}weight[dim {dim}]" for of in ("", "_orig_mod.0.") for dim in (0, 1)],
        ),
        (
            nn.ModuleDict({"_forward_module": nn.Linear(2, 3), "_original_module": nn.Sequential(nn.Linear(2, 3))}),
            ["Linear", "_original_module.0"],
        ),
        (
            nn.ModuleDict({"_orig_mod": nn.ModuleDict({"x": nn.Linear(2, 3)}), "x": nn.Linear(2, 3)}),
            ["x", "x (module)"],
        ),
        (
            type("Net", (AttentionWith,), {})(Net=nn.Linear(2, 3)),
            [*("Net (model).q", "Net (model).k", "Net (model).v"), "out_proj", "Net"],
        ),
    ],
)
def test_no_two_layers_have_one_name(model: nn.Module, expected: list[str]) -> None:
    assert names(model) == names(model) == expected


class OddParameter(nn.Parameter):
    """A parameter that raises at unknown attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name == "_is_param" else RuntimeError(f"no attribute {name}")


def test_a_tensor_that_cannot_be_asked_concerns_its_module_alone() -> None:
    unknown = nn.Module()
    unknown.kernel = OddParameter(torch.randn(3, 4))
    known = nn.Linear(3, 4)
    known.weight = OddParameter(torch.randn(4, 3))
    found = find_layers(nn.Sequential(unknown, known, nn.Linear(2, 2)))
    assert [layer.name for layer in found.layers] == ["2"]
    assert found.skipped == found.unread
    assert set(found.skipped) == {"0", "1"}
    assert set(found.skipped.values()) == {"its tensors are OddParameters, which this package does not read"}


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_modules_of_torchscript_are_looked_at() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert isinstance(scripted, nn.Module)
    assert names(scripted) == ["0"]
    assert structure_of(scripted) == structure_of(scripted)
