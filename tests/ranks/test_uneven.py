"""Ranks that make different steps, fail, or have no tracker: no rank waits for another, and none ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lightning_symmetry import SymmetryError, SymmetryTracker
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.ranks import board
from tests.distributed import LAYOUTS, NETWORKS, Task, on_ranks, train
from tests.ranks.pool import RankPool
from tests.training import fill, mlp, quiet


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("ranks")) as pool:
        yield pool


def network(value: float | None = 0.5) -> nn.Module:
    net = mlp()
    return net if value is None else fill(net, value)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, is_skipped: bool = False) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 12)).square().mean().backward()
    if not is_skipped:
        optimizer.step()


OPTIONS: dict[str, Any] = {"every_n_steps": 5, "heatmaps": "none", "scalars": "none"}


def uneven(how: str, on_symmetry: str) -> tuple[int, float, int]:
    """Train with DDP; return this rank's steps, their duration, and the number of findings."""
    rank, net = dist.get_rank(), network()
    is_independent = how == "independent"
    model = net if is_independent else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {**OPTIONS, "on_symmetry": on_symmetry}
    start, num_steps = time.monotonic(), 0
    has_tracker = rank == 0 or how != "first only"
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error" if how == "errors" and rank == 1 else "ignore")
        tracker = stack.enter_context(SymmetryTracker(model, optimizer, **options)) if has_tracker else None
        if how == "join":
            stack.enter_context(Join([model]))  # type: ignore[list-item]
        for i in range({"join": 8 + 4 * rank, "independent": 6 + 5 * rank}.get(how, 12)):
            step(model, optimizer, is_skipped=how == "skipped" and (rank, i) == (1, 3))
            num_steps += 1
            if how == "fails" and rank == 1 and i == 0:
                assert tracker is not None
                tracker._engine._examiner.examine = None  # type: ignore[method-assign, assignment]
    return num_steps, time.monotonic() - start, len(tracker.findings) if tracker else 0


WAYS = ["even", "join", "skipped", "independent", "first only", "errors", "fails"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("on_symmetry", ["warn", "break"])
def test_no_rank_waits_or_ends(ranks: RankPool, how: str, on_symmetry: str) -> None:
    (first_steps, first_seconds, first_found), (second_steps, second_seconds, second_found) = ranks.call(
        uneven, how, on_symmetry
    )
    assert first_steps == {"join": 8, "independent": 6}.get(how, 12)
    assert second_steps == {"join": 12, "independent": 11}.get(how, 12)
    assert first_found > 0
    assert (second_found > 0) == (how != "first only")
    # Ranks that must act together wait for a decision, for a limited time; otherwise none waits at all.
    assert max(first_seconds, second_seconds) < (8 if on_symmetry == "warn" else 25)


def decide(on_symmetry: str, fails_on: int | None) -> tuple[int, bool, int]:
    """Train with DDP until the tracker stops; return the steps, whether it raised, and this rank's findings."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    has_raised, num_steps = False, 0
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        if fails_on == dist.get_rank():
            patch.setattr(Examiner, "examine", None)
        with SymmetryTracker(model, optimizer, **OPTIONS, on_symmetry=on_symmetry) as tracker:
            for _ in range(4):
                try:
                    step(model, optimizer)
                except SymmetryError:
                    has_raised = True
                    break
                num_steps += 1
                if tracker.should_stop:
                    break
        return num_steps, has_raised, len(tracker.findings)


@pytest.mark.parametrize("on_symmetry", ["stop", "raise"])
def test_all_ranks_follow_the_decision_of_the_first(ranks: RankPool, on_symmetry: str) -> None:
    has_raised = on_symmetry == "raise"
    assert ranks.call(decide, on_symmetry, None) == [(1 - has_raised, has_raised, 3)] * 2
    # This includes ranks without findings, also if the first rank has none.
    assert ranks.call(decide, on_symmetry, 1) == [(1 - has_raised, has_raised, 3), (1 - has_raised, has_raised, 0)]
    assert ranks.call(decide, on_symmetry, 0) == [(4, False, 0), (4, False, 3)]


def alone(rank: int) -> None:
    """Train with DDP and a tracker on one rank only, which does not stop because the others would not follow."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "_LIMIT", 1.0)
        if dist.get_rank() == rank:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(SymmetryTracker(model, optimizer, **OPTIONS, on_symmetry="stop"))
        for _ in range(4):
            step(model, optimizer)


@pytest.mark.parametrize("rank", [0, 1])
def test_decisions_of_a_training_with_a_tracker_on_one_rank_are_not_taken_for_those_of_the_next(
    ranks: RankPool, rank: int
) -> None:
    for _ in range(2):
        ranks.call(alone, rank)
        assert ranks.call(decide, "stop", 0) == [(4, False, 0), (4, False, 3)]
        assert ranks.call(decide, "stop", None) == [(1, False, 3)] * 2


def two_at_once() -> list[bool]:
    """Train with DDP and trackers of a healthy and of a constant part; return whether each wants to stop."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(12, 12), network()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {**OPTIONS, "on_symmetry": "stop"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            SymmetryTracker(model, optimizer, include=["0"], **options) as healthy,
            SymmetryTracker(model, optimizer, include=["1.*"], **options) as constant,
        ):
            step(model, optimizer)
            return [healthy.should_stop, constant.should_stop]


def test_two_trackers_at_once_hear_each_their_own(ranks: RankPool) -> None:
    assert ranks.call(two_at_once) == [[False, True]] * 2


def collectives(on_symmetry: str) -> int:
    """Count the collectives of a check in which every rank has the whole model."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    calls: list[str] = []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name in ("broadcast", "reduce", "all_reduce", "all_gather", "all_gather_object", "barrier"):
            patch.setattr(dist, name, lambda *args, name=name, **options: calls.append(name))
        with SymmetryTracker(model, optimizer, **OPTIONS, on_symmetry=on_symmetry):
            step(model, optimizer)
    return len(calls)


@pytest.mark.parametrize("on_symmetry", ["warn", "break"])
def test_whole_models_are_looked_at_without_a_collective(ranks: RankPool, on_symmetry: str) -> None:
    assert ranks.call(collectives, on_symmetry) == [0, 0]


def sharded(with_tracker_on: tuple[int, ...]) -> tuple[int, list[str], bool]:
    """Train with FSDP2; return the steps, the warnings about missing trackers, and whether there is a report."""
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tracker, num_steps = None, 0
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(board, "_LIMIT", 1.0)
        if dist.get_rank() in with_tracker_on:
            tracker = SymmetryTracker(model, optimizer, **OPTIONS)
        for _ in range(4):
            step(model, optimizer)
            num_steps += 1
        if tracker is not None:
            tracker.close()
    warned = [text for warning in caught if "on every rank" in (text := str(warning.message))]
    return num_steps, warned, tracker is not None and tracker.report is not None


@pytest.mark.parametrize("with_tracker_on", [(0,), (1,), (0, 1)])
def test_a_rank_without_a_tracker_is_noticed(ranks: RankPool, with_tracker_on: tuple[int, ...]) -> None:
    results = ranks.call(sharded, with_tracker_on)
    assert [num_steps for num_steps, _, _ in results] == [4, 4]
    assert [has_report for _, _, has_report in results] == [len(with_tracker_on) == 2] * 2
    # The first rank warns, if it has a tracker.
    assert [len(warned) for _, warned, _ in results] == [with_tracker_on == (0,), 0]


def resumed(layout: str) -> list[dict[int, int]]:
    """Train twice with two optimizers that step unequally often; resume the second training from the first."""
    net = nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)])
    if layout == "FSDP2":
        for layer in net:
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in net]
    state: dict[str, Any] | None = None
    counted = []
    for _ in range(2):
        with SymmetryTracker(net, optimizers, every_n_steps=10, on_symmetry="ignore") as tracker:
            # The state of a checkpoint that one rank could not read.
            if state and (layout == "DDP" or dist.get_rank() == 0):
                tracker.load_state_dict(state)
            for i in range(18):
                which = int(i % 6 < 5)
                net[which](torch.randn(8, 4)).square().mean().backward()
                if layout == "DDP":
                    for parameter in net.parameters():
                        if parameter.grad is not None:
                            dist.all_reduce(parameter.grad)
                optimizers[which].step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
            state = tracker.state_dict()
            counted.append(state["num_steps"])
    return counted


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_a_resume_with_several_optimizers(ranks: RankPool, layout: str) -> None:
    assert ranks.call(resumed, layout) == [[{0: 3, 1: 15}, {0: 6, 1: 30}]] * 2


def watched(layout: str, is_watched: bool) -> tuple[list[tuple[str, str, int, int]], list[torch.Tensor]]:
    """Train a network whose first layer is closed; return the findings, and this rank's final weights."""
    net = network(None)
    nn.init.constant_(net[0].bias, -100.0)  # type: ignore[index]
    model: nn.Module = net
    if layout == "DDP":
        model = DistributedDataParallel(net)
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = []
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        options = {**OPTIONS, "every_n_steps": 10}
        tracker = stack.enter_context(SymmetryTracker(model, optimizer, **options)) if is_watched else None
        for _ in range(61):
            step(model, optimizer)
        if tracker is not None:
            found = [(f.layer, str(f.verdict), f.first_step, f.num_watched) for f in tracker.findings]
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return found, [numbers.detach().clone() for numbers in held]


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_the_steps_between_the_checks_are_watched(ranks: RankPool, layout: str) -> None:
    without = ranks.call(watched, layout, False)
    with_it = ranks.call(watched, layout, True)
    for (_, before), (found, after) in zip(without, with_it, strict=True):
        assert ("0", "dead", 0, 51) in found
        assert all(map(torch.equal, before, after))


def fit_twice(num_ranks: int, layout_name: str, folder: Path) -> list[Any]:
    """Call fit() twice on the same Trainer."""
    layout = LAYOUTS[num_ranks][layout_name]
    monitor = quiet(every_n_steps=2)
    task = Task(NETWORKS["constant layer"], layout)
    trainer = train(task, layout, monitor)
    steps = [trainer.global_step]
    trainer.fit_loop.epoch_loop.max_steps = 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, trainer.train_dataloader)
    report = monitor.report
    assert report is not None
    return [*steps, trainer.global_step, report.step, monitor.state_dict()["num_steps"]]


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_a_second_fit(layout: str, tmp_path: Path) -> None:
    assert on_ranks(2, partial(fit_twice, 2, layout), tmp_path) == [[8, 16, 14, {0: 16}]] * 2


def be_killed(folder: Path) -> None:
    """Train with DDP, and kill the second rank."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    texts: list[str] = []
    try:
        with SymmetryTracker(model, optimizer, every_n_steps=1, on_symmetry="break", output=folder / "out"):
            for i in range(20):
                if (dist.get_rank(), i) == (1, 4):
                    os.kill(os.getpid(), signal.SIGKILL)
                step(model, optimizer)
    except Exception as error:
        texts = [type(error).__module__, str(error)]
    (folder / f"ended{dist.get_rank()}").write_text("\n".join(texts))
    os._exit(0)


def test_where_a_rank_is_killed_the_others_end_with_the_error_of_their_framework(tmp_path: Path) -> None:
    with contextlib.suppress(TimeoutError, AssertionError, FileNotFoundError):
        on_ranks(2, be_killed, tmp_path, limit=40)
    text = (tmp_path / "ended0").read_text()
    assert "gloo" in text.lower() or "connection" in text.lower(), text
    assert "symmetry" not in text.lower()
