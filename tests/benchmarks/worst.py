"""A check against one read of the matrix, for contents that take it longest, and a search for such contents.

``python -m tests.benchmarks.worst SECONDS`` searches: it draws contents and changes each a little as long as that
makes it worse. It measures processor time, which other work on the machine changes least.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry import duplicate_groups
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import Grouping, find_groups_within_budget
from lightning_symmetry.matrices.mirrors import find_mirrors
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.sieve import suspects
from lightning_symmetry.matrices.sketching import sketch_all
from tests.benchmarks.contents import WORST, Recipe
from tests.benchmarks.timing import alternate, show

SHAPES = [(512, 512), (2048, 512), (2048, 2048), (8192, 1024)]
_SEARCHED = (2048, 512)
_MOST_CHANGES = 20  # in a row that make a content no worse


def group_as_a_check(rows: Tensor) -> Grouping:
    """Find equal rows and mirror images, as a check does of the weights of a layer."""
    with torch.no_grad():
        matrix = DenseRows([rows])
        [sketch] = sketch_all([matrix])
        question = Question(matrix, sketch, TOLERANCES[rows.dtype])
        [suspected] = suspects([question])
        found = find_groups_within_budget(question, suspected=suspected)
        find_mirrors(question, found, suspected)
        return found


def run() -> dict[str, Any]:
    print("\nWorst contents: time of a check of the rows over one read pass (W.sum()); median [quartiles]")
    results: dict[str, Any] = {}
    table = []
    for recipe in WORST:
        row = [f"{recipe.base}, {recipe.noise}, 1e{recipe.exponent:g}"]
        for shape in SHAPES:
            rows = recipe.build(*shape)
            times = alternate({"read": rows.sum, "ours": partial(group_as_a_check, rows)}, rounds=7)
            ratio = times["ours"].over(times["read"])
            row.append(str(ratio))
            results.setdefault(f"{shape[0]} x {shape[1]}", {})[row[0]] = ratio.to_dict()
        table.append(tuple(row))
    show("Over one read pass", ("content", *(f"{n} x {d}" for n, d in SHAPES)), table)
    return results


def search(seconds: float, function: Callable[[Tensor], Any]) -> list[tuple[float, Recipe]]:
    """Return the ten worst contents that were found in so many seconds, the worst first."""
    random = Random(0)
    end = time.monotonic() + seconds
    read = _seconds_of(torch.randn(*_SEARCHED).sum)
    found: dict[tuple[str, str], tuple[float, Recipe]] = {}  # the worst of each base and noise
    while time.monotonic() < end:
        worst = _passes(recipe := Recipe.draw(random), function, read)
        num_changes = 0
        while num_changes < _MOST_CHANGES and time.monotonic() < end:
            changed = recipe.changed(random)
            passes = _passes(changed, function, read)
            num_changes = num_changes + 1 if passes <= worst else 0
            worst, recipe = max((worst, recipe), (passes, changed), key=lambda pair: pair[0])
        kind = recipe.base, recipe.noise
        found[kind] = max(found.get(kind, (0.0, recipe)), (worst, recipe), key=lambda pair: pair[0])
    return sorted(found.values(), key=lambda pair: -pair[0])[:10]


def _passes(recipe: Recipe, function: Callable[[Tensor], Any], read: float) -> float:
    return _seconds_of(partial(function, recipe.build(*_SEARCHED)), 3) / read


def _seconds_of(function: Callable[[], Any], rounds: int = 20) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    for name, function in (("a check", group_as_a_check), ("duplicate_groups", duplicate_groups)):
        print(f"{name}, {_SEARCHED[0]} x {_SEARCHED[1]}: read passes, and the content")
        for passes, recipe in search(float(sys.argv[1]), function):
            print(f"{passes:8.0f}  {recipe}")
