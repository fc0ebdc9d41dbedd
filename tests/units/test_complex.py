"""Complex weights: each number counts as two real ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_symmetry import (
    SymmetryReport,
    Verdict,
    break_symmetry,
    diagnose,
    merge_duplicates,
    scan,
)
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.screening import LayerScreen
from lightning_symmetry.verdicts.evidence import look
from tests.training import train_in_loop

DTYPES = (torch.complex64, torch.complex128)


class Activation(nn.Module):
    """A function of the real and the imaginary part."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.complex(self.function(inputs.real), self.function(inputs.imag))


class Spectral(nn.Module):
    """Mixes the channels of each frequency, and has a conjugate gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(0.1 * torch.randn(4, 6, 3, dtype=torch.cfloat)), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed = torch.einsum("bix,iox->box", torch.fft.rfft(inputs.real.view(-1, 4, 4)), self.weight.conj())
        outputs: Tensor = self.out(torch.fft.irfft(mixed, n=4).square().mean(2))
        return outputs


class Parts(nn.Module):
    """Computes a complex weight from its two parts."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        return torch.complex(real, imaginary)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.real.clone(), weight.imag.clone()


def perceptron(
    function: Callable[[Tensor], Tensor] = torch.tanh, dtype: torch.dtype = torch.complex64
) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8, dtype=dtype), Activation(function), nn.Linear(8, 1, dtype=dtype))


def with_copies(net: Any) -> Any:
    """Make units 1 and 3 of the first layer equal, and the weights that read them."""
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[1], net[0].bias[1]
        net[2].weight[:, 3] = net[2].weight[:, 1]
    return net


def train(net: nn.Module, *, is_watched: bool = True, steps: int = 60, every_n_steps: int = 5) -> SymmetryReport | None:
    dtype = next(net.parameters()).dtype

    def loss() -> Tensor:
        inputs = torch.randn(16, 16, dtype=dtype if dtype.is_complex else torch.cfloat)
        value: Tensor = (net(inputs).abs() - inputs.abs().mean(1, keepdim=True)).square().mean()
        return value

    return train_in_loop(net, loss, steps, every_n_steps=every_n_steps, is_watched=is_watched)


def report_of(net: nn.Module) -> SymmetryReport:
    report = train(net)
    assert report is not None
    return report


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_is_read_in_full(dtype: torch.dtype) -> None:
    found = find_layers(perceptron(dtype=dtype))
    assert (found.skipped, found.coverage) == ({}, 1.0)
    assert [(layer.num_units, layer.fan_in) for layer in found.layers] == [(8, 32), (1, 16)]
    assert found.layers[0].weights().width == 34


def test_parts_of_a_parameter_count_by_their_share() -> None:
    attention = nn.MultiheadAttention(8, 2, dtype=torch.complex64)
    assert find_layers(attention).coverage == 1.0
    left = find_layers(attention, exclude=["*.q", "*.k"]).coverage
    assert left == 2 / 4  # values and the output projection


@pytest.mark.parametrize("part", ["real", "imag"])
def test_units_that_are_equal_in_one_part_only_are_not_equal(part: str) -> None:
    net: Any = with_copies(perceptron())
    assert [group.units for group in diagnose(net).layers["0"].groups] == [(1, 3)]
    with torch.no_grad():
        getattr(net[0].weight, part)[3, 0] += 0.1
    assert diagnose(net).layers["0"].groups == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_watched", [True, False])
def test_the_training_stays_bitwise_the_same(dtype: torch.dtype, is_watched: bool) -> None:
    net, other = perceptron(dtype=dtype), perceptron(dtype=dtype)
    train(net, is_watched=is_watched)
    train(other, is_watched=False)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_healthy_ones_are_passed_over_and_copies_found(dtype: torch.dtype) -> None:
    healthy = report_of(perceptron(dtype=dtype))
    assert (healthy.status, healthy.reasons) == ("healthy", [])
    [finding] = report_of(with_copies(perceptron(dtype=dtype))).findings
    assert (finding.layer, finding.units, finding.verdict, finding.kept_by) == ("0", (1, 3), Verdict.LOCKED, "2")


def test_dead_units_are_found_where_their_gradient_stops() -> None:
    for number in (8, 6):
        net: Any = perceptron(torch.relu)
        with torch.no_grad():
            net[0].bias[:number] = -100 - 100j
        [finding] = report_of(net).findings
        assert (finding.units, finding.verdict) == (tuple(range(number)), Verdict.DEAD)
        assert finding.stop is not None
        assert (finding.stop.kind, finding.stop.at) == ("closed", "1")


def test_slices_of_a_parameter_without_an_adapter() -> None:
    torch.manual_seed(0)
    net = Spectral()
    healthy = report_of(net)
    assert (healthy.status, healthy.reasons, healthy.coverage) == ("healthy", [], 1.0)
    assert {"weight[dim 0]", "weight[dim 1]", "weight[dim 2]"} <= healthy.layers.keys()
    with torch.no_grad():
        net.weight[:, 4], net.out.weight[:, 4] = net.weight[:, 2], net.out.weight[:, 2]
    assert [group.units for group in report_of(net).layers["weight[dim 1]"].groups] == [(2, 4)]


def test_whole_modules_that_are_copies() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList([perceptron(), perceptron()])

        def forward(self, inputs: Tensor) -> Tensor:
            return sum((branch(inputs) for branch in self.branches), torch.zeros(()))

    net = Branches()
    report = report_of(net)
    assert [finding.modules for finding in report.findings] == [("branches.0", "branches.1")]
    break_symmetry(net, report)
    assert diagnose(net).copies == []
    assert report_of(net).status == "healthy"


def test_parametrized_layers() -> None:
    def parts(module: nn.Module) -> nn.Module:
        return parametrize.register_parametrization(module, "weight", Parts())

    for change in (parts, parametrizations.spectral_norm):
        net: Any = with_copies(perceptron())
        change(net[0])
        report = report_of(net)
        assert [(finding.layer, finding.units) for finding in report.findings] == [("0", (1, 3))]
        assert report.coverage == 1.0


def test_a_quick_reading_tells_what_a_look_tells() -> None:
    net: Any = perceptron(torch.relu)
    net(torch.randn(16, 16, dtype=torch.cfloat)).abs().sum().backward()
    net[0].weight.grad[2], net[0].bias.grad[2] = 0, 0
    layers = find_layers(net).layers
    trained = {id(parameter) for parameter in net.parameters()}
    screen = LayerScreen(layers, None)
    for _ in range(2):
        found = screen.read(trained, set(map(id, layers))).layers
    looks = {seen.layer.name: seen for seen in look(layers, trained=trained)}
    [(layer, idle)] = [(layer, idle) for layer, idle, _ in found if layer.name == "0"]
    assert idle is not None
    assert idle.tolist() == looks[layer.name].idle.tolist() == [unit == 2 for unit in range(8)]  # type: ignore[union-attr]
    with_copies(net)
    assert "0" not in {layer.name for layer, *_ in screen.read(trained, set(map(id, layers))).layers}


@pytest.mark.parametrize("method", ["auto", "reinit", "noise"])
def test_symmetries_are_broken(method: Any) -> None:
    net: Any = with_copies(perceptron())
    before = copy.deepcopy(net)
    report = report_of(net)
    before.load_state_dict(net.state_dict())
    break_symmetry(net, report, method=method)
    assert diagnose(net).layers["0"].effective_width == 8
    changed = (net[0].weight != before[0].weight).nonzero()
    assert sorted({int(unit) for unit, _ in changed}) == [3]
    assert len(changed) == 16
    assert torch.equal(net[0].bias, before[0].bias)
    assert report_of(net).status == "healthy"


def test_dead_units_are_recycled() -> None:
    net: Any = perceptron(torch.relu)
    nn.init.constant_(net[0].bias, -100 - 100j)  # type: ignore[arg-type]
    report = report_of(net)
    with pytest.warns(UserWarning, match="0: 8 units.* were left .* it is unknown what reads them"):
        assert break_symmetry(net, report) == []
    break_symmetry(net, report, method="reinit")
    assert report_of(net).status == "healthy"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("error")
def test_duplicates_are_merged(dtype: torch.dtype) -> None:
    pytest.importorskip("torch_pruning")
    net, inputs = with_copies(perceptron(dtype=dtype)), torch.randn(5, 16, dtype=dtype)
    merged = merge_duplicates(net, inputs)
    assert merged.removed == {"0": (3,)}
    assert torch.allclose(merged.model(inputs), net(inputs), rtol=1e-5)


def test_a_checkpoint_is_scanned(tmp_path: Path) -> None:
    torch.save(with_copies(perceptron()).state_dict(), tmp_path / "net.pt")
    report = scan(tmp_path / "net.pt")
    assert [group.units for group in report.layers["0"].groups] == [(1, 3)]
    assert report.coverage == 1.0
