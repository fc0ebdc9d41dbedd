"""``duplicate_groups`` against one read of the matrix, and against what else finds equal rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torchmetrics.functional import pairwise_cosine_similarity

from lightning_symmetry import duplicate_groups
from tests.benchmarks.timing import Ratio, Times, alternate, show

SHAPES = [(512, 512), (2048, 2048), (4096, 4096), (11008, 4096), (50257, 768)]
MAX_SECONDS = 60.0
MAX_BYTES = 6e9


def contents(num_rows: int, width: int, device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """The matrices that are looked at, and what is in them."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(num_rows, width, generator=generator).to(device)
    order = torch.randperm(num_rows, generator=generator).to(device)
    scales = torch.randn(num_rows, 1, generator=generator).to(device)
    yield "random", random
    planted = random.clone()
    for first in range(3):
        planted[order[10 * first : 10 * first + 5]] = random[first]
    yield "3 groups of 5", planted
    yield "all equal", random[:1].expand(num_rows, -1).contiguous()
    yield "all zero", torch.zeros_like(random)
    tenth = random.clone()
    tenth[order[: num_rows // 10]] = random[0]
    yield "10 % equal", tenth
    yield "on a line", scales * random[:1]
    yield "one-hot", torch.eye(num_rows, width, device=device)


def nearest_in_faiss(rows: Tensor) -> None:
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.numpy())
    index.search(rows.numpy(), 2)


def nearest_in_sklearn(rows: Tensor) -> None:
    NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows.numpy()).kneighbors()


# Each with the bytes that it takes, beside the matrix itself, as multiples of n^2 and of n d numbers of four bytes.
PEERS: dict[str, tuple[Callable[[Tensor], Any], float, float]] = {
    "torch.unique": (partial(torch.unique, dim=0, return_inverse=True), 0, 3),
    "cosine matrix": (lambda rows: pairwise_cosine_similarity(rows), 2, 1),
    "torch.cdist": (lambda rows: torch.cdist(rows, rows), 2, 1),
    "NearestNeighbors": (nearest_in_sklearn, 0, 1),
    "faiss": (nearest_in_faiss, 0, 1),
}


def run() -> dict[str, Any]:
    print("\nKernel: time of duplicate_groups over one read pass (W.sum()); median [quartiles]")
    ours: dict[str, dict[str, Ratio]] = {}
    passes: dict[str, float] = {}
    for shape in SHAPES:
        name = f"{shape[0]} x {shape[1]}"
        ours[name] = {}
        for content, rows in contents(*shape):
            times = alternate({"read": rows.sum, "ours": partial(duplicate_groups, rows)}, rounds=11)
            ours[name][content] = times["ours"].over(times["read"])
            passes[name] = times["read"].median
    head = ("rows", *next(iter(ours.values())), "one pass")
    show(
        "Over one read pass",
        head,
        [(name, *map(str, ratios.values()), f"{passes[name] * 1e3:.3g} ms") for name, ratios in ours.items()],
    )
    peers = {f"{n} x {d}": _against_peers(n, d) for n, d in SHAPES}
    table = [(name, *(str(peers[name].get(peer, "-")) for peer in PEERS)) for name in peers]
    show("Time of others over that of duplicate_groups, random rows", ("rows", *PEERS), table)
    return {
        "over_one_pass": {name: {c: r.to_dict() for c, r in ratios.items()} for name, ratios in ours.items()},
        "pass_seconds": passes,
        "others_over_ours": {
            name: {peer: r.to_dict() if isinstance(r, Ratio) else r for peer, r in ratios.items()}
            for name, ratios in peers.items()
        },
    }


_RATES: dict[str, float] = {}  # seconds per n^2 d, of the matrix before


def _against_peers(num_rows: int, width: int) -> dict[str, Ratio | str]:
    rows = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))
    work = float(num_rows) ** 2 * width
    results: dict[str, Ratio | str] = {}
    for peer, (function, squares, copies) in PEERS.items():
        needed = 4 * (squares * num_rows**2 + copies * num_rows * width)
        predicted = _RATES.get(peer, 0.0) * work
        if needed > MAX_BYTES:
            results[peer] = f"{needed / 1e9:.0f} GB"
        elif predicted > MAX_SECONDS:
            results[peer] = f"about {predicted:.0f} s"
        else:
            pair = {"ours": partial(duplicate_groups, rows), peer: partial(function, rows)}
            times = alternate(pair, rounds=5, at_most=4.0)
            results[peer] = times[peer].over(times["ours"])
            if peer != "torch.unique":
                _RATES[peer] = _last(times[peer]) / work
    return results


def _last(times: Times) -> float:
    return times.seconds[-1]
