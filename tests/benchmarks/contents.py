"""Matrices whose rows are hard to tell apart, each described by a few numbers that a search can change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How the rows of a matrix are made: a base, and noise on a scale relative to its norm.

    Attributes:
        base: a key of :data:`BASES`.
        noise: a key of :data:`NOISES`.
        exponent: decimal logarithm of the scale of the noise.
        mirrored: share of rows that are negated.
        copies: share of rows that are copies of others.
        num_clusters: of the base ``"clusters"``.
        seed: of all random numbers.
    """

    base: str
    noise: str
    exponent: float
    mirrored: float = 0.0
    copies: float = 0.0
    num_clusters: int = 16
    seed: int = 0

    def build(self, num_rows: int, width: int) -> Tensor:
        """Make the matrix ``(num_rows, width)``, float32."""
        generator = torch.Generator().manual_seed(self.seed)
        source = _Source(num_rows, width, self.num_clusters, generator)
        base = BASES[self.base](source)
        size = float(base.norm(dim=1).mean()) or 1.0
        rows = base + size * 10**self.exponent * NOISES[self.noise](source)
        copied = torch.randperm(num_rows, generator=generator)[: int(self.copies * num_rows)]
        rows[copied] = rows[torch.randint(num_rows, (len(copied),), generator=generator)]
        rows[torch.rand(num_rows, generator=generator) < self.mirrored] *= -1
        return rows

    def changed(self, random: Random) -> Recipe:
        """Return a recipe that differs in one or two fields."""
        changes = {
            "base": random.choice(list(BASES)),
            "noise": random.choice(list(NOISES)),
            "exponent": round(min(0.0, max(-8.0, self.exponent + random.gauss(0, 0.5))), 2),
            "mirrored": random.choice([0.0, 0.0, 0.5]),
            "copies": random.choice([0.0, 0.0, 0.1, 0.5, 0.9]),
            "num_clusters": random.choice([2, 4, 16, 64, 256, 1024]),
        }
        chosen = random.sample(list(changes), random.randint(1, 2))
        return replace(self, **{name: changes[name] for name in chosen})  # type: ignore[arg-type]

    @classmethod
    def draw(cls, random: Random) -> Recipe:
        """Return any recipe."""
        return cls(random.choice(list(BASES)), random.choice(list(NOISES)), round(random.uniform(-7, 0), 2))


@dataclass(frozen=True)
class _Source:
    num_rows: int
    width: int
    num_clusters: int
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def rows(self) -> Tensor:
        return self.normal(self.num_rows, self.width)

    def direction(self) -> Tensor:
        return _unit(self.normal(1, self.width))

    def place(self) -> Tensor:
        return torch.arange(self.num_rows)[:, None].float()


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit


def _hadamard(source: _Source) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < max(source.num_rows, source.width):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[: source.num_rows, : source.width].clone()


def _clusters(source: _Source) -> Tensor:
    centres = source.normal(source.num_clusters, source.width)
    return centres[torch.randint(len(centres), (source.num_rows,), generator=source.generator)]


def _one_column(source: _Source) -> Tensor:
    noise = torch.zeros(source.num_rows, source.width)
    noise[:, :1] = source.normal(source.num_rows, 1)
    return noise


def _grid(source: _Source) -> Tensor:
    side = math.isqrt(source.num_rows) + 1
    return source.place() % side * source.direction() + source.place() // side * source.direction()


def _in_subspace(rank: int) -> Callable[[_Source], Tensor]:
    def noise(source: _Source) -> Tensor:
        return source.normal(source.num_rows, rank) @ source.normal(rank, source.width) / math.sqrt(rank * source.width)

    return noise


BASES: dict[str, Callable[[_Source], Tensor]] = {
    "zero": lambda source: torch.zeros(source.num_rows, source.width),
    "constant": lambda source: torch.full((source.num_rows, source.width), 0.02),
    "one row": lambda source: source.normal(1, source.width).expand(source.num_rows, -1).clone(),
    "alternating": lambda source: (1 - 2 * (torch.arange(source.width) % 2.0)).expand(source.num_rows, -1).clone(),
    "random": lambda source: source.rows(),
    "one-hot": lambda source: torch.eye(source.num_rows, source.width),
    "pairs": lambda source: source.rows()[torch.arange(source.num_rows) // 2],
    "clusters": _clusters,
    "hadamard": _hadamard,
}
"""Rows ``(n, d)``."""

NOISES: dict[str, Callable[[_Source], Tensor]] = {
    "normal": lambda source: source.rows() / math.sqrt(source.width),
    "signs": lambda source: source.rows().sign() / math.sqrt(source.width),
    "levels": lambda source: (1.5 * source.rows()).round() / math.sqrt(source.width),
    "sphere": lambda source: _unit(source.rows()),
    "many lengths": lambda source: _unit(source.rows()) / (source.normal(source.num_rows, 1).abs() + 0.01),
    "one column": _one_column,
    "sparse": lambda source: source.rows() * (source.rows() > 2) * 7 / math.sqrt(source.width),
    "line": lambda source: source.normal(source.num_rows, 1) * source.direction(),
    "chain": lambda source: source.place() * source.direction(),
    "grid": _grid,
    "4 directions": _in_subspace(4),
    "16 directions": _in_subspace(16),
}
"""Noise of norm 1 or so, ``(n, d)``; chains and grids have steps of 1."""

WORST = [
    Recipe("one row", "one column", -1.67, mirrored=0.5),
    Recipe("constant", "many lengths", -4.16, mirrored=0.5, copies=0.1),
    Recipe("clusters", "sphere", -4.59, mirrored=0.5, copies=0.1, num_clusters=256),
    Recipe("alternating", "line", -1.57, mirrored=0.5, copies=0.5),
    Recipe("hadamard", "line", -4.54, mirrored=0.5),
    Recipe("hadamard", "grid", -6.52, mirrored=0.5, copies=0.5),
    Recipe("clusters", "one column", -2.75, mirrored=0.5, copies=0.5, num_clusters=4),
    Recipe("alternating", "chain", -4.99, copies=0.5),
    Recipe("constant", "normal", -5.0),
    Recipe("constant", "16 directions", -4.5),
]
"""The contents that the search found to take longest, one it had found before, and two that layers have in practice."""
