"""The merged network computes the same as the original one, which is not changed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_symmetry import Merged, diagnose, merge_duplicates
from lightning_symmetry.merging.merge import MergeError
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from tests import zoo
from tests.merging.evidence import digits
from tests.merging.nets import ARCHITECTURES, cnn, mlp, plant, plant_halves
from tests.training import assert_same, fill

INPUTS = torch.randn(6, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def distance(a: nn.Module, b: nn.Module, inputs: Tensor = INPUTS) -> float:
    """Return the relative distance of the outputs in evaluation mode; the oracle for ``Merged.error``."""
    with torch.no_grad():
        x, y = copy.deepcopy(a).eval()(inputs), copy.deepcopy(b).eval()(inputs)
    return float((x - y).norm() / x.norm())


def widths(net: nn.Module) -> list[int]:
    return [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]


@st.composite
def planted_perceptrons(draw: st.DrawFn) -> tuple[nn.Sequential, dict[str, set[int]]]:
    """Return a random perceptron with random groups of equal units, and the units to be removed."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    hidden = draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))
    net = mlp(12, *hidden, 4, activation=draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity])))
    expected: dict[str, set[int]] = {}
    for place, width in enumerate(hidden):
        labels = draw(st.lists(st.integers(0, width), min_size=width, max_size=width))
        groups = [[unit for unit in range(width) if labels[unit] == label] for label in set(labels)]
        plant(net, str(2 * place), groups)
        if draw(st.booleans()):
            fill(zoo.linear(net, str(2 * place)), 0.0)
            groups = [list(range(width))]
        if gone := {unit for group in groups for unit in group[1:]}:
            expected[str(2 * place)] = gone
    return net, expected


@settings(max_examples=40, deadline=None)
@given(planted_perceptrons())
def test_random_perceptrons_compute_the_same_without_the_planted_units(
    planted: tuple[nn.Sequential, dict[str, set[int]]],
) -> None:
    net, expected = planted
    merged = merge_duplicates(net, INPUTS)
    assert {name: set(units) for name, units in merged.removed.items()} == expected
    assert distance(net, merged.model) <= 1e-12
    assert distance(net, merged.model, 10 * torch.randn(32, 12, dtype=torch.float64)) <= 1e-12
    for place in range(0, len(net) - 1, 2):
        width = len(zoo.linear(net, str(place)).weight)
        assert len(zoo.linear(merged.model, str(place)).weight) == width - len(expected.get(str(place), ()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("equal_outgoing", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_compute_the_same(architecture: str, equal_outgoing: bool, dtype: torch.dtype) -> None:
    net = plant_halves(ARCHITECTURES[architecture](), equal_outgoing).to(dtype)
    inputs = INPUTS.to(dtype)
    merged = merge_duplicates(net, inputs)
    assert merged.removed
    bound = 1e-12 if dtype is torch.float64 else 1e-5
    assert merged.error <= bound
    assert distance(net, merged.model, inputs) <= bound
    parameters = [sum(p.numel() for p in each.parameters()) for each in (net, merged.model)]
    assert parameters == [merged.parameters_before, merged.parameters_after]
    assert parameters[1] < parameters[0]


def test_a_resnet_loses_half_of_its_channels() -> None:
    net = plant_halves(zoo.resnet(), equal_outgoing=False).double()
    merged = merge_duplicates(net, INPUTS)
    assert all(
        2 * after.out_channels == before.out_channels
        for before, after in zip(net.modules(), merged.model.modules(), strict=True)
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
    )
    assert merged.left == {}


def test_columns_of_all_pixels_are_added_up() -> None:
    net = plant(cnn().double(), "4", [(0, 5, 7)])
    plant_norms(net, "5", (0, 5, 7))
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {"4": (5, 7)}
    before, after = zoo.linear(net, "8").weight.unflatten(1, (12, 4)), zoo.linear(merged.model, "8").weight
    torch.testing.assert_close(after[:, :4], before[:, [0, 5, 7]].sum(dim=1))


def plant_norms(net: nn.Module, norm: str, group: tuple[int, ...]) -> None:
    module = net.get_submodule(norm)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim:
                tensor[list(group)] = tensor[group[0]].clone()


def test_mirror_images_enter_with_a_minus_sign() -> None:
    net = zoo.mirrored(zoo.perceptron(nn.Tanh), "0", "2").double()
    net(INPUTS).square().sum().backward()
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {"0": tuple(range(12, 24))}
    assert distance(net, merged.model) <= 1e-12
    torch.testing.assert_close(
        zoo.linear(merged.model, "2").weight, zoo.linear(net, "2").weight[:, :12] - zoo.linear(net, "2").weight[:, 12:]
    )


def test_mirror_images_behind_an_activation_that_is_not_odd_stay() -> None:
    net = mlp(12, 6, 4, activation=nn.Tanh)
    plant(net, "0", [(0, 1), (2, 3)], "2")
    zoo.mirrored(net, "0", "2")  # 3 to 5 mirror 0 to 2
    plant(net, "0", [(0, 1), (3, 4)], "2")
    net(INPUTS).square().sum().backward()
    report = diagnose(net)
    assert any(group.mirrored for group in report.layers["0"].groups)
    net[1] = nn.GELU()
    merged = merge_duplicates(net, INPUTS, report=report)
    assert merged.removed == {"0": (1, 4)}
    assert "merging mirror images changes the outputs: the error is" in merged.left["0"]
    assert distance(net, merged.model) <= 1e-12


def test_a_wide_constant_layer_becomes_one_unit() -> None:
    net = fill(nn.Sequential(nn.Linear(12, 2048), nn.ReLU(), nn.Linear(2048, 4)), 0.01)
    merged = merge_duplicates(net, INPUTS.float())
    assert len(merged.removed["0"]) == 2047
    torch.testing.assert_close(zoo.linear(merged.model, "2").weight, torch.full((4, 1), 20.48))


def test_dead_units_stay() -> None:
    net = zoo.with_bias(zoo.perceptron(), "0", -100.0, 3)
    net(INPUTS.float()).sum().backward()
    report = diagnose(net)
    assert report.layers["0"].dead == (0, 1, 2)
    assert merge_duplicates(net, INPUTS.float(), report=report).removed == {}


def test_without_duplicates_the_copy_is_the_same() -> None:
    net = mlp(12, 5, 4)
    merged = merge_duplicates(net, INPUTS)
    assert_same(net.state_dict(), merged.model.state_dict())
    assert (merged.removed, merged.left, merged.error, merged.optimizer) == ({}, {}, 0.0, None)
    assert merged.gradient_scale == {}
    assert merged.model is not net


def test_what_a_model_takes_by_name_or_by_place() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plant(mlp(12, 6, 4), "0", [(1, 4)])

        def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> dict[str, Any]:
            return {"logits": [self.body(first * scale + second)], "name": "sum"}

    by_name = merge_duplicates(Sum(), {"first": INPUTS, "second": INPUTS, "scale": 2.0})
    by_place = merge_duplicates(Sum(), (INPUTS, INPUTS))
    assert by_name.removed == by_place.removed == {"body.0": (4,)}


def test_tokens_go_into_a_model_unchanged() -> None:
    net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    plant(net, "1", [(0, 3)])
    with torch.no_grad():
        zoo.linear(net, "0").weight[:, 7] = zoo.linear(net, "0").weight[:, 2]
    merged = merge_duplicates(net, torch.tensor([[0, 4, 2], [1, 1, 3]]))
    assert merged.removed == {"0": (7,), "1": (3,)}


def test_branches_that_are_laid_side_by_side() -> None:
    net = plant(zoo.UNet(), "down2.0", [(0, 3)])
    plant_norms(net, "down2.1", (0, 3))
    up, out = zoo.linear(net, "up"), zoo.linear(net, "out.0")
    with torch.no_grad():
        up.weight[:, 5], up.bias[5] = up.weight[:, 1], up.bias[1]
    merged = merge_duplicates(net.double(), INPUTS)
    assert merged.removed == {"down2.0": (3,), "up": (5,)}
    after = zoo.linear(merged.model, "out.0").weight
    torch.testing.assert_close(after[:, 9], out.weight[:, [9, 13]].sum(dim=1))


# ----------------------------------------------------------------- what cannot be merged


class Twice(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.b.weight = self.a.weight

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.a(inputs).relu()).relu())
        return out


class Scaled(nn.Module):
    """A parameter of the model itself scales the units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.scale = nn.Linear(12, 6), nn.Linear(6, 4), nn.Parameter(torch.arange(1.0, 7.0))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head((self.a(inputs) * self.scale).relu())
        return out


class Features(nn.Module):
    """Returns its hidden units too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.a(inputs).relu()
        return self.head(hidden), hidden


class FixedWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.a(inputs).relu().reshape(-1, 6))
        return out


class Auxiliary(nn.Module):
    """A head that is used in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.extra = nn.Linear(12, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.a(inputs).relu()
        out: Tensor = self.head(hidden)
        return out + self.extra(hidden) if self.training else out


def tokens() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4))


def between(*modules: nn.Module, width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, width), *modules, nn.Linear(width, 4))


def grouped() -> nn.Module:
    return nn.Sequential(zoo.Image(), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 3, groups=2), zoo.Pool(), nn.Linear(4, 4))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))


LEFT = {
    "LayerNorm": (between(nn.LayerNorm(6)), "0", "`1` (LayerNorm) computes statistics over them"),
    "RMSNorm": (between(nn.RMSNorm(6)), "0", "torch-pruning does not know `1` (RMSNorm)"),
    "GroupNorm": (between(nn.GroupNorm(2, 6)), "0", "`1` (GroupNorm) computes statistics over them"),
    "softmax": (between(nn.Softmax(dim=1)), "0", "a softmax runs over them"),
    "outputs": (Features(), "a", "removing them changes the shapes of the outputs"),
    "plain outputs": (nn.Sequential(nn.Linear(12, 6), nn.ReLU()), "0", "they are outputs of the model"),
    "last layer": (nn.Sequential(nn.Linear(12, 6)), "0", "they are outputs of the model"),
    "tied": (Twice(), "a", "the weight is tied to that of `b`"),
    "parameter": (Scaled(), "a", "units 0, 3: `scale` (Parameter) holds different numbers for them"),
    "grouped": (grouped(), "1", "`2` is a convolution in 2 groups"),
    "parametrized": (weight_normed(), "0", "`2` is parametrized"),
    "read in training mode": (Auxiliary(), "a", "`extra` reads them at inputs that torch-pruning does not find"),
    "flattened tokens": (tokens(), "1", "`4` reads them at inputs that torch-pruning does not find"),
    "fixed width": (FixedWidth(), "a", "without them the model fails with RuntimeError"),
    "BatchNorm": (cnn(), "1", "units 0, 3: `2` (BatchNorm2d) holds different numbers for them"),
    "residual": (zoo.resnet(), "1.0", "(Conv2d) writes to the same channels and holds different numbers for them"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_merged_is_left_with_a_reason(case: str) -> None:
    net, layer, reason = LEFT[case]
    net = plant(net.double(), layer, [(0, 3)])
    merged = merge_duplicates(net, INPUTS)
    assert reason in merged.left[layer]
    assert merged.removed == {}
    assert merged.error <= 1e-12


def test_parts_of_layers_are_left() -> None:
    merged = merge_duplicates(plant_halves(ARCHITECTURES["GRU"](), True).double(), INPUTS)
    assert "a part of a layer" in merged.left["rnn.l0"]
    assert merged.removed == {"head.0": tuple(range(8, 16))}
    of_attention = merge_duplicates(plant_halves(zoo.ViT(), True).double(), INPUTS)
    assert "a part of a layer" in of_attention.left["blocks.0.self_attn.q"]
    assert set(of_attention.removed) == {"blocks.0.linear1", "blocks.1.linear1"}


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_what_a_recurrent_layer_reads_is_left_and_does_not_take_for_ever(
    cell: Callable[..., nn.Module], batch_first: bool
) -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), cell(6, 5, batch_first=batch_first)).double()
    plant(net, "0", [(1, 2, 5)])
    merged = merge_duplicates(net, torch.randn(2, 4, 3, dtype=torch.float64))
    assert merged.removed == {}
    assert "torch-pruning" in merged.left["0"]


def test_of_a_group_those_are_merged_that_agree_everywhere() -> None:
    net = plant(cnn().double(), "1", [(0, 3, 6)])
    plant_norms(net, "2", (0, 6))
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {"1": (6,)}
    assert "units 0, 3: `2` (BatchNorm2d) holds different numbers for them" in merged.left["1"]


def test_reasons_name_units_as_the_original_layer_counts_them() -> None:
    net = nn.Sequential(nn.Linear(12, 8), zoo.Residual(nn.Sequential(nn.Linear(8, 8), nn.Tanh())), nn.Linear(8, 4))
    net.double()
    plant(net, "0", [(0, 1)])
    plant(net, "1.body.0", [(0, 1), (5, 7)])
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {"0": (1,), "1.body.0": (1,)}
    assert "units 5, 7: `0` (Linear) writes to the same channels" in merged.left["1.body.0"]


def test_a_report_of_weights_that_have_changed_since_does_no_harm() -> None:
    net = plant(mlp(12, 6, 4), "0", [(0, 3)])
    report = diagnose(net)
    with torch.no_grad():
        zoo.linear(net, "0").bias[3] += 1
    merged = merge_duplicates(net, INPUTS, report=report)
    assert merged.removed == {}
    assert "units 0, 3: `0` (Linear) holds different numbers for them" in merged.left["0"]


# ----------------------------------------------------------------- what stays as it is


def busy() -> nn.Sequential:
    """Dropout, BatchNorm, frozen parameters, mixed modes, gradients."""
    net = cnn().double()
    plant_halves(net, equal_outgoing=False)
    net.append(nn.Dropout(0.5))
    zoo.linear(net, "1").requires_grad_(False)
    net.train()
    net.get_submodule("5").eval()
    net(INPUTS).sum().backward()
    return net


def snapshot(net: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "state": dict(net.state_dict()),
            "gradients": {
                name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None
            },
            "frozen": [parameter.requires_grad for parameter in net.parameters()],
            "modes": [module.training for module in net.modules()],
            "identities": list(map(id, net.parameters())),
            "hooks": [len(module._forward_hooks) for module in net.modules()],
        }
    )


def test_the_original_and_the_random_numbers_stay_as_they_are() -> None:
    net = busy()
    before, random = snapshot(net), torch.random.get_rng_state()
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed
    assert_same(snapshot(net), before)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_the_copy_keeps_modes_and_frozen_parameters() -> None:
    net = busy()
    merged = merge_duplicates(net, INPUTS).model
    assert [module.training for module in merged.modules()] == [module.training for module in net.modules()]
    frozen = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in merged.named_parameters()} == frozen
    assert all(len(module._forward_hooks) == 0 for module in merged.modules())
    assert all(parameter.grad is None for parameter in merged.parameters())


def test_frozen_parameters_have_no_factors() -> None:
    net = plant(mlp(12, 6, 4), "0", [(0, 3)])
    zoo.linear(net, "0").weight.requires_grad_(False)
    merged = merge_duplicates(net, INPUTS)
    assert merged.gradient_scale.keys() == {"0.bias", "2.weight"}
    assert merged.gradient_scale["0.bias"].tolist() == [0.5, 1, 1, 1, 1]
    assert merged.gradient_scale["2.weight"].tolist() == [[2, 1, 1, 1, 1]]


def test_inside_no_grad_it_is_the_same() -> None:
    net = plant(mlp(12, 6, 4), "0", [(0, 3)])
    with torch.no_grad():
        assert merge_duplicates(net, INPUTS).removed == {"0": (3,)}
    with torch.inference_mode():
        assert merge_duplicates(net, INPUTS.clone()).removed == {"0": (3,)}


# ----------------------------------------------------------------- bad arguments


def bad_report() -> SymmetryReport:
    return SymmetryReport(layers={"other": LayerDiagnosis("other", 6, 12)})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "`model` to be a torch.nn.Module but got 3"),
        ({"example_inputs": [1]}, TypeError, r"`example_inputs` to be a tensor, a tuple .* but got \[1\]"),
        ({"example_inputs": ()}, TypeError, "`example_inputs`"),
        ({"example_inputs": torch.zeros(2, 5).double()}, ValueError, "`example_inputs` .* it raised RuntimeError"),
        ({"report": "healthy"}, TypeError, "`report` to be a SymmetryReport, as .* but got 'healthy'"),
        ({"report": bad_report()}, ValueError, "`report` to be a report of `model` but its layer 'other' with 6 units"),
        ({"optimizer": 0.1}, TypeError, "`optimizer` to be a torch.optim.Optimizer or None but got 0.1"),
        ({"optimizer": torch.optim.SGD(mlp(2, 2).parameters())}, ValueError, "2 of its parameters belong to no module"),
        ({"model": nn.Softmax(dim=1)}, None, ""),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception] | None, message: str) -> None:
    given: dict[str, Any] = {"model": mlp(12, 6, 4), "example_inputs": INPUTS, **arguments}
    if error is None:
        assert isinstance(merge_duplicates(**given), Merged)
        return
    with pytest.raises(error, match=message):
        merge_duplicates(**given)


def test_a_model_without_tensors_to_compare() -> None:
    class Silent(nn.Module):
        def forward(self, inputs: Tensor) -> str:
            return "nothing"

    with pytest.raises(ValueError, match="`model` to return tensors"):
        merge_duplicates(Silent(), INPUTS)


def test_a_model_that_is_never_the_same_twice() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = mlp(12, 6, 4), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.body(inputs) + self.calls
            return out

    with pytest.raises(MergeError, match="something else at every call"):
        merge_duplicates(Counting(), INPUTS)


def test_a_model_that_cannot_be_copied() -> None:
    net = mlp(12, 6, 4)
    net.get_submodule("0").register_buffer("cache", net(INPUTS))
    with pytest.raises(ValueError, match=r"`model` to work with copy\.deepcopy"):
        merge_duplicates(net, INPUTS)


def test_without_torch_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-symmetry\[merge\]'"):
        merge_duplicates(mlp(12, 6, 4), INPUTS)


def test_the_digits_network_of_the_demo_says_the_same_with_half_of_its_hidden_units() -> None:
    result = digits(epochs=3)
    assert result.widths == ([64, 32, 10], [32, 16, 10])
    assert result.num_equal == result.num_images == 450
    assert result.accuracy > 0.5
    assert result.merged.left == {}
