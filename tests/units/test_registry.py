from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_symmetry import Units, diagnose, register_layer
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.registry import register_layer_by_name
from tests.fresh import outputs_of

AnyRegister: Any = register_layer  # for arguments of wrong types


class Scaled(nn.Linear):
    """A subclass without an adapter."""


def test_subclasses_use_the_adapter_of_their_ancestor() -> None:
    assert [layer.name for layer in find_layers(nn.Sequential(Scaled(3, 4))).layers] == ["0"]


def test_a_class_that_was_made_without_a_module_is_known_by_its_ancestor() -> None:
    names: dict[str, Any] = {"nn": nn}
    exec("Nameless = type('Nameless', (nn.Linear,), {})", names)
    assert not hasattr(names["Nameless"], "__module__")
    assert [layer.name for layer in find_layers(nn.Sequential(names["Nameless"](3, 4))).layers] == ["0"]


class Experts(nn.Module):
    """Stacked expert weights (experts, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5))


def test_register_layer_with_parts() -> None:
    assert {layer.slices_of for layer in find_layers(Experts()).layers} == {"weight"}

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


def test_register_layer_refuses_an_instance_and_names_its_class() -> None:
    with pytest.raises(TypeError, match=r"but got Linear\(.*\)\. To register its class: register_layer\(Linear\)\."):
        AnyRegister(nn.Linear(2, 3))


def linear_units(module: nn.Linear) -> Units:
    return Units(module.weight)


def test_register_layer_refuses_to_decorate_without_a_type() -> None:
    with pytest.raises(TypeError, match=r"at least one layer type, as in register_layer\(MyLayer\)"):
        register_layer()
    with pytest.raises(TypeError, match=r"but got <function .*linear_units.*>\. .*@register_layer\(MyLayer\)"):
        AnyRegister(linear_units)


@pytest.mark.parametrize("adapter", [None, "units", Units(torch.ones(2, 3))])
def test_register_layer_refuses_an_adapter_that_is_no_function(adapter: Any) -> None:
    with pytest.raises(TypeError, match="Expected a function that takes a module and returns its Units but got"):
        AnyRegister(made_up_layer())(adapter)
    with pytest.raises(TypeError, match="Expected a function that takes a module and returns its Units but got"):
        register_layer_by_name("package.module.Class")(adapter)


@pytest.mark.parametrize(
    ("names", "message"), [((), "at least one"), ((nn.Linear,), "but got <class"), ((3,), "got 3")]
)
def test_register_layer_by_name_refuses_what_is_no_name(names: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register_layer_by_name(*names)


def made_up_layer(base: type[nn.Module] = nn.Module) -> type[nn.Module]:
    """Return a new layer type with a weight (units, inputs)."""

    class MadeUp(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(3, 4))

    return MadeUp


def part(name: str) -> Any:
    """Return an adapter for :func:`made_up_layer`, recognisable by the part that it reports."""

    def adapter(module: Any) -> Units:
        return Units(module.kernel, part=name)

    adapter.__qualname__ = f"adapter_{name}"
    return adapter


def names_of(layer_type: type[nn.Module]) -> list[str]:
    return [layer.name for layer in find_layers(nn.Sequential(layer_type())).layers]


def test_one_adapter_serves_several_types() -> None:
    first, second = made_up_layer(), made_up_layer()
    adapter = part("both")
    assert register_layer(first, second)(adapter) is adapter
    assert names_of(first) == names_of(second) == ["0.both"]


def test_another_adapter_for_the_same_type_is_used_and_warned_of() -> None:
    layer = made_up_layer()
    register_layer(layer)(part("first"))
    with pytest.warns(UserWarning, match="If that is intended") as warned:
        register_layer(layer)(part("second"))
    text = str(warned[0].message)
    here = f"{__name__}.adapter_"
    assert f"{here}second (line " in text
    assert f"replaces {here}first (line " in text
    assert "register_layer(MadeUp, replace=True)" in text
    assert warned[0].filename == __file__
    assert names_of(layer) == ["0.second"]


def test_an_adapter_of_this_package_is_replaced_in_the_same_way() -> None:
    code = """
import torch
from lightning_symmetry import Units, diagnose, register_layer
@register_layer(torch.nn.Linear{replace})
def linear(module):
    return Units(module.weight, part="mine")
print(list(diagnose(torch.nn.Sequential(torch.nn.Linear(2, 3))).layers))
"""
    code = f"import sys\nsys.stderr = sys.stdout\n{code}"
    on_purpose, by_chance = outputs_of(code.format(replace=", replace=True"), code.format(replace=""))
    assert on_purpose == "['0.mine']\n"
    assert by_chance.endswith("['0.mine']\n")
    assert "UserWarning" in by_chance
    assert "replaces lightning_symmetry.units.adapters._linear (line " in by_chance


def test_replacing_on_purpose_is_silent() -> None:
    layer = made_up_layer()
    register_layer(layer, replace=True)(part("first"))
    register_layer(layer, replace=True)(part("second"))
    assert names_of(layer) == ["0.second"]


def test_running_a_cell_of_a_notebook_again_is_silent() -> None:
    layer = made_up_layer()
    register_layer(layer)(part("same"))
    register_layer(layer)(part("same"))  # another function object of the same module and name
    bound = functools.partial(part("bound"))  # without a name
    register_layer(layer, replace=True)(bound)
    register_layer(layer)(bound)
    with pytest.warns(UserWarning, match=r"adapter_other .*replaces functools.partial"):
        register_layer(layer)(part("other"))


def test_an_adapter_for_a_subclass_replaces_nothing() -> None:
    parent = made_up_layer()
    child = made_up_layer(parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_layer(parent)(part("parent"))
        register_layer(child)(part("child"))
    assert (names_of(parent), names_of(child)) == (["0.parent"], ["0.child"])


def test_the_nearest_ancestor_counts_though_it_is_known_by_its_name_only() -> None:
    parent = made_up_layer()
    child = made_up_layer(parent)
    child.__qualname__ = "NearestAncestor"
    register_layer(parent)(part("parent"))
    register_layer_by_name(f"{child.__module__}.NearestAncestor")(part("child"))
    assert names_of(made_up_layer(child)) == ["0.child"]


def test_replacing_an_adapter_that_is_known_by_name_is_warned_of() -> None:
    layer = made_up_layer()
    layer.__qualname__ = "KnownByName"
    name = f"{layer.__module__}.KnownByName"
    register_layer_by_name(name)(part("first"))
    with pytest.warns(UserWarning, match=rf'register_layer_by_name\("{name}", replace=True\)'):
        register_layer_by_name(name)(part("second"))
    assert names_of(layer) == ["0.second"]
    with pytest.warns(UserWarning, match=r"replaces .*adapter_second"):
        register_layer(layer)(part("third"))
    assert names_of(layer) == ["0.third"]
    register_layer_by_name(name, replace=True)(part("fourth"))


def test_registering_works_whichever_module_is_imported_first() -> None:
    modules = ["registry", "adapters", "discovery", "layers", "copies"]
    code = """
import torch
from lightning_symmetry.units.registry import Units, register_layer
@register_layer(torch.nn.Linear, replace=True)
def linear(module):
    return Units(module.weight, part="mine")
from lightning_symmetry import diagnose
print(list(diagnose(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Conv1d(2, 3, 1))).layers))
"""
    found = outputs_of(*(f"import lightning_symmetry.units.{module}\n{code}" for module in modules))
    assert dict(zip(modules, found, strict=True)) == dict.fromkeys(modules, "['0.mine', '1']\n")
