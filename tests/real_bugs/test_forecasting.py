"""Models of public forecasting libraries, parts of which a monitor found without a gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.real_bugs.cases import Case, Found, assert_found, assert_silent, train_buggy, train_fixed

WIDTH, HEADS = 16, 4
LOOKBACK, KNOWN, HORIZON = 8, 4, 4


class ProbAttention(nn.Module):
    """Attention of Informer: the queries that stand out attend, all others get the mean of the values.

    Args:
        is_fixed: whether the heads, ``(batch, heads, length, size)``, are moved behind the length before they are
            joined.
    """

    def __init__(self, *, is_fixed: bool) -> None:
        super().__init__()
        self.is_fixed = is_fixed
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        batch, length, _ = queries.shape
        query = self.query(queries).view(batch, length, HEADS, -1).transpose(1, 2)
        key, value = (f(context).view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for f in (self.key, self.value))
        scores = query @ key.transpose(-2, -1) / 2
        spread = scores.amax(-1) - scores.mean(-1)
        chosen = spread.topk(length // 2).indices
        rows = torch.arange(batch)[:, None, None], torch.arange(HEADS)[None, :, None], chosen
        mixed = value.mean(-2, keepdim=True).expand(-1, -1, length, -1).clone()
        mixed[rows] = scores[rows].softmax(-1) @ value
        if self.is_fixed:
            mixed = mixed.transpose(1, 2).contiguous()
        joined: Tensor = self.out(mixed.view(batch, length, -1))
        return joined


class Informer(nn.Module):
    """An encoder, and a decoder that is given what is known of the end of the series and puts out what follows."""

    def __init__(self, *, is_fixed: bool) -> None:
        super().__init__()
        self.embed_past, self.embed_known = nn.Linear(1, WIDTH), nn.Linear(1, WIDTH)
        self.encoder, self.decoder, self.cross = (ProbAttention(is_fixed=is_fixed) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, past: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, LOOKBACK)[:, None]
        encoded = self.embed_past(past[..., None]) + places
        encoded = encoded + self.encoder(encoded, encoded)
        known = torch.cat([past[:, -KNOWN:], past.new_zeros(len(past), HORIZON)], dim=1)
        decoded = self.embed_known(known[..., None]) + places
        decoded = decoded + self.decoder(decoded, decoded)
        decoded = self.norm(decoded + self.cross(decoded, encoded))
        out: Tensor = self.head(decoded + self.mlp(decoded))
        return out[:, -HORIZON:, 0]


class ResidualBlock(nn.Module):
    """A hidden layer and a linear shortcut, whose sum is normalised."""

    def __init__(self, inputs: int, outputs: int, *, has_norm: bool) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
        self.skip = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs) if has_norm else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.norm(self.dense(inputs) + self.skip(inputs))
        return out


class TiDE(nn.Module):
    """An encoder, a decoder, and a block that makes one number of what was decoded for each step of the horizon."""

    def __init__(self, *, is_fixed: bool) -> None:
        super().__init__()
        self.encoder = ResidualBlock(LOOKBACK, WIDTH, has_norm=True)
        self.decoder = ResidualBlock(WIDTH, 4 * HORIZON, has_norm=True)
        self.temporal_decoder = ResidualBlock(4, 1, has_norm=not is_fixed)
        self.lookback_skip = nn.Linear(LOOKBACK, HORIZON)

    def forward(self, past: Tensor) -> Tensor:
        decoded = self.decoder(self.encoder(past)).view(-1, HORIZON, 4)
        out: Tensor = self.temporal_decoder(decoded)[..., 0] + self.lookback_skip(past)
        return out


def forecast(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """How a random walk goes on."""
    walk = (inputs - 0.6).cumsum(dim=1)
    return nn.functional.mse_loss(net(walk[:, :LOOKBACK]), walk[:, LOOKBACK:])


NORMALISED = [
    *(
        f"{block}.{part}"
        for block in ("encoder", "decoder", "temporal_decoder")
        for part in ("dense.0", "dense.2", "skip")
    ),
]
CASES = [
    Case(
        "Heads viewed back without a transpose",
        ("https://github.com/zhouhaoyi/Informer2020/issues/100",),
        partial(Informer, is_fixed=False),
        partial(Informer, is_fixed=True),
        idle=tuple(
            Found(
                f"cross.{part}",
                "idle",
                "dead",
                (tuple(range(WIDTH // 2)),),
                way_out="nobody reads their outputs",
                stop=("unread", "slice after head"),
                begins="cross.query, cross.key, cross.value (3 layers): ",
            )
            for part in ("query", "key", "value")
        ),
        loss=forecast,
    ),
    Case(
        "A LayerNorm over one feature",
        ("https://github.com/google-research/google-research/issues/2133",),
        partial(TiDE, is_fixed=False),
        partial(TiDE, is_fixed=True),
        tuple(
            Found(
                name,
                "dead",
                "cut off",
                way_out="Apply it to more than one number, or remove it.",
                stop=("one value", "temporal_decoder.norm"),
            )
            for name in NORMALISED
        ),
        loss=forecast,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bug_is_found(case: Case) -> None:
    assert_found(case, train_buggy(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fix_is_silent(case: Case) -> None:
    assert_silent(train_fixed(case))


def test_a_norm_over_one_feature_makes_all_but_the_shortcut_constant() -> None:
    torch.manual_seed(0)
    net, past = TiDE(is_fixed=False), torch.randn(5, LOOKBACK)
    torch.testing.assert_close(net(past), net.lookback_skip(past))
