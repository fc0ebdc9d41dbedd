"""Units planted into networks of twelve architectures, and their repair: ``python -m tests.merging.table``.

Copies and mirror images are merged, units without a gradient are recycled. The function is compared in float64 and in
both modes.
"""

from __future__ import annotations

import copy

import torch

from lightning_symmetry import merge_duplicates
from tests.sick_networks import ARCHITECTURES, PLANTED, distance, loss_of, repaired, sick_network

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
NAMES = ("float32", "bfloat16", "float64")


def row(architecture: str, planted: str) -> tuple[str, ...]:
    """Return the change of the function in each dtype, what is saved, and what is left and why."""
    seed = 100 * ARCHITECTURES.index(architecture) + PLANTED.index(planted)
    changed, saved, left = [], [], []
    for dtype in DTYPES:
        case = sick_network(seed, architecture, planted, dtype)
        if not planted.endswith("units"):
            loss_of(case.net, case.inputs).backward()  # mirror images are recognised by their gradients
        before = copy.deepcopy(case.net)
        if planted.endswith("units"):
            changes, why_not = repaired(case)
            after, number = case.net, sum(len(change.units) for change in changes)
            saved.append(f"{number} units" if number else "0")
            left.append(why_not.partition("they are dead, but ")[2].partition(", so new rows")[0])
        else:
            merged = merge_duplicates(case.net, case.inputs)
            after = merged.model
            number = merged.parameters_before - merged.parameters_after
            saved.append(f"{number} of {merged.parameters_before}")
            left.append("; ".join(merged.left.values()) or ("" if number else "no equal units are found"))
        error = distance(before, after, case.inputs)
        changed.append(f"{error:.0e}" if error else "0")
    return (*changed, _once(saved), _once(left))


def _once(texts: list[str]) -> str:
    """Return the texts of the three dtypes, or one if they are the same."""
    return (
        texts[0]
        if len(set(texts)) == 1
        else "; ".join(f"{dtype}: {t or '-'}" for dtype, t in zip(NAMES, texts, strict=True))
    )


def main() -> None:
    """Print a row for each architecture and kind of units."""
    print("| architecture | planted | changed by, float32 | bfloat16 | float64 | saved, or recycled | left, and why |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for architecture in ARCHITECTURES:
        for planted in PLANTED:
            print(f"| {' | '.join((architecture, planted, *row(architecture, planted)))} |", flush=True)


if __name__ == "__main__":
    main()
