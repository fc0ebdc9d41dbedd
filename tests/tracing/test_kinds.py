"""Where gradients stop, in small networks with one known fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_symmetry import GradientStop, StopKind
from lightning_symmetry.tracing.trace import GradientTrace, Suspected
from lightning_symmetry.units.discovery import find_layers
from tests.tracing.tracing import everything, images, loss_of, rows, stops, trace
from tests.training import fill


def with_bias(layer: Any, bias: float) -> Any:
    """Return a layer with the given bias."""
    nn.init.constant_(layer.bias, bias)
    return layer


class Between(nn.Module):
    """Two layers with a module or function between them."""

    def __init__(self, between: Any, first: Any = None, last: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first or nn.Linear(12, 8)
        self.between = between
        self.last = last or nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.between(self.first(inputs)))
        return outputs


# ---------------------------------------------------------------- activations

CLOSED = {
    "relu": (nn.ReLU(), -50.0),
    "relu6 below": (nn.ReLU6(), -50.0),
    "relu6 above": (nn.ReLU6(), 50.0),
    "hardtanh": (nn.Hardtanh(), 50.0),
    "hardswish": (nn.Hardswish(), -50.0),
    "hardsigmoid": (nn.Hardsigmoid(), 50.0),
    "threshold": (nn.Threshold(0.1, 0.0), -50.0),
    "softshrink": (nn.Softshrink(1e3), 1.0),
    "hardshrink": (nn.Hardshrink(1e3), 1.0),
    "gelu": (nn.GELU(), -500.0),
    "silu": (nn.SiLU(), -500.0),
    "mish": (nn.Mish(), -500.0),
    "prelu of slope 0": (nn.PReLU(init=0.0).requires_grad_(False), -50.0),
    "leaky relu of slope 0": (nn.LeakyReLU(0.0), -50.0),
    "rrelu of slope 0": (nn.RReLU(0.0, 0.0), -50.0),
}
SATURATED = {
    "sigmoid": (nn.Sigmoid(), 500.0),
    "tanh": (nn.Tanh(), -50.0),
    "elu": (nn.ELU(), -500.0),
    "selu": (nn.SELU(), -500.0),
    "celu": (nn.CELU(), -500.0),
    "softplus": (nn.Softplus(), -500.0),
    "logsigmoid": (nn.LogSigmoid(), 500.0),
}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("name", [*CLOSED, *SATURATED])
def test_activations(name: str, is_known: bool) -> None:
    kind = StopKind.CLOSED if name in CLOSED else StopKind.SATURATED
    activation, bias = {**CLOSED, **SATURATED}[name]
    net = Between(activation, with_bias(nn.Linear(12, 8), bias))
    found = stops(net, loss_of(net, rows()), is_known=is_known)["first"]
    assert (found.stop.kind, found.stop.at, found.follows) == (kind, "between", "")
    if name == "relu":
        most = net.first(rows()).max().item()
        said = float(found.stop.detail.removeprefix("its input is at most ").removesuffix(" in all 256 values seen"))
        assert most <= said < most + 1  # rounded up, so that 'at most' stays true


class Functional(nn.Module):
    """A network whose activation is a function."""

    def __init__(self, bias: float, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 8), with_bias(nn.Linear(8, 8), bias), nn.Linear(8, 4)
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.c(self.function(self.b(torch.tanh(self.a(inputs)))))
        return outputs


FUNCTIONS: dict[str, tuple[float, Callable[[Tensor], Tensor], str, str]] = {
    "relu": (-50.0, functional.relu, "closed", "relu after b"),
    "clamp": (-50.0, lambda x: x.clamp(min=0), "closed", "clamp after b"),
    "maximum": (-50.0, lambda x: x.maximum(torch.zeros(())), "closed", "maximum after b"),
    "tanh": (50.0, torch.tanh, "saturated", "tanh after b"),
    "round": (0.0, torch.round, "flat", "round after b"),
    "sign": (0.0, torch.sign, "flat", "sign after b"),
    "floor": (0.0, torch.floor, "flat", "floor after b"),
    "dropout": (0.0, lambda x: functional.dropout(x, 1.0), "dropped", "mul after b"),
    "mask": (0.0, lambda x: x * torch.zeros(8), "dropped", "mul after b"),
    "masked_fill": (
        0.0,
        lambda x: x.masked_fill(torch.ones(8, dtype=torch.bool), 0.0),
        "dropped",
        "masked_fill after b",
    ),
    "softmax": (0.0, lambda x: x.sum(1, keepdim=True).softmax(1) * torch.ones(8), "one value", "softmax after b"),
    "one-hot softmax": (0.0, lambda x: (1e6 * x).softmax(1), "saturated", "softmax after b"),
    "half": (0.0, lambda x: (x.half() * 1e-4).float() * 1e-4, "rounding", "mul after b"),
}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, is_known: bool) -> None:
    bias, function, kind, at = FUNCTIONS[name]
    net = Functional(bias, function)
    found = stops(net, loss_of(net, rows()), is_known=is_known)
    assert (str(found["b"].stop.kind), found["b"].stop.at, found["b"].follows) == (kind, at, "")
    if "a" in found and kind != "unread":
        assert (found["a"].stop, found["a"].follows) == (found["b"].stop, "b")


def test_a_softmax_that_weighs_equal_things_is_not_called_saturated() -> None:
    # The mean over two numbers: gradients cancel without rounding.
    net = Functional(0.0, lambda x: x.unflatten(1, (4, 2)).softmax(-1).sum(-1, True).expand(-1, -1, 2).flatten(1))
    for parameter in net.b.parameters():
        nn.init.zeros_(parameter)
    stop = stops(net, loss_of(net, rows()), is_known=True)["b"].stop
    assert (stop.kind, stop.at) == (StopKind.UNKNOWN, "softmax after b")


# ---------------------------------------------------------------- zero weights


def test_a_zero_head_stops_all_before_it() -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), fill(nn.Linear(8, 4), 0.0))
    found = stops(net, loss_of(net, rows()))
    assert set(found) == {"0", "2"}
    assert [(each.stop.kind, each.stop.at) for each in found.values()] == [(StopKind.ZERO_WEIGHTS, "4")] * 2
    assert [each.follows for each in found.values()] == ["2", ""]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_zero_columns_of_a_reader(requires_grad: bool) -> None:
    net = Between(nn.Tanh())
    with torch.no_grad():
        net.last.weight[:, :3] = 0.0
    net.last.requires_grad_(requires_grad)
    [found] = trace(net, loss_of(net, rows()))["first"]
    assert (found.units, found.stopped.stop.kind, found.stopped.stop.at) == ((0, 1, 2), StopKind.ZERO_WEIGHTS, "last")


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8)], ids=["batch", "layer", "group"]
)
def test_gains_of_zero(norm: nn.Module) -> None:
    net = Between(fill(norm, 0.0), last=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    found = stops(net, loss_of(net, rows()))["first"]
    assert (found.stop.kind, found.stop.at) == (StopKind.ZERO_WEIGHTS, "between")
    assert "gains" in found.stop.detail


class Gated(nn.Module):
    """A branch behind a gate that is a parameter, or that another layer computes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.branch, self.gate, self.scale = (
            nn.Linear(12, 12),
            fill(nn.Linear(12, 12), 0.0),
            nn.Parameter(torch.zeros(12)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        gate = self.scale if self.how == "parameter" else self.gate(inputs)
        outputs: Tensor = inputs + gate * self.branch(inputs)
        return outputs


@pytest.mark.parametrize(("how", "at"), [("parameter", "mul after branch"), ("layer", "mul after branch")])
def test_gates_of_zero(how: str, at: str) -> None:
    net = Gated(how)
    found = stops(net, loss_of(net, rows()))["branch"]
    assert (found.stop.kind, found.stop.at) == (StopKind.ZERO_WEIGHTS, at)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolutions(kind: Any, groups: int) -> None:
    torch.manual_seed(0)
    first: Any = kind(2, 8, 3, padding=1, groups=groups)
    with torch.no_grad():
        first.bias[[1, 6]] = -100.0
    net = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    [found] = trace(net, loss_of(net, images()))["0"]
    assert (found.units, found.stopped.stop.kind, found.stopped.stop.at) == ((1, 6), StopKind.CLOSED, "1")


def test_a_channel_that_is_never_the_largest() -> None:
    net: Any = nn.Sequential(nn.Conv2d(2, 4, 1), nn.MaxPool3d((4, 1, 1)), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[0].bias[:] = torch.tensor([100.0, 0.0, 0.0, 0.0])
    [found] = trace(net, loss_of(net, images()))["0"]
    assert (found.units, found.stopped.stop.kind, found.stopped.stop.at) == ((1, 2, 3), StopKind.CLOSED, "1")


# ---------------------------------------------------------------- readers, and the loss


@pytest.mark.parametrize("is_known", [False, True])
def test_outputs_that_nobody_reads_among_others(is_known: bool) -> None:
    net = nn.Linear(12, 6)
    [found] = trace(net, lambda: net(rows())[:, 2:].square().mean(), is_known=is_known)["Linear"]
    assert (found.units, found.stopped.stop.kind) == ((0, 1), StopKind.UNREAD)


@pytest.mark.parametrize("accumulate", [False, True])
def test_outputs_that_are_put_where_nobody_reads(accumulate: bool) -> None:
    def put(hidden: Tensor) -> Tensor:
        places = torch.tensor([7, 6, 5, 1, 0, 4, 2, 3])
        return torch.zeros(8, 32).index_put((places,), hidden.T, accumulate=accumulate)[:5].T

    net = Between(put, last=nn.Linear(5, 4))
    [found] = trace(net, loss_of(net, rows()))["first"]
    assert found.units == (0, 1, 2)
    kinds = (StopKind.UNKNOWN, "index_put after first") if accumulate else (StopKind.UNREAD, "slice after first")
    assert (found.stopped.stop.kind, found.stopped.stop.at) == kinds


@pytest.mark.parametrize("is_known", [False, True])
def test_units_of_one_layer_have_reasons_of_their_own(is_known: bool) -> None:
    net = Functional(0.0, lambda hidden: functional.relu(hidden))
    with torch.no_grad():
        net.b.bias[:2] = -100.0
        net.c.weight[:, 3:5] = 0.0
        net.b.bias[3:5] = 100.0
    found = trace(net, loss_of(net, rows()), is_known=is_known)["b"]
    said = {each.units: (each.stopped.stop.kind, each.stopped.stop.at) for each in found}
    assert said[0, 1] == (StopKind.CLOSED, "relu after b")
    assert said[3, 4] == (StopKind.ZERO_WEIGHTS, "c")


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "weight 0": lambda out: 0.0 * out.square().mean(),
    "met": lambda out: (out - 100.0).relu().mean(),
    "ignored": lambda out: functional.cross_entropy(out, torch.full((32,), -100), reduction="sum"),
    "no positives": lambda out: out[torch.zeros(32, dtype=torch.bool)].sum() * 1.0,
}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_a_gradient(name: str, is_known: bool) -> None:
    net = Between(nn.Tanh())
    found = stops(net, lambda: LOSSES[name](net(rows())), is_known=is_known)
    assert set(found) == {"first", "last"}
    kinds = {each.stop.kind for each in found.values()}
    assert kinds <= ({StopKind.LOSS} if name != "no positives" else {StopKind.LOSS, StopKind.UNREAD})
    assert {each.follows for each in found.values()} == {""}


@pytest.mark.parametrize("is_known", [False, True])
def test_faults_of_a_loss_that_is_no_part_of_the_model(is_known: bool) -> None:
    net = Between(nn.Tanh(), last=nn.Linear(8, 1))
    found = stops(
        net, lambda: functional.cross_entropy(net(rows()), torch.zeros(32, dtype=torch.long)), is_known=is_known
    )
    assert {(str(each.stop.kind), each.stop.at) for each in found.values()} == {("one value", "log_softmax after last")}
    found = stops(net, lambda: (net(rows()).round() - 1).square().mean(), is_known=is_known)
    assert {(str(each.stop.kind), each.stop.at) for each in found.values()} == {("flat", "round after last")}


@pytest.mark.parametrize(
    "first", [nn.Linear(12, 8), nn.Sequential(nn.Unflatten(1, (12, 1)), nn.Conv1d(12, 8, 1), nn.Flatten())]
)
def test_gradients_that_are_erased(first: nn.Module) -> None:
    net = Between(nn.Tanh(), first)
    for parameter in first.parameters():
        parameter.register_hook(torch.zeros_like)
    [found] = stops(net, loss_of(net, rows())).values()
    assert found.stop.kind is StopKind.ERASED


def test_a_gradient_below_the_smallest_normal_number_has_vanished() -> None:
    net = Between(nn.Tanh())
    first = find_layers(net).layers[0]
    traced = GradientTrace(net, [Suspected(first, np.array([1, 4]), may_be_rounding=False)])
    (1e-40 * net(rows()).square().mean()).backward()
    [found] = traced.finish()["first"]
    assert net.first.weight.grad is not None
    size = net.first.weight.grad[[1, 4]].abs().max().item()
    assert found.units == (1, 4)
    assert found.stopped.stop == GradientStop(StopKind.VANISHED, "", f"the largest number in it is {size:.1g}")
    traced = GradientTrace(net, [Suspected(first, np.array([1, 4]), may_be_rounding=False)])
    net(rows()).square().mean().backward()
    assert traced.finish()["first"][0].stopped.stop.kind is StopKind.ERASED  # a gradient of a usual size is no reason


def test_a_small_gradient_in_half_precision_has_not_vanished() -> None:
    net = nn.Linear(12, 8).half()
    [layer] = find_layers(net).layers
    traced = GradientTrace(net, [Suspected(layer, np.arange(8), may_be_rounding=False)])
    (1e-6 * net(rows().half()).sum()).backward()
    assert net.weight.grad is not None
    assert 0 < float(net.weight.grad.abs().max()) < torch.finfo(torch.float16).tiny
    assert traced.finish()[layer.name][0].stopped.stop.kind is StopKind.ERASED


def test_of_two_passes_the_one_whose_gradient_vanishes_on_arrival_explains_more_than_one_that_is_closed() -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
    first = find_layers(net).layers[0]
    traced = GradientTrace(net, [Suspected(first, np.arange(8), may_be_rounding=False)])
    (net[1](net[0](rows()) - 1e3)).sum().backward()
    (1e-40 * net[0](rows()).square().mean()).backward()
    assert traced.finish()["0"][0].stopped.stop.kind is StopKind.VANISHED


def normalised(hidden: Tensor) -> Tensor:
    """Return the outputs of a single expert, times its normalised weight, which is 1."""
    weight = hidden[:, :1].sigmoid()
    return weight / weight.sum(1, keepdim=True) * hidden.detach()


@pytest.mark.parametrize(
    "function",
    [normalised, lambda x: functional.normalize(x[:, :1]) * x.detach(), nn.LayerNorm([])],
    ids=["sum", "norm", "layer norm"],
)
def test_rounding_errors_behind_a_single_value(function: Callable[[Tensor], Tensor]) -> None:
    net = Functional(0.0, lambda hidden: hidden)
    net.function = (
        (lambda hidden: functional.layer_norm(hidden[..., None], (1,))[..., 0])
        if isinstance(function, nn.LayerNorm)
        else function
    )
    loss_of(net, rows())().backward()
    suspects = [each for each in everything(net) if each.layer.name in ("a", "b")]
    traced = GradientTrace(net, suspects)
    loss_of(net, rows())().backward()
    assert {(name, every[0].stopped.stop.kind) for name, every in traced.finish().items()} == {
        ("a", StopKind.ONE_VALUE),
        ("b", StopKind.ONE_VALUE),
    }


def test_a_layer_that_the_loss_does_not_depend_on() -> None:
    net = Functional(0.0, lambda hidden: hidden.detach())
    found = stops(net, loss_of(net, rows()))
    assert {(name, each.stop.kind, each.stop.at) for name, each in found.items()} == {
        ("a", StopKind.DETACHED, "a"),
        ("b", StopKind.DETACHED, "b"),
    }


def test_inputs_of_zero() -> None:
    net = nn.Sequential(with_bias(nn.Linear(12, 8), -100.0), nn.ReLU(), nn.Linear(8, 4, bias=False))
    found = stops(net, loss_of(net, rows()))
    assert found["0"].stop.kind is found["2"].stop.kind is StopKind.CLOSED
    assert (found["0"].follows, found["2"].follows) == ("", "0")
    net = nn.Sequential(nn.Linear(12, 4, bias=False))
    found = stops(net, loss_of(net, torch.zeros(32, 12)))
    assert (found["0"].stop.kind, found["0"].stop.detail) == (
        StopKind.UNKNOWN,
        "the inputs of 0 are zero in all values seen",
    )


# ---------------------------------------------------------------- attention, recurrent layers


class Attention(nn.Module):
    """Attention with unread last tokens, or with a single key."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.other, self.how = nn.Linear(12, 12), how
        if how == "no values":
            fill(self.v, 0.0)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.view(4, 8, 12)
        keys = tokens[:, :1] if self.how == "one key" else tokens
        queries = self.q(tokens)
        if self.how.startswith("unread"):
            queries = torch.cat([queries, self.other(tokens)], 1)
        if self.how == "unread 4d":
            queries, keys = queries[:, None], keys[:, None]
        found = functional.scaled_dot_product_attention(queries, self.k(keys), self.v(keys))
        outputs: Tensor = self.out(found[..., :8, :].mean(-2))
        return outputs.flatten(0, -2)


@pytest.mark.parametrize(
    ("how", "layer", "kind"),
    [
        ("one key", "q", StopKind.ONE_VALUE),
        ("one key", "k", StopKind.ONE_VALUE),
        ("unread", "other", StopKind.UNREAD),
        ("unread 4d", "other", StopKind.UNREAD),
        ("no values", "q", StopKind.ZERO_WEIGHTS),
    ],
)
def test_attention(how: str, layer: str, kind: StopKind) -> None:
    net = Attention(how)
    found = stops(net, lambda: (net(rows()) - 1).square().mean())
    assert found[layer].stop.kind is kind


def test_multihead_attention_and_recurrent_layers_before_a_zero_head() -> None:
    class Net(nn.Module):
        def __init__(self, body: Any) -> None:
            super().__init__()
            self.body, self.head = body, fill(nn.Linear(8, 4), 0.0)

        def forward(self, inputs: Tensor) -> Tensor:
            is_attention = isinstance(self.body, nn.MultiheadAttention)
            hidden = self.body(inputs, inputs, inputs)[0] if is_attention else self.body(inputs)[0]
            outputs: Tensor = self.head(hidden)
            return outputs

    inputs = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    for body in (nn.MultiheadAttention(8, 2), nn.LSTM(8, 8), nn.GRU(8, 8), nn.RNN(8, 8)):
        net = Net(body)
        found = stops(net, loss_of(net, inputs))
        assert found
        assert {(each.stop.kind, each.stop.at) for each in found.values()} == {(StopKind.ZERO_WEIGHTS, "head")}
