"""The gradients of suspected units between two checks, compared with brute force, and the conclusions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lightning_symmetry import SymmetryTracker
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.deadness import DeadUnits
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.watching import Suspects, are_still_zero, zero_gradients
from tests.test_tracker import endless, loss_of
from tests.training import fill, mlp
from tests.verdicts.recording import record_in_dead_units

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(5, 6),
    "convolution": lambda: nn.Conv2d(4, 6, 2, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2),
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(5, 6)),
    "recurrent": lambda: nn.RNN(5, 6),
}


def fail(layer: Layer, error: Exception) -> None:
    raise AssertionError(layer.name) from error


@given(st.data())
def test_what_is_seen_is_what_brute_force_sees(data: Any) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3))
    net = nn.Sequential(*(KINDS[kind]() for kind in kinds))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trained = {id(p) for p in net.parameters() if data.draw(st.integers(0, 9)) > 0}
    layers = find_layers(net).layers
    suspects, expected = [], []
    for layer in layers:
        for part in layer.all_tensors():
            for original in part.originals:
                if original.grad is not None and original.shape == part.weights.shape:
                    rows = part.view(original.grad)
                    value = data.draw(st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -float("inf")]))
                    rows[torch.rand(len(rows), generator=generator) < 0.2] = value
        units = np.flatnonzero(torch.rand(layer.num_units, generator=generator).numpy() < 0.5)
        suspects.append(Suspects.of(layer, units, 0.0))
        gradients = layer.gradients(trained)
        if gradients is not None:
            rows = gradients.fetch(np.arange(layer.num_units)).double()
            zero, unseen = (rows == 0).all(1).numpy(), (~rows.isfinite()).any(1).numpy()
            is_suspected = np.isin(np.arange(layer.num_units), units)
            expected.append((layer.name, (zero & is_suspected).tolist(), (unseen | ~is_suspected).tolist()))
    seen = [(layer.name, z.tolist(), u.tolist()) for layer, z, u in zero_gradients(suspects, trained, fail)]
    assert seen == expected
    for each, is_zero in zip(suspects, are_still_zero(suspects, trained), strict=True):
        [zeros] = [zeros for name, zeros, _ in [*expected, ("", [], "")] if name in (each.layer.name, "")][:1]
        assert not is_zero or all(zeros[unit] for unit in each.units)
        if isinstance(net.get_submodule(each.layer.name.split(".")[0]), nn.Linear) and trained >= set(
            each.layer.identity
        ):
            is_plain = all(part.is_plain for part in each.layer.all_tensors())
            assert not is_plain or is_zero == all(zeros[unit] for unit in each.units)


def test_a_gradient_of_another_optimizer_is_not_read() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    weight, bias = net[0].weight, net[0].bias
    weight.grad, bias.grad = torch.ones(4, 3), torch.zeros(4)
    [layer] = find_layers(net).layers
    suspects = [Suspects.of(layer, np.array([0, 2]), 0.0)]
    assert are_still_zero(suspects, {id(bias)}) == [False]  # not at a glance
    [(_, is_zero, is_unseen)] = zero_gradients(suspects, {id(bias)}, fail)
    assert (is_zero.tolist(), is_unseen.tolist()) == ([True, False, True, False], [False, True, False, True])


@pytest.mark.parametrize(("first", "num_findings"), [(2, 0), (1000, 1)])
def test_a_group_is_frozen_only_if_no_step_between_the_checks_has_shown_a_gradient(
    first: int, num_findings: int
) -> None:
    # The checks are at steps 0, 1, 3, 7; the ReLU behind this head, which is shut, is left out at step 2 and at every
    # tenth after it.
    head, body = fill(nn.Linear(12, 4, bias=False), 0.0), mlp()
    net = nn.ModuleDict({"head": head, "body": body})
    groups: Any = [{"params": body.parameters()}, {"params": head.parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    tracker = SymmetryTracker(net, optimizer, on_symmetry="ignore")
    for i, batch in zip(range(8), endless(), strict=False):
        optimizer.zero_grad()
        out = head(batch[0])
        (loss_of(body, batch) + (out if i % 10 == first else out.relu()).sum()).backward()
        optimizer.step()
    tracker.abandon()
    assert len(tracker.findings) == num_findings


def check(deaths: DeadUnits, layer: Layer, idle: Any, step: int) -> None:
    """Record a check at which some units of a layer are idle."""
    mask = np.isin(np.arange(layer.num_units), idle)
    nothing = np.zeros(layer.num_units, dtype=np.bool_)
    seen = Look(layer, lambda: (layer.weights(), None), (), step, True, mask, nothing)
    record_in_dead_units(deaths, seen, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dead_units_whose_rows_turn_are_watched_again_but_not_those_that_decay(dtype: torch.dtype) -> None:
    [layer] = find_layers(nn.Sequential(nn.Linear(3, 4)).to(dtype)).layers
    deaths, dead = DeadUnits(3, dead_share=0.5), [0, 1, 2]
    for step in range(60):
        check(deaths, layer, dead, step)
    assert deaths.units == (0, 1, 2)
    assert len(deaths.suspected()) == 0
    for tensor in layer.tensors:
        tensor.weights.data *= 0.9
    check(deaths, layer, dead, 60)
    assert len(deaths.suspected()) == 0
    layer.tensors[0].weights.data[1] += torch.tensor([0.1, -0.2, 0.3])
    check(deaths, layer, dead, 61)
    for _ in range(50):
        assert deaths.suspected().tolist() == dead
        deaths.watch_zeros()
    assert len(deaths.suspected()) == 0
    check(deaths, layer, dead, 112)
    assert deaths.units == (0, 1, 2)


@pytest.mark.parametrize(("dead_share", "least", "most"), [(0.5, 0.2, 0.3), (0.05, 0.9, 1.0)])
def test_where_some_units_come_and_others_go_they_are_watched_at_a_quarter_of_the_steps_unless_a_finding_is_at_stake(
    dead_share: float, least: float, most: float
) -> None:
    [layer] = find_layers(nn.Sequential(nn.Linear(3, 24))).layers
    deaths = DeadUnits(3, dead_share)
    check(deaths, layer, [], 0)
    watched = []
    for step in range(1, 4001):
        awake = [unit for unit in range(10) if step % 40 == 4 * unit]  # each once in 40 steps, never all at once
        if awake and np.isin(awake, deaths.suspected()).any():
            deaths.watch(np.zeros(24, dtype=np.bool_), ~np.isin(np.arange(24), awake), 1, step)
        check(deaths, layer, np.setdiff1d(np.arange(10), awake), step)
        watched.append(len(deaths.suspected()) > 0)
    assert deaths.units == ()
    assert least <= np.mean(watched[1000:]) <= most
