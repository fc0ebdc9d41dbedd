"""Real trainings on several processes, and a table of their findings.

``python -m tests.distributed`` trains every network in every layout on 2 and on 4 ranks, with the monitor and without,
and compares the findings with those on one process, unit by unit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from tests import zoo
from tests.serving import free_port
from tests.training import fill, make_trainer, quiet

# ----------------------------------------------------------------- networks


class WorkedExample(nn.Module):
    """Two inputs, two hidden layers of two units, one output; every weight is the same number."""

    plan: ClassVar = {"first": ColwiseParallel, "second": RowwiseParallel}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.last = nn.Linear(2, 1, bias=False)
        fill(self, 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(inputs[:, :2])))
        return out


class Planted(nn.Module):
    """A perceptron of odd widths with groups of copies."""

    plan: ClassVar = {"0": ColwiseParallel, "2": RowwiseParallel}

    def __init__(self, width: int) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, width - 2), nn.Tanh())
        net.append(nn.Linear(width - 2, 3))
        zoo.duplicate_units(net, "0", "2", [(0, 7), (1, 8, 12), (2, 3, 4, 11)])
        for name, child in net.named_children():
            self.add_module(name, child)

    def forward(self, inputs: Tensor) -> Tensor:
        for child in self.children():
            inputs = child(inputs)
        return inputs


class Block(nn.Module):
    """A transformer block on 4 tokens of 3 numbers, with its embedding and a head."""

    plan: ClassVar = {
        **dict.fromkeys(("q", "k", "v", "up"), ColwiseParallel),
        **dict.fromkeys(("mix", "down"), RowwiseParallel),
    }

    def __init__(self, *, is_constant: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.q, self.k, self.v, self.mix = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        if is_constant:
            fill(self.up, 0.05)
            fill(self.down, 0.05)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs.reshape(-1, 4, 3))
        normed = self.norms[0](hidden)
        # As many heads as this rank has.
        q, k, v = (part(normed).reshape(len(inputs), 4, -1, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        hidden = hidden + self.mix(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + self.down(nn.functional.gelu(self.up(self.norms[1](hidden))))
        out: Tensor = self.head(hidden.mean(dim=1))
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "worked example": WorkedExample,
    "planted groups": lambda: Planted(18),
    "constant layer": lambda: Block(is_constant=True),
    "healthy block": lambda: Block(is_constant=False),
}


# ----------------------------------------------------------------- layouts


def shard_layers(net: nn.Module, mesh: DeviceMesh, **options: Any) -> None:
    """FSDP2 of every layer, then of the rest."""
    for child in net.children():
        if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList):
            fully_shard(child, mesh=mesh, **options)
    fully_shard(net, mesh=mesh, **options)


def tensor_parallel(net: Any, mesh: DeviceMesh) -> None:
    plan: dict[str, ParallelStyle] = {name: style() for name, style in net.plan.items()}
    parallelize_module(net, mesh, plan)


def fsdp2(net: nn.Module, mesh: DeviceMesh) -> None:
    shard_layers(net, mesh["data_parallel"])


def fsdp2_columns(net: nn.Module, mesh: DeviceMesh) -> None:
    """Weights sharded along their inputs, if they can be split evenly."""
    size = mesh["data_parallel"].size()

    def place(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % size == 0 else None

    shard_layers(net, mesh["data_parallel"], shard_placement_fn=place)


def tensor(net: nn.Module, mesh: DeviceMesh) -> None:
    tensor_parallel(net, mesh["tensor_parallel"])


def both(net: nn.Module, mesh: DeviceMesh) -> None:
    tensor_parallel(net, mesh["tensor_parallel"])
    shard_layers(net, mesh["data_parallel"])


def hybrid(net: nn.Module, mesh: DeviceMesh) -> None:
    """HSDP: shards on two ranks, replicas on two others."""
    shard_layers(net, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))


def fsdp1(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP1 of every layer, with `use_orig_params=True`."""
    return wrapped(net, {nn.Linear}, use_orig_params=True)


def fsdp1_flat(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP1 of the whole network except its norms; all parameters become one flat parameter."""
    return wrapped(net, {nn.LayerNorm}, use_orig_params=False)


def wrapped(net: nn.Module, kinds: set[type[nn.Module]], *, use_orig_params: bool) -> nn.Module:
    policy = ModuleWrapPolicy(kinds)
    # Wrapped here, because Lightning would require a GPU.
    return FullyShardedDataParallel(
        net, auto_wrap_policy=policy, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )


class FSDP1Strategy(FSDPStrategy):
    """FSDP strategy for CPUs: Lightning refuses its own class there, but not a subclass."""


@dataclass(frozen=True)
class Layout:
    """A way to shard or replicate a network.

    Attributes:
        ranks: number of processes.
        strategy: makes the Trainer's strategy.
        apply: shards the network, in place or not.
        data_parallel: number of ranks with different data.
    """

    ranks: int
    strategy: Callable[[], Strategy]
    apply: Callable[[nn.Module, DeviceMesh], nn.Module | None] | None
    data_parallel: int


def parallel(data: int, tensors: int, apply: Callable[[nn.Module, DeviceMesh], None]) -> Layout:
    def strategy() -> Strategy:
        return ModelParallelStrategy(data, tensors, save_distributed_checkpoint=True, process_group_backend="gloo")

    return Layout(data * tensors, strategy, apply, data)


def replicated(ranks: int, **options: Any) -> Layout:
    return Layout(ranks, lambda: DDPStrategy(process_group_backend="gloo", **options), None, ranks)


def flattened(ranks: int, apply: Callable[[nn.Module, DeviceMesh], nn.Module]) -> Layout:
    return Layout(ranks, lambda: FSDP1Strategy(process_group_backend="gloo"), apply, ranks)


LAYOUTS: dict[int, dict[str, Layout]] = {
    2: {
        "DDP": replicated(2),
        "FSDP2": parallel(2, 1, fsdp2),
        "FSDP2 columns": parallel(2, 1, fsdp2_columns),
        "TP": parallel(1, 2, tensor),
        "FSDP1": flattened(2, fsdp1),
        "FSDP1 flat": flattened(2, fsdp1_flat),
    },
    4: {
        "DDP": replicated(4),
        "FSDP2": parallel(4, 1, fsdp2),
        "FSDP2 + TP": parallel(2, 2, both),
        "HSDP": parallel(4, 1, hybrid),
        "FSDP1": flattened(4, fsdp1),
        "FSDP1 flat": flattened(4, fsdp1_flat),
    },
}
PRECISIONS = ("32-true", "bf16-mixed")
IN_BFLOAT16 = ("planted groups", "healthy block")


# ----------------------------------------------------------------- training


class Task(LightningModule):
    """A network in a layout, fitted to random numbers."""

    def __init__(self, build: Callable[[], nn.Module], layout: Layout | None) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.net = build()
        self._layout = layout
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if self._layout is not None and self._layout.apply is not None and not has_shards(self.net):
            self.net = self._layout.apply(self.net, self.device_mesh) or self.net  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self.net(inputs.to(next(self.net.parameters()).dtype))
        loss = nn.functional.mse_loss(outputs.float(), targets[:, : outputs.shape[1]].float())
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def has_shards(net: nn.Module) -> bool:
    is_wrapped = isinstance(net, FullyShardedDataParallel)
    return is_wrapped or any(isinstance(parameter, DTensor) for parameter in net.parameters())


def data(batch_size: int, part: int = 0, parts: int = 1) -> DataLoader[tuple[Tensor, ...]]:
    """Return 96 samples, or one part of them, so that all parts together give the same batches."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(96, 12, generator=generator) + 0.1
    targets = torch.tanh((inputs - 0.6) @ torch.randn(12, 4, generator=generator))
    return DataLoader(TensorDataset(inputs[part::parts], targets[part::parts]), batch_size // parts)


def train(
    task: Any,
    layout: Layout | None = None,
    monitor: SymmetryMonitor | None = None,
    precision: Any = "32-true",
    batch_size: int = 16,
    **options: Any,
) -> Trainer:
    """Train with a total number of samples per step."""
    part, parts = 0, 1
    if layout is not None:
        options |= {"strategy": layout.strategy(), "devices": layout.ranks, "use_distributed_sampler": False}
        parts = layout.data_parallel
        part = int(os.environ["RANK"]) * parts // layout.ranks
    ckpt_path = options.pop("ckpt_path", None)
    options = {"max_steps": 8, "precision": precision, **options}
    callbacks = [*options.pop("callbacks", ()), *([monitor] if monitor else [])]
    trainer = make_trainer(callbacks, **options)
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            trainer.fit(task, data(batch_size, part, parts), ckpt_path=ckpt_path)
        finally:
            task.warned = [text for warning in caught if "SymmetryMonitor" in (text := str(warning.message))]
    return trainer


def conclusions(monitor: SymmetryMonitor | SymmetryTracker) -> dict[str, Any]:
    """Return a monitor's findings, to be compared unit by unit."""
    report = monitor.report
    assert report is not None
    return {
        "findings": sorted(
            (f.layer, f.units, str(f.verdict), str(f.cause), f.first_step, f.broken_step) for f in monitor.findings
        ),
        "groups": {
            name: [(group.units, str(group.verdict)) for group in layer.groups] for name, layer in report.layers.items()
        },
        "units": {name: (layer.num_units, layer.fan_in) for name, layer in report.layers.items()},
        "skipped": dict(report.skipped),
        "copies": [(group.modules, str(group.verdict)) for group in report.copies],
    }


def state(task: Task, trainer: Trainer) -> list[Tensor]:
    """Return the final state on this rank: weights, optimizer state, losses, random numbers."""
    tensors: list[Tensor] = [*task.parameters()]
    for optimizer in trainer.optimizers:
        for values in optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
    local = [(t.to_local() if isinstance(t, DTensor) else t).detach().clone() for t in tensors]
    return [*local, torch.tensor(task.losses), torch.get_rng_state()]


def are_same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def run_table(num_ranks: int, folder: Path, is_short: bool = False) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Train each network in each layout and precision, with the monitor and without, on every rank.

    The tests train the short table: in bfloat16 half of the networks, and on four ranks only layouts that need four.
    """
    results = {}
    for layout_name, layout in LAYOUTS[num_ranks].items():
        if is_short and num_ranks == 4 and layout_name in ("DDP", "FSDP1", "FSDP1 flat"):
            continue
        for network, build in NETWORKS.items():
            for precision in PRECISIONS:
                if is_short and precision != PRECISIONS[0] and (num_ranks == 4 or network not in IN_BFLOAT16):
                    continue
                ends = []
                for monitor in (None, quiet(every_n_steps=2)):
                    task = Task(build, layout)
                    trainer = train(task, layout, monitor, precision)
                    ends.append(state(task, trainer))
                assert monitor is not None
                assert not task.warned, task.warned
                results[layout_name, network, precision] = {**conclusions(monitor), "is_same": are_same(*ends)}
    return results


def alone(network: str, precision: str) -> dict[str, Any]:
    """Return the findings on one process."""
    monitor = quiet(every_n_steps=2)
    train(Task(NETWORKS[network], None), monitor=monitor, precision=precision)
    return conclusions(monitor)


# ----------------------------------------------------------------- bytes

WIDE = 4096


class Wide(LightningModule):
    """Return a sharded layer of 4096 units, in which each run of ``run`` units are copies, in weights and gradients."""

    def __init__(self, run: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Linear(WIDE, WIDE, bias=False)
        with torch.no_grad():
            self.net.weight.copy_(torch.randn(WIDE // run, WIDE, generator=generator).repeat(run, 1) / 64)
        self.pull = torch.randn(WIDE // run, generator=generator).repeat(run)

    def configure_model(self) -> None:
        if not has_shards(self.net):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs = batch[0].repeat(1, -(-WIDE // 12))[:, :WIDE]
        loss: Tensor = (self.net(inputs) * self.pull).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Counting(SymmetryMonitor):
    """Counts the bytes passed to collectives in checks; each rank sends as many, or twice as many for an all-reduce."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1, heatmaps="none", scalars="none")
        self.messages: list[list[int]] = []

    def _before_step(self, *args: Any) -> None:
        messages: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            for name, times in (("broadcast", 1), ("reduce", 1), ("all_reduce", 2)):
                patch.setattr(torch.distributed, name, self._counted(getattr(torch.distributed, name), times, messages))
            super()._before_step(*args)
        self.messages.append(messages)

    @staticmethod
    def _counted(collective: Callable[..., Any], times: int, messages: list[int]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            messages.append(times * tensor.nbytes)
            return collective(tensor, *args, **options)

        return counted


def count_bytes(num_ranks: int, folder: Path) -> dict[str, list[list[int]]]:
    """Return the bytes of every message, by kind of layer and check."""
    layout = parallel(num_ranks, 1, fsdp2)
    counted = {}
    for name, run in {"healthy": 1, "2048 pairs": 2, "16 groups of 256": 256, "constant": WIDE}.items():
        monitor = Counting()
        train(Wide(run), layout, monitor, max_steps=1, batch_size=4 * num_ranks)
        groups = monitor.report.layers["net"].groups  # type: ignore[union-attr]
        assert [len(group.units) for group in groups] == [run] * (WIDE // run if run > 1 else 0)
        counted[name] = monitor.messages
    return counted


# ----------------------------------------------------------------- processes

Work = Callable[[Path], Any]


def process_context() -> ForkServerContext:
    """Forks processes from one that has imported PyTorch and Lightning, so that the ranks need not import them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def on_ranks(num_ranks: int, work: Work, folder: Path, limit: float = 120.0) -> list[Any]:
    """Run a function of a module in new processes, one per rank, and return the result of each.

    Raises:
        TimeoutError: if they take longer than ``limit`` seconds; all are killed then.
        AssertionError: if it raised on any rank.
    """
    context = process_context()
    port = free_port()
    processes = [
        context.Process(target=_on_rank, args=(rank, num_ranks, port, work, folder), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    try:
        while any(process.is_alive() for process in processes):
            if time.monotonic() > end:
                raise TimeoutError(f"{num_ranks} ranks still run after {limit:.0f} s")
            if any(process.exitcode for process in processes):
                break  # the others would wait for it forever
            time.sleep(0.05)
    finally:
        for process in processes:
            process.join(1.0)
            process.kill()
            process.join()
    failures = [path.read_text() for rank in range(num_ranks) if (path := folder / f"error{rank}").exists()]
    assert not failures, "\n".join(failures)
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(num_ranks)]


def _on_rank(rank: int, num_ranks: int, port: int, work: Work, folder: Path) -> None:
    # "localhost" would look up the name of the machine.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(num_ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        result = work(folder)
    except BaseException:
        (folder / f"error{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)  # do not wait for the others
    (folder / f"result{rank}").write_bytes(pickle.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def shorten(units: Sequence[int]) -> str:
    return str(list(units)) if len(units) < 8 else f"[{units[0]}, ..., {units[-1]}]"


def main() -> int:
    """Print the table; return the number of failed rows as the exit status."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    wrong = 0
    print(f"{'ranks':5} {'layout':14} {'network':15} {'precision':10} {'as on one process':17} {'bitwise':7} found")
    for num_ranks in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            [first, *_] = on_ranks(num_ranks, partial(run_table, num_ranks), Path(folder), limit=600)
        for (layout, network, precision), found in first.items():
            with contextlib.redirect_stdout(io.StringIO()):
                expected = alone(network, precision)
            is_same = found.pop("is_same")
            is_right = found == expected
            wrong += not (is_right and is_same)
            marks = ["yes" if is_right else "NO", "yes" if is_same else "NO"]
            findings = "; ".join(
                f"{layer} {shorten(units)} {verdict}" for layer, units, verdict, *_ in found["findings"]
            )
            case = f"{num_ranks:<5} {layout:14} {network:15} {precision:10}"
            print(f"{case} {marks[0]:17} {marks[1]:7} {findings or 'silent'}")
    print(f"{wrong} rows are wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
