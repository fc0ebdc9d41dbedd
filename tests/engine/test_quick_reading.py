"""Healthy layers are read quickly, with the same results as full looks at all layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.verdicts.layer_state import LayerState
from lightning_symmetry.verdicts.look import Look
from tests import zoo

INPUTS = torch.rand(64, zoo.INPUTS, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(64) % zoo.OUTPUTS


def copied_later(net: nn.Module, step: int) -> None:
    """Units become copies in the middle of the training."""
    if step == 12:
        for parameter in zoo.linear(net, "0").parameters():
            parameter[[3, 4]] = parameter[1].clone()


def killed_later(net: nn.Module, step: int) -> None:
    """Units die in the middle of the training, and are revived."""
    if step in (5, 90):
        zoo.linear(net, "2").bias[:9] = -100.0 if step == 5 else 0.1


def stopped_later(net: nn.Module, step: int) -> None:
    """The gradient of a layer is gone for some steps."""
    if 9 <= step < 14:
        zoo.linear(net, "2").weight.grad = None


def frozen_for_a_while(net: nn.Module, step: int) -> None:
    """A layer requires no gradient for some steps."""
    zoo.linear(net, "2").requires_grad_(step < 9 or step >= 40)


def frozen_at_first(net: nn.Module, step: int) -> None:
    """A layer is trained only from a later step on."""
    zoo.linear(net, "2").requires_grad_(step >= 30)


def set_at_40(name: str, row: int, make: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, int], None]:
    """Change the weights of one unit to those of the first, after the groups of its layer have settled."""

    def change(net: nn.Module, step: int) -> None:
        if step == 40:
            for parameter in zoo.linear(net, name).parameters():
                parameter[row] = make(parameter[0].clone())

    return change


CHANGES_OF_GROUPS = {
    "a unit leaves": set_at_40("0", 7, lambda first: 1.5 * first),
    "a unit drifts": set_at_40("0", 7, lambda first: (1 + 1e-4) * first),
    "a unit joins": set_at_40("0", 5, lambda first: first),
    "a unit becomes the negative": set_at_40("0", 5, lambda first: -first),
    "a unit becomes zero": set_at_40("0", 5, torch.zeros_like),
    "a unit becomes NaN": set_at_40("0", 5, lambda first: first * torch.nan),
    "a unit dies": set_at_40("2", 5, lambda first: first * 0 - 100.0),
    "a gradient is gone": lambda net, step: stopped_later(net, step - 30),
    "a layer is frozen": lambda net, step: frozen_for_a_while(net, step - 30),
    "nothing": lambda net, step: None,
}


def untouched(net: nn.Module, step: int) -> None:
    pass


def no_gradient(net: nn.Sequential) -> nn.Sequential:
    """All gradients are zero, and no weight ever moves."""
    zoo.linear(net, "4").requires_grad_(False).weight.zero_()
    return net


def deep(num_layers: int, scale: float = 1.0) -> nn.Sequential:
    """ReLU layers whose units have a gradient at some steps and none at others; at a small scale whole layers die."""
    net = nn.Sequential()
    for i in range(num_layers):
        layer = nn.Linear(12 if i else zoo.INPUTS, 12)
        nn.init.kaiming_normal_(layer.weight).detach().mul_(scale)
        nn.init.normal_(layer.bias, -0.1, 0.1)
        net.extend([layer, nn.ReLU()])
    return net.append(nn.Linear(12, zoo.OUTPUTS))


def woken_and_shut(net: nn.Module, step: int) -> None:
    """Units without a gradient change at each step, some of them for long enough to be dead."""
    bias = zoo.linear(net, "2").bias
    bias[step % 11] = -100.0
    bias[(step + 3) % 11] = 0.1
    if step in (8, 70):
        bias[11] = -100.0 if step == 8 else 0.1


def train(net: nn.Module, change: Callable[[nn.Module, int], None], **options: Any) -> list[object]:
    """Return the results of the tracker after every step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    said: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SymmetryTracker(net, optimizer, every_n_steps=1, scalars="none", **options) as tracker:
            for step in range(100):
                batch = torch.arange(step, step + 16) % 64
                for group in optimizer.param_groups:
                    group["lr"] = 0.0 if step % 7 < 2 else 0.05  # nothing moves for some steps
                optimizer.zero_grad()
                loss: Tensor = nn.functional.cross_entropy(net(INPUTS[batch]), LABELS[batch])
                loss.backward()
                with torch.no_grad():
                    change(net, step)
                optimizer.step()
                assert tracker.report is not None
                said.append((tracker.report.to_dict(), list(tracker.findings)))
    return said


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "healthy": zoo.perceptron,
    "tanh": lambda: zoo.perceptron(nn.Tanh),
    "dead": lambda: zoo.with_bias(zoo.perceptron(), "2", -100.0, 9),
    "copies": lambda: zoo.duplicate_units(zoo.perceptron(), "0", "2", [(0, 7), (1, 8, 12)]),
    "mirrored": lambda: zoo.mirrored(zoo.perceptron(nn.Tanh), "0", "2"),
    "zero head": lambda: zoo.filled(zoo.perceptron(), "4", 0.0),
    "no gradient": lambda: no_gradient(zoo.perceptron()),
    "cut off": lambda: zoo.cut_off(zoo.perceptron()),
    "zeros": lambda: zoo.all_constant(zoo.perceptron(), 0.0),
    "deep": lambda: deep(10),
    "dying": lambda: deep(6, 0.5),
    "resnet": zoo.resnet,
    "experts": zoo.Experts,
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, untouched) for name in NETWORKS),
        *(("healthy", change) for change in (copied_later, killed_later, stopped_later, woken_and_shut)),
        *(("deep", change) for change in (copied_later, killed_later, woken_and_shut)),
        *(("healthy", change) for change in (frozen_for_a_while, frozen_at_first)),
        *(("tanh", change) for change in (copied_later, stopped_later)),
    ],
)
def test_the_same_is_said_as_if_all_layers_were_looked_at(name: str, change: Callable[[nn.Module, int], None]) -> None:
    results = []
    for heatmaps in ("findings", "all"):  # heatmaps of all layers need full looks
        torch.manual_seed(0)
        results.append(train(NETWORKS[name](), change, heatmaps=heatmaps))
    for quick, close in zip(*results, strict=True):
        assert quick == close


@pytest.mark.parametrize("change", CHANGES_OF_GROUPS.values(), ids=CHANGES_OF_GROUPS)
@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_the_same_is_said_of_groups_that_have_settled(
    activation: type[nn.Module], change: Callable[[nn.Module, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []
    keep_steady = LayerState.keep_steady

    def noting(self: LayerState, seen: Look, step: int) -> None:
        held.append(seen.layer.name)
        keep_steady(self, seen, step)

    monkeypatch.setattr(LayerState, "keep_steady", noting)
    results = []
    for heatmaps in ("findings", "all"):
        torch.manual_seed(0)
        net = zoo.duplicate_units(zoo.perceptron(activation), "0", "2", [(0, 7), (1, 8, 12)])
        results.append(train(net, change, heatmaps=heatmaps))
        assert set(held) == {"0"}  # and no layer with full looks
        num_held = len(held)
    assert len(held) == num_held > 10
    for quick, close in zip(*results, strict=True):
        assert quick == close


def test_what_has_moved_since_the_check_before_is_known_after_one_without_a_quick_reading() -> None:
    weights: dict[str, Tensor] = {}

    def copied_at_one_check(net: nn.Module, step: int) -> None:
        """Most layers have copies at one check at which nothing moves, and are looked at closely at the next."""
        if step == 12:
            killed_later(net, 5)
        if step == 14:
            weights.update({name: value.clone() for name, value in net.state_dict().items()})
            for parameter in [*zoo.linear(net, "0").parameters(), *zoo.linear(net, "4").parameters()]:
                parameter[1] = parameter[0]
        if step == 15:
            net.load_state_dict(weights)

    results = []
    for heatmaps in ("findings", "all"):
        torch.manual_seed(0)
        results.append(train(zoo.perceptron(), copied_at_one_check, heatmaps=heatmaps, patience=8))
    for quick, close in zip(*results, strict=True):
        assert quick == close


def test_a_check_that_is_interrupted_leaves_no_stale_report(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = zoo.perceptron(nn.Tanh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    weights = {name: value.clone() for name, value in net.state_dict().items()}

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        optimizer.step()

    with SymmetryTracker(net, optimizer, every_n_steps=1, scalars="none", on_symmetry="ignore") as tracker:
        for _ in range(10):
            step()
        zoo.duplicate_units(net, "0", "2", [(0, 1)])
        for _ in range(6):
            step()
        assert tracker.report is not None
        assert tracker.report.redundant_units == 1
        net.load_state_dict(weights)
        with monkeypatch.context() as patched:
            patched.setattr(Examiner, "_report", interrupt)
            with pytest.raises(KeyboardInterrupt):
                step()
        step()
        assert tracker.report.redundant_units == 0


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt
