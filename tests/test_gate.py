"""The assertion for test suites, and the plugin for pytest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import (
    SymmetryError,
    SymmetryReport,
    SymmetryWarning,
    Units,
    assert_no_symmetry,
    register_layer,
)
from tests import zoo
from tests.test_tracker import loss_of
from tests.training import assert_same, batches, fill, mlp


def test_a_healthy_model_passes_and_gives_its_report() -> None:
    report = assert_no_symmetry(mlp(), loss_of, batches())
    assert report.status == "healthy"
    assert report.reasons == []
    assert list(report.layers) == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("net", "verdict"),
    [
        (lambda: fill(mlp(), 0.1), "locked"),
        (lambda: fill(mlp(), 0.0), "frozen"),
        (lambda: fill(mlp(), -0.1), "frozen"),
        (lambda: zoo.both_factors_zero(), "frozen"),
    ],
)
def test_a_symmetric_model_raises_with_its_report(net: Callable[[], nn.Module], verdict: str) -> None:
    with pytest.raises(SymmetryError, match=verdict) as raised:
        assert_no_symmetry(net(), loss_of, batches())
    assert raised.value.report.status == "symmetric"
    assert verdict in {str(finding.verdict) for finding in raised.value.findings}


def test_units_in_lockstep_are_found_too() -> None:
    def total(model: nn.Module, batch: list[Tensor]) -> Tensor:
        result: Tensor = model(batch[0]).sum() / 32
        return result

    with pytest.raises(SymmetryError, match="4: all 4 units have different weights but identical gradients"):
        assert_no_symmetry(mlp(), total, batches())


@pytest.mark.parametrize(
    "net",
    [
        *(zoo.resnet, zoo.mobilenet, zoo.VAE, zoo.zero_residual, zoo.ControlNet),
        lambda: zoo.filled(mlp(), "4", 0.0),
        lambda: nn.Sequential(zoo.LoRA(12, 16), nn.Tanh(), zoo.LoRA(16, 4)),
    ],
)
def test_a_symmetry_that_breaks_by_itself_passes(net: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert assert_no_symmetry(net(), loss_of, batches()).status == "healthy"


@pytest.mark.parametrize("num_batches", [1, 3])
def test_few_batches_are_used_again(num_batches: int) -> None:
    few = [batch for batch, _ in zip(batches(), range(num_batches), strict=False)]
    assert assert_no_symmetry(mlp(), loss_of, iter(few)).status == "healthy"


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        lambda parameters: torch.optim.LBFGS(parameters, max_iter=3),
    ],
)
@pytest.mark.parametrize("is_made", [False, True])
def test_nothing_of_the_caller_is_touched(optimizer: Any, is_made: bool) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    given = optimizer(net.parameters()) if is_made else optimizer
    before = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    assert assert_no_symmetry(net, loss_of, batches(), given).status == "healthy"
    assert_same((dict(net.state_dict()), torch.get_rng_state()), before)
    assert all(parameter.grad is None for parameter in net.parameters())
    if is_made:
        assert given.state_dict()["state"] == {}
        assert not given._optimizer_step_pre_hooks


class Unknown(nn.Module):
    """A layer that nobody knows how to read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(12))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


@register_layer(Unknown)
def unknown_units(module: Unknown) -> Units:
    raise NotImplementedError


def test_what_was_not_looked_at_is_said() -> None:
    net = nn.Sequential(Unknown(), *mlp())
    with pytest.warns(SymmetryWarning, match=r"comes to no conclusion \(0 was not looked at: its adapter failed"):
        report = assert_no_symmetry(net, loss_of, batches())
    assert report.status == "inconclusive"
    with pytest.raises(SymmetryError, match="0 was not looked at"):
        assert_no_symmetry(net, loss_of, batches(), require_conclusion=True)
    # What a user leaves out on purpose is no doubt.
    assert assert_no_symmetry(net, loss_of, batches(), exclude=["0"], require_conclusion=True).status == "healthy"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("net", loss_of, batches()), TypeError, "argument `model` to be a torch.nn.Module but got 'net'"),
        ((mlp(), 3, batches()), TypeError, "argument `loss` to be a function of a model and a batch but got 3"),
        ((mlp(), loss_of, 3), TypeError, "argument `batches` to be an iterable of batches but got 3"),
        ((mlp(), loss_of, []), ValueError, "argument `batches` to hold at least one batch"),
        ((mlp(), lambda *_: 1.0, [0]), TypeError, "argument `loss` to return a tensor but got 1.0"),
        ((mlp(), lambda *_: torch.ones(2), [0]), ValueError, "argument `loss` to return one number with a gradient"),
        ((mlp(), loss_of, batches(), 3), TypeError, "argument `optimizer` to be .* but got 3"),
        ((nn.Flatten(), loss_of, batches()), ValueError, "argument `model` to have parameters that train"),
    ],
)
def test_bad_input_is_said(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        assert_no_symmetry(*arguments)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'heatmaps'"):
        assert_no_symmetry(mlp(), loss_of, batches(), heatmaps="none")


TESTS = """
import torch
from torch import nn

def loss(model, batch):
    return model(batch).square().mean()

def model(value=None):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in net.parameters() if value is not None else ():
        nn.init.constant_(parameter, value)
    return net

def test_healthy(symmetry):
    assert symmetry(model(), loss, [torch.randn(8, 4)]).status == "healthy"

def test_constant(symmetry):
    symmetry(model(0.5), loss, [torch.randn(8, 4)])
"""


def test_the_plugin_gives_a_fixture_and_prints_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_model.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in result.stdout, result.stdout
    assert "Symmetry report" in result.stdout
    assert "    0      8         1     0  locked: all 8 units" in result.stdout
    assert "SymmetryError: 0: all 8 units are identical in weights and gradients" in result.stdout


def test_the_plugin_loads_nothing_that_takes_time() -> None:
    code = "import lightning_symmetry.pytest_plugin, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_report_is_symmetric_healthy_or_inconclusive() -> None:
    assert SymmetryReport().status == "healthy"
    assert SymmetryReport(reasons=["nobody looked"]).status == "inconclusive"
