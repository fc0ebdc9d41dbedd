"""The line of code in a message runs, and repairs the training."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, SymmetryWarning
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.stops import GradientStop, StopKind
from tests import zoo
from tests.training import fill


def perceptron(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 4))


def constant() -> nn.Module:
    return fill(perceptron(), 0.1)


def zeros() -> nn.Module:
    return fill(perceptron(nn.Sigmoid), 0.0)


def copied() -> nn.Module:
    net = perceptron(nn.Tanh)
    return zoo.duplicate_units(net, "0", "2", [(0, 5), (1, 6, 7)])


def mirrored() -> nn.Module:
    return zoo.mirrored(perceptron(nn.Tanh), "0", "2")


class Parallel(nn.Module):
    """Two branches, the second a copy of the first, in a list of modules."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList([branch, copy.deepcopy(branch)])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.branches[0](inputs) + self.branches[1](inputs)
        return outputs


class Recurrent(nn.Module):
    """A constant LSTM over three parts of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fill(nn.LSTM(4, 8, batch_first=True), 0.1)
        self.head = nn.Linear(8, 4)
        # Nothing distinguishes the units.
        nn.init.constant_(self.head.weight[0], 0.3)
        with torch.no_grad():
            self.head.weight.copy_(self.head.weight[:, :1].expand(4, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(inputs.view(-1, 3, 4))[0][:, -1])
        return outputs


def low_bias() -> nn.Module:
    return zoo.with_bias(perceptron(), "2", -100.0)


def negative() -> nn.Module:
    return zoo.negative_weights(nn.Sequential(nn.Sigmoid(), *perceptron()), "1")


def shut_by_constants() -> nn.Module:
    """Inputs that are never negative, and a negative constant."""
    net = nn.Sequential(nn.Sigmoid(), *perceptron())
    fill(zoo.linear(net, "1"), -0.5)
    return net


def saturated() -> nn.Module:
    net = perceptron(nn.Tanh)
    nn.init.constant_(zoo.linear(net, "2").bias, 40.0)
    return net


def clipped() -> nn.Module:
    net = perceptron(nn.Hardtanh)
    nn.init.constant_(zoo.linear(net, "2").bias, 40.0)
    return net


def frozen_head() -> nn.Module:
    net = perceptron(nn.Tanh)
    nn.init.zeros_(zoo.linear(net, "4").weight).requires_grad_(False)
    return net


def norm_without_gain() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4))
    nn.init.zeros_(zoo.linear(net, "1").weight).requires_grad_(False)
    return net


def all_zero() -> nn.Module:
    return fill(perceptron(), 0.0)


_CLOSED = GradientStop(StopKind.CLOSED, "relu after 2", "its input is at most -9 in all 512 values seen")
_AT_HEAD = GradientStop(StopKind.ZERO_WEIGHTS, "4", "its weight is 0 in all 16 columns of these units")


@dataclass(frozen=True)
class Case:
    """A network with a defect, and what a trace finds in its layers.

    Attributes:
        build: makes the network.
        code: of every message.
        stops: by layer, where its gradient stops.
        follows: by layer, of which layer it is a consequence.
    """

    build: Callable[[], nn.Module]
    code: str
    stops: Mapping[str, GradientStop] = field(default_factory=dict)
    follows: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "constant": Case(constant, "SYM101"),
    "constant LSTM": Case(Recurrent, "SYM101"),
    "zeros": Case(zeros, "SYM102"),
    "copied rows": Case(copied, "SYM103"),
    "mirrored rows": Case(mirrored, "SYM104"),
    "copied containers": Case(lambda: Parallel(perceptron()), "SYM106"),
    "copied layers": Case(lambda: Parallel(nn.Linear(12, 4)), "SYM106"),
    "low bias": Case(low_bias, "SYM301", dict.fromkeys("02", _CLOSED), {"0": "2"}),
    "negative weights": Case(negative, "SYM301", {"1": _CLOSED}),
    "negative constant": Case(shut_by_constants, "SYM301", {"1": _CLOSED}),
    "clipped": Case(clipped, "SYM301", dict.fromkeys("02", replace(_CLOSED, at="3")), {"0": "2"}),
    "saturated": Case(
        saturated, "SYM302", dict.fromkeys("02", GradientStop(StopKind.SATURATED, "3", "slope 0")), {"0": "2"}
    ),
    "zero head that stays": Case(frozen_head, "SYM303", dict.fromkeys("02", _AT_HEAD), {"0": "2"}),
    "zero gain that stays": Case(norm_without_gain, "SYM303", {"0": replace(_AT_HEAD, at="1")}),
    "all zero": Case(all_zero, "SYM303", dict.fromkeys("02", _AT_HEAD), {"0": "2"}),
}


def train(net: nn.Module, steps: int = 120) -> tuple[SymmetryTracker, list[float]]:
    """Train a classifier of four classes; return the tracker and the losses."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(
        [parameter for parameter in net.parameters() if parameter.requires_grad], lr=0.1, momentum=0.9
    )
    losses = []
    with warnings.catch_warnings(), SymmetryTracker(net, optimizer, every_n_steps=10) as tracker:
        warnings.simplefilter("ignore", SymmetryWarning)
        for _ in range(steps):
            inputs = torch.randn(64, 12, generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), inputs[:, :4].argmax(dim=1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return tracker, losses


def lines_of(message: str) -> list[str]:
    """Return the lines of code in a message."""
    return [line for line in re.findall("`([^`]+)`", message) if "model" in line]


def told(case: Case) -> list[str]:
    """Return the messages on the network."""
    torch.manual_seed(0)
    tracker, _ = train(case.build())
    assert tracker.report is not None
    findings = [
        replace(each, stop=case.stops.get(each.layer), follows=case.follows.get(each.layer, ""))
        for each in tracker.findings
    ]
    return messages(findings, tracker.report)


@pytest.mark.parametrize("name", CASES)
def test_the_code_in_a_message_heals(name: str) -> None:
    case = CASES[name]
    said = told(case)
    assert said
    assert all(message.endswith(f" [{case.code}]") for message in said), said
    lines = [line for message in said for line in lines_of(message)]
    assert lines, said
    torch.manual_seed(0)
    model = case.build()
    torch.manual_seed(1)
    for line in lines:
        exec(line, {"torch": torch, "model": model})
    tracker, losses = train(model)
    assert tracker.findings == [], lines
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
