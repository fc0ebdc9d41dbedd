"""TorchScript modules, compiled or traced, are read like the original modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, Verdict, break_symmetry, diagnose
from lightning_symmetry.modules import class_of
from lightning_symmetry.units.discovery import find_layers
from tests.training import train_in_loop

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.table = nn.Linear(6, 8), nn.LayerNorm(8), nn.Embedding(10, 8)
        self.conv, self.back = nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 4, 3, groups=2)
        self.gru, self.attn = nn.GRU(8, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = torch.zeros(inputs.shape[0], 4, dtype=torch.long)
        hidden = self.norm(self.linear(inputs))[:, None] + self.table(tokens)
        hidden = self.gru(hidden)[0]
        hidden = hidden + self.attn(hidden, hidden, hidden, need_weights=False)[0]
        outputs: Tensor = self.back(self.conv(hidden)).mean(2)
        return outputs


class Unknown(nn.Module):
    """A module without an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 6))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.kernel.T


def script(module: nn.Module) -> Any:
    return torch.jit.script(module)


def trace(module: nn.Module) -> Any:
    return torch.jit.trace(module, torch.randn(3, 6))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


FORMS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "a layer": lambda net: nn.Sequential(script(net[0]), net[1], net[2]),
    "a submodule": lambda net: nn.Sequential(script(net[:2]), net[2]),
    "the model": script,
    "a submodule, traced": lambda net: nn.Sequential(trace(net[:2]), net[2]),
    "the model, traced": trace,
}


def train(net: nn.Module, *, is_watched: bool = True) -> SymmetryReport | None:
    def loss() -> Tensor:
        value: Tensor = (net(torch.randn(16, 6)) - 1).square().mean()
        return value

    return train_in_loop(net, loss, 65, is_watched=is_watched, set_to_none=False)


def report_of(net: nn.Module) -> SymmetryReport:
    report = train(net)
    assert report is not None
    return report


def described(model: nn.Module) -> list[tuple[Any, ...]]:
    layers = find_layers(model).layers
    return [(layer.name, layer.num_units, layer.fan_in, layer.blocks, layer.recurrent is None) for layer in layers]


def test_layers_are_those_of_the_model_that_was_compiled() -> None:
    model = Layers()
    compiled = script(model)
    assert described(compiled) == described(model)
    plain, found = find_layers(model), find_layers(compiled)
    assert (found.skipped, found.coverage) == (plain.skipped, plain.coverage)
    assert class_of(compiled) is Layers


def test_what_tracing_leaves_out_makes_slices() -> None:
    # A traced convolution has no attribute `groups`.
    conv = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 3, groups=2), nn.Flatten())
    found = find_layers(nn.Sequential(trace(conv)))
    assert [layer.name for layer in found.layers] == ["0.1.weight[dim 0]", "0.1.weight[dim 2]"]
    assert "groups" in found.skipped["0.1"]
    assert found.unread == {}


def test_a_compiled_module_without_an_adapter_is_sliced() -> None:
    found = find_layers(nn.Sequential(script(Unknown())))
    assert [layer.name for layer in found.layers] == ["0.kernel[dim 0]", "0.kernel[dim 1]"]


@pytest.mark.parametrize("form", FORMS)
def test_healthy_ones_are_passed_over_and_train_as_ever(form: str) -> None:
    net, other = FORMS[form](perceptron()), FORMS[form](perceptron())
    report = report_of(net)
    train(other, is_watched=False)
    assert (report.status, report.reasons, report.coverage, len(report.layers)) == ("healthy", [], 1.0, 2)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_dead_and_equal_units_are_found(form: str) -> None:
    dead, equal = perceptron(), perceptron()
    nn.init.constant_(dead[0].bias, -100.0)  # type: ignore[arg-type]
    with torch.no_grad():
        equal[0].weight[3], equal[0].bias[3] = equal[0].weight[1], equal[0].bias[1]  # type: ignore[index, operator]
        equal[2].weight[:, 3] = equal[2].weight[:, 1]  # type: ignore[index, operator]
    net = FORMS[form](equal)
    first = find_layers(net).layers[0].name
    [finding] = report_of(FORMS[form](dead)).findings
    assert (finding.layer, finding.verdict, len(finding.units)) == (first, Verdict.DEAD, 8)
    report = report_of(net)
    assert [(each.layer, each.units, each.verdict) for each in report.findings] == [(first, (1, 3), Verdict.LOCKED)]
    break_symmetry(net, report, method="noise")
    assert diagnose(net).layers[first].effective_width == 8


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_branch_that_takes_no_part_any_more_is_not_dead(is_compiled: bool) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = perceptron()[:2], perceptron()[:2]
            if is_compiled:
                self.one, self.other = script(self.one), script(self.other)
            self.out, self.calls = nn.Linear(8, 1), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            hidden = self.one(inputs)
            outputs: Tensor = self.out(hidden if self.calls > 10 else hidden + self.other(inputs) ** 2)
            return outputs

    torch.manual_seed(0)
    assert report_of(Branches()).findings == []
