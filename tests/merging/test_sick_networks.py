"""Random networks of many architectures: merges and repairs keep their promises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import diagnose, merge_duplicates
from tests.sick_networks import ARCHITECTURES, PLANTED, Sick, distance, loss_of, repaired, sick_network
from tests.training import assert_same

SEEDS = range(48)  # four of each architecture, one for each kind of units


def sick(seed: int) -> Sick:
    return sick_network(seed, ARCHITECTURES[seed % 12], PLANTED[seed // 12])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, steps: int = 20) -> None:
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, inputs).backward()
        optimizer.step()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed < 24])
def test_merged_networks_compute_the_same_in_both_modes_and_go_on_as_before(seed: int) -> None:
    case = sick(seed)
    net, inputs = case.net, case.inputs
    optimizer = sgd(net)
    train(net, optimizer, inputs, steps=2)  # what was planted stays equal
    merged = merge_duplicates(net, inputs, optimizer=optimizer)
    assert bool(merged.removed) != bool(merged.left), (case.architecture, merged.left)
    assert distance(net, merged.model, inputs) <= 1e-12
    assert distance(net, merged.model, 100 * inputs if inputs.is_floating_point() else inputs.flip(0)) <= 1e-12
    parameters = dict(merged.model.named_parameters())
    for name, scale in merged.gradient_scale.items():
        parameters[name].register_hook(lambda gradient, scale=scale: gradient * scale)
    assert merged.optimizer is not None
    train(net, optimizer, inputs)
    train(merged.model, merged.optimizer, inputs)
    assert distance(net, merged.model, inputs) <= 1e-8


@pytest.mark.parametrize("seed", SEEDS)
def test_repair_changes_the_units_in_question_and_nothing_else(seed: int) -> None:
    case = sick(seed)
    optimizer = torch.optim.AdamW(case.net.parameters(), lr=1e-3)
    train(case.net, optimizer, case.inputs, steps=2)
    before = copy.deepcopy(case.net)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    changes, left = repaired(case, optimizer)
    assert changes or "left as they are" in left
    assert not changes or case.planted != "saturated units"
    units = sorted(unit for change in changes for unit in change.units)
    cleared = {f"{reader}.weight" for change in changes for reader in change.outgoing}
    healthy = [unit for unit in range(diagnose(before).layers[case.layer].num_units) if unit not in units]
    for place, (name, parameter) in enumerate(case.net.named_parameters()):
        old: Any = dict(before.named_parameters())[name]
        mine = optimizer.state_dict()["state"].get(place, {})
        theirs = state.get(place, {})
        if name in (f"{case.layer}.weight", f"{case.layer}.bias"):
            keep = torch.tensor(healthy)
            assert torch.equal(parameter[keep], old[keep])
            assert_same(
                {k: v[keep] for k, v in mine.items() if v.ndim}, {k: v[keep] for k, v in theirs.items() if v.ndim}
            )
        elif name in cleared:
            columns = [each.detach().reshape(len(old), len(healthy) + len(units), -1) for each in (parameter, old)]
            assert torch.equal(columns[0][:, healthy], columns[1][:, healthy])
            assert not columns[0][:, units].any()
        else:
            assert torch.equal(parameter, old), name
            assert_same(mine, theirs)
    if case.planted.endswith("units"):
        assert distance(before, case.net, case.inputs) <= 1e-12
    elif changes:
        case.net.zero_grad()
        assert diagnose(case.net).layers[case.layer].redundant_units == 0
    train(case.net, optimizer, case.inputs)
    assert all(parameter.isfinite().all() for parameter in case.net.parameters())
