"""Units and modules that start as copies of one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests import zoo
from tests.real_bugs.cases import Case, Found, assert_found, assert_silent, train_buggy, train_fixed

TEACHER = 8
# Which units of the small network the twelve units of the wide one are copies of: the first eight are themselves.
ORIGINS = (*range(TEACHER), 1, 4, 4, 6)
COPIES = ((1, 8), (4, 9, 10), (6, 11))


def widened(noise: float) -> nn.Module:
    """A network of eight hidden units made one of twelve that computes the same, as Net2Net does it."""
    small = nn.Sequential(nn.Linear(zoo.INPUTS, TEACHER), nn.ReLU(), nn.Linear(TEACHER, zoo.OUTPUTS))
    wide = nn.Sequential(nn.Linear(zoo.INPUTS, len(ORIGINS)), nn.ReLU(), nn.Linear(len(ORIGINS), zoo.OUTPUTS))
    times = torch.tensor([ORIGINS.count(origin) for origin in ORIGINS])
    with torch.no_grad():
        zoo.linear(wide, "0").weight.copy_(zoo.linear(small, "0").weight[list(ORIGINS)])
        zoo.linear(wide, "0").bias.copy_(zoo.linear(small, "0").bias[list(ORIGINS)])
        zoo.linear(wide, "2").weight.copy_(zoo.linear(small, "2").weight[:, list(ORIGINS)] / times)
        zoo.linear(wide, "2").bias.copy_(zoo.linear(small, "2").bias)
        zoo.linear(wide, "0").weight[TEACHER:] += noise * torch.randn(len(ORIGINS) - TEACHER, zoo.INPUTS)
    return wide


class Critic(nn.Sequential):
    """Values four actions."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(zoo.INPUTS, 16), nn.ReLU(), nn.Linear(16, zoo.OUTPUTS))


class Critics(nn.Module):
    """Several critics of the same states, whose values are stacked."""

    def __init__(self, critics: list[nn.Module]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, states: Tensor) -> Tensor:
        return torch.stack([critic(states) for critic in self.critics])


def clipped_double_q(net: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
    """Each critic learns the value of the action taken: a reward plus the smallest value that any critic gives it."""
    values = net(states)[:, torch.arange(len(states)), actions]
    target = (states.sum(dim=1) + 0.5 * values.min(dim=0).values).detach()
    loss: Tensor = (values - target).square().mean()
    return loss


class Encoder(nn.Module):
    """Three layers of ``nn.TransformerEncoder`` on twelve tokens."""

    def __init__(self, is_reset: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, zoo.OUTPUTS)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        if is_reset:
            for parameter in self.encoder.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs[..., None]) + torch.linspace(-1, 1, zoo.INPUTS)[:, None]
        out: Tensor = self.head(self.encoder(hidden).mean(dim=1))
        return out


class MixtureOfExperts(nn.Module):
    """Four experts, added up with the weights that a gate gives them."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__()
        self.gate = nn.Linear(zoo.INPUTS, len(seeds))
        self.experts = nn.ModuleList(_seeded(seed) for seed in seeds)

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.gate(inputs).softmax(dim=-1)
        outputs = torch.stack([expert(inputs) for expert in self.experts], dim=-1)
        mixed: Tensor = (outputs * weights[:, None]).sum(dim=-1)
        return mixed


def _seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(zoo.INPUTS, 8), nn.ReLU(), nn.Linear(8, zoo.OUTPUTS))


def same_draw(make_seed: Callable[[int], int]) -> nn.Module:
    """Two hidden layers of one shape, each drawn by an initialiser that starts from a seed of its own."""
    net = zoo.perceptron(width=zoo.INPUTS)
    for i, name in enumerate(("0", "2")):
        generator = torch.Generator().manual_seed(make_seed(i))
        nn.init.kaiming_normal_(zoo.linear(net, name).weight, generator=generator)
        nn.init.zeros_(zoo.linear(net, name).bias)
    return net


class Heads(nn.Module):
    """Three heads on the same inputs, each a residual block and an output layer of its own; their sum is the output."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(block, nn.Linear(zoo.INPUTS, zoo.OUTPUTS)) for block in blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([head(inputs) for head in self.heads]).sum(dim=0)


def block() -> nn.Module:
    return zoo.Residual(nn.Sequential(nn.Linear(zoo.INPUTS, zoo.INPUTS), nn.SiLU()))


def twins(num_critics: int) -> list[nn.Module]:
    critic = Critic()
    return [copy.deepcopy(critic) for _ in range(num_critics)]


SHARED = Case(
    "A list that holds one layer several times",
    ("https://github.com/linkedin/Liger-Kernel/pull/269",),
    lambda: Heads([block()] * 3),
    lambda: Heads([block() for _ in range(3)]),
)
NOT_FOUND = [SHARED]
CASES = [
    Case(
        "Net2Net without noise",
        ("https://github.com/soumith/net2net.torch/issues/3", "https://github.com/soumith/net2net.torch/pull/5"),
        partial(widened, 0.0),
        partial(widened, 1e-2),
        (Found("0", "locked", "copied", COPIES, "Add noise to the copies"),),
    ),
    Case(
        "Twin critics with one initialisation",
        ("https://github.com/EdanToledo/Stoix/issues/72", "https://github.com/EdanToledo/Stoix/pull/73"),
        lambda: Critics(twins(2)),
        lambda: Critics([Critic() for _ in range(2)]),
        (Found("critics.0, critics.1", "locked", "copied", ((0, 1),), "Build each of them anew"),),
        loss=clipped_double_q,
    ),
    Case(
        "Ensemble of critics that are all the same",
        ("https://github.com/UoA-CARES/cares_reinforcement_learning/issues/223",),
        lambda: Critics(twins(5)),
        lambda: Critics([Critic() for _ in range(5)]),
        (
            Found(
                "critics.0, critics.1, critics.2, critics.3, critics.4",
                "locked",
                "copied",
                ((0, 1, 2, 3, 4),),
                "Build each of them anew",
            ),
        ),
        loss=clipped_double_q,
    ),
    Case(
        "Layers of nn.TransformerEncoder",
        ("https://github.com/pytorch/pytorch/issues/72253", "https://github.com/pytorch/pytorch/issues/86274"),
        lambda: Encoder(is_reset=False),
        lambda: Encoder(is_reset=True),
        mentioned="encoder.layers.0, encoder.layers.1, encoder.layers.2",
    ),
    Case(
        "Experts drawn with one seed",
        ("https://github.com/laekov/fastmoe/pull/4",),
        lambda: MixtureOfExperts([0, 0, 0, 0]),
        lambda: MixtureOfExperts([0, 1, 2, 3]),
        mentioned="experts.0, experts.1, ..., experts.3",
    ),
    Case(
        "One initialiser used for several layers",
        ("https://github.com/LeelaChessZero/lc0/issues/1883", "https://github.com/tensorflow/tensorflow/issues/62577"),
        lambda: same_draw(lambda _: 0),
        lambda: same_draw(lambda i: i),
        mentioned="0, 2",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bug_is_found(case: Case) -> None:
    assert_found(case, train_buggy(case))


@pytest.mark.parametrize("case", [*CASES, SHARED], ids=str)
def test_the_fix_is_silent(case: Case) -> None:
    assert_silent(train_fixed(case))


@pytest.mark.xfail(reason="one module under several names has one set of weights, and nothing tells why it is shared")
def test_a_layer_that_is_listed_several_times_is_mentioned() -> None:
    assert train_buggy(SHARED).said


def test_the_report_names_a_module_that_is_listed_several_times_once() -> None:
    report = train_buggy(SHARED).tracker.report
    assert report is not None
    assert [name for name in report.layers if "body" in name] == ["heads.0.0.body.0"]


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_the_wide_network_computes_what_the_small_one_did(noise: float) -> None:
    torch.manual_seed(0)
    wide = widened(noise)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(zoo.INPUTS, TEACHER), nn.ReLU(), nn.Linear(TEACHER, zoo.OUTPUTS))
    inputs = torch.rand(5, zoo.INPUTS)
    torch.testing.assert_close(wide(inputs), small(inputs), atol=1e-5 + 5 * noise, rtol=0)
