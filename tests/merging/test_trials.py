"""Merges that look right on the examples, but not in other modes or with other numbers, scales, dtypes and paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from lightning_symmetry import Merged, merge_duplicates
from lightning_symmetry.merging.verification import Inputs, exact_copy, is_exact
from tests.merging.nets import plant
from tests.units.networks import Call

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))
Function = Callable[[Tensor], Tensor]


def between(function: Function) -> nn.Sequential:
    """Return two layers with a function between them, and a pair of equal units in the first."""
    return plant(nn.Sequential(nn.Linear(6, 8), Call(function), nn.Linear(8, 3)), "0", [(0, 5)])  # type: ignore[return-value]


def mirrored(function: Function) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 8), Call(function), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = -net[0].weight[:4], -net[0].bias[:4]  # type: ignore[operator, index]
        net[2].weight[:, 4:] = -net[2].weight[:, :4]  # type: ignore[operator, index]
    net(INPUTS).square().sum().backward()
    return net


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [rms, layer_norm, lambda x: x - 1e-3 * x.mean(-1, keepdim=True)])
def test_statistics_over_units_are_seen_in_every_dtype(norm: Function, dtype: torch.dtype) -> None:
    assert merge_duplicates(between(norm).to(dtype), INPUTS.to(dtype)).removed == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_half_precision_only_sums_of_weights_are_rounded(dtype: torch.dtype) -> None:
    net = between(torch.relu).to(dtype)
    merged = merge_duplicates(net, INPUTS.to(dtype))
    assert merged.removed == {"0": (5,)}
    a, b = (each.double()(INPUTS.to(dtype).double()).detach() for each in (net, merged.model))
    assert float((a - b).norm() / a.norm()) <= merged.error <= torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.normalize(x, dim=-1),
        lambda x: x.cumsum(-1),
        lambda x: x * (x >= x.topk(4, -1).values[..., -1:]),
        lambda x: x * x.logsumexp(-1, keepdim=True),
    ],
    ids=["normalize", "cumsum", "top-k", "logsumexp"],
)
def test_a_head_of_zeros_hides_nothing(function: Function) -> None:
    net = between(function)
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    assert merge_duplicates(net, INPUTS).removed == {}


def test_behind_a_head_of_zeros_units_are_merged_too() -> None:
    net = between(torch.relu)
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    assert merge_duplicates(net, INPUTS).removed == {"0": (5,)}


def clipped(x: Tensor) -> Tensor:
    return x.clamp(-20.0, 127.0)


def test_mirror_images_need_an_activation_that_is_odd_everywhere() -> None:
    assert merge_duplicates(mirrored(lambda x: x.clamp(-20.0, 20.0)), INPUTS).removed == {"0": (4, 5, 6, 7)}
    merged = merge_duplicates(mirrored(clipped), INPUTS)
    assert merged.removed == {}
    assert "merging mirror images changes the outputs for inputs that are 1000 times as large" in merged.left["0"]


def test_behind_a_norm_only_larger_weights_reach_a_clamp() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), Call(clipped), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = -net[0].weight[:4], -net[0].bias[:4]  # type: ignore[operator, index]
        net[3].weight[:, 4:] = -net[3].weight[:, :4]  # type: ignore[operator, index]
    net(INPUTS).square().sum().backward()
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {}
    assert "for weights that are 30 times as large" in merged.left["0"]


def test_neighbours_that_are_mixed_weakly() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(3), nn.Conv2d(8, 4, 1))
    assert merge_duplicates(plant(net, "0", [(0, 5)]), torch.randn(4, 3, 5, 5)).removed == {}


class Paths(nn.Module):
    """A model with a second use of its units."""

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Any], auxiliary: bool = False) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        if auxiliary:
            self.extra = nn.Linear(8, 3)
        self.use, self.calls = use, 0
        plant(self, "a", [(0, 5)])

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.use(self, x, self.a(x).relu())


def rare(net: Any, x: Tensor, h: Tensor) -> Tensor:
    out: Tensor = net.out(h)
    return out + h.sum(1, keepdim=True) if x.abs().max() > 1e6 else out


OTHERWISE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sum in training": (
        lambda: Paths(lambda net, x, h: net.out(h) + (h.sum(1, keepdim=True) if net.training else 0)),
        "removing them changes the outputs in training mode",
    ),
    "noise in training": (
        lambda: Paths(lambda net, x, h: net.out(h + torch.randn_like(h) if net.training else h)),
        "removing them changes the outputs in training mode",
    ),
    "noise of fixed width": (
        lambda: Paths(lambda net, x, h: net.out(h) + (net.out(torch.randn(8).to(h)) if net.training else 0)),
        "without them the model fails in training mode with RuntimeError",
    ),
    "auxiliary head": (
        lambda: Paths(lambda net, x, h: (net.out(h), net.extra(h)) if net.training else net.out(h), auxiliary=True),
        "`extra` reads them",
    ),
    "another method": (
        lambda: Paths(lambda net, x, h: net.out(h), auxiliary=True),
        "`extra.weight` was used in no run of the model",
    ),
    "rare branch": (lambda: Paths(rare), "the model reads numbers out of tensors"),
    "fails in training": (
        lambda: Paths(lambda net, x, h: net.out(h) / (1 / (not net.training))),
        "in training mode the model fails on the example inputs (ZeroDivisionError: division by zero)",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_no_run_shows_is_left(case: str) -> None:
    make, reason = OTHERWISE[case]
    merged = merge_duplicates(make(), INPUTS)
    assert merged.removed == {}
    assert reason in merged.left["a"]


def test_dropout_does_not_keep_units_from_being_merged() -> None:
    net = plant(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.ReLU(), nn.Linear(8, 3)), "0", [(0, 5)])
    assert merge_duplicates(net, INPUTS).removed == {"0": (5,)}
    net = Paths(lambda net, x, h: net.out(functional.dropout(h, 0.4, net.training)))
    assert merge_duplicates(net, INPUTS).removed == {"a": (5,)}


def test_where_training_mode_takes_other_inputs_a_trace_without_inputs_tells_what_reads_them() -> None:
    net = plant(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), "0", [(0, 5)])
    assert merge_duplicates(net, INPUTS[:1]).removed == {"0": (5,)}


class Mixed(nn.Module):
    """Computes in bfloat16, whatever the dtype of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = between(torch.relu).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.bfloat16())
        return out


def test_a_model_that_runs_in_half_precision_only_is_left() -> None:
    assert "the model fails in float64" in merge_duplicates(Mixed(), INPUTS).left["body.0"]


def test_complex_weights_and_nested_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(*widths, dtype=torch.complex64) for widths in ((6, 8), (8, 3)))
            plant(self, "a", [(0, 5)])

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.b(self.a(batch["x"].to(self.a.weight.dtype)).tanh()).abs()}

    merged: Merged = merge_duplicates(Net(), {"batch": {"x": INPUTS}})
    assert merged.removed == {"a": (5,)}
    assert merged.error <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_that_casts_to_its_own_dtype_is_merged_in_float64(dtype: torch.dtype) -> None:
    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            plant(self, "a", [(0, 5)])

        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", self.b(self.a(x.to(self.dtype)).tanh()))

    net, inputs = Net().to(dtype), INPUTS.to(dtype)
    assert is_exact(exact_copy(net, Inputs.of(inputs)))
    assert merge_duplicates(net, inputs).removed == {"a": (5,)}
