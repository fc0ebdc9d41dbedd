"""What a check sends on many ranks, by walking through the schedule of its collectives.

``python -m tests.benchmarks.schedule`` prints messages and bytes for a model of seven billion parameters. Collectives
are taken to run along binomial trees; libraries that cut long messages into pieces need fewer bytes on the busiest
rank, not more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES_PER_UNIT = 4 * 8  # a norm and three projections in float64, for its weights, and again for its gradients
HEAD = 1024

# Units and fan-in of the layers of a transformer as large as LLaMA 7B.
BLOCK = {
    **dict.fromkeys(("q", "k", "v", "out"), (4096, 4096)),
    "gate": (11008, 4096),
    "up": (11008, 4096),
    "down": (4096, 11008),
}
LAYERS = [("embed", 4096, 32000), ("head", 32000, 4096)] + [
    (f"blocks.{i}.{name}", units, fan_in) for i in range(32) for name, (units, fan_in) in BLOCK.items()
]


@dataclass
class Traffic:
    """What has been sent.

    Attributes:
        rounds: messages that have to wait for one another.
        messages: all messages.
        sent: bytes by rank.
    """

    rounds: int = 0
    messages: int = 0
    sent: Counter[int] = field(default_factory=Counter)


def tree(num_ranks: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of pairs (from, to) by which what rank 0 has reaches all."""
    have = 1
    while have < num_ranks:
        yield [(rank, rank + have) for rank in range(min(have, num_ranks - have))]
        have *= 2


def broadcast(traffic: Traffic, num_ranks: int, size: int) -> None:
    for pairs in tree(num_ranks):
        traffic.rounds += 1
        traffic.messages += len(pairs)
        traffic.sent.update(dict.fromkeys([sender for sender, _ in pairs], size))


def reduce(traffic: Traffic, num_ranks: int, size: int) -> None:
    """The same backwards: who has received sends."""
    for pairs in reversed(list(tree(num_ranks))):
        traffic.rounds += 1
        traffic.messages += len(pairs)
        traffic.sent.update(dict.fromkeys([receiver for _, receiver in pairs], size))


def healthy_check(num_ranks: int, num_units: int, num_layers: int) -> Traffic:
    """A check that finds nothing: one question, one answer, one conclusion, one agreement."""
    traffic = Traffic()
    broadcast(traffic, num_ranks, HEAD)
    broadcast(traffic, num_ranks, 12 * num_layers)  # the names of the matrices, compressed
    reduce(traffic, num_ranks, 2 * num_units * BYTES_PER_UNIT + 2 * 2 * 8 * num_layers)
    broadcast(traffic, num_ranks, HEAD)
    broadcast(traffic, num_ranks, 12 * num_layers)  # the report, compressed
    reduce(traffic, num_ranks, 4)
    broadcast(traffic, num_ranks, 4)
    return traffic


def main() -> None:
    """Print the table."""
    num_units = sum(units for _, units, _ in LAYERS)
    num_bytes = sum(4 * units * fan_in for _, units, fan_in in LAYERS)
    print(f"{len(LAYERS)} layers, {num_units:,} units, {num_bytes / 2**30:.1f} GiB of weights in float32")
    print(f"{'ranks':>6} {'rounds':>7} {'messages':>9} {'busiest rank':>14} {'all ranks':>12} {'of a gather':>12}")
    for num_ranks in (2, 8, 64, 1000):
        traffic = healthy_check(num_ranks, num_units, len(LAYERS))
        total, busiest = sum(traffic.sent.values()), max(traffic.sent.values())
        share = total / (2 * (num_ranks - 1) * num_bytes)  # of weights and of gradients
        print(
            f"{num_ranks:6} {traffic.rounds:7} {traffic.messages:9,} {busiest / 2**20:10.1f} MiB "
            f"{total / 2**30:8.2f} GiB {share:12.3%}"
        )


if __name__ == "__main__":
    main()
