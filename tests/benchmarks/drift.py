"""How far truly symmetric units drift apart by rounding alone: ``python -m tests.benchmarks.drift`` prints a table.

Pairs of copies, with what they send, are trained; in exact arithmetic they would stay equal for ever. Widths are odd,
so that some copies fall into the remainders of the blocks in which a matrix product is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lightning_symmetry.units.discovery import find_layers
from tests import zoo
from tests.cases import OPTIMIZERS

STEPS = (1, 100, 1000)


def perceptron() -> nn.Module:
    return zoo.duplicate_units(zoo.perceptron(nn.Tanh, 90), "0", "2", [(i, i + 59) for i in range(31)])


def convolution() -> nn.Module:
    net = nn.Sequential(
        zoo.Image(), nn.Conv2d(2, 35, 3), nn.BatchNorm2d(35), nn.ReLU(), nn.Conv2d(35, 8, 3), zoo.Pool()
    )
    net = nn.Sequential(*net, nn.Linear(8, zoo.OUTPUTS))
    return zoo.duplicate_units(net, "1", "4", [(i, i + 25) for i in range(10)])


def recurrent() -> nn.Module:
    return zoo.all_constant(zoo.Recurrent(nn.LSTM(3, 10, batch_first=True)))


def attention() -> nn.Module:
    block = nn.TransformerEncoderLayer(24, 2, 90, dropout=0.0, batch_first=True)
    zoo.duplicate_units(block, "linear1", "linear2", [(i, i + 59) for i in range(31)])
    return nn.Sequential(
        nn.Linear(zoo.INPUTS, 24), nn.Unflatten(1, (1, 24)), block, nn.Flatten(), nn.Linear(24, zoo.OUTPUTS)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, list[tuple[int, ...]]]] = {
    "MLP": (perceptron, "0", [(i, i + 59) for i in range(31)]),
    "CNN with BatchNorm": (convolution, "1", [(i, i + 25) for i in range(10)]),
    "LSTM": (recurrent, "rnn.l0", [tuple(range(10))]),
    "Transformer": (attention, "2.linear1", [(i, i + 59) for i in range(31)]),
}


def spread(rows: Tensor, groups: list[tuple[int, ...]]) -> float:
    """Largest relative distance of a unit from the first of its group."""
    rows = rows.double()
    worst = 0.0
    for group in groups:
        units = rows[list(group)]
        scale = units.norm(dim=1).max().clamp(min=1e-300)
        worst = max(worst, float((units - units[0]).norm(dim=1).max() / scale))
    return worst


def measure(network: str, optimizer: str, dtype: torch.dtype, num_steps: int) -> dict[int, tuple[float, float]]:
    """By step: the largest distances of weights and of gradients."""
    build, layer_name, groups = NETWORKS[network]
    torch.manual_seed(5)
    net = build().to(dtype)
    inputs = torch.rand(num_steps, 64, zoo.INPUTS, dtype=dtype) + 0.1
    targets = torch.tanh((inputs - 0.6) @ torch.randn(zoo.INPUTS, zoo.OUTPUTS, dtype=dtype))
    stepper = OPTIMIZERS[optimizer](net.parameters())
    seen = {}
    for step in range(num_steps):
        stepper.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(inputs[step]), targets[step]))
        stepper.step()
        if step + 1 in STEPS:
            layer = next(layer for layer in find_layers(net).layers if layer.name == layer_name)
            gradients, everything = layer.gradients(), np.arange(layer.num_units)
            assert gradients is not None
            distances = (spread(layer.weights().fetch(everything), groups), spread(gradients.fetch(everything), groups))
            seen[step + 1] = distances
    return seen


def main() -> None:
    """Print the table: the largest over the networks."""
    print("| dtype, optimizer | weights after 1 / 100 / 1,000 steps | gradients after 1 / 100 / 1,000 steps |")
    print("| --- | --- | --- |")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for optimizer in OPTIMIZERS:
            found = [measure(network, optimizer, dtype, max(STEPS)) for network in NETWORKS]
            worst = [[max(seen[step][kind] for seen in found) for step in STEPS] for kind in (0, 1)]
            cells = [" / ".join(f"{value:.0e}" if value else "0" for value in row) for row in worst]
            print(f"| {str(dtype).removeprefix('torch.')}, {optimizer} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
