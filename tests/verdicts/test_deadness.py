"""Dead units: which, since when, why, and which are not reported."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_symmetry import SymmetryError, SymmetryTracker, SymmetryWarning, assert_no_symmetry, diagnose
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.deadness import DeadUnits
from lightning_symmetry.verdicts.diagnoses import Origin
from lightning_symmetry.verdicts.gradients import none_of
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.streaks import Dead, JoinedStreaks, Zeros, ZeroStreaks
from tests import zoo
from tests.test_tracker import endless, loss_of, sgd, tracked, train
from tests.training import batches, fill, mlp
from tests.verdicts.recording import fail, record_in_dead_units


def saturated() -> nn.Module:
    torch.manual_seed(0)
    return zoo.with_bias(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), "0", 40.0)


@pytest.mark.parametrize(
    ("build", "dead", "cause"),
    [
        (lambda: zoo.with_bias(mlp(), "0", -100.0), {"0": 16}, "Their biases lie far below zero."),
        (lambda: zoo.negative_weights(mlp(), "0"), {"0": 16}, "None of their weights is positive."),
        (saturated, {"0": 16}, "Their weights or biases are large."),
        (lambda: zoo.cut_off(mlp()), {"0": 16, "2": 8}, "[SYM3"),
    ],
)
def test_layers_that_do_no_work_are_found_with_the_cause(
    build: Callable[[], nn.Module], dead: dict[str, int], cause: str
) -> None:
    tracker = tracked(build(), steps=60, every_n_steps=10)
    assert {finding.layer: len(finding.units) for finding in tracker.findings} == dead
    assert {str(finding.verdict) for finding in tracker.findings} == {"dead"}
    assert all(finding.first_step == 0 and finding.broken_step is None for finding in tracker.findings)
    assert tracker.report.status == "symmetric"
    assert {name: tracker.report.layers[name].dead_units for name in dead} == dead
    num_dead = sum(layer.dead_units for layer in tracker.report.layers.values())
    assert tracker.report.metrics()["symmetry/dead_units"] == num_dead == tracker.report.dead_units
    assert f"({num_dead} dead)" in str(tracker.report)
    for message in tracker.report.messages():
        assert re.search(r"all \d+ units have gradients of exactly zero, though weights of their own", message)
        assert cause in message


def test_dead_units_are_warned_of_once() -> None:
    net = zoo.with_bias(mlp(), "0", -100.0)
    optimizer = sgd(net)
    with warnings.catch_warnings(record=True) as caught, SymmetryTracker(net, optimizer, every_n_steps=5):
        warnings.simplefilter("always")
        train(net, optimizer, 120)
    assert len([warning for warning in caught if issubclass(warning.category, SymmetryWarning)]) == 1


@pytest.mark.parametrize(("dead_share", "is_found"), [(0.5, False), (0.4, True)])
def test_a_few_dead_units_are_counted_and_no_finding(dead_share: float, is_found: bool) -> None:
    torch.manual_seed(0)
    net = zoo.with_bias(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), "0", 1.0)
    zoo.with_bias(net, "0", -100.0, 7)
    tracker = tracked(net, steps=60, every_n_steps=10, dead_share=dead_share)
    layer = tracker.report.layers["0"]
    assert (layer.dead, layer.died_at) == (tuple(range(7)), (0,) * 7)
    assert bool(tracker.findings) == is_found
    assert [group.units for group in layer.groups] == ([layer.dead] if is_found else [])
    assert layer.effective_width == 16
    assert re.search(r"^ *0 +16 +9 +7\b", str(tracker.report), re.MULTILINE)


def test_deaths_are_dated() -> None:
    net = zoo.with_bias(mlp(), "0", 1.0)
    optimizer = sgd(net)
    with warnings.catch_warnings(), SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        warnings.simplefilter("ignore", SymmetryWarning)
        train(net, optimizer, 20)
        zoo.with_bias(net, "0", -100.0, 9)
        train(net, optimizer, 55)
        assert tracker.report is not None
        layer = tracker.report.layers["0"]
        assert layer.dead[:9] == tuple(range(9))
        assert layer.died_at[:9] == (20,) * 9
        (finding,) = tracker.findings
        assert (finding.first_step, finding.broken_step, str(finding.origin)) == (20, None, "collapse")
        (message,) = tracker.report.messages()
        assert "They trained until step 20." in message
        assert "Their biases lie far below zero now." in message
        zoo.with_bias(net, "0", 1.0, 5)
        train(net, optimizer, 3)
    layer = tracker.report.layers["0"]
    assert not {0, 1, 2, 3, 4} & set(layer.dead)
    assert {unit: layer.woke_at[unit] for unit in range(5)} == dict.fromkeys(range(5), 75)
    (finding,) = tracker.findings
    assert finding.broken_step == 75


def test_what_was_dead_for_less_than_50_steps_is_no_finding_but_a_doubt() -> None:
    with pytest.warns(UserWarning, match=r"parts of the model do not train. no gradient has reached it: 0, 2.weight"):
        tracker = tracked(zoo.with_bias(mlp(), "0", -100.0), steps=40, every_n_steps=5)
    assert tracker.findings == []
    assert tracker.report.status == "inconclusive"
    assert tracker.report.untrained == dict.fromkeys(["0", "2.weight"], "no gradient has reached it")
    *untrained, reason = tracker.report.reasons
    assert untrained == [f"{name} does not train: no gradient has reached it" for name in ("0", "2.weight")]
    assert reason.startswith("0: 16 of 16 units have had gradients of exactly zero")


def test_the_gate_goes_on_until_it_knows() -> None:
    with pytest.raises(SymmetryError, match="0: all 16 units have gradients of exactly zero"):
        assert_no_symmetry(zoo.with_bias(mlp(), "0", -100.0), loss_of, batches())


class Routed(nn.Module):
    """Experts of two layers, of which the last is never chosen.

    Args:
        num_experts: how many there are.
        how: ``"rows"``: each is handed the rows that chose it; ``"called"``: only those are called that were chosen by
            any; ``"all"``: all compute all rows.
    """

    def __init__(self, num_experts: int, how: str) -> None:
        super().__init__()
        experts = (nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(num_experts))
        self.experts, self.how = nn.ModuleList(experts), how
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        choice = torch.arange(len(inputs)) % (len(self.experts) - 1)
        hidden = torch.zeros(len(inputs), 8)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero()[:, 0]
            if self.how == "all":
                hidden = hidden + expert(inputs) * (choice == i)[:, None]
            elif self.how == "rows" or len(rows):
                hidden = hidden.index_add(0, rows, expert(inputs[rows]))
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("how", ["rows", "called", "all"])
@pytest.mark.parametrize("num_experts", [2, 3])
def test_experts_without_a_token_say_nothing_of_their_units(num_experts: int, how: str) -> None:
    torch.manual_seed(0)
    net = Routed(num_experts, how)
    if how != "all":
        fill(net.experts[-1], 0.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # none is missing
    optimizer = sgd(net)
    unused = [f"experts.{num_experts - 1}.{i}" for i in (0, 2)]
    tracker = SymmetryTracker(net, optimizer, every_n_steps=10)
    for _, batch in zip(range(70), endless(), strict=False):
        optimizer.zero_grad(set_to_none=False)
        loss_of(net, batch).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match=f"no gradient has reached it: {', '.join(unused)}"):
        tracker.close()
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.dead_units == 0
    assert tracker.report.status == "inconclusive"
    assert tracker.report.untrained == dict.fromkeys(unused, "no gradient has reached it")


@pytest.mark.parametrize("how", ["rows", "called", "all"])
def test_shapes_alone_are_no_evidence_that_an_expert_goes_unused(how: str) -> None:
    torch.manual_seed(0)
    net = Routed(3, how)
    zoo.with_bias(net, "experts.1.0", 40.0)  # saturated, whatever it is handed
    tracker = tracked(net, steps=70, every_n_steps=10, exclude=["experts.2.*"])
    assert [(finding.layer, str(finding.verdict)) for finding in tracker.findings] == [("experts.1.0", "dead")]


class Branched(nn.Module):
    """A layer that is skipped from some step on; before, some of its units have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.branch, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.is_branch_used = True

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.entry(inputs))
        if self.is_branch_used:
            hidden = hidden + torch.relu(self.branch(hidden))
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("every_n_steps", [1, 10])
def test_a_layer_that_was_called_and_is_no_longer_is_not_dead(every_n_steps: int) -> None:
    torch.manual_seed(0)
    net = Branched()
    zoo.with_bias(net, "branch", -50.0, 2)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # none is missing
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, every_n_steps=every_n_steps) as tracker:
        for step, batch in zip(range(140), endless(), strict=False):
            net.is_branch_used = step < 30
            if step == 15:
                zoo.with_bias(net, "branch", 5.0)
            optimizer.zero_grad(set_to_none=False)
            loss_of(net, batch).backward()
            optimizer.step()
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.layers["branch"].groups == []


def test_modules_are_hooked_only_while_there_are_questions_about_them() -> None:
    first = nn.Linear(2, 2, bias=False)
    nn.init.eye_(first.weight)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    num_hooks = []
    with SymmetryTracker(net, optimizer, every_n_steps=1):
        for step in range(12):  # the units take turns: one of them has no gradient
            net(torch.tensor([[1.0, -1.0]]) * (-1) ** step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            num_hooks.append(sum(len(module._forward_pre_hooks) for module in net.modules()))
    assert num_hooks[0] > 0
    assert num_hooks[-6:] == [0] * 6


class Residual(nn.Module):
    """Equal residual blocks of two layers, held by a list or one after the other."""

    def __init__(self, holder: type[nn.Sequential] | type[nn.ModuleList]) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU()) for _ in range(3)]
        self.blocks = nn.Sequential(*blocks) if holder is nn.Sequential else nn.ModuleList(blocks)
        self.head = nn.Linear(12, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = inputs + block(inputs)
        logits: Tensor = self.head(inputs)
        return logits


@pytest.mark.parametrize("holder", [nn.Sequential, nn.ModuleList])
def test_a_dead_block_among_equal_ones_is_found_whatever_holds_it(
    holder: type[nn.Sequential] | type[nn.ModuleList],
) -> None:
    torch.manual_seed(0)
    # The first look at a member of a list does not count: it may be an expert without a token.
    tracker = tracked(zoo.with_bias(Residual(holder), "blocks.1.2", -100.0), steps=70, every_n_steps=10)
    # Only the rows of the second layer show why; they cut off the first one.
    assert {(finding.layer, str(finding.verdict)) for finding in tracker.findings} == {
        ("blocks.1.0", "dead"),
        ("blocks.1.2", "dead"),
    }


def test_parts_that_do_not_train_on_purpose_are_passed_over() -> None:
    net = nn.Sequential(nn.Linear(12, 16).requires_grad_(False), nn.Tanh(), nn.Linear(16, 4))
    tracker = tracked(net, steps=70, every_n_steps=10)
    assert tracker.findings == []
    assert tracker.report.status == "healthy"


@pytest.mark.parametrize("every_n_steps", [5, 50])
@pytest.mark.parametrize("period", [3, 10, 20])
def test_a_layer_that_trains_every_few_steps_is_alive_whichever_are_looked_at(period: int, every_n_steps: int) -> None:
    main, rare = mlp(), mlp()
    net = nn.ModuleDict({"main": main, "rare": rare})
    optimizer = sgd(net)
    latest = torch.zeros(16)  # of each unit of a layer, the latest step at which it had a gradient
    with SymmetryTracker(net, optimizer, every_n_steps=every_n_steps) as tracker:
        for i, batch in zip(range(210), endless(), strict=False):
            optimizer.zero_grad()
            weight = float(i % period == period - 1)
            (loss_of(main, batch) + weight * loss_of(rare, batch)).backward()
            gradient = rare.linear(0).weight.grad
            assert gradient is not None
            latest[gradient.count_nonzero(dim=1) > 0] = i
            optimizer.step()
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.status != "symmetric"
    assert tracker.report.untrained == {}
    assert (latest[list(tracker.report.layers["rare.0"].dead)] < 209 - 50).all()


def network_with_shut_units(seed: int) -> nn.Sequential:
    """A network of random widths and activations, some of its units closed from the start."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    widths = [12, *torch.randint(2, 24, (int(torch.randint(1, 4, (), generator=generator)),), generator=generator), 4]
    net = nn.Sequential()
    for fan_in, width in itertools.pairwise(map(int, widths)):
        layer, kind = (
            nn.Linear(fan_in, width),
            [nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU][torch.randint(4, (), generator=generator)],
        )
        shut = torch.rand(width, generator=generator) < torch.rand((), generator=generator)
        if width != 4 or len(net) < 2 * len(widths) - 4:
            layer.bias.data[shut] = -100.0
        net.extend([layer, kind()])
    del net[-1]
    return net


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_no_unit_that_trains_is_called_dead_and_none_that_never_does_is_missed(seed: int, batch_size: int) -> None:
    net = network_with_shut_units(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3) if seed % 2 else sgd(net)
    layers = {name: layer for name, layer in net.named_children() if isinstance(layer, nn.Linear)}
    latest = {name: torch.full((layer.out_features,), -1) for name, layer in layers.items()}
    tracker = SymmetryTracker(net, optimizer, on_symmetry="ignore")
    for i, (inputs, labels) in zip(range(201), endless(), strict=False):
        optimizer.zero_grad()
        loss_of(net, [inputs[:batch_size], labels[:batch_size]]).backward()
        for name, layer in layers.items():
            rows = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)  # type: ignore[list-item, index]
            latest[name][rows.any(1)] = i
        optimizer.step()
    tracker.close()
    assert tracker.report is not None
    for name, steps in latest.items():
        dead = set(tracker.report.layers[name].dead)
        grouped = {unit for group in tracker.report.layers[name].groups for unit in group.units} - dead
        assert dead <= set((steps < 200 - 50).nonzero()[:, 0].tolist()), name
        assert set((steps < 0).nonzero()[:, 0].tolist()) - grouped <= dead, name


# The effect of each on a row without a gradient: decay scales or shifts it; momentum continues for long.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 1e-3},
    "ASGD": {"weight_decay": 1e-3},
    "Adadelta": {"weight_decay": 1e-3, "lr": 0.05},
    "Adafactor": {"weight_decay": 1e-3},
    "Adagrad": {"weight_decay": 1e-3},
    "Adam": {"weight_decay": 1e-3},
    "AdamW": {"weight_decay": 1e-2},
    "Adamax": {"weight_decay": 1e-3},
    "NAdam": {"weight_decay": 1e-3},
    "RAdam": {"weight_decay": 1e-3},
    "RMSprop": {"momentum": 0.9, "weight_decay": 1e-3},
    "Rprop": {"lr": 1e-3},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_moves_rows_without_a_gradient_does_not_wake_them(name: str) -> None:
    net = mlp()
    options = {"lr": 1e-3, **OPTIMIZERS[name]}
    optimizer = getattr(torch.optim, name)(net.parameters(), **options)
    num_seen, shut, seen = torch.zeros(16), torch.zeros(16, dtype=torch.bool), []
    with SymmetryTracker(net, optimizer, every_n_steps=10, on_symmetry="ignore") as tracker:
        for i, batch in zip(range(141), endless(), strict=False):
            if i == 30:
                shut[num_seen.argsort()[-3:]] = True  # those that have trained most
                net.linear(0).bias.data[shut] = -100.0
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
            num_seen += net.linear(0).weight.grad.any(1)  # type: ignore[union-attr]
            assert tracker.report is not None
            seen.append({unit for unit in tracker.report.layers["0"].dead if shut[unit]})
    assert len(seen[-1]) == 3
    assert not any(seen[:80])


def test_all_optimizers_are_tried() -> None:
    base = torch.optim.Optimizer
    kinds = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and issubclass(kind, base)}
    # Muon takes no vectors, SparseAdam no dense gradients, and LBFGS diverges where each step has another batch.
    assert kinds - {"Optimizer", "Muon", "SparseAdam", "LBFGS"} == OPTIMIZERS.keys()


def test_steps_of_other_optimizers_do_not_count() -> None:
    net = mlp()
    zoo.with_bias(net, "0", -100.0)
    dead, other = sgd(net.linear(0)), sgd(net.linear(4))
    for num_steps, num_dead in ((51, 16), (50, 0)):
        tracker = SymmetryTracker(net, [dead, other], every_n_steps=10)
        for i, batch in zip(range(10 * num_steps), endless(), strict=False):
            net.zero_grad()
            loss_of(net, batch).backward()
            (dead if i % 10 == 9 else other).step()
        tracker.abandon()
        assert tracker.report is not None
        assert tracker.report.layers["0"].dead_units == num_dead


class BesideASkip(nn.Module):
    """A branch that ends in a norm, added to a linear layer.

    Args:
        width: over how many numbers the norm goes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4 * width))
        self.norm, self.skip, self.width = nn.LayerNorm(width), nn.Linear(12, 4), width

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.norm(self.branch(inputs).view(-1, 4, self.width)).mean(-1) + self.skip(inputs)
        return out


def test_behind_a_norm_over_one_number_there_is_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    tracker = tracked(BesideASkip(1), steps=120, every_n_steps=20)
    assert {finding.layer for finding in tracker.findings} == {"branch.0", "branch.2"}
    [message] = tracker.report.messages()
    assert message.startswith("branch.2: all 4 units have gradients that are zero but for rounding, though weights of")
    assert "The gradient stops at norm: it normalises over a single number. branch.0 gets no gradient" in message
    assert tracked(BesideASkip(3), steps=120, every_n_steps=20).report.status == "healthy"


@pytest.mark.filterwarnings("ignore:SymmetryTracker.*it has not moved. 0")  # at this learning rate it is too little
def test_gradients_that_vanish_are_not_taken_for_rounding() -> None:
    torch.manual_seed(0)
    layers = [module for _ in range(10) for module in (nn.Linear(12, 12), nn.Sigmoid())]
    tracker = tracked(nn.Sequential(*layers, nn.Linear(12, 4)), steps=120, every_n_steps=20)
    assert tracker.findings == []


def test_pruned_units_are_not_called_dead() -> None:
    net = mlp()
    prune.ln_structured(net.linear(0), "weight", amount=0.75, n=2, dim=0)
    tracker = tracked(net, steps=70, every_n_steps=10)
    assert tracker.findings == []
    prune.remove(net.linear(0), "weight")
    for kept in (net, copy.deepcopy(net)):
        with torch.no_grad():
            kept.linear(0).bias[(kept.linear(0).weight == 0).all(1)] = 0  # rows and outputs of zero
        tracker = tracked(kept, steps=70, every_n_steps=10)
        assert tracker.findings == []
        assert tracker.report.status == "healthy"
        assert "12 rows of zeros without gradients, in layers whose other rows are not zero" in str(tracker.report)
    with torch.no_grad():  # the same in place: rows of zeros have no weights of their own
        net = mlp()
        net.linear(0).weight[0] = net.linear(0).bias[0] = 0
    assert 0 not in tracked(net, steps=70, every_n_steps=10).report.layers["0"].dead


def test_one_look_says_what_it_sees() -> None:
    net = mlp()
    for value, num_units in ((1.0, None), (-100.0, 6), (1.0, 3)):
        zoo.with_bias(net, "0", value, num_units)
    loss_of(net, next(endless())).backward()
    layer = diagnose(net).layers["0"]
    assert (layer.dead, layer.died_at, layer.groups) == ((3, 4, 5), (), [])


def test_a_training_that_is_resumed_goes_on_counting() -> None:
    net = zoo.with_bias(mlp(), "0", -100.0)
    optimizer = sgd(net)
    tracker = SymmetryTracker(net, optimizer, every_n_steps=5)
    train(net, optimizer, 30)
    tracker.abandon()
    state = json.loads(json.dumps(tracker.state_dict()))
    with warnings.catch_warnings(), SymmetryTracker(net, optimizer, every_n_steps=5) as resumed:
        warnings.simplefilter("ignore", SymmetryWarning)
        resumed.load_state_dict(state)
        train(net, optimizer, 30)
        (finding,) = resumed.findings
        assert finding.first_step == 0
        again = json.loads(json.dumps(resumed.state_dict()))
    with SymmetryTracker(net, optimizer) as last:
        last.load_state_dict(again)
        assert last.findings == resumed.findings


def test_gradients_that_are_not_finite_say_nothing() -> None:
    net = zoo.with_bias(mlp(), "0", -100.0)
    optimizer = sgd(net)
    with warnings.catch_warnings(), SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        warnings.simplefilter("ignore", SymmetryWarning)
        for step, batch in zip(range(60), endless(), strict=False):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            if step % 7 == 3:
                for parameter in net.parameters():
                    parameter.grad.fill_(float("nan"))  # type: ignore[union-attr]
            before = [parameter.detach().clone() for parameter in net.parameters()]
            optimizer.step()
            if step % 7 == 3:
                with torch.no_grad():
                    for parameter, old in zip(net.parameters(), before, strict=True):
                        parameter.copy_(old)
    assert [finding.first_step for finding in tracker.findings] == [0]


@dataclass
class Unit:
    """The streak of one unit, by definition."""

    since: int = -1
    num_checks: int = 0
    num_watched: int = 0
    num_refuted: int = 0
    was_alive: bool = False
    is_dead: bool = False
    woke_at: int = -1

    def is_watched(self, patience: int) -> bool:
        needed = 0 if not self.was_alive else patience * (1 + self.num_refuted)
        return self.since >= 0 and not self.is_dead and self.num_checks >= needed

    def end(self, step: int) -> None:
        self.woke_at = step if self.is_dead else self.woke_at
        self.since, self.num_checks, self.num_watched, self.is_dead = -1, 0, 0, False

    def see(self, state: str, step: int, patience: int, *, is_check: bool, is_fresh: bool) -> None:
        is_watched = self.is_watched(patience)
        if is_check:
            if not is_watched and not self.is_dead:
                self.num_watched = 0  # what was between the checks is not known
            self.was_alive |= state == "a"
        elif not is_watched:
            return
        elif state == "a":
            self.was_alive, self.num_refuted = True, min(7, self.num_refuted + 1)
        if state == "a":
            self.end(step)
        if state != "z":
            return
        self.num_watched += 1
        if is_check:
            self.since = step if self.since < 0 else self.since
            self.num_checks += is_fresh or self.num_checks == 0
            self.is_dead |= self.num_checks >= patience and self.num_watched > 50


@given(st.data())
def test_streaks_are_those_of_the_definition(data: Any) -> None:
    patience = data.draw(st.integers(1, 3))
    units = [Unit() for _ in range(4)]
    streaks = ZeroStreaks.of(4, patience, was_alive=False)
    step = 0
    for _ in range(data.draw(st.integers(1, 10))):
        # zero, awake, unseen; runs of zeros matter
        states = "".join(data.draw(st.lists(st.sampled_from("zzzzzau"), min_size=4, max_size=4)))
        is_check, is_fresh = data.draw(st.booleans()), data.draw(st.sampled_from([True, True, False]))
        for _ in range(1 if is_check else data.draw(st.sampled_from([1, 2, 20, 48, 49, 50, 51]))):
            idle, unseen = (np.array([state == kind for state in states]) for kind in "zu")
            is_watched = streaks.suspected()
            assert is_watched.tolist() == [unit.is_watched(patience) for unit in units]
            if is_check:
                streaks.update(idle, unseen | idle, step, is_fresh=is_fresh, was_resting=False)
            else:
                streaks.watch(idle & is_watched, unseen | ~is_watched, step)
            for unit, state in zip(units, states, strict=True):
                unit.see(state, step, patience, is_check=is_check, is_fresh=is_fresh)
            for name in ("since", "num_checks", "num_watched", "num_refuted", "was_alive", "is_dead", "woke_at"):
                assert getattr(streaks, name).tolist() == [getattr(unit, name) for unit in units], name
            step += 1
        found = streaks.dead()
        dead = [i for i, unit in enumerate(units) if unit.is_dead]
        if dead:
            assert (found.units, found.died_at) == (tuple(dead), tuple(units[i].since for i in dead))
            assert streaks.num_watched_of(found.units) == min(units[i].num_watched for i in dead)
        assert found.num_idle == sum(unit.num_checks >= patience for unit in units) or found == Dead()
        awake = {i: unit.woke_at for i, unit in enumerate(units) if unit.woke_at >= 0 and not unit.is_dead}
        assert found.woke_at == awake
        assert streaks.are_open == any(unit.num_checks or not unit.was_alive for unit in units)
    again = ZeroStreaks.from_state(json.loads(json.dumps(streaks.to_state())), patience)
    assert again.counts == streaks.counts
    assert again.dead() == streaks.dead()
    assert vars(again).keys() == vars(streaks).keys()
    names = vars(streaks).keys() - {"_dead"}  # what was determined before, which differs where it is outdated
    assert all(np.array_equal(getattr(again, name), getattr(streaks, name)) for name in names)


@given(st.data())
def test_streaks_of_several_layers_are_those_of_each_by_itself(data: Any) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    patience = data.draw(st.integers(1, 3))
    alone, together = ([ZeroStreaks.of(size, patience, was_alive=False) for size in sizes] for _ in range(2))
    joined = JoinedStreaks()
    masks = [npst.arrays(np.bool_, size) for size in sizes]
    for step in range(data.draw(st.integers(1, 8))):
        idle, unseen = ([data.draw(mask) for mask in masks] for _ in range(2))
        is_check, is_fresh = data.draw(st.booleans()), data.draw(st.booleans())
        was_resting = [data.draw(st.booleans()) for _ in sizes]
        has_update = [is_check and data.draw(st.booleans()) for _ in sizes]
        zeros = [Zeros(*each) for each in zip(together, idle, unseen, was_resting, strict=True)]
        if any(has_update):
            joined.update(list(itertools.compress(zeros, has_update)), step, is_fresh=is_fresh)
        for i, (streaks, of_joined) in enumerate(zip(alone, together, strict=True)):
            if has_update[i]:
                streaks.update(idle[i], unseen[i], step, is_fresh=is_fresh, was_resting=was_resting[i])
            elif not is_check and data.draw(st.booleans()):
                for each in (streaks, of_joined):
                    for _ in range(60):
                        each.watch_zeros(is_resting=False, with_dead=False)
            elif not is_check:
                for each in (streaks, of_joined):
                    each.watch(idle[i], unseen[i], step)
            if is_check and not has_update[i]:  # steps that were not watched are forgotten now, or at the next update
                for each in (streaks, of_joined):
                    each.num_watched *= each.is_dead | each.suspected()
            assert streaks.counts == of_joined.counts
            assert streaks.to_state() == of_joined.to_state()
            for is_resting, with_dead in itertools.product((False, True), repeat=2):
                watched = [
                    each.watched(is_resting=is_resting, with_dead=with_dead).tolist() for each in (streaks, of_joined)
                ]
                expected = streaks.suspected(is_resting=is_resting) | (streaks.is_dead & with_dead)
                assert watched == [np.flatnonzero(expected).tolist()] * 2


def test_a_copy_of_joined_streaks_goes_on_by_itself() -> None:
    layers = find_layers(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))).layers
    history = History(patience=3, dead_share=0.5)
    history.match_layers(layers, 0)

    def record(history: History, step: int) -> None:
        looks = [
            Look(
                layer,
                partial(read_rows, layer),
                (),
                step,
                True,
                np.ones(layer.num_units, dtype=np.bool_),
                none_of(layer.num_units),
            )
            for layer in layers
        ]
        history.update(looks, step, is_fresh=True, on_error=fail)

    for step in range(30):
        record(history, step)
    copies = [copy.deepcopy(history), pickle.loads(pickle.dumps(history))]
    for each in (history, *copies):
        for step in range(30, 60):
            record(each, step)
        assert [each[layer.name].dead_units.units for layer in layers] == [(0, 1), (0, 1, 2, 3)]


def read_rows(layer: Layer) -> tuple[Rows, None]:
    return layer.weights(), None


def test_while_few_are_left_in_peace_only_those_that_never_had_a_gradient_are_watched() -> None:
    streaks = ZeroStreaks.of(2, 3, was_alive=False)
    for step, idle in enumerate([[True, False], *[[True, True]] * 4]):
        streaks.update(np.array(idle), np.array([False, False]), step, is_fresh=True, was_resting=True)
    assert streaks.suspected().tolist() == [True, True]
    assert streaks.suspected(is_resting=True).tolist() == [True, False]
    assert streaks.num_watched.tolist() == [5, 1]


def played(*checks: str, patience: int = 3) -> DeadUnits:
    """Let checks, twenty steps apart, see units that are idle (z), awake (a) or not finite (u).

    The steps between two checks are watched where that is asked for, and are as the check before.
    """
    [layer] = find_layers(nn.Sequential(nn.Linear(3, len(checks[0])))).layers
    deaths = DeadUnits(patience, dead_share=0.5)
    for i, states in enumerate(checks):
        idle, unseen = (np.array([state == kind for state in states]) for kind in "zu")
        seen = Look(layer, lambda: (layer.weights(), None), (), i, True, idle, unseen)
        record_in_dead_units(deaths, seen, 20 * i)
        for step in range(20 * i + 1, 20 * i + 20):
            if len(deaths.suspected()):
                deaths.watch(idle, unseen, 1, step)
    return deaths


def test_a_check_without_any_idle_unit_ends_the_streaks() -> None:
    assert played(*["zzzz"] * 4).units == (0, 1, 2, 3)
    assert played("zzzz", "zzzz", "aaaa", "zzzz", "zzzz").units == ()
    # Units that have had a gradient are watched after three checks in a row without one.
    assert played("zzzz", "zzzz", "aaaa", *["zzzz"] * 5).units == ()
    assert played("zzzz", "zzzz", "aaaa", *["zzzz"] * 6).units == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("checks", "origin"),
    [
        ([], Origin.START),
        (["aaaa"], Origin.COLLAPSE),
        (["zuuu", "zuuu", "auuu", "aaaa"], Origin.COLLAPSE),  # seen awake though none was idle
        (["zuuu", "zuuu", "auuu"], Origin.FIRST_LOOK),  # of most it is not known
    ],
)
def test_whether_dead_units_have_trained_is_what_was_seen_of_them(checks: list[str], origin: Origin) -> None:
    warned = played(*checks, *["zzzz"] * 6).warned
    assert warned is not None
    assert (warned.origin, warned.first_step) == (origin, 20 * len(checks))


def test_too_few_dead_units_end_the_finding_and_as_many_again_reopen_it() -> None:
    deaths = played(*["zzzz"] * 4, "zaaa")
    assert deaths.warned is not None
    assert (deaths.warned.broken_step, deaths.groups) == (80, [])
    deaths = played(*["zzaa"] * 4)
    assert deaths.warned is not None  # half of them are enough
    assert (deaths.warned.units, deaths.warned.last_step) == ((0, 1), 60)
    assert [group.units for group in deaths.groups] == [(0, 1)]
    assert played(*["zaaa"] * 4).warned is None


def test_what_was_warned_of_is_news_again_once_it_has_doubled() -> None:
    told = played(*["zzaaaa"] * 4).warned
    assert told is None
    deaths = played(*["zzzaaa"] * 4, *["zzzzza"] * 6)
    assert deaths.warned is not None
    assert (deaths.warned.units, deaths.warned.warned_units) == ((0, 1, 2, 3, 4), (0, 1, 2))
    deaths = played(*["zzzaaa"] * 4, *["zzzzzz"] * 6)
    assert deaths.warned is not None
    assert deaths.warned.warned_units == (0, 1, 2, 3, 4, 5)
