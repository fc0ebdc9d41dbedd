"""The cost of a check, counted rather than timed: passes over each matrix, transfers to the host, new tensors."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_symmetry import duplicate_groups
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.engine.options import Options
from lightning_symmetry.matrices import numerics
from lightning_symmetry.matrices.projections import NUM_PROJECTIONS
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.progress import Ledger as LedgerOfParameters
from lightning_symmetry.units.updates import Updates
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.look import Look
from tests.benchmarks.contents import WORST, Recipe
from tests.benchmarks.worst import group_as_a_check

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Ledger(TorchDispatchMode):
    """Counts the reads and writes of PyTorch.

    Attributes:
        read: by address of a storage, elements that were read of it.
        largest: bytes of the largest new tensor.
        calls: of operations that make new tensors.
        waits: operations for which the host would wait if the tensors were on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: Counter[int] = Counter()
        self.largest = 0
        self.calls = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Outputs are not read.
        read = {name: value for name, value in (kwargs or {}).items() if name != "out"}
        inputs = [leaf for leaf in tree_leaves((args, read)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func.name().split(".")[0] in WAITS:
            self.waits.append(func.name())
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        new = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in known]
        if new:  # not a view
            self.calls += 1
            self.largest = max(self.largest, *(tensor.untyped_storage().nbytes() for tensor in new))
            is_gather = func.name().startswith("aten::index_select")
            for tensor in inputs:
                num_read = new[0].numel() if is_gather and tensor is inputs[0] else tensor.numel()
                self.read[tensor.untyped_storage().data_ptr()] += num_read
        return result

    def passes(self, tensor: Tensor) -> float:
        return self.read[tensor.untyped_storage().data_ptr()] / tensor.numel()


@contextmanager
def counted_transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sizes: list[int] = []
    original = numerics.to_host
    # Modules import the function by its name.
    users = [module for name, module in sys.modules.items() if name.startswith("lightning_symmetry.")]
    users = [module for module in users if getattr(module, "to_host", None) is original]
    assert len(users) > 1

    def counting(tensor: Tensor, *args: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args)

    for module in users:
        monkeypatch.setattr(module, "to_host", counting)
    yield sizes
    monkeypatch.undo()


NetT = TypeVar("NetT", bound=nn.Module)


def with_gradients(net: NetT) -> NetT:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return net


def ledger_of(check: Callable[[], Any]) -> Ledger:
    check()  # random vectors are made once
    ledger = Ledger()
    with ledger:
        check()
    return ledger


def test_a_healthy_layer_is_read_twice_and_not_copied() -> None:
    # Once for the sums of its chunks, once for their norms; the second pass finds the block in a cache.
    torch.manual_seed(0)
    net = with_gradients(nn.Linear(2048, 2048))
    layers = find_layers(net).layers
    ledger = ledger_of(lambda: look(layers))
    assert ledger.passes(net.weight) == 2
    assert net.weight.grad is not None
    assert ledger.passes(net.weight.grad) == 2
    assert ledger.largest < 1 << 19  # however large the layer
    assert not ledger.waits


@pytest.mark.parametrize("shape", [(3000, 768), (700, 3000)])
def test_a_transposed_layer_is_not_copied_whole(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = with_gradients(nn.Embedding(*shape))
    layers = find_layers(net).layers
    ledger = ledger_of(lambda: look(layers))
    assert ledger.passes(net.weight) <= 3  # x * x counts twice
    assert ledger.largest <= numerics.BLOCK_ELEMENTS["cpu"] * 4


@pytest.mark.parametrize("num_layers", [1, 7, 40])
def test_keys_of_all_layers_come_to_the_host_at_once(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> None:
    torch.manual_seed(0)
    layers = find_layers(with_gradients(nn.ModuleList(nn.Linear(20 + i, 30) for i in range(num_layers)))).layers
    with counted_transfers(monkeypatch) as sizes:
        ledger = ledger_of(lambda: look(layers))
    assert sizes == 2 * [2 * 30 * num_layers * (1 + NUM_PROJECTIONS)]
    assert not ledger.waits


@pytest.mark.parametrize("inputs", [20, 2000])
def test_dead_units_take_a_second_transfer_at_most(monkeypatch: pytest.MonkeyPatch, inputs: int) -> None:
    net = with_gradients(nn.ModuleList(nn.Linear(inputs, 50) for _ in range(5)))
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad[::7] = 0
    layers = find_layers(net).layers
    with counted_transfers(monkeypatch) as sizes:
        looks = look(layers)
    assert [np.sum(seen.idle) for seen in looks if seen.idle is not None] == [8] * 5
    assert len(sizes) <= 2


def calls_of_a_later_check(num_layers: int, *, num_silent: int = 0) -> int:
    """How often a check of small layers, in which others have found nothing, calls PyTorch for new tensors.

    Args:
        num_layers: the number of layers.
        num_silent: of so many units of each layer, others at each check, the gradient is zero.
    """
    torch.manual_seed(0)
    net = with_gradients(nn.Sequential(*(nn.Linear(8, 8) for _ in range(num_layers))))
    trained = {id(parameter) for parameter in net.parameters()}
    gradients = {id(parameter): parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None}
    failures: list[object] = []
    examiner = Examiner(Options(), lambda layer, reason: failures.append(reason))
    updates = Updates([torch.optim.SGD(net.parameters())])

    def move(step: int) -> None:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1e-3)
                parameter.grad = gradients[id(parameter)].clone()
                parameter.grad[step : step + num_silent] = 0

    def check(step: int) -> list[Look]:
        found = examiner.find(net)
        return examiner.examine(net, found, trained=trained, updates=updates, step=step, team=None).looks

    for step in range(5):
        move(step)
        num_closely = sum(seen.fingerprint is not None for seen in check(step))
        assert num_closely == (num_layers if step < 3 else 0)  # the others are read quickly
    ledger = Ledger()
    move(5)
    with ledger:
        check(5)
    assert not failures
    return ledger.calls


def test_healthy_layers_are_read_in_as_many_calls_however_many_there_are() -> None:
    assert calls_of_a_later_check(60) == calls_of_a_later_check(6) < 20


def test_so_are_layers_whose_units_come_and_go() -> None:
    assert calls_of_a_later_check(60, num_silent=2) == calls_of_a_later_check(6, num_silent=2) < 20


def test_small_layers_share_their_calls() -> None:
    def calls(num_layers: int) -> int:
        torch.manual_seed(0)
        layers = find_layers(with_gradients(nn.ModuleList(nn.Linear(16, 16) for _ in range(num_layers)))).layers
        return ledger_of(lambda: look(layers)).calls

    assert calls(100) == calls(2) <= 12


@pytest.mark.parametrize(
    ("content", "passes"),
    # Equal rows are read once more to compare them, zero rows to make sure that they are; one-hot rows twice more,
    # to tell apart those whose numbers are in the same chunk.
    [("random", 2), ("planted", 2.1), ("equal", 3.1), ("zero", 3.1), ("on a line", 2.5), ("one-hot", 4.1)],
)
def test_passes_over_a_matrix(content: str, passes: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1024, 2048, generator=generator)
    if content == "planted":
        matrix[100:105] = matrix[7]
    elif content == "equal":
        matrix[:] = matrix[0].clone()
    elif content == "zero":
        matrix[:] = 0
    elif content == "on a line":
        matrix = torch.randn(1024, 1, generator=generator) * matrix[0]
    elif content == "one-hot":
        matrix = torch.eye(1024, 2048)
    ledger = ledger_of(lambda: duplicate_groups(matrix))
    assert ledger.passes(matrix) <= passes
    assert not ledger.waits
    assert ledger.largest <= numerics.BLOCK_ELEMENTS["cpu"] * 4


@pytest.mark.parametrize("recipe", WORST, ids=lambda recipe: f"{recipe.base}, {recipe.noise}")
@pytest.mark.parametrize(("shape", "most"), [((2048, 1024), 20), ((512, 512), 60)])
def test_the_worst_contents_are_read_a_few_times(recipe: Recipe, shape: tuple[int, int], most: int) -> None:
    matrix = recipe.build(*shape)
    ledger = ledger_of(lambda: group_as_a_check(matrix))
    assert ledger.passes(matrix) <= 10
    assert sum(ledger.read.values()) / matrix.numel() <= most  # with all that was computed of it


def test_a_parameter_that_does_not_move_is_not_copied_and_its_gradient_is_read_twice() -> None:
    layer = with_gradients(nn.Linear(512, 4096, bias=False))
    assert layer.weight.grad is not None
    parameters = {id(layer.weight)}
    found = find_layers(layer)
    progress = LedgerOfParameters.of(layer, found.layers, None, (), LedgerOfParameters())
    for step in range(2):  # gradients and inputs are known then
        progress.take_in(parameters, parameters, [], step)
    ledger = ledger_of(lambda: progress.take_in(parameters, parameters, [], 2))
    assert ledger.largest < layer.weight.nbytes / 64
    assert ledger.passes(layer.weight.grad) < 2.1


def test_rows_whose_squares_vanish_are_not_copied_whole() -> None:
    matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) * 1e-25  # as gradients that vanish
    ledger = ledger_of(lambda: duplicate_groups(matrix))
    assert ledger.largest <= numerics.COPY_ELEMENTS["cpu"] * 4
