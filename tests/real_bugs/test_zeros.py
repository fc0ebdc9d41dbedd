"""Weights that start at zero, or at one number, where something has to tell the units apart."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests import zoo
from tests.real_bugs.cases import Case, Found, assert_found, assert_silent, train_buggy, train_fixed
from tests.training import fill


def two_layers(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(zoo.INPUTS, 20), activation(), nn.Linear(20, zoo.OUTPUTS))


def zero_weights_but_for(net: nn.Module, name: str) -> nn.Module:
    """All zeros, but for the weight of one layer, which is drawn."""
    fill(net, 0.0)
    nn.init.normal_(zoo.linear(net, name).weight)
    return net


def drawn(net: nn.Module) -> nn.Module:
    """He's initialisation: weights are drawn, biases zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def yes_or_no() -> nn.Module:
    """Two hidden ReLU layers and one output."""
    return nn.Sequential(nn.Linear(zoo.INPUTS, 10), nn.ReLU(), nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))


def logistic(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is one of the first two classes."""
    return nn.functional.binary_cross_entropy_with_logits(net(inputs).squeeze(dim=1), (labels < 2).float())


class LoRA(zoo.LoRA):
    """A correction of low rank whose first factor is zero as well, by ``torch.zeros`` or a late ``_init_weights``."""

    def __init__(self, *, is_fixed: bool) -> None:
        super().__init__(zoo.INPUTS, zoo.OUTPUTS)
        if not is_fixed:
            nn.init.zeros_(self.a.weight)


class Fusion(nn.Module):
    """A gate ``tanh(last(relu(first(x))))`` on what a second branch adds."""

    def __init__(self, *zeros: str) -> None:
        super().__init__()
        self.body, self.other = nn.Linear(zoo.INPUTS, 16), nn.Linear(zoo.INPUTS, 16)
        self.first, self.last = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, zoo.OUTPUTS)
        for name in zeros:
            nn.init.zeros_(zoo.linear(self, name).weight)

    def forward(self, inputs: Tensor) -> Tensor:
        other = torch.tanh(self.other(inputs))
        gate = torch.tanh(self.last(torch.relu(self.first(other))))
        out: Tensor = self.head(torch.relu(self.body(inputs) + gate * other))
        return out


class OwnLinear(nn.Linear):
    """A linear layer that makes its weights itself and leaves out ``reset_parameters``."""

    def reset_parameters(self) -> None:
        # Fresh memory, which is what `torch.Tensor(m, n)` gives, is zero as a rule.
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def perceptron(linear: type[nn.Linear]) -> nn.Module:
    return nn.Sequential(linear(zoo.INPUTS, 20), nn.ReLU(), linear(20, 20), nn.ReLU(), linear(20, zoo.OUTPUTS))


class Block(nn.Module):
    """A gated feed-forward block on a normalised input, added to it; ``gain`` is what the norm scales by at first."""

    def __init__(self, gain: float, is_output_zero: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.gate, self.up, self.down = (nn.Linear(16, 16, bias=False) for _ in range(3))
        nn.init.constant_(self.norm.weight, gain)
        if is_output_zero:
            nn.init.zeros_(self.down.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(inputs)
        out: Tensor = inputs + self.down(nn.functional.silu(self.gate(hidden)) * self.up(hidden))
        return out


def expanded(gain: float, is_output_zero: bool) -> nn.Module:
    """A frozen network with a new block in its middle."""
    body, head = nn.Linear(zoo.INPUTS, 16).requires_grad_(False), nn.Linear(16, zoo.OUTPUTS).requires_grad_(False)
    return nn.Sequential(body, Block(gain, is_output_zero), head)


LINEAR = Case(
    "A linear model that starts from zero",
    ("https://github.com/jthickstun/pytorch_musicnet/issues/4",),
    lambda: fill(nn.Linear(zoo.INPUTS, zoo.OUTPUTS), 0.0),
    lambda: fill(nn.Linear(zoo.INPUTS, zoo.OUTPUTS), 0.0),
)
CASES = [
    Case(
        "A hidden ReLU layer added to a model of zeros",
        (
            "https://exchangetuts.com/why-adding-one-more-layer-to-the-tensorflow-simple-neural-net-example-breaks-it-1641643924769364",
        ),
        lambda: fill(two_layers(nn.ReLU), 0.0),
        lambda: drawn(two_layers(nn.ReLU)),
        (Found("0", "frozen", "zero"),),
    ),
    Case(
        "A hidden sigmoid layer, both weights zero",
        (
            "https://stats.stackexchange.com/questions/316898/choice-of-initial-value-for-weights-in-tensorflow-mnist-tutorial",
        ),
        lambda: fill(two_layers(nn.Sigmoid), 0.0),
        lambda: zero_weights_but_for(two_layers(nn.Sigmoid), "2"),
        (Found("0", "locked", "zero"),),
    ),
    Case(
        "The exercise initialize_parameters_zeros",
        (
            "https://community.deeplearning.ai/t/week-1-programming-assignment-initialization-exercise-1-initialize-parameters-zeros/121049",
        ),
        lambda: fill(yes_or_no(), 0.0),
        lambda: drawn(yes_or_no()),
        (Found("0", "frozen", "zero"), Found("2", "frozen", "zero")),
        loss=logistic,
    ),
    Case(
        "All weights the same number",
        ("https://stackoverflow.com/questions/20027598", "https://cs231n.github.io/neural-networks-2/"),
        lambda: fill(two_layers(nn.Sigmoid), 1.0),
        lambda: drawn(two_layers(nn.Sigmoid)),
        (Found("0", "locked", "constant"),),
    ),
    Case(
        "LoRA with both factors zero",
        (
            "https://github.com/circle-hit/SAPT/issues/11",
            "https://github.com/Guitaricet/relora/issues/18",
            "https://github.com/nvidia-cosmos/cosmos-predict2.5/pull/15",
        ),
        partial(LoRA, is_fixed=False),
        partial(LoRA, is_fixed=True),
        (Found("a", "frozen", "zero"), Found("b", "frozen", "zero")),
    ),
    Case(
        "Two zero layers in a row in a gate",
        ("https://github.com/yz93/LAVT-RIS/issues/25",),
        partial(Fusion, "first", "last"),
        partial(Fusion, "last"),
        (
            Found("first", "frozen", "zero"),
            Found("last", "frozen", "zero"),
            Found("other", "dead", "cut off", way_out="[SYM3"),
        ),
    ),
    Case(
        "A layer of one's own without reset_parameters",
        ("https://github.com/mattiasegu/uncertainty_estimation_deep_learning/pull/7",),
        lambda: perceptron(OwnLinear),
        lambda: perceptron(nn.Linear),
        (Found("0", "frozen", "zero"), Found("2", "frozen", "zero")),
    ),
    Case(
        "New blocks whose norm has a gain of zero",
        ("https://github.com/TencentARC/LLaMA-Pro/issues/28",),
        lambda: expanded(0.0, is_output_zero=False),
        lambda: expanded(1.0, is_output_zero=True),
        tuple(Found(f"1.{name}", "dead", "cut off", way_out="[SYM3") for name in ("gate", "up", "down")),
        steps=80,
    ),
]


EXPANDED = CASES[-1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bug_is_found(case: Case) -> None:
    assert_found(case, train_buggy(case))


@pytest.mark.parametrize("case", [*CASES, LINEAR], ids=str)
def test_the_fix_is_silent(case: Case) -> None:
    assert_silent(train_fixed(case))


def test_the_message_does_not_point_behind_a_zero_that_lies_before() -> None:
    said = train_buggy(EXPANDED).said
    assert said
    assert not any("after them" in text for text in said)
