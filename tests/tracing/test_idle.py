"""Healthy models of public libraries with unread parts: no warning, and one line in the log per part."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_symmetry import SymmetryReport, SymmetryTracker, SymmetryWarning, Verdict
from tests.training import sgd

LOOKBACK, HORIZON, WIDTH = 12, 4, 16


def series(step: int, variables: int = 1) -> tuple[Tensor, Tensor]:
    """Return random walks ``(16, time, variables)``, and the continuation of their first variable."""
    generator = torch.Generator().manual_seed(step)
    walk = torch.randn(16, LOOKBACK + HORIZON, variables, generator=generator).cumsum(1) / 4
    return walk[:, :LOOKBACK], walk[:, LOOKBACK:, 0]


class Block(nn.Module):
    """A block of N-BEATS: a backcast and a forecast.

    Args:
        components: the number of series it is given.
        knots: how many numbers of the horizon it puts out, which are then interpolated.
        pool: how many steps of the past are pooled.
        is_split: whether one layer puts out both, or each has one of its own.
    """

    def __init__(self, components: int = 1, knots: int = HORIZON, pool: int = 1, *, is_split: bool = True) -> None:
        super().__init__()
        past, future = LOOKBACK * components, knots * components
        self.sizes, self.is_split, self.components = [past, future], is_split, components
        self.pool = nn.MaxPool1d(pool, pool)
        self.body = nn.Sequential(nn.Linear(past // pool, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        if is_split:
            self.theta = nn.Linear(WIDTH, past + future)
        else:
            self.backcast, self.forecast = nn.Linear(WIDTH, past), nn.Linear(WIDTH, future)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(self.pool(past[:, None])[:, 0])
        backcast, forecast = (
            self.theta(hidden).split(self.sizes, 1) if self.is_split else (self.backcast(hidden), self.forecast(hidden))
        )
        knots = forecast.view(len(past), -1, self.components).transpose(1, 2)
        if knots.shape[2] != HORIZON:
            knots = functional.interpolate(knots, size=HORIZON, mode="linear")
        return backcast, knots


class Beats(nn.Module):
    """Blocks that each receive the residual of the previous ones; nothing reads the last backcast."""

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, past: Tensor) -> Tensor:
        left = past.flatten(1)
        forecasts = []
        for block in self.blocks:
            backcast, forecast = block(left)
            left = left - backcast
            forecasts.append(forecast)
        return torch.stack(forecasts).sum(0)[:, 0]


class Gated(nn.Module):
    """The gated residual network of the Temporal Fusion Transformer, with or without a context."""

    def __init__(self, inputs: int, outputs: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.skip = nn.Linear(WIDTH, 2 * outputs), nn.Linear(inputs, outputs)
        self.context = nn.Linear(WIDTH, WIDTH, bias=False) if has_context else None
        self.norm = nn.LayerNorm(outputs) if outputs > 1 else nn.Identity()

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        hidden = self.first(inputs)
        if self.context is not None and context is not None:
            hidden = hidden + self.context(context)[:, None]
        gated = functional.glu(self.gate(self.second(functional.elu(hidden))))
        out: Tensor = self.norm(gated + self.skip(inputs))
        return out


class Fusion(nn.Module):
    """Variable selection, an LSTM, and a head: the Temporal Fusion Transformer without its attention.

    Args:
        variables: how many variables there are to select from.
        static: what the static context is where there are no static inputs: none at all, or zeros.
    """

    def __init__(self, variables: int, static: str = "none") -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(1, WIDTH) for _ in range(variables))
        self.transform = nn.ModuleList(Gated(WIDTH, WIDTH) for _ in range(variables))
        self.select = Gated(WIDTH * variables, variables, has_context=static == "zeros")
        self.lstm, self.head, self.static = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, HORIZON), static

    def forward(self, past: Tensor) -> Tensor:
        embedded = [embed(past[..., i, None]) for i, embed in enumerate(self.embed)]
        context = past.new_zeros(len(past), WIDTH) if self.static == "zeros" else None
        weights = self.select(torch.cat(embedded, -1), context).softmax(-1)
        each = torch.stack([f(x) for f, x in zip(self.transform, embedded, strict=True)], -1)
        hidden, _ = self.lstm((each * weights[:, :, None]).sum(-1))
        out: Tensor = self.head(hidden[:, -1])
        return out


class Joint(nn.Module):
    """A joint block of Stable Diffusion 3: image and text attend to one another, each with separate layers.

    The last one drops what it makes of the text, and has no layer behind the text's attention.
    """

    def __init__(self, *, is_last: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.add_q, self.add_k, self.add_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.context_out = None if is_last else nn.Linear(WIDTH, WIDTH)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        pairs = (self.q, self.add_q), (self.k, self.add_k), (self.v, self.add_v)
        heads = [torch.cat([a(image), b(text)], 1).unflatten(-1, (4, -1)).transpose(1, 2) for a, b in pairs]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        image_out, text_out = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
        image = image + self.out(image_out)
        return image, text if self.context_out is None else text + self.context_out(text_out)


class Diffusion(nn.Module):
    """Two joint blocks, the last of which drops its text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.text = nn.Linear(1, WIDTH), nn.Embedding(4, WIDTH)
        self.blocks = nn.ModuleList(Joint(is_last=is_last) for is_last in (False, True))
        self.head = nn.Linear(WIDTH, HORIZON)

    def forward(self, past: Tensor) -> Tensor:
        image = self.embed(past) + torch.linspace(-1, 1, LOOKBACK)[:, None]
        text = self.text(torch.arange(4)).expand(len(past), -1, -1)
        for block in self.blocks:
            image, text = block(image, text)
        out: Tensor = self.head(image.mean(1))
        return out


Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {"SGD": sgd, "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)}


@dataclass(frozen=True)
class Case:
    """A model with parts that get no gradient.

    Attributes:
        make: makes the model.
        variables: the number of its variables.
        idle: by layer, the numbers of units that get none, and where it stops.
        untrained: the layers that are named as parts that do not train.
    """

    make: Callable[[], nn.Module]
    variables: int = 1
    idle: dict[str, dict[int, str]] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()


CASES = {
    "N-BEATS": Case(
        lambda: Beats(Block(), Block()), idle={"blocks.1.theta": {12: "split_with_sizes after blocks.1.theta"}}
    ),
    "N-BEATS with a layer for each": Case(
        lambda: Beats(Block(is_split=False), Block(is_split=False)), untrained=("blocks.1.backcast",)
    ),
    "N-HiTS": Case(
        lambda: Beats(Block(knots=2, pool=2), Block(), Block(knots=2, pool=3)),
        idle={"blocks.2.theta": {12: "split_with_sizes after blocks.2.theta"}},
    ),
    "covariates whose forecast nobody reads": Case(
        lambda: Beats(Block(3), Block(3)),
        variables=3,
        idle={
            "blocks.0.theta": {8: "select after blocks.0.theta"},
            "blocks.1.theta": {
                8: "select after blocks.1.theta",
                36: "split_with_sizes after blocks.1.theta",
            },
        },
    ),
    "TFT without static inputs": Case(lambda: Fusion(3), variables=3),
    "SD3": Case(
        Diffusion, idle={"blocks.1.add_q": {WIDTH: "slice after blocks.1.add_q"}}, untrained=("blocks.1.add_q",)
    ),
}


def train(make: Callable[[], nn.Module], variables: int, optimizers: Optimizers) -> tuple[SymmetryReport, list[str]]:
    """Train a model for 120 steps; return the last report and the warnings about symmetry."""
    torch.manual_seed(0)
    net = make()
    optimizer = optimizers(net.parameters())
    with (
        warnings.catch_warnings(record=True, action="always") as warned,
        SymmetryTracker(net, optimizer, every_n_steps=10) as tracker,
    ):
        for step in range(120):
            past, future = series(step, variables)
            optimizer.zero_grad()
            functional.mse_loss(net(past), future).backward()
            optimizer.step()
    assert tracker.report is not None
    return tracker.report, [str(each.message) for each in warned if issubclass(each.category, SymmetryWarning)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_healthy_models_are_not_warned_of(name: str, optimizer: str, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    with caplog.at_level(logging.INFO, logger="lightning_symmetry"):
        report, warned = train(case.make, case.variables, OPTIMIZERS[optimizer])
    assert (report.findings, warned) == ([], [])
    assert set(report.untrained) == set(case.untrained)
    idle = {
        layer.name: {len(group.units): group.stop.at for group in layer.groups if group.stop is not None}
        for layer in report.layers.values()
        if any(group.verdict is Verdict.IDLE for group in layer.groups)
    }
    assert idle == case.idle
    logged = [record.message for record in caplog.records if "nobody reads their outputs" in record.message]
    logged = [text for text in logged if not text.startswith("idle:")]  # the summary at the end
    for layer, stops in case.idle.items():
        for number, at in stops.items():
            [line] = [text for text in logged if text.startswith(f"{layer}: ") and f" {number} " in text]
            assert f"(at {at}: " in line
            assert line in report.notes()
    assert len(logged) == sum(map(len, case.idle.values()))


@pytest.mark.parametrize(
    ("variables", "static", "idle", "why"),
    [
        (
            1,
            "none",
            {f"select.{x}" for x in ("first", "second", "gate", "skip")},
            "there is a single one to choose from",
        ),
        (3, "zeros", {"select.context"}, "their inputs are zero"),
    ],
)
def test_models_without_a_choice_or_a_context_are_not_warned_of(
    variables: int, static: str, idle: set[str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_symmetry"):
        report, warned = train(lambda: Fusion(variables, static), variables, sgd)
    assert warned == []
    assert idle == {
        layer.name for layer in report.layers.values() if any(g.verdict is Verdict.IDLE for g in layer.groups)
    }
    assert set(report.untrained) >= idle
    assert any(why in record.message for record in caplog.records)


class Ratings(nn.Module):
    """Returns one number per sample: the product of two tables of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 4), nn.Embedding(20, 4)
        for table in (self.users, self.items):
            nn.init.zeros_(table.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        product: Tensor = self.users(pairs[:, 0]) * self.items(pairs[:, 1])
        return product.sum(1)


def test_one_number_per_sample_is_no_loss() -> None:
    torch.manual_seed(0)
    net = Ratings()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with SymmetryTracker(net, optimizer, output=None, every_n_steps=5, on_symmetry="ignore") as tracker:
        for _ in range(40):
            pairs = torch.randint(0, 20, (16, 2))
            optimizer.zero_grad()
            (net(pairs) - pairs[:, 0]).square().mean().backward()
            optimizer.step()
    assert {(finding.layer, str(finding.verdict)) for finding in tracker.findings} == {
        ("users", "frozen"),
        ("items", "frozen"),
    }
    assert {finding.code for finding in tracker.findings} == {"SYM303"}
