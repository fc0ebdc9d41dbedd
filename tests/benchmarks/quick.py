"""A check that reads healthy layers quickly, beside one that looks at all: ``python -m tests.benchmarks quick``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import Options
from lightning_symmetry.outputs.output import Heatmaps
from tests.benchmarks.redundancy import MODELS, many_small
from tests.benchmarks.timing import Ratio, alternate, show

_SETTLED = 40  # checks after which verdicts stand, and no directions are due for a while


def with_gradients(make: Callable[[], nn.Module], shape: Sequence[int]) -> nn.Module:
    """A healthy model with the gradients of 64 random inputs; the first number of their shape does not matter."""
    torch.manual_seed(0)
    model = make()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
            nn.init.orthogonal_(layer.weight)  # through which gradients reach the first of many layers
    model(torch.randn(64, *shape[1:])).square().mean().backward()
    return model


def check_of(model: nn.Module, heatmaps: Heatmaps) -> Callable[[], None]:
    """A check without outputs, of a model whose weights have moved; with pictures of all layers, all are looked at."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = SymmetryEngine(Options(heatmaps=heatmaps, scalars="none", on_symmetry="ignore"), "the monitor", print)
    engine.start([optimizer])
    steps = itertools.count()

    def check() -> None:
        assert engine.before_step(model, optimizer, next(steps), 1, list) is not None

    for _ in range(_SETTLED):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.001)
        check()
    return check


def run() -> list[dict[str, float | str]]:
    """Time both kinds of checks side by side, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: list[dict[str, float | str]] = []
    seconds: dict[int, float] = {}
    cases = {name: MODELS[name] for name in ("MLP 64-256-128-10", "60 layers of 32 units", "ResNet of the zoo")}
    cases["500 layers of 32 units"] = (lambda: many_small(500), (16, 32))
    for name, (make, shape) in cases.items():
        model = with_gradients(make, shape)
        times = alternate({"quick": check_of(model, "findings"), "close": check_of(model, "all")}, rounds=20)
        ratio: Ratio = times["quick"].over(times["close"])
        num_layers = sum(isinstance(layer, nn.Linear) for layer in model.modules())
        seconds[num_layers] = times["quick"].median
        rows.append((name, f"{1e3 * times['close'].median:.2f} ms", f"{1e3 * seconds[num_layers]:.2f} ms", str(ratio)))
        results.append({"model": name, "close": times["close"].median, "quick": times["quick"].median})
    show("Quick reading of healthy layers", ("model", "all layers looked at", "read quickly", "ratio"), rows)
    slope = (seconds[500] - seconds[60]) / 440
    print(f"{1e6 * slope:.0f} microseconds per layer, between 60 and 500 layers")
    return [*results, {"model": "per layer", "quick": slope}]
