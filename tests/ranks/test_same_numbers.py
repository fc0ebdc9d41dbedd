"""Ranks whose own plain modules have the same weights and gradients."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lightning_symmetry import SymmetryTracker
from tests.distributed import replicated
from tests.ranks.pool import RankPool
from tests.training import fill, make_trainer, mlp, quiet


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("ranks")) as pool:
        yield pool


# ----------------------------------------------------------------- models by hand


class SumGradients(torch.autograd.Function):
    """Returns its input; sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SumOutputs(torch.autograd.Function):
    """Sums the inputs of all ranks; returns the gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.clone()
        dist.all_reduce(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


sum_gradients: Callable[[Tensor], Tensor] = SumGradients.apply
sum_outputs: Callable[[Tensor], Tensor] = SumOutputs.apply


class TensorParallel(nn.Module):
    """A perceptron whose hidden units are sharded over the ranks, as in Megatron-LM; the rest is replicated.

    Args:
        seed: seed of this rank's shards.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(6, 4)
        torch.manual_seed(seed)
        self.columns, self.rows = nn.Linear(12, 8), nn.Linear(8, 6, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = sum_gradients(self.norm(self.first(inputs)))
        out: Tensor = self.last(sum_outputs(self.rows(torch.tanh(self.columns(hidden)))))
        return out


class Experts(nn.Module):
    """One expert per rank, and a replicated router.

    Args:
        seed: seed of this rank's expert.
        is_sparse: whether an expert sees only the samples that are routed to it.
    """

    def __init__(self, seed: int, *, is_sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self._is_sparse = nn.Linear(12, 2), is_sparse
        torch.manual_seed(seed)
        self.expert = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.expert(inputs)
        if self._is_sparse:
            weights = self.router(inputs).softmax(dim=1)
            is_mine = weights.argmax(dim=1, keepdim=True) == dist.get_rank()
            outputs = outputs * weights.amax(dim=1, keepdim=True) * is_mine
        return sum_outputs(outputs)


class SplitsItsBatch(nn.Module):
    """A whole model on each rank, which uses its own part of the common inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.net(inputs.chunk(dist.get_world_size())[dist.get_rank()])
        return out


# ----------------------------------------------------------------- training


def average_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def train(
    model: nn.Module,
    data_seed: int = 0,
    *,
    watched: nn.Module | None = None,
    exchange: Callable[[nn.Module], None] = lambda model: None,
    is_watched: bool = True,
    **options: Any,
) -> tuple[list[str], list[Tensor]]:
    """Train in a plain loop; return the warnings about ranks, and this rank's final weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(data_seed)
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        if is_watched:
            stack.enter_context(SymmetryTracker(watched or model, optimizer, **options))
        for _ in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(16, 12, generator=generator)
            targets = torch.randn(16, 4, generator=generator)
            outputs = model(inputs)
            nn.functional.mse_loss(outputs, targets[: len(outputs)]).backward()
            exchange(model)
            optimizer.step()
    texts = [text for warning in caught if re.search(r"ranks \d and \d", text := str(warning.message))]
    return texts, [parameter.detach().clone() for parameter in model.parameters()]


def parallel(kind: str, seeds: tuple[int, int], **options: Any) -> tuple[list[str], list[Tensor]]:
    seed = seeds[dist.get_rank()]
    model: nn.Module = TensorParallel(seed) if kind == "tensors" else Experts(seed, is_sparse=kind == "routed experts")
    return train(model, **options)


def said_by_all(results: list[tuple[list[str], list[Tensor]]]) -> list[str]:
    return [text for texts, _ in results for text in texts]


@pytest.mark.parametrize("kind", ["tensors", "experts"])
def test_shards_that_are_drawn_with_one_seed(ranks: RankPool, kind: str) -> None:
    results = ranks.call(parallel, kind, (7, 7))
    [text] = said_by_all(results)  # one rank warns, once
    assert "ranks 0 and 1 hold the same weights" in text
    assert "step 0" in text
    assert "torch.manual_seed(seed + torch.distributed.get_rank())" in text
    # The warning is true: the ranks train as one.
    assert all(map(torch.equal, results[0][1], results[1][1]))


@pytest.mark.parametrize("kind", ["tensors", "experts"])
def test_shards_that_are_drawn_with_seeds_apart(ranks: RankPool, kind: str) -> None:
    assert not said_by_all(ranks.call(parallel, kind, (7, 8)))


def test_equal_experts_with_samples_of_their_own_part_by_themselves(ranks: RankPool) -> None:
    results = ranks.call(parallel, "routed experts", (7, 7))
    assert not said_by_all(results)
    assert not all(map(torch.equal, results[0][1], results[1][1]))


def sum_in_hooks(model: nn.Module) -> nn.Module:
    """Data parallelism by hooks that are older than the tracker."""

    def average(gradient: Tensor) -> Tensor:
        gradient = gradient / dist.get_world_size()
        dist.all_reduce(gradient)
        return gradient

    for parameter in model.parameters():
        parameter.register_hook(average)
    return model


def replicas(how: str, *, has_own_data: bool) -> tuple[list[str], list[Tensor]]:
    """Train copies of a model, with equal or different data on the ranks."""
    net, data_seed = mlp(), dist.get_rank() if has_own_data else 0
    match how:
        case "DDP":
            return train(DistributedDataParallel(net), data_seed)
        case "inside DDP":
            return train(DistributedDataParallel(net), data_seed, watched=net)
        case "hooks":
            return train(sum_in_hooks(net), data_seed)
        case "splits its batch":
            return train(SplitsItsBatch(), data_seed, exchange=average_gradients)
        case "constant":
            return train(fill(net, 0.5), data_seed, exchange=average_gradients)
    return train(net, data_seed, exchange=average_gradients)


@pytest.mark.parametrize("how", ["DDP", "inside DDP", "hooks", "splits its batch", "constant", "by hand"])
def test_data_parallelism_with_data_of_each_rank(ranks: RankPool, how: str) -> None:
    results = ranks.call(partial_with_own_data, how)
    assert not said_by_all(results)
    assert all(map(torch.equal, results[0][1], results[1][1]))  # the weights must be equal


def partial_with_own_data(how: str) -> tuple[list[str], list[Tensor]]:
    return replicas(how, has_own_data=True)


def with_the_same_data(how: str) -> tuple[list[str], list[Tensor]]:
    return replicas(how, has_own_data=False)


@pytest.mark.parametrize("how", ["DDP", "hooks", "splits its batch", "constant"])
def test_the_same_data_on_all_ranks_where_nothing_can_be_concluded(ranks: RankPool, how: str) -> None:
    assert not said_by_all(ranks.call(with_the_same_data, how))


def test_copies_that_are_given_the_same_data_by_mistake(ranks: RankPool) -> None:
    [text] = said_by_all(ranks.call(with_the_same_data, "by hand"))
    assert "DistributedSampler" in text


# ----------------------------------------------------------------- without side effects


def on_some_ranks(with_tracker_on: int) -> tuple[list[str], list[Tensor]]:
    return train(TensorParallel(7), data_seed=with_tracker_on, is_watched=dist.get_rank() == with_tracker_on)


def test_a_rank_without_a_tracker_is_not_waited_for(ranks: RankPool) -> None:
    for rank in range(2):
        assert not said_by_all(ranks.call(on_some_ranks, rank))


def unwatched(seeds: tuple[int, int]) -> tuple[list[str], list[Tensor]]:
    return parallel("tensors", seeds, is_watched=False)


def test_the_training_is_the_same_with_and_without(ranks: RankPool) -> None:
    for (_, with_it), (_, without) in zip(
        ranks.call(parallel, "tensors", (7, 7)), ranks.call(unwatched, (7, 7)), strict=True
    ):
        assert all(map(torch.equal, with_it, without))


def on_all_but_the_first() -> tuple[list[str], list[Tensor]]:
    return train(mlp(), is_watched=dist.get_rank() > 0)


def test_several_ranks_say_it_once_whichever_they_are(tmp_path: Path) -> None:
    with RankPool(4, tmp_path) as four:
        [text] = said_by_all(four.call(on_all_but_the_first))
        assert re.search(r"ranks (1 and 2|1 and 3|2 and 3) hold", text)


def raising() -> tuple[list[str], list[Tensor]]:
    return parallel("tensors", (7, 7), on_symmetry="raise")


def test_no_rank_ends_alone(ranks: RankPool) -> None:
    assert len(said_by_all(ranks.call(raising))) == 1


def ignored() -> tuple[list[str], list[Tensor]]:
    return parallel("tensors", (7, 7), on_symmetry="ignore")


def test_it_can_be_silenced(ranks: RankPool) -> None:
    assert not said_by_all(ranks.call(ignored))


def each_by_itself(seeds: tuple[int, int]) -> tuple[list[str], list[Tensor]]:
    return train(mlp(seeds[dist.get_rank()]))


def test_each_training_of_a_process_group_is_compared_for_itself(ranks: RankPool) -> None:
    assert not said_by_all(ranks.call(each_by_itself, (1, 2)))
    assert not said_by_all(ranks.call(each_by_itself, (2, 1)))  # a rank has the former weights of another rank
    for _ in range(2):
        assert len(said_by_all(ranks.call(each_by_itself, (1, 1)))) == 1


def left_behind() -> tuple[bool, bool]:
    """Return whether a copy of a watched model has hooks, and whether the model has any after its first step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SymmetryTracker(model, optimizer):
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            model(torch.randn(4, 12)).sum().backward()
            optimizer.step()
            has_hooks = any(parameter._backward_hooks for parameter in model.parameters())
    return any(parameter._backward_hooks for each in copies for parameter in each.parameters()), has_hooks


def test_no_hook_outlives_the_first_step_or_gets_into_copies(ranks: RankPool) -> None:
    assert ranks.call(left_behind) == [(False, False)] * 2


# ----------------------------------------------------------------- Lightning


class Task(LightningModule):
    """A manually sharded model, whose Trainer does not know of other ranks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_twice(strategy: str, seeds: tuple[int, int]) -> list[list[str]]:
    """Fit, and continue the fit; return the warnings about ranks of both."""
    seed = seeds[dist.get_rank()]
    options: dict[str, Any] = {}
    if strategy == "DDP":
        options = {"strategy": replicated(2).strategy(), "devices": 2, "use_distributed_sampler": False}
    task, monitor = Task(mlp(seed) if strategy == "DDP" else TensorParallel(seed)), quiet()
    inputs: Any = torch.randn(128, 12, generator=torch.Generator().manual_seed(1))
    trainer = make_trainer([monitor], max_steps=3, **options)
    warned = []
    for max_steps in (3, 6):
        trainer.fit_loop.epoch_loop.max_steps = max_steps
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(task, DataLoader(inputs, batch_size=16))
        assert trainer.global_step == max_steps
        warned.append([text for warning in caught if re.search(r"ranks \d and \d", text := str(warning.message))])
    assert pickle.loads(pickle.dumps(monitor)).report is not None
    return warned


def test_a_monitor_says_it_once(ranks: RankPool) -> None:
    first, second = ranks.call(fit_twice, "by hand", (7, 7))
    assert [len(texts) for texts in map(list.__add__, first, second)] == [1, 0]
    assert ranks.call(fit_twice, "by hand", (7, 8)) == [[[], []]] * 2


def test_the_strategy_of_a_trainer_that_copies_the_model(ranks: RankPool) -> None:
    assert ranks.call(fit_twice, "DDP", (7, 7)) == [[[], []]] * 2
