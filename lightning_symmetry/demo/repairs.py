"""Comparison of repairs: breaking a symmetry at the first finding, or merging equal units."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_symmetry.demo.digits import GALLERY, Digits, DigitsNet, load, progress, run_name, started, train
from lightning_symmetry.demo.gallery import tensorboard_command
from lightning_symmetry.merging.merge import Merged, merge_duplicates
from lightning_symmetry.outputs.console import print_table
from lightning_symmetry.repair.breaking import Change

HEALTHY = "PyTorch default"
SICK = ("zeros", "constant 0.02", "constant -0.02", "copied half", "mirrored half, tanh", "bias -10")
MERGED = "copied half"


@dataclass(frozen=True)
class Outcome:
    """The results of an initialisation, one per seed."""

    left: list[float]  # test accuracies without a repair
    broken: list[float]  # test accuracies with ``on_symmetry="break"``
    changes: list[list[Change]]  # the changes by ``on_symmetry="break"``


@dataclass(frozen=True)
class Smaller:
    """The result of merging the copies in a trained network."""

    merged: Merged  # the smaller network
    num_units: tuple[int, int]  # number of units of all layers, before and after
    num_equal: int  # number of test images for which both networks predict the same digit
    num_images: int  # number of test images


def run(logdir: Path, num_seeds: int = 5) -> tuple[dict[str, Outcome], Smaller | None]:
    """Train from each initialisation with and without a repair, and print the results.

    The runs of the first seed are written as TensorBoard runs in ``logdir``.

    Returns:
        The results by initialisation; the merge, or None without torch-pruning.
    """
    clock = time.monotonic()
    digits = load()
    outcomes: dict[str, Outcome] = {}
    smaller = None
    with progress(2 * num_seeds * (1 + len(SICK))) as begin:
        for name in (HEALTHY, *SICK):
            outcomes[name] = outcome = Outcome([], [], [])
            for seed in range(num_seeds):
                folder = logdir / run_name(name) if seed == 0 else None
                begin(name)
                net = started(GALLERY[name], seed)
                train(net, digits, folder)
                outcome.left.append(digits.accuracy(net))
                if name == MERGED and seed == 0:
                    smaller = _merge(net, digits)
                begin(f"{name}, broken")
                net = started(GALLERY[name], seed)
                monitor = train(net, digits, folder and folder.with_name(f"{folder.name}_broken"), "break")
                outcome.broken.append(digits.accuracy(net))
                outcome.changes.append(monitor.changes)
    _print_result(outcomes, smaller, logdir, time.monotonic() - clock)
    return outcomes, smaller


def _merge(net: DigitsNet, digits: Digits) -> Smaller | None:
    try:
        merged = merge_duplicates(net, digits.images[:64])
    except ModuleNotFoundError:
        return None
    assert isinstance(merged.model, DigitsNet)
    before, after = [sum(layer.out_features for layer in each.layers()) for each in (net, merged.model)]
    is_equal = digits.predictions(net) == digits.predictions(merged.model)
    return Smaller(merged, (before, after), int(is_equal.sum()), len(is_equal))


def _print_result(outcomes: dict[str, Outcome], smaller: Smaller | None, logdir: Path, seconds: float) -> None:
    healthy = statistics.median(outcomes[HEALTHY].left)
    rows = [_row(name, outcome, healthy) for name, outcome in outcomes.items()]
    print_table(("initialisation", "left alone", "broken", "behind healthy", "new weights for"), rows)
    num_seeds = len(outcomes[HEALTHY].left)
    print(f"left alone, broken: test accuracy, median of {num_seeds} seeds; broken: with on_symmetry='break'.\n")
    print("The monitor's changes with the first seed:\n")
    for name, outcome in outcomes.items():
        for change in outcome.changes[0]:
            print(f"  [{name}] {change}")
    if smaller is None:
        print("\nMerging needs torch-pruning: pip install 'lightning-symmetry[merge]'")
    else:
        merged = smaller.merged
        print(
            f"\n[{MERGED}] left alone and merged after the training: {smaller.num_units[0]} units become "
            f"{smaller.num_units[1]}, {merged.parameters_before:,} parameters {merged.parameters_after:,}; "
            f"both networks predict the same digit for {smaller.num_equal} of {smaller.num_images} test images."
        )
    print(f"\nDone in {seconds:.0f} s. Compare the losses with:\n\n  {tensorboard_command()} --logdir {logdir}\n")


def _row(name: str, outcome: Outcome, healthy: float) -> Sequence[str]:
    left, broken = statistics.median(outcome.left), statistics.median(outcome.broken)
    counts: Counter[str] = Counter()
    for change in outcome.changes[0]:
        counts[change.layer] += len(change.units)
    changed = ", ".join(f"{count} of {layer}" for layer, count in counts.items())
    behind = f"{100 * (healthy - broken):.1f} points"
    return (name, f"{left:.1%}", f"{broken:.1%}", behind, changed or "nothing")
