"""Regression tests: faults for which a trace once returned a wrong result, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from lightning_symmetry import StopKind, SymmetryTracker
from lightning_symmetry.tracing.trace import GradientTrace
from tests.tracing.tracing import everything, images, loss_of, rows, stops, suspects_of, trace
from tests.training import Classifier, fill, fit, quiet, sgd

OPTIONS: dict[str, Any] = {"heatmaps": "none", "scalars": "none", "every_n_steps": 10, "on_symmetry": "ignore"}


def shut(inputs: int, units: int, which: slice = slice(None)) -> nn.Linear:
    """Return a layer some of whose units are closed by a ReLU."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, units)
    with torch.no_grad():
        layer.bias[which] = -50.0
    return layer


class Net(nn.Module):
    """Layers, and the function that combines them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.together = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self.together(self, inputs)


def layers(**widths: tuple[int, int]) -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {name: nn.Linear(*width) for name, width in widths.items()}


# ---------------------------------------------------------------- shapes, exceptions, speed


def test_outputs_of_one_dimension() -> None:
    net = nn.Sequential(shut(12, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    assert stops(net, loss_of(net, rows()))["0"].stop.at == "1"
    net = nn.Sequential(shut(12, 8), nn.ReLU(), nn.Linear(8, 4))
    assert stops(net, loss_of(net, rows()[0]))["0"].stop.at == "1"  # an input without a batch


def test_a_forward_pass_that_fails_is_forgotten() -> None:
    net = nn.Sequential(shut(12, 8), nn.ReLU(), nn.Linear(8, 4))
    loss_of(net, rows())().backward()
    traced = GradientTrace(net, suspects_of(net))
    with pytest.raises(RuntimeError, match="shapes"):
        net(torch.ones(3, 5))
    loss_of(net, rows())().backward()
    assert traced.finish()["0"][0].stopped.stop.at == "1"


def test_thousands_of_units_are_explained_together() -> None:
    net = nn.Sequential(shut(12, 3000, slice(1, None)), nn.ReLU(), nn.Linear(3000, 4))
    [found] = trace(net, loss_of(net, rows()))["0"]
    assert found.units == tuple(range(1, 3000))
    most = net[0](rows())[:, 1:].max().item()
    assert most <= float(found.stopped.stop.detail.split()[5])  # the maximum over all of them


# ---------------------------------------------------------------- factors


def frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


@pytest.mark.parametrize(
    ("net", "layer", "at"),
    [
        (
            Net(lambda s, x: s.b(x[:, :8] + s.gate * s.a(x)), gate=frozen(8), **layers(a=(12, 8), b=(8, 4))),
            "a",
            "mul after a",
        ),
        (
            Net(
                lambda s, x: s.b(x[:, :8] + s.gate(x) * s.a(x)),
                gate=fill(nn.Linear(12, 8), 0.0).requires_grad_(False),
                **layers(a=(12, 8), b=(8, 4)),
            ),
            "a",
            "mul after a",
        ),
        (
            Net(
                lambda s, x: s.b(s.norm(s.a(x))),
                norm=fill(nn.RMSNorm(8), 0.0).requires_grad_(False),
                **layers(a=(12, 8), b=(8, 4)),
            ),
            "a",
            "norm",
        ),
        (
            Net(
                lambda s, x: functional.linear(s.a(x).tanh(), s.b.weight * s.scale),
                scale=frozen(8),
                **layers(a=(12, 8), b=(8, 4)),
            ),
            "a",
            "linear after a",
        ),
    ],
    ids=["gain", "gate", "norm", "computed weight"],
)
def test_zero_weights_that_are_frozen_or_computed(net: nn.Module, layer: str, at: str) -> None:
    found = stops(net, loss_of(net, rows()))[layer]
    assert (found.stop.kind, found.stop.at) == (StopKind.ZERO_WEIGHTS, at)


def test_readers_that_are_pruned_or_parametrised() -> None:
    net: Any = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    mask = torch.ones(4, 8)
    mask[:, :3] = 0.0
    prune.custom_from_mask(net[2], "weight", mask)
    [found] = trace(net, loss_of(net, rows()))["0"]
    assert (found.units, found.stopped.stop.kind, found.stopped.stop.at) == ((0, 1, 2), StopKind.ZERO_WEIGHTS, "2")
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), parametrizations.weight_norm(nn.Linear(8, 4)))
    nn.init.zeros_(net[2].parametrizations.weight.original0)
    assert stops(net, loss_of(net, rows()))["0"].stop.kind is StopKind.ZERO_WEIGHTS


@pytest.mark.parametrize(
    ("factor", "kind"),
    [(torch.cat([torch.ones(5), torch.zeros(3)]), StopKind.DROPPED), (None, StopKind.ZERO_WEIGHTS)],
    ids=["mask", "gain"],
)
def test_factors_that_are_zero_for_some_units_only(factor: Tensor | None, kind: StopKind) -> None:
    gain = nn.Parameter(torch.cat([torch.ones(5), torch.zeros(3)]))
    net = Net(
        lambda s, x: s.b(s.a(x).tanh() * (s.gain if factor is None else factor)),
        gain=gain,
        **layers(a=(12, 8), b=(8, 4)),
    )
    [found] = trace(net, loss_of(net, rows()))["a"]
    assert (found.units, found.stopped.stop.kind) == ((5, 6, 7), kind)


@pytest.mark.parametrize(
    "reader", [nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(8, 4, 3, groups=2)]
)
def test_channels_that_a_convolution_reads_with_zero_weights(reader: Any) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        if reader.transposed or reader.groups == 8:
            reader.weight[6:] = 0.0
        else:
            reader.weight[2:, 2:] = 0.0
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), reader, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    net(images())
    [found] = trace(net, loss_of(net, images()))["0"]
    assert (found.units, found.stopped.stop.kind, found.stopped.stop.at) == ((6, 7), StopKind.ZERO_WEIGHTS, "2")


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize(
    ("function", "at"),
    [(lambda x: x.relu() ** 2, "relu after a"), (lambda x: x.relu().square(), "relu after a")],
)
def test_powers_of_closed_activations(function: Callable[[Tensor], Tensor], at: str) -> None:
    net = Net(lambda s, x: s.b(function(s.a(x))), a=shut(12, 8), b=nn.Linear(8, 4))
    found = stops(net, loss_of(net, rows()))["a"]
    assert (found.stop.kind, found.stop.at) == (StopKind.CLOSED, at)


def test_a_hook_that_erases_the_gradient_of_an_activation() -> None:
    def together(net: Any, inputs: Tensor) -> Tensor:
        hidden = net.a(inputs)
        if hidden.requires_grad:
            hidden.register_hook(torch.zeros_like)
        outputs: Tensor = net.b(hidden.relu())
        return outputs

    net = Net(together, **layers(a=(12, 8), b=(8, 4)))
    assert stops(net, loss_of(net, rows()))["a"].stop.kind is StopKind.ERASED


def test_gradients_that_cancel_out_are_not_erased() -> None:
    net = nn.Sequential(fill(nn.Linear(12, 8), 0.0), nn.Tanhshrink(), nn.Linear(8, 4))
    assert stops(net, loss_of(net, rows()))["0"].stop.kind is StopKind.UNKNOWN


def test_without_biases_the_first_closed_activation_is_the_root() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)
    )
    with torch.no_grad():
        net[0].weight.abs_().neg_()
    found = stops(net, loss_of(net, rows().abs()))
    assert {name: (str(each.stop.kind), each.stop.at, each.follows) for name, each in found.items()} == {
        "0": ("closed", "1", ""),
        "2": ("closed", "1", "0"),
        "4": ("closed", "1", "2"),
    }


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_layers_follow_from_a_parametrised_root(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), wrap(shut(8, 8)), nn.ReLU(), nn.Linear(8, 4))
    found = stops(net, loss_of(net, rows()))
    assert (found["0"].follows, found["2"].follows) == ("2", "")


def test_units_are_followed_through_backward_hooks_and_repetition() -> None:
    net: Any = nn.Sequential(shut(12, 8, slice(0, 3)), nn.ReLU(), nn.Linear(8, 4))
    for module in net:
        module.register_full_backward_hook(lambda *args: None)
    [found] = trace(net, loss_of(net, rows().requires_grad_()))["0"]
    assert (found.units, found.stopped.stop.at) == ((0, 1, 2), "1")
    repeated = Net(lambda s, x: s.b(s.a(x).repeat(1, 2).relu()), a=shut(12, 8, slice(0, 3)), b=nn.Linear(16, 4))
    [found] = trace(repeated, loss_of(repeated, rows()))["a"]
    assert (found.units, found.stopped.stop.at) == ((0, 1, 2), "relu after a")


# ---------------------------------------------------------------- parts of parameters


def test_parts_of_a_packed_parameter() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 2, batch_first=True)
    net = Net(
        lambda s, x: s.b(s.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]),
        attention=attention,
        b=nn.Linear(12, 4),
    )
    found = stops(net, loss_of(net, rows()))
    assert {name: (each.stop.kind, each.follows) for name, each in found.items()} == {
        "attention.q": (StopKind.ONE_VALUE, ""),
        "attention.k": (StopKind.ONE_VALUE, ""),
    }


# ---------------------------------------------------------------- losses


class Margin(nn.Module):
    """A custom loss that returns a number per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, outputs: Tensor) -> Tensor:
        margins: Tensor = self.relu(0.5 - outputs)
        return margins


@pytest.mark.parametrize("is_known", [False, True])
def test_a_loss_of_ones_own_that_is_met(is_known: bool) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.constant_(net[2].bias, 50.0)  # type: ignore[arg-type] # a tensor
    whole = nn.ModuleDict({"net": net, "margin": Margin()})
    found = stops(whole, lambda: whole["margin"](whole["net"](rows())).mean(), is_known=is_known)
    assert {each.stop.kind for each in found.values()} == {StopKind.LOSS}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("num_calls", [1, 2])
def test_an_activation_of_the_outputs_beside_the_model(is_known: bool, num_calls: int) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.constant_(net[2].bias, 300.0)  # type: ignore[arg-type] # a tensor

    def loss() -> Tensor:
        terms = [(torch.sigmoid(net(rows() + i)) - 0.5).square().mean() for i in range(num_calls)]
        return torch.stack(terms).sum()

    found = stops(net, loss, is_known=is_known)
    assert {(each.stop.kind, each.stop.at) for each in found.values()} == {(StopKind.SATURATED, "sigmoid after 2")}


def test_a_loss_in_half_precision_is_not_said_to_be_met() -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).half()
    found = stops(net, lambda: net(rows().half()).float().square().mean() * 1e-12)
    assert {each.stop.kind for each in found.values()} == {StopKind.UNKNOWN}


@pytest.mark.parametrize("order", [[1.0, 0.0], [0.0, 1.0]])
def test_a_loss_of_weight_zero_among_several_backward_passes(order: list[float]) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), shut(8, 8), nn.ReLU(), nn.Linear(8, 4))
    weights = iter(order * 2)
    loss_of(net, rows())().backward()
    traced = GradientTrace(net, suspects_of(net))
    net.zero_grad()
    for _ in order:
        (next(weights) * loss_of(net, rows())()).backward()
    found = traced.finish()
    assert {(every[0].stopped.stop.kind, every[0].stopped.stop.at) for every in found.values()} == {
        (StopKind.CLOSED, "3")
    }


def test_two_losses_of_one_graph() -> None:
    net = Net(lambda s, x: s.b(s.a(x).relu()), a=shut(12, 8), b=nn.Linear(8, 4))
    loss_of(net, rows())().backward()
    traced = GradientTrace(net, suspects_of(net))
    net.zero_grad()
    outputs = net(rows())
    outputs.square().mean().backward(retain_graph=True)
    (0.0 * outputs.sum()).backward()
    [found] = traced.finish()["a"]
    assert (found.stopped.stop.kind, found.stopped.stop.at) == (StopKind.CLOSED, "relu after a")


# ---------------------------------------------------------------- trainings


def test_reasons_of_a_part_of_the_units_say_of_how_many() -> None:
    net: Any = Net(lambda s, x: s.b(s.a(x).relu()), a=shut(12, 16, slice(0, 6)), b=nn.Linear(16, 4))
    with torch.no_grad():
        net.b.weight[:, 10:] = 0.0
        net.a.bias[10:] = 50.0
    net.b.requires_grad_(False)
    tracker = train(net)
    [finding] = tracker.findings
    assert finding.stop is not None
    assert len(finding.units) == 12
    assert "measured for 6 of these 12 units" in finding.stop.detail


def train(net: Any, *, until: int | None = None) -> SymmetryTracker:
    """Train for some steps; from one step on, the first layer keeps a gradient of zeros."""
    optimizer = sgd(each for each in net.parameters() if each.requires_grad)
    tracker = SymmetryTracker(net, optimizer, **OPTIONS)
    generator = torch.Generator().manual_seed(0)
    for step in range(121):
        inputs = torch.randn(32, 12, generator=generator)
        optimizer.zero_grad(set_to_none=False)
        is_detached = until is not None and step >= until
        outputs = net.b(net.a(inputs).detach().relu()) if is_detached else net(inputs)
        functional.cross_entropy(outputs, inputs[:, :4].argmax(1)).backward()
        optimizer.step()
    tracker.abandon()
    return tracker


def test_a_layer_that_is_detached_later_on_does_not_train() -> None:
    tracker = train(Net(lambda s, x: s.b(s.a(x).relu()), **layers(a=(12, 8), b=(8, 4))), until=20)
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.untrained == {"a": "no gradient has reached it"}
    assert tracker.report.status == "inconclusive"


def test_each_of_two_optimizers_has_its_trace() -> None:
    torch.manual_seed(0)
    players: Any = nn.ModuleDict(
        {"g": nn.Linear(12, 12), "d": nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))}
    )
    nn.init.constant_(players["d"][2].bias, 200.0)
    optimizers = [sgd(players["g"].parameters()), sgd(players["d"].parameters())]
    tracker = SymmetryTracker(players, optimizers, **OPTIONS)
    for _ in range(121):
        optimizers[1].zero_grad()
        real, fake = players["d"](rows()), players["d"](players["g"](rows()).detach())
        (torch.sigmoid(real).mean() + torch.sigmoid(fake).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (1.5 - torch.sigmoid(players["d"](players["g"](rows())))).mean().backward()
        optimizers[0].step()
    tracker.abandon()
    said = {finding.layer: (str(finding.stop.kind), finding.follows) for finding in tracker.findings if finding.stop}
    assert said == {"g": ("saturated", "d.2"), "d.0": ("saturated", "d.2"), "d.2": ("saturated", "")}


def test_weights_of_a_single_expert_are_nothing_but_rounding() -> None:
    # w / w.sum() of a single number: the model has no norm module by which to recognise it.
    def together(net: Any, inputs: Tensor) -> Tensor:
        weights = torch.sigmoid(net.router(inputs))
        outputs: Tensor = net.b(weights / weights.sum(1, keepdim=True) * net.a(inputs).tanh())
        return outputs

    monitor = quiet(every_n_steps=10, on_symmetry="ignore")
    fit(Classifier(Net(together, **layers(router=(12, 1), a=(12, 8), b=(8, 4)))), monitor, max_steps=120)
    [finding] = monitor.findings
    assert (finding.layer, finding.stop.kind if finding.stop else None) == ("net.router", StopKind.ONE_VALUE)
    monitor = quiet(every_n_steps=10, on_symmetry="ignore")
    fit(Classifier(Net(together, **layers(router=(12, 8), a=(12, 8), b=(8, 4)))), monitor, max_steps=120)
    assert monitor.findings == []


def test_a_way_beside_a_norm_over_one_number_brings_a_gradient() -> None:
    def together(net: Any, inputs: Tensor) -> Tensor:
        hidden = net.a(inputs)
        outputs: Tensor = net.b(hidden) + 1e-9 * net.c(net.norm(hidden[:, :1]))
        return outputs

    net = Net(together, norm=nn.LayerNorm(1), **layers(a=(12, 8), b=(8, 4), c=(1, 4)))
    every = [each for each in everything(net) if each.layer.name == "a"]
    loss_of(net, rows())().backward()
    traced = GradientTrace(net, every)
    loss_of(net, rows())().backward()
    assert traced.finish()["a"][0].stopped.stop.kind is StopKind.ERASED  # a gradient arrives that is no rounding error


@dataclass(slots=True)
class Packed:
    """What a module may put out: it has no ``__dict__``."""

    hidden: Tensor


class Packing(nn.Linear):
    """A layer that packs what it computes."""

    def forward(self, inputs: Tensor) -> Any:
        return Packed(super().forward(inputs))


def test_outputs_in_a_dataclass_with_slots_are_traced() -> None:
    def together(net: Any, inputs: Tensor) -> Tensor:
        outputs: Tensor = net.b(net.act(net.a(inputs).hidden))
        return outputs

    packing = Packing(12, 8)
    nn.init.constant_(packing.bias, -100.0)
    net = Net(together, a=packing, act=nn.ReLU(), b=nn.Linear(8, 4))
    assert stops(net, loss_of(net, rows()))["a"].stop.at == "act"
