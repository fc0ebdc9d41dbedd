from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, SymmetryTracker, Verdict, diagnose
from lightning_symmetry.matrices.mirrors import Parity
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.diagnoses import Finding
from tests import zoo
from tests.cases import CASES, Case, run, run_in_plain_loop, settings, tell

ALL = [
    pytest.param(case, optimizer, precision, id=f"{case.name}-{optimizer}-{precision}")
    for case in CASES
    for optimizer, precision in settings(case)
]
# The Trainer does not change what an optimizer does, so two stand for all; `make test-cases` runs all in both ways.
BY_TRAINER = [param for param in ALL if param.values[1] in ("sgd", "adamw") and param.values[2] == "32-true"]


@pytest.mark.parametrize(("case", "optimizer", "precision"), ALL)
def test_nothing_missed_and_no_false_alarm(case: Case, optimizer: str, precision: str) -> None:
    found, tracker, net = run_in_plain_loop(case, optimizer, precision)
    assert tell(found) == tell(case.expected)
    check_equal_at_the_end(tracker.findings, net, precision)


@pytest.mark.parametrize(("case", "optimizer", "precision"), BY_TRAINER)
def test_the_same_is_found_by_the_trainer(case: Case, optimizer: str, precision: str) -> None:
    found, monitor, net = run(case, optimizer, precision)
    assert tell(found) == tell(case.expected)
    check_equal_at_the_end(monitor.findings, net, precision)


def check_equal_at_the_end(findings: Iterable[Finding], net: nn.Module, precision: str) -> None:
    """See that units of which it was said that they are equal are so still after the training, up to sign."""
    layers = {layer.name: layer for layer in find_layers(net).layers}
    for finding in findings:
        name = finding.layer.removeprefix("net.")
        has_equal_rows = finding.verdict not in (Verdict.LOCKSTEP, Verdict.DEAD)
        if finding.broken_step is None and has_equal_rows and name in layers:
            parity = layers[name].parity() or Parity(layers[name].weights(), None)
            units = parity.odd.fetch(np.array(finding.units))
            units[np.isin(finding.units, finding.mirrored)] *= -1
            if parity.even is not None:
                units = torch.cat([units, parity.even.fetch(np.array(finding.units))], dim=1)
            distance = (units - units[0]).norm(dim=1).max()
            assert distance <= (5e-2 if precision == "bf16-true" else 1e-3) * units.norm(dim=1).max()


def test_groups_are_named_unit_by_unit() -> None:
    case = next(case for case in CASES if case.name == "groups of 2, 3 and 5 units")
    _, monitor, _ = run(case, "adam", "32-true")
    assert sorted(finding.units for finding in monitor.findings) == [(0, 7), (1, 8, 20), (2, 3, 4, 15, 23)]


def test_lockstep_says_why() -> None:
    case = next(case for case in CASES if case.name == "loss that sums the outputs")
    _, monitor, _ = run(case, "sgd", "32-true")
    assert monitor.report is not None
    (text,) = messages(monitor.findings, monitor.report)
    assert "all 4 units have different weights but identical gradients (lockstep since step 0)" in text
    assert "They are outputs of the model, and the loss treats them alike." in text


def test_copies_are_reported_whole() -> None:
    report = diagnose(zoo.Branches(True))
    assert [(group.modules, group.verdict) for group in report.copies] == [(("branches.0", "branches.1"), "duplicate")]
    assert "copies: branches.0, branches.1 (duplicate)" in str(report)
    assert report.to_dict()["copies"] == [{"modules": ["branches.0", "branches.1"], "verdict": "duplicate"}]
    assert diagnose(zoo.Branches(False)).copies == []


def encoder_report(num_layers: int, backward: bool) -> SymmetryReport:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers)
    if backward:
        encoder(torch.randn(3, 5, 16)).square().sum().backward()
    return diagnose(encoder)


def test_layers_of_a_transformer_encoder_start_as_copies_and_part() -> None:
    names = tuple(f"layers.{i}" for i in range(3))
    assert [(group.modules, group.verdict) for group in encoder_report(3, False).copies] == [(names, "duplicate")]
    assert [(group.modules, group.verdict) for group in encoder_report(3, True).copies] == [(names, "breaking")]


def test_modules_of_constants_are_no_copies() -> None:
    zeros = [zoo.all_constant(nn.Linear(4, 4), 0.0) for _ in range(3)]
    assert diagnose(nn.Sequential(*zeros)).copies == []


def test_tied_modules_are_no_copies() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight, second.bias = first.weight, first.bias
    assert diagnose(nn.Sequential(first, second)).copies == []


def test_locked_copies_are_warned_of_in_words_that_fit() -> None:
    case = next(case for case in CASES if case.name == "identical branches")
    _, monitor, _ = run(case, "sgd", "32-true")
    (finding,) = monitor.findings
    assert finding.modules == ("net.branches.0", "net.branches.1")
    assert monitor.report is not None
    assert [(group.modules, group.verdict) for group in monitor.report.copies] == [(finding.modules, "locked")]
    assert messages(monitor.findings, monitor.report) == [
        "net.branches.0, net.branches.1: these modules are copies in weights and gradients (locked since step 0): "
        "they train as one. Build each of them anew instead of copying one, or keep only one of them. Or add noise to "
        "the others: `for weight in model.net.branches[1].parameters(): weight.data += 0.02 * "
        "torch.randn_like(weight)`. [SYM106]"
    ]


class Collapsing(nn.Module):
    """Two of eight units are set equal at step 500."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(zoo.INPUTS, 8), nn.Linear(8, zoo.OUTPUTS), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 500:
            with torch.no_grad():
                for parameter in self.first.parameters():
                    parameter[6] = parameter[1]
                self.second.weight[:, 6] = self.second.weight[:, 1]
        out: Tensor = self.second(torch.tanh(self.first(inputs)))
        return out


def test_collapse_is_dated_and_named() -> None:
    _, monitor, _ = run(Case("collapse", Collapsing, {}, steps=520), "sgd", "32-true", every_n_steps=1)
    (finding,) = monitor.findings
    assert (finding.layer, finding.units, finding.verdict) == ("net.first", (1, 6), "locked")
    assert (finding.origin, finding.first_step) == ("collapse", 499)
    assert monitor.report is not None
    (text,) = messages(monitor.findings, monitor.report)
    assert "They were distinct before step 499: they collapsed onto one another during training." in text


def noisy_network() -> tuple[nn.Sequential, nn.Linear, nn.Linear]:
    """The 1-2-1 GELU network of stochastic collapse (arXiv 2306.04251), and its layers."""
    first, last = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [0.6]]))
        last.weight.copy_(torch.tensor([[-0.6, -0.4]]))
    return nn.Sequential(first, nn.GELU(), last).double(), first, last


# In a plain loop, since so many steps of a Trainer take a quarter of a minute.
@pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
@pytest.mark.parametrize(("sigma", "collapses"), [(0.0, False), (0.4, True)])
def test_stochastic_collapse(sigma: float, collapses: bool) -> None:
    """Targets are -x with label noise sigma, which makes the two units one."""
    torch.manual_seed(0)
    points = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    net, first, last = noisy_network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with SymmetryTracker(net, optimizer, every_n_steps=100) as tracker:
        for _ in range(4500 if collapses else 10_000):
            outputs = net(points)
            optimizer.zero_grad()
            nn.functional.mse_loss(outputs, sigma * torch.randn_like(outputs) - points).backward()
            optimizer.step()
    units = torch.cat([first.weight, last.weight.T], dim=1).detach()
    apart = float((units[0] - units[1]).square().sum())
    assert (apart < 1e-10) == collapses
    if not collapses:
        assert apart > 1e-3
        assert tracker.findings == []
        return
    finding = next(finding for finding in tracker.findings if finding.layer == "0")
    assert (finding.units, finding.verdict, finding.origin) == ((0, 1), "locked", "collapse")
    assert 500 < finding.first_step < 4500
