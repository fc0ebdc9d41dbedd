"""What a traced step costs beside an ordinary one of the same training: ``python -m tests.benchmarks trace``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.tracing.trace import GradientTrace, Suspected
from tests import zoo
from tests.benchmarks.models import Decoder, ResidualBlock, resnet18
from tests.benchmarks.timing import alternate, show
from tests.tracing.tracing import suspects_of

Batch = tuple[Tensor, Tensor]
_SHUT = -500.0


def perceptron(num_shut: int) -> tuple[nn.Module, Batch]:
    """64-256-128-10, batch 64, with some units of the second layer shut."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        zoo.linear(net, "2").bias[:num_shut] = _SHUT
    return net, (torch.rand(64, 64), torch.randint(0, 10, (64,)))


def convolutions() -> tuple[nn.Module, Batch]:
    """ResNet-18, 32 images of 32 x 32, with a block whose first activation is shut."""
    net = resnet18()
    blocks = [module for module in net if isinstance(module, ResidualBlock)]
    nn.init.constant_(blocks[3].body.get_parameter("1.bias"), _SHUT)
    return net, (torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))


def transformer(num_shut: int = 0, *, has_gain: bool = True) -> tuple[nn.Module, Batch]:
    """A decoder of 6 layers of width 256, on 8 sequences of 128 bytes.

    Args:
        num_shut: how many of the 1,024 hidden units of a feed-forward network are shut.
        has_gain: whether the norm before the head has gains other than zero; else no layer but the head is reached.
    """
    net = Decoder(width=256, heads=4)
    with torch.no_grad():
        net.get_parameter("blocks.3.mlp.0.bias")[:num_shut] = _SHUT
        if not has_gain:
            net.norm.weight.zero_()
    return net, (torch.randint(0, 256, (8, 128)), torch.randint(0, 256, (8, 128)))


TRAININGS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "MLP 64-256-128-10, a layer shut": partial(perceptron, 128),
    "MLP 64-256-128-10, half of a layer shut": partial(perceptron, 64),
    "ResNet-18, a block shut": convolutions,
    "decoder, 6 layers of width 256, an FFN shut": partial(transformer, 1024),
    "decoder, half of an FFN shut": partial(transformer, 512),
    "decoder, all layers behind a gain of zero": partial(transformer, has_gain=False),
}


def step(net: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """Make an ordinary step."""
    optimizer.zero_grad()
    logits = net(batch[0])
    nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten()).backward()
    optimizer.step()


def traced_step(net: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, suspects: list[Suspected]) -> None:
    """Make a step that is traced, and read the trace."""
    trace = GradientTrace(net, suspects)
    step(net, batch, optimizer)
    trace.finish()


def prepare(name: str) -> tuple[Callable[[], None], Callable[[], None], int]:
    """Return an ordinary step, a traced one, and the number of layers that are traced."""
    torch.manual_seed(0)
    net, batch = TRAININGS[name]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    step(net, batch, optimizer)
    suspects = suspects_of(net)
    # As in a training, where what is traced is a layer of which half of the units have no gradient.
    suspects = [each for each in suspects if 2 * len(each.units) >= each.layer.num_units]
    ordinary = partial(step, net, batch, optimizer)
    return ordinary, partial(traced_step, net, batch, optimizer, suspects), len(suspects)


def run() -> list[dict[str, Any]]:
    """Time ordinary and traced steps in turn, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: list[dict[str, Any]] = []
    for name in TRAININGS:
        ordinary, traced, num_layers = prepare(name)
        times = alternate({"step": ordinary, "traced": traced}, rounds=15)
        ratio = times["traced"].over(times["step"])
        seconds = {key: value.median for key, value in times.items()}
        rows.append((name, str(num_layers), *(f"{1e3 * each:.2f} ms" for each in seconds.values()), str(ratio)))
        results.append({"training": name, "layers": num_layers, **seconds, **ratio.to_dict()})
    show("A traced step", ("training", "layers traced", "step", "traced step", "traced / step"), rows)
    return results
