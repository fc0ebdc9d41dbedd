"""Times measured side by side: every round runs each candidate once, so that what slows the machine slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_symmetry.verdicts.tables import plain_table


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate, one number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Times) -> Ratio:
        """The ratio of the medians, and the quartiles of the ratios round by round."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
        return Ratio(self.median / other.median, low, high, len(ratios))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with the quartiles of the single rounds."""

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        spread = f" [{_short(self.low)}, {_short(self.high)}]" if self.rounds > 1 else " (one run)"
        return _short(self.value) + spread

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.value, "lower_quartile": self.low, "upper_quartile": self.high, "rounds": self.rounds}


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def alternate(
    candidates: Mapping[str, Callable[[], Any]], rounds: int = 9, at_most: float = float("inf")
) -> dict[str, Times]:
    """Run the candidates in turn, after one run to warm up.

    Args:
        candidates: what to run, by name.
        rounds: how often each is run.
        at_most: seconds after which no further round is begun; the first is always run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.perf_counter()
    for round_number in range(rounds + 1):
        if len(next(iter(seconds.values()))) and time.perf_counter() - started > at_most:
            break
        for name, candidate in candidates.items():
            began = time.perf_counter()
            candidate()
            if round_number or at_most < float("inf"):
                seconds[name].append(time.perf_counter() - began)
    return {name: Times(tuple(times[-rounds:])) for name, times in seconds.items()}


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n{plain_table(head, rows)}", flush=True)
