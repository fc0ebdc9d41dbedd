"""A check of a sharded model, over that of the same model in one process: ``python -m tests.benchmarks sharded``."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import Options
from tests.benchmarks.fresh import begin, result_of
from tests.benchmarks.timing import Times, alternate, show

_RANKS = 4
_SIDE = 4096
_SETTLED = 10  # checks after which groups and findings are settled
_ROUNDS = 15
_AT_MOST = timedelta(seconds=60)  # that a rank waits for another one


def whole() -> nn.Linear:
    """The layer before it is sharded, with a random gradient."""
    torch.manual_seed(0)
    layer = nn.Linear(_SIDE, _SIDE, bias=False)
    layer.weight.grad = torch.randn(_SIDE, _SIDE)
    return layer


def sharded(layer: nn.Linear) -> nn.Module:
    """A copy of a layer in an FSDP2 of all ranks, each of which holds as many rows."""
    assert layer.weight.grad is not None
    mesh = init_device_mesh("cpu", (_RANKS,))
    model = nn.Sequential(copy.deepcopy(layer))
    fully_shard(model, mesh=mesh)
    for parameter in model.parameters():
        parameter.grad = distribute_tensor(layer.weight.grad, mesh, [Shard(0)])
    return model


def check_of(model: nn.Module, num_ranks: int) -> Callable[[], None]:
    """A check without outputs that has settled; to be made, and called, on all ranks that hold the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = SymmetryEngine(Options(on_symmetry="ignore"), "the monitor", print)
    if num_ranks > 1:
        engine.prepare(model)
        dist.barrier()  # no rank is further than the backward pass when another one starts
    engine.start([optimizer])
    steps = itertools.count()

    def check() -> None:
        assert engine.before_step(model, optimizer, next(steps), 1, list) is not None

    for _ in range(_SETTLED):
        check()
    return check


def matrices(model: nn.Module) -> list[Tensor]:
    """What this rank holds of weights and gradients."""
    both = [tensor for weight in model.parameters() for tensor in (weight.detach(), weight.grad) if tensor is not None]
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in both]


def read(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        tensor.sum()


def nothing() -> None:
    """What the other ranks do while the first one works by itself."""


def together(work: Callable[[], Any]) -> None:
    """Work until all ranks are done, so that they begin the next piece of work at once."""
    work()
    dist.barrier()


def measure(rank: int, folder: str) -> dict[str, tuple[float, ...]]:
    """On every rank, in a process and on a thread of its own: seconds of all candidates, which take turns."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=_RANKS, timeout=_AT_MOST)
    layer = whole()
    model = sharded(layer)
    candidates: dict[str, Callable[[], None]] = {
        "sharded check": check_of(model, _RANKS),
        "check": check_of(layer, 1) if rank == 0 else nothing,
        "sharded pass": partial(read, matrices(model)),
        "pass": partial(read, matrices(layer)) if rank == 0 else nothing,
    }
    dist.barrier()
    times = alternate({name: partial(together, work) for name, work in candidates.items()}, rounds=_ROUNDS)
    dist.destroy_process_group()
    return {name: each.seconds for name, each in times.items()}


def seconds_of_first_rank() -> dict[str, Times]:
    """Start all ranks, and wait for them."""
    with TemporaryDirectory() as folder:
        processes = [begin(measure, rank, folder) for rank in range(_RANKS)]
        try:
            first, *_ = [result_of(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
    return {name: Times(tuple(seconds)) for name, seconds in first.items()}


def run() -> dict[str, Any]:
    """Time both checks beside a read pass over weights and gradients, and print the table."""
    times = seconds_of_first_rank()
    ratios = {
        "check": times["sharded check"].over(times["check"]),
        "pass": times["sharded pass"].over(times["pass"]),
        "sharded check over sharded pass": times["sharded check"].over(times["sharded pass"]),
    }
    show(
        f"{_SIDE} x {_SIDE} under FSDP2 on {_RANKS} ranks of one thread, over the same in one process of one thread",
        ("", "one process", "sharded", "sharded / one process"),
        [
            (name, *(f"{1e3 * times[kind].median:.1f} ms" for kind in (name, f"sharded {name}")), str(ratios[name]))
            for name in ("check", "pass")
        ],
    )
    print(f"A sharded check takes {ratios['sharded check over sharded pass']} sharded passes.")
    return {
        "seconds": {name: each.median for name, each in times.items()},
        "ratios": {name: ratio.to_dict() for name, ratio in ratios.items()},
    }
