"""The monitor on several real processes; the trainings are in :mod:`tests.distributed`."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import os
import pkgutil
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from lightning_symmetry import SymmetryMonitor, diagnose
from lightning_symmetry.callback import SymmetryError
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import find_groups
from lightning_symmetry.matrices.question import Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.flat import boxes
from lightning_symmetry.ranks.pieces import part_of_rows
from lightning_symmetry.ranks.sharded import ShardedRows, matrix_of
from lightning_symmetry.ranks.sketches import read
from lightning_symmetry.ranks.team import Team
from lightning_symmetry.units.discovery import find_layers
from tests import zoo
from tests.distributed import (
    IN_BFLOAT16,
    LAYOUTS,
    NETWORKS,
    WIDE,
    Task,
    alone,
    are_same,
    conclusions,
    count_bytes,
    on_ranks,
    replicated,
    run_table,
    state,
    train,
)
from tests.oracle import brute_force_groups
from tests.training import quiet

CPU = torch.device("cpu")

# ----------------------------------------------------------------- matrices

View = Callable[[Tensor], Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def by_gate(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 7, *tensor.shape[1:]).transpose(0, 1)


def middle(tensor: Tensor) -> Tensor:
    return tensor[7:14]


VIEWS: list[View] = [as_it_is, torch.t, by_gate, middle]


def placements(mesh: DeviceMesh) -> list[list[Placement]]:
    kinds: list[Placement] = [Shard(0), Shard(1), Replicate()]
    if mesh.ndim == 1:
        return [[kind] for kind in kinds]
    return [[first, second] for first in kinds for second in kinds]


def planted(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return rows, some of which are equal, zero, constant, huge, tiny or not finite."""
    generator = torch.Generator().manual_seed(rows * width)
    matrix = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    matrix[rows // 2 :: 3] = matrix[0]
    matrix[1::5] = 0.5
    matrix[2::7] = 0
    matrix[3] *= 1e-30
    matrix[4] *= 1e25
    matrix[5, -1] = torch.nan
    return matrix.to(dtype)


def compare_matrices(num_ranks: int, folder: Path) -> int:
    """Read matrices in every layout, and compare all queries of grouping with one process."""
    init_process_group()
    mesh = init_device_mesh("cpu", (2, 2) if num_ranks == 4 else (num_ranks,))
    count = 0
    for place in placements(mesh):
        for width, dtype in ((300, torch.float32), (5, torch.float64), (40, torch.bfloat16)):
            whole = planted(21, width, dtype)
            shards = distribute_tensor(whole, mesh, place)
            for view in VIEWS if num_ranks == 2 else VIEWS[:3:2]:
                bias = torch.arange(len(view(whole)), dtype=dtype) % 2
                compare_matrix(whole, shards, bias, view)
                count += 1
    return count


def compare_matrix(whole: Tensor, shards: DTensor, bias: Tensor, view: View) -> None:
    here = DenseRows([view(whole), bias])
    there = matrix_of([part_of_rows(shards, view), bias])
    assert isinstance(there, ShardedRows)
    team = Team(CPU)

    def think() -> None:
        assert read(team, {("weights",): there}) == {}
        [expected], [found] = sketch_all([here]), sketch_all([there])
        close(found.norms, expected.norms, here)
        tolerance = 1e-2 if here.dtype == torch.bfloat16 else 1e-4
        dense = torch.cat([view(whole).flatten(1), bias[:, None]], dim=1)
        assert find_groups(Question(there, found, tolerance)) == brute_force_groups(dense, tolerance)
        index = np.array([0, 3, 1, 2, 4])
        finite = index[np.isfinite(expected.norms[index])]
        leaders = np.roll(finite, 1)
        scale = np.fmax(expected.norms[finite], expected.norms[leaders])
        close(there.distances(finite, leaders, scale), here.distances(finite, leaders, scale), here)
        close(there.project(finite) / scale, here.project(finite) / scale, here)
        close(there.positions(finite) / scale, here.positions(finite) / scale, here)
        close(there.constants(finite), here.constants(finite), here)
        assert torch.equal(there.fetch(index).nan_to_num(7), here.fetch(index).nan_to_num(7))
        assert torch.equal(there.largest(finite).float(), here.largest(finite).float())
        label = np.arange(here.width) % 3
        for a, b in zip(there.sums_by(finite, label), here.sums_by(finite, label), strict=True):
            close(a.T / scale, b.T / scale, here)

    team.run(think, lambda _: None, lambda name: there)


def close(found: Any, expected: Any, rows: Rows) -> None:
    tolerance = 1e-9 if rows.compute_dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def estimate_distances(num_ranks: int, folder: Path) -> list[float]:
    """Return the distances of many pairs, which are estimated, relative to the true ones."""
    init_process_group()
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(64, 4096, generator=generator)
    apart = torch.randn(64, 4096, generator=generator)
    whole = torch.cat([half, half + 1e-4 * apart])
    rows = matrix_of(
        [part_of_rows(distribute_tensor(whole, init_device_mesh("cpu", (num_ranks,)), [Shard(1)]), as_it_is)]
    )
    assert isinstance(rows, ShardedRows)
    team = Team(CPU)

    def think() -> list[float]:
        assert read(team, {("weights",): rows}) == {}
        found = rows.distances(np.arange(64, 128), np.arange(64), np.ones(64))
        ratios: list[float] = (found / (1e-4 * apart.norm(dim=1).numpy())).tolist()
        return ratios

    return team.run(think, lambda _: None, lambda name: rows)


def init_process_group() -> None:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


# ----------------------------------------------------------------- layers


def layers_to_shard() -> dict[str, nn.Module]:
    """A module with every kind of view, with copies among the units and among their gradients."""
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {
        "linear": nn.Linear(6, 11),
        "few units": nn.Linear(12, 2),
        "bilinear": nn.Bilinear(3, 4, 9, bias=False),
        "embedding": nn.Embedding(9, 10),
        "conv1d": zoo.Conv1D(10, 6),
        "convolution": nn.Conv2d(3, 10, 3),
        "grouped": nn.Conv2d(4, 10, 3, groups=2),
        "transposed": nn.ConvTranspose2d(5, 7, 2),
        "attention": nn.MultiheadAttention(12, 2),
        "lstm": nn.LSTM(5, 9, bidirectional=True),
        "gru cell": nn.GRUCell(5, 9),
    }
    for module in modules.values():
        for layer in find_layers(module).layers:
            for incoming in layer.tensors:
                parameter = incoming.weights
                if parameter.grad is None:
                    parameter.grad = torch.randn_like(parameter)
                for tensor, period in ((parameter.data, 4), (parameter.grad, 2)):
                    rows = incoming.view(tensor)
                    for row in range(4, len(rows), period):
                        rows[row] = rows[row % 4]
            if layer.recurrent is not None:  # the recurrent weights of units 4 and 5 equal those of units 0 and 1
                weights = layer.recurrent.view(layer.recurrent.weights.data)
                weights.fill_(0.1)
                layer.recurrent.weights.grad = torch.zeros_like(layer.recurrent.weights)
    modules["recurrent"] = zoo.identity_recurrent().get_submodule("rnn")
    modules["branches"] = zoo.Branches(are_copies=True)
    modules["constant branches"] = zoo.all_constant(zoo.Branches(are_copies=True))
    modules["different branches"] = zoo.Branches(are_copies=False)
    modules["tied"] = zoo.Decoder(nn.Linear)
    return {name: nn.Sequential(module) for name, module in modules.items()}


def compare_layers(num_ranks: int, folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Map each layer to its reports in the whole and in the sharded module."""
    init_process_group()
    mesh = init_device_mesh("cpu", (num_ranks,))
    reports = {}
    for name, module in layers_to_shard().items():
        whole = copy.deepcopy(module)
        for parameter, original in zip(whole.parameters(), module.parameters(), strict=True):
            parameter.grad = None if original.grad is None else original.grad.clone()
        fully_shard(module, mesh=mesh)
        for parameter, original in zip(module.parameters(), whole.parameters(), strict=True):
            assert isinstance(parameter, DTensor)
            if original.grad is not None:
                parameter.grad = distribute_tensor(original.grad, mesh, parameter.placements)
        reports[name] = (diagnose(module).to_dict(), diagnose(whole).to_dict())
    return reports


def skip_what_cannot_be_read(num_ranks: int, folder: Path) -> dict[str, str]:
    """Return the reasons why modules are skipped."""
    init_process_group()
    mesh = init_device_mesh("cpu", (num_ranks,))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2))
    for module in (normed, transposed):
        fully_shard(module, mesh=mesh)
    return {"normed": diagnose(normed).skipped["0"], "transposed": diagnose(transposed).skipped["0"]}


# ----------------------------------------------------------------- trainings


class Accumulating(Task):
    """Accumulates the gradients of two batches."""

    def __init__(self, build: Callable[[], nn.Module], layout: Any) -> None:
        super().__init__(build, layout)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        is_last = batch_idx % 2 == 1
        if isinstance(self.net, FSDPModule):
            self.net.set_requires_gradient_sync(is_last)
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss / 2)
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
        return loss


class TwoOptimizers(Task):
    """Alternates between an optimizer for the first half of the network and one for the second."""

    def __init__(self, build: Callable[[], nn.Module], layout: Any) -> None:
        super().__init__(build, layout)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        both: Any = self.optimizers()
        optimizer = both[batch_idx % 2]
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        half = len(parameters) // 2
        return [torch.optim.SGD(part, lr=0.05) for part in (parameters[:half], parameters[half:])]


class Checkpointed(Task):
    """Checkpoints the activations of the transformer block."""

    def configure_model(self) -> None:
        apply_activation_checkpointing(self.net, check_fn=lambda module: isinstance(module, nn.Linear))
        super().configure_model()


class Compiled(Task):
    """Compiles every layer."""

    def configure_model(self) -> None:
        super().configure_model()
        for child in self.net.children():
            if isinstance(child, nn.Linear):
                child.compile(backend="eager")


TASKS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    "accumulate": (Task, {"accumulate_grad_batches": 2, "max_steps": 5}),
    "no sync": (Accumulating, {"max_steps": 5}),
    "two optimizers": (TwoOptimizers, {}),
    "checkpointed": (Checkpointed, {}),
    "compiled": (Compiled, {}),
}


def train_in_settings(num_ranks: int, folder: Path) -> dict[tuple[str, str], tuple[bool, dict[str, Any]]]:
    """Map each layout and training to whether the monitor leaves the training unchanged, and its findings."""
    results = {}
    for layout_name in ("DDP", "FSDP2"):
        layout = LAYOUTS[num_ranks][layout_name]
        for name, (kind, options) in TASKS.items():
            ends = []
            for monitor in (None, quiet(every_n_steps=2)):
                task = kind(NETWORKS["constant layer"], layout)
                trainer = train(task, layout, monitor, **options)
                ends.append(state(task, trainer))
            assert monitor is not None
            results[layout_name, name] = (are_same(*ends), conclusions(monitor))
    return results


def act(num_ranks: int, folder: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """Map each layout and action to the step at which the training ended, and its result."""
    results = {}
    for layout_name in ("DDP", "FSDP2"):
        layout = LAYOUTS[num_ranks][layout_name]
        for action in ("stop", "raise"):
            steps = Steps()
            task = Task(NETWORKS["planted groups"], layout)
            error = ""
            try:
                train(task, layout, quiet(on_symmetry=action), callbacks=[steps])
            except SymmetryError as raised:
                error = f"{[finding.units for finding in raised.findings]}"
            results[layout_name, action] = (steps.latest, error)
    return results


class Steps(Callback):
    """Records the last step of the training."""

    latest = -1

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.latest = trainer.global_step


def resume(num_ranks: int, folder: Path) -> dict[str, Any]:
    """Map each layout to state and findings of a training, and of one that was resumed from its checkpoint."""
    results = {}
    for layout_name in ("DDP", "FSDP2"):
        layout = LAYOUTS[num_ranks][layout_name]
        ends: list[Any] = []
        for first_steps in (8, 5):
            monitor = quiet(every_n_steps=3)
            task = Task(NETWORKS["planted groups"], layout)
            trainer = train(task, layout, monitor, max_steps=first_steps)
            if first_steps < 8:
                path = folder / f"{layout_name}.ckpt"
                trainer.save_checkpoint(path)
                monitor = quiet(every_n_steps=3)
                task = Task(NETWORKS["planted groups"], layout)
                trainer = train(task, layout, monitor, ckpt_path=path)
                ends.append(task.warned)
            ends.append((conclusions(monitor), monitor.state_dict()["num_steps"]))
        results[layout_name] = ends
    return results


class Faulty(Task):
    """A training with wrong gradients on the last rank at every step."""

    def __init__(self, layout: Any, fault: str) -> None:
        super().__init__(NETWORKS["planted groups"], layout)
        self.fault = fault

    def on_after_backward(self) -> None:
        if torch.distributed.get_rank() != torch.distributed.get_world_size() - 1:
            return
        weight = self.net.get_submodule("0").weight
        if self.fault == "none":
            weight.grad = None
        elif self.fault == "nan":
            assert isinstance(weight.grad, DTensor)
            weight.grad.to_local().fill_(torch.nan)


def meet_faults(num_ranks: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the findings if one rank has no gradient, one that is not finite, or cannot read a layer."""
    layout = LAYOUTS[num_ranks]["FSDP2"]
    results = {}
    for fault in ("none", "nan", "layer"):
        monitor = quiet(every_n_steps=2)
        task = Faulty(layout, fault)
        with pytest.MonkeyPatch.context() as patch:
            if fault == "layer" and torch.distributed.get_rank() == num_ranks - 1:
                break_reading(patch, rows=16)
            trainer = train(task, layout, monitor)
        assert trainer.global_step == 8
        results[fault] = {**conclusions(monitor), "warned": task.warned}
    layout = replicated(num_ranks, find_unused_parameters=True)
    monitor = quiet(every_n_steps=2)
    experts = Task(zoo.Experts, layout)
    train(experts, layout, monitor)
    results["experts"] = {**conclusions(monitor), "warned": experts.warned}
    return results


def break_reading(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Makes reading matrices with this number of rows fail on this rank."""
    answer = ShardedRows.answer

    def broken(self: ShardedRows, query: str, *args: Any) -> None:
        if self.num_rows == rows:
            raise RuntimeError("the dog ate it")
        answer(self, query, *args)

    patch.setattr(ShardedRows, "answer", broken)


# Functions in which a check may fail, and the ranks that call them: the first, the others, or all.
PLACES = {
    "engine.examiner.Examiner.find": "all",
    "engine.examiner.find_copies": "first",
    "engine.examiner.look": "first",
    "engine.engine.messages": "first",
    "outputs.tensorboard.write_findings": "first",
    "verdicts.evidence.find_groups_within_budget": "first",
    "verdicts.layer_state.LayerState.update": "first",
    "ranks.sharded.ShardedRows.distances": "first",
    "verdicts.history.History.load_state_dict": "others",
    "units.layers.Layer.weights": "all",
    "units.layers.Layer.gradients": "all",
    "ranks.sharded.ShardedRows.answer": "all",
    "ranks.pieces.piece_of": "all",
}


class Sabotaged(SymmetryMonitor):
    """Makes the n-th call of a function fail on one rank at one check."""

    def __init__(self, place: str, check: int, call: int) -> None:
        super().__init__(every_n_steps=1)
        self._place, self._check_to_fail, self._call = f"lightning_symmetry.{place}", check, call
        self.num_checks = 0
        self.has_failed = False

    def _before_step(self, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if self.num_checks == self._check_to_fail:
                self._break(patch)
            super()._before_step(*args)
        self.num_checks += 1

    def _break(self, patch: pytest.MonkeyPatch) -> None:
        calls = itertools.count()
        whole = pkgutil.resolve_name(self._place)

        def broken(*args: Any, **options: Any) -> Any:
            if next(calls) == self._call:
                self.has_failed = True
                raise RuntimeError("sabotage")
            return whole(*args, **options)

        patch.setattr(self._place, broken)


def endure(num_checks: int, num_ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Repeat a training in which a rank fails at a check, up to a number of checks."""
    layout = LAYOUTS[num_ranks]["FSDP2"]
    chance = random.Random(num_ranks)
    results: list[dict[str, Any]] = []
    while sum(result["checks"] for result in results) < num_checks:
        place = chance.choice(list(PLACES))
        ranks = {"first": [0], "others": range(1, num_ranks), "all": range(num_ranks)}[PLACES[place]]
        rank, check, call = chance.choice(ranks), chance.randrange(8), chance.choice([0, 0, 0, 1, 3])
        monitor = Sabotaged(place, check if int(os.environ["RANK"]) == rank else -1, call)
        task = Task(NETWORKS["planted groups"], layout)
        logger = TensorBoardLogger(folder, name=f"endure{len(results)}")
        trainer = train(task, layout, monitor, max_steps=10, logger=logger)
        results.append(
            {
                "steps": trainer.global_step,
                "checks": monitor.num_checks,
                "has failed": monitor.has_failed,
                "place": place,
                "warned": task.warned,
                "state": monitor.state_dict(),
                "report": monitor.report and monitor.report.to_dict(),
            }
        )
    return results


def draw(num_ranks: int, folder: Path) -> None:
    """A training with pictures."""
    layout = LAYOUTS[num_ranks]["FSDP2"]
    task = Task(NETWORKS["planted groups"], layout)
    train(task, layout, SymmetryMonitor(every_n_steps=2, heatmaps="all"), logger=TensorBoardLogger(folder, "sharded"))


# ----------------------------------------------------------------- tests

WORKS: dict[str, Callable[[int, Path], Any]] = {
    "table": partial(run_table, is_short=True),
    "bytes": count_bytes,
    "matrices": compare_matrices,
    "distances": estimate_distances,
    "layers": compare_layers,
    "skipped": skip_what_cannot_be_read,
    "settings": train_in_settings,
    "actions": act,
    "resume": resume,
    "faults": meet_faults,
    "stress": partial(endure, 200),
    "pictures": draw,
}
WORKS_OF = {
    2: list(WORKS),
    4: ["table", "bytes", "matrices", "layers", "actions", "faults"],
}


def do_all(num_ranks: int, folder: Path) -> dict[str, Any]:
    """Call all functions in one process group, because starting processes and importing PyTorch takes longer."""
    return {name: WORKS[name](num_ranks, folder) for name in WORKS_OF[num_ranks]}


class World:
    """The results of several ranks."""

    def __init__(self, num_ranks: int, folder: Path) -> None:
        self.num_ranks, self.folder = num_ranks, folder
        self._results = on_ranks(num_ranks, partial(do_all, num_ranks), folder, limit=300)

    def of_first(self, name: str) -> Any:
        return self._results[0][name]

    def of_all(self, name: str) -> list[Any]:
        return [result[name] for result in self._results]


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], World]:
    return functools.cache(lambda num_ranks: World(num_ranks, tmp_path_factory.mktemp("world")))


@pytest.fixture(params=[2, 4], ids=["2 ranks", "4 ranks"])
def world(request: pytest.FixtureRequest, world_of: Callable[[int], World]) -> World:
    return world_of(request.param)


@pytest.fixture
def small_world(world_of: Callable[[int], World]) -> World:
    return world_of(2)


@functools.cache
def on_one_process(network: str, precision: str) -> dict[str, Any]:
    return alone(network, precision)


@pytest.mark.parametrize("network", NETWORKS)
def test_findings_are_those_of_one_process(world: World, network: str) -> None:
    num_seen = 0
    for table in world.of_all("table"):
        for (layout, name, precision), found in table.items():
            if name == network:
                expected = on_one_process(network, precision)
                assert bool(expected["findings"]) == (network != "healthy block")
                assert found["is_same"], f"{layout}: the monitor changes the training"
                assert {key: found[key] for key in expected} == expected, layout
                num_seen += 1
    num_precisions = 2 if network in IN_BFLOAT16 else 1
    assert num_seen == {2: 2 * 6 * num_precisions, 4: 4 * 3}[world.num_ranks]  # ranks, layouts, precisions


def test_little_is_sent(world: World) -> None:
    gathered = WIDE * WIDE * 4
    for name, checks in world.of_first("bytes").items():
        for messages in checks:
            assert sum(messages) <= 0.012 * gathered, name
            assert len(messages) <= 32, name  # at the first check, at which ranks agree on the schedule


def test_all_that_grouping_asks_of_rows(world: World) -> None:
    assert world.of_first("matrices") == (36 if world.num_ranks == 2 else 54)


def test_estimated_distances(small_world: World) -> None:
    ratios = small_world.of_first("distances")
    assert all(0.05 < ratio < 3 for ratio in ratios)
    assert sum(0.4 < ratio < 2 for ratio in ratios) > 50


@pytest.mark.parametrize("name", list(layers_to_shard()))
def test_every_view_of_a_layer(world: World, name: str) -> None:
    for reports in world.of_all("layers"):
        found, expected = reports[name]
        assert found == expected
        if name in ("linear", "embedding", "convolution", "attention", "lstm", "gru cell"):
            assert all(layer["redundant_units"] for layer in found["layers"].values())


def test_what_cannot_be_read_says_why(small_world: World) -> None:
    for skipped in small_world.of_all("skipped"):
        assert skipped["normed"].startswith("parametrized and sharded")
        assert skipped["transposed"] == "the view of its adapter copies, which cannot be done shard by shard"


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_ways_to_train(small_world: World, layout: str, name: str) -> None:
    kind, options = TASKS[name]
    monitor = quiet(every_n_steps=2)
    train(kind(NETWORKS["constant layer"], None), monitor=monitor, **options)
    expected = conclusions(monitor)
    assert expected["findings"]
    for results in small_world.of_all("settings"):
        is_same, found = results[layout, name]
        assert is_same
        assert found == expected


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_all_ranks_act_at_the_same_step(world: World, layout: str) -> None:
    for results in world.of_all("actions"):
        assert results[layout, "stop"] == (0, "")
        assert results[layout, "raise"] == (0, "[(2, 3, 4, 11), (1, 8, 12), (0, 7)]")


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_a_sharded_checkpoint_carries_the_records(small_world: World, layout: str) -> None:
    for results in small_world.of_all("resume"):
        unbroken, again, resumed = results[layout]
        assert resumed == unbroken
        assert again == []
        assert unbroken[0]["findings"]


def test_a_fault_of_one_rank_is_met_by_all(world: World) -> None:
    for results in world.of_all("faults"):
        no_gradient = results["none"]
        # A rank without its part of the gradients hides this layer only.
        assert no_gradient["skipped"] == {}
        assert set(no_gradient["groups"]) == {"net.0", "net.2", "net.4"}
        assert results["nan"]["skipped"] == {}
        assert not any(results["experts"][key] for key in ("skipped", "findings"))
        assert set(results["experts"]["warned"]) <= {
            "SymmetryMonitor: parts of the model do not train. no gradient has reached it: net.experts.3."
        }
        broken = results["layer"]
        assert broken["skipped"] == {
            "net.2": f"the check failed with RuntimeError: the dog ate it (rank {world.num_ranks - 1})"
        }
        assert len(broken["findings"]) == 3
    first, *others = world.of_all("faults")
    warned = {fault: results.pop("warned") for fault, results in first.items()}
    assert len(warned["layer"]) == 1
    for other in others:
        assert [results.pop("warned") for results in other.values()] == [[]] * len(other)
        assert other == first


def test_no_failure_of_a_rank_ends_or_stalls_the_training(small_world: World) -> None:
    trainings = list(zip(*small_world.of_all("stress"), strict=True))
    assert sum(training[0]["checks"] for training in trainings) >= 200
    num_failures = 0
    for first, second in trainings:
        has_failed = first["has failed"] or second["has failed"]
        num_failures += has_failed
        assert first["steps"] == second["steps"] == 10
        assert len(first["warned"]) == has_failed, first["place"]
        assert second["warned"] == []
        assert first["state"] == second["state"]
        assert first["report"] == second["report"]
    assert num_failures >= 10


def test_pictures_of_sharded_layers(small_world: World, tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=2, heatmaps="all")
    task = Task(NETWORKS["planted groups"], None)
    train(task, monitor=monitor, logger=TensorBoardLogger(tmp_path, "whole"))
    pictures = []
    for folder in (tmp_path / "whole", small_world.folder / "sharded"):
        events = EventAccumulator(str(folder / "version_0"), size_guidance={"images": 0})
        events.Reload()
        pictures.append({tag: events.Images(tag) for tag in events.Tags()["images"]})
    whole, sharded = pictures
    assert set(whole) == set(sharded)
    # At the first step the weights are exactly equal.
    first = [picture["symmetry/heatmap/net.0"][0].encoded_image_string for picture in (whole, sharded)]
    pixels = [np.asarray(Image.open(io.BytesIO(encoded)), dtype=float) for encoded in first]
    assert np.abs(pixels[0] - pixels[1]).max() <= 3


@pytest.mark.parametrize("shape", [(7,), (5, 3), (3, 1, 4), (2, 3, 4)])
def test_an_interval_of_a_flattened_tensor_is_made_of_boxes(shape: tuple[int, ...]) -> None:
    whole = torch.arange(1, math.prod(shape) + 1)
    for start, end in itertools.combinations(range(len(whole) + 1), 2):
        seen = torch.zeros(shape, dtype=torch.long)
        found = list(boxes(whole[start:end], start, shape))
        for numbers, place in found:
            seen[tuple(slice(a, a + n) for a, n in zip(place, numbers.shape, strict=True))] += numbers
        assert seen.flatten().tolist() == [n if start < n <= end else 0 for n in whole.tolist()]
        assert len(found) <= 2 * len(shape) - 1


def test_partitioned_by_deepspeed_outside_of_a_training_is_skipped() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    for parameter in net.parameters():  # as DeepSpeed leaves them
        parameter.ds_id = 0  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    assert diagnose(net).skipped == {
        "0": "its tensors are partitioned by DeepSpeed ZeRO, and this process has no process group: check the model "
        "in its training"
    }
