"""The assertion for test suites, and the plugin for pytest."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_symmetry.pytest_plugin
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


class SAM(torch.optim.Optimizer):
    """Like https://github.com/davda54/sam: needs gradients and a closure."""

    def __init__(self, params: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = torch.optim.Adam(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "SAM needs a closure"
        trained = [(p, p.clone()) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p, _ in trained]).norm()
        for p, _ in trained:
            p.add_(p.grad / norm, alpha=self.defaults["rho"])
        torch.enable_grad()(closure)()
        for p, before in trained:
            p.copy_(before)
        self.base_optimizer.step()


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("give me a closure")
        return super().step(closure)


@pytest.mark.parametrize("kind", [SAM, NeedsClosure])
@pytest.mark.parametrize("is_made", [False, True])
@pytest.mark.parametrize("value", [None, 0.1])
def test_an_optimizer_gets_the_closure_that_it_needs(kind: Any, is_made: bool, value: float | None) -> None:
    net = mlp() if value is None else fill(mlp(), value)
    given: Any = kind(net.parameters(), lr=1e-3) if is_made else lambda parameters: kind(parameters, lr=1e-3)
    if is_made:
        batch = next(iter(batches()))
        loss_of(net, batch).backward()
        given.step(lambda: loss_of(net, batch).backward())
        torch.optim.lr_scheduler.StepLR(given, 5)  # which gives this optimizer a step of its own
    before = {key: value.clone() for key, value in net.state_dict().items()}
    if value is None:
        assert assert_no_symmetry(net, loss_of, batches(), given).status == "healthy"
    else:
        with pytest.raises(SymmetryError, match="locked"):
            assert_no_symmetry(net, loss_of, batches(), given)
    assert_same(dict(net.state_dict()), before)


class OddError(Exception):
    pass


class Failing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise OddError("of the optimizer")


def test_errors_of_the_user_come_through() -> None:
    def raising(model: nn.Module, batch: Any) -> Tensor:
        raise OddError("of the loss")

    with pytest.raises(OddError, match="of the loss"):
        assert_no_symmetry(mlp(), raising, batches())
    with pytest.raises(OddError, match="of the optimizer"):
        assert_no_symmetry(mlp(), loss_of, batches(), lambda parameters: Failing(parameters, lr=0.1))


def test_random_numbers_go_on_as_if_nothing_had_been_drawn() -> None:
    def mixed(model: nn.Module, batch: Any) -> Tensor:
        return loss_of(model, batch) * (1 + random.random() + np.random.rand() + torch.rand(()))

    drawn = []
    for is_tested in (False, True):
        net = mlp()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        if is_tested:
            assert assert_no_symmetry(net, mixed, batches()).status == "healthy"
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_tensors_with_a_graph_behind_them_are_copied() -> None:
    net = mlp()
    torch.nn.utils.weight_norm(net.linear(0))
    hidden = net[0](torch.randn(3, 12))
    net.kept, net[1].kept_too = hidden, hidden
    assert assert_no_symmetry(net, loss_of, batches()).status == "healthy"
    assert net.kept is hidden
    assert hidden.grad_fn is not None


def test_what_cannot_be_copied_is_named() -> None:
    net, lock = mlp(), threading.Lock()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.lock = lock  # type: ignore[attr-defined]
    expected = r"argument `optimizer` to be .* can copy but it failed with TypeError: .*lock.* Pass a function that"
    with pytest.raises(TypeError, match=expected):
        assert_no_symmetry(net, loss_of, batches(), optimizer)
    net.lock = lock  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"argument `model` to be .*lock.* Pass the model before its first use"):
        assert_no_symmetry(net, loss_of, batches())


class Unknown(nn.Module):
    """A layer without an adapter."""

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
    # Layers that the user leaves out do not prevent a conclusion.
    assert assert_no_symmetry(net, loss_of, batches(), exclude=["0"], require_conclusion=True).status == "healthy"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("net", loss_of, batches()), TypeError, "argument `model` to be a torch.nn.Module but got 'net'"),
        ((nn.Linear, loss_of, batches()), TypeError, "the class, not an instance: pass Linear"),
        (
            ({"a": torch.ones(2)}, loss_of, batches()),
            TypeError,
            "For a state dict pass the model that loads it",
        ),
        (
            (mlp(), nn.CrossEntropyLoss(), batches()),
            TypeError,
            "a model and a batch but got CrossEntropyLoss.* Pass, for",
        ),
        ((mlp(), nn.MSELoss, batches()), TypeError, "a function of outputs and targets. Pass, for example, lambda"),
        ((mlp(), nn.functional.mse_loss, batches()), TypeError, "a model and a batch but got <function mse_loss"),
        (
            (mlp(), lambda model: model, batches()),
            TypeError,
            "cannot be called with two arguments: too many positional",
        ),
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


def output_of_pytest(folder: Path, tests: str) -> str:
    (folder / "test_model.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_the_plugin_gives_a_fixture_and_prints_the_report(tmp_path: Path) -> None:
    output = output_of_pytest(tmp_path, TESTS)
    assert "1 failed, 1 passed" in output, output
    assert "Symmetry report" in output
    assert "    0      8        1     0  locked: all 8 units" in output
    assert "lightning_symmetry.SymmetryError: 0: all 8 units are identical in weights and gradients" in output


def test_exceptions_bear_the_name_that_users_import() -> None:
    model = fill(mlp(), 0.5)
    with pytest.raises(SymmetryError) as caught:
        assert_no_symmetry(model, loss_of, batches())
    assert "".join(traceback.format_exception_only(caught.value)).startswith("lightning_symmetry.SymmetryError: ")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is SymmetryError
    assert (str(again), again.findings) == (str(caught.value), caught.value.findings)
    assert pickle.loads(pickle.dumps(SymmetryWarning("text"))).args == ("text",)


def test_the_plugin_has_no_hooks() -> None:
    assert not [name for name in vars(lightning_symmetry.pytest_plugin) if name.startswith("pytest_")]


def output_of_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_the_plugin_loads_nothing_that_takes_time() -> None:
    assert output_of_python("import lightning_symmetry.pytest_plugin, sys; print('torch' in sys.modules)") == "False\n"


def test_the_plugin_loads_where_pluggy_is_older() -> None:
    code = """
import pytest
known = pytest.hookimpl
def hookimpl(function=None, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False, specname=None):
    return known(function, hookwrapper, optionalhook, tryfirst, trylast, specname)
pytest.hookimpl = hookimpl
import lightning_symmetry.pytest_plugin
print("loaded")
"""
    assert output_of_python(code) == "loaded\n"


def test_a_report_is_symmetric_healthy_or_inconclusive() -> None:
    assert SymmetryReport().status == "healthy"
    assert SymmetryReport(reasons=["nobody looked"]).status == "inconclusive"
