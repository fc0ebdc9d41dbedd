"""Print the table of docs/repair.md, the effect of a repair during training: ``python -m tests.repair``."""

from __future__ import annotations

import copy
from statistics import median
from typing import Literal

import torch
from torch import nn

from lightning_symmetry import break_symmetry, diagnose
from lightning_symmetry.demo.digits import GALLERY, Digits, load, started
from lightning_symmetry.outputs.console import print_table

BEFORE, AFTER, SEEDS = 6, 12, 5  # epochs before and after the break
METHODS: tuple[Literal["auto", "noise"] | None, ...] = (None, "auto", "noise")


def train(net: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()


def loss_of(net: nn.Module, digits: Digits) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(digits.images), digits.labels))


def main() -> None:
    digits = load()
    rows = []
    for name in ("copied half", "constant 0.02"):
        figures: dict[str | None, list[tuple[float, ...]]] = {method: [] for method in METHODS}
        for seed in range(SEEDS):
            net = started(GALLERY[name], seed)
            optimizer = net.configure_optimizers()
            train(net, optimizer, digits, BEFORE, seed)
            for method in METHODS:
                other = copy.deepcopy(net)
                going_on = other.configure_optimizers()
                going_on.load_state_dict(optimizer.state_dict())
                losses = [loss_of(other, digits)]
                if method is not None:
                    break_symmetry(other, diagnose(other), optimizer=going_on, method=method)
                losses.append(loss_of(other, digits))
                train(other, going_on, digits, 1, seed + 100)
                losses.append(loss_of(other, digits))
                train(other, going_on, digits, AFTER - 1, seed + 200)
                figures[method].append((*losses, loss_of(other, digits), 100 * digits.accuracy(other)))
        for method in METHODS:
            *losses, accuracy = map(median, zip(*figures[method], strict=True))
            rows.append((name, method or "left alone", *(f"{loss:.3f}" for loss in losses), f"{accuracy:.1f} %"))
    print_table(
        ("trained for 6 epochs", "method", "loss before", "right after", "1 epoch", "12 epochs", "test accuracy"), rows
    )


if __name__ == "__main__":
    main()
