"""How the time of a check grows with the parameters, and with the number of layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.units.discovery import find_layers, structure_of
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.history import History
from tests.benchmarks.timing import alternate, show
from tests.verdicts.recording import fail

# Weights are views of one buffer, which is larger than any cache: a billion of them, and as many gradients, need not
# be in memory.
BUFFER_ELEMENTS = 200_000_000
GPT2 = {"GPT-2 small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "XL": (48, 1600)}
NUM_LAYERS = (10, 50, 200, 1000, 2000)
FIXED_PARAMETERS = 20_000_000


class Shapes(nn.Module):
    """Linear layers of given shapes over a shared buffer, with gradients."""

    def __init__(self, shapes: Sequence[tuple[int, int]], buffer: Tensor) -> None:
        super().__init__()
        place = 0
        for i, (units, inputs) in enumerate(shapes):
            with torch.device("meta"):
                layer = nn.Linear(inputs, units, bias=False)
            size = units * inputs
            weight, gradient = (buffer[(place + k * size) % (len(buffer) - size) :][:size] for k in range(2))
            layer.weight = nn.Parameter(weight.view(units, inputs))
            layer.weight.grad = gradient.view(units, inputs)
            place += 2 * size
            self.add_module(str(i), layer)


def gpt2(depth: int, width: int) -> list[tuple[int, int]]:
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(50257, width), *(block * depth)]


def shape_lists() -> dict[str, list[tuple[int, int]]]:
    small = {"1 M": [(256, 256)] * 16, "10 M": [(512, 512)] * 40}
    return small | {name: gpt2(*size) for name, size in GPT2.items()} | {"1 B": [(8192, 4096)] * 30}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of a power law, by least squares on a log-log scale."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(s) for s in seconds]).slope


class Check:
    """All that a check does for a healthy model but the writing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = find_layers(model).layers
        self.history = History(3, 0.5)
        self.history.match_layers(self.layers, 0)

    def __call__(self) -> None:
        structure_of(self.model)
        looks = look(self.layers)
        self.history.update(looks, 5, is_fresh=self.history.is_fresh(looks), on_error=fail)


def read(model: nn.Module) -> None:
    """One pass over all weights and gradients."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.detach().sum()
        parameter.grad.sum()


def run() -> dict[str, Any]:
    buffer = torch.randn(BUFFER_ELEMENTS, generator=torch.Generator().manual_seed(0))
    rows, sizes, seconds = [], [], []
    for name, shapes in shape_lists().items():
        model = Shapes(shapes, buffer)
        size = sum(units * inputs for units, inputs in shapes)
        times = alternate({"read": partial(read, model), "check": Check(model)}, rounds=5)
        sizes.append(float(size))
        seconds.append(times["check"].median)
        ratio = times["check"].over(times["read"])
        rows.append((name, f"{size / 1e6:.0f} M", str(len(shapes)), f"{seconds[-1] * 1e3:.1f} ms", str(ratio)))
    grows = exponent(sizes, seconds)
    head = ("model", "parameters", "layers", "check", "over one pass over weights and gradients")
    show(f"Growth with parameters: exponent {grows:.3f}", head, rows)

    counts = {}
    for count in NUM_LAYERS:
        side = int(math.sqrt(FIXED_PARAMETERS / count))
        counts[count] = alternate({"check": Check(Shapes([(side, side)] * count, buffer))}, rounds=5)["check"].median
    slope = statistics.linear_regression(list(counts), list(counts.values())).slope
    show(
        f"Growth with layers, {FIXED_PARAMETERS // 10**6} M parameters: {slope * 1e6:.1f} microseconds per layer, "
        f"exponent {exponent(list(counts), list(counts.values())):.3f}",
        ("layers", "check"),
        [(str(count), f"{time * 1e3:.1f} ms") for count, time in counts.items()],
    )
    return {
        "parameters": dict(zip(map(str, sizes), seconds, strict=True)),
        "exponent_with_parameters": grows,
        "layers": counts,
        "exponent_with_layers": exponent(list(counts), list(counts.values())),
        "seconds_per_layer": slope,
    }
