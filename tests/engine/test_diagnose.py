from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, Verdict, diagnose
from tests.training import MLP, fill, mlp


def backward(net: MLP) -> MLP:
    net(torch.rand(20, 12, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    return net


def verdicts(report: SymmetryReport, layer: str) -> dict[tuple[int, ...], Verdict]:
    return {group.units: group.verdict for group in report.layers[layer].groups}


def test_what_is_often_passed_instead_of_a_model_is_told_in_a_line() -> None:
    big = nn.Sequential(*(nn.Linear(16, 16) for _ in range(200)))
    for value, hint in {
        "x.pt": r"but got 'x.pt'. For a checkpoint on disk use lightning_symmetry.scan\('x.pt'\).",
        nn.Linear: r"You passed the class, not an instance: pass Linear\(...\).",
    }.items():
        with pytest.raises(TypeError, match=hint):
            diagnose(value)  # type: ignore[arg-type]
    for state in (big.state_dict(), {"epoch": 3, "state_dict": big.state_dict()}):
        with pytest.raises(TypeError, match="For a state dict pass the model that loads it") as caught:
            diagnose(state)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 400


def test_without_gradients_all_groups_are_duplicates() -> None:
    report = diagnose(fill(mlp(), 0.5))
    assert verdicts(report, "0") == {tuple(range(16)): Verdict.DUPLICATE}
    assert report.redundant_units == 15 + 7 + 3
    assert report.effective_width_fraction == pytest.approx(3 / 28)


def test_with_gradients_locked_and_breaking_are_told_apart() -> None:
    assert verdicts(diagnose(backward(fill(mlp(), 0.5))), "0") == {tuple(range(16)): Verdict.LOCKED}
    net = mlp()
    fill(net.linear(0), 0.5)  # what follows is random
    assert verdicts(diagnose(backward(net)), "0") == {tuple(range(16)): Verdict.BREAKING}


def test_one_look_at_zero_gradients_proves_nothing() -> None:
    assert verdicts(diagnose(backward(fill(mlp(), 0.0))), "0") == {tuple(range(16)): Verdict.DUPLICATE}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_rounding_noise_is_no_evidence(activation: type[nn.Module]) -> None:
    # Under softmax over equal logits the hidden gradients are c * sum(p - y) = 0 but for rounding.
    torch.manual_seed(0)
    net = fill(nn.Sequential(nn.Linear(12, 24), activation(), nn.Linear(24, 10)), 0.1)
    loss = nn.functional.cross_entropy(net(torch.rand(50, 12)), torch.randint(0, 10, (50,)))
    torch.autograd.backward(loss)
    noise = next(net.parameters()).grad
    assert noise is not None
    assert 0 < float(noise.abs().max()) < 1e-6
    assert verdicts(diagnose(net), "0") == {tuple(range(24)): Verdict.DUPLICATE}


def test_dead_units_are_counted_and_no_group() -> None:
    net = mlp()
    with torch.no_grad():
        net.linear(0).bias[:] = 1.0
        net.linear(0).bias[[2, 9]] = -100.0
    layer = diagnose(backward(net)).layers["0"]
    assert layer.dead_units == 2
    assert layer.groups == []


def test_nan_gradients_are_no_evidence() -> None:
    net = backward(fill(mlp(), 0.5))
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad[...] = math.nan
    assert verdicts(diagnose(net), "0") == {tuple(range(16)): Verdict.DUPLICATE}


def test_nan_weights_are_in_no_group() -> None:
    net = fill(mlp(), 0.5)
    with torch.no_grad():
        net.linear(0).weight[3] = math.nan
    assert verdicts(diagnose(net), "0") == {tuple(i for i in range(16) if i != 3): Verdict.DUPLICATE}


def test_causes() -> None:
    net = mlp()
    with torch.no_grad():
        net.linear(0).weight[:4] = 0.0
        net.linear(0).bias[:4] = 0.0
        net.linear(0).weight[4:8] = -0.25
        net.linear(0).bias[4:8] = 0.0
        net.linear(0).weight[8:10] = net.linear(0).weight[10].clone()
        net.linear(0).bias[8:10] = net.linear(0).bias[10].clone()
    groups = diagnose(net).layers["0"].groups
    assert [(group.units, str(group.cause), group.value) for group in groups] == [
        ((0, 1, 2, 3), "zero", 0.0),
        ((4, 5, 6, 7), "constant", -0.25),
        ((8, 9, 10), "copied", None),
    ]


def test_report_as_dict_and_as_table() -> None:
    report = diagnose(nn.ModuleDict({"fc": fill(nn.Linear(3, 4), 0.5), "norm": nn.LayerNorm(4)}))
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert as_dict["layers"]["fc"] == {
        "num_units": 4,
        "fan_in": 3,
        "effective_width": 1,
        "working_units": 1,
        "redundant_units": 3,
        "dead_units": 0,
        "dead": [],
        "orientations": 1,
        "crowded_units": 0,
        "crowd_radius": 0.0,
        "groups": [
            {
                "units": [0, 1, 2, 3],
                "verdict": "duplicate",
                "cause": "constant",
                "value": 0.5,
                "first_step": None,
                "mirrored": [],
                "stop": None,
                "follows": "",
                "kept_by": "",
            }
        ],
    }
    assert str(report).splitlines() == [
        "Symmetry at step 0: 1 of 4 units of 1 layer are working (3 redundant).",
        "layer  units  working  dead  groups",
        "-----  -----  -------  ----  ----------------------",
        "fc         4        1     0  duplicate: all 4 units",
        "duplicate: equal units whose gradients are inconclusive so far: none, zero, rounding noise, or too few "
        "checks.",
        "not inspected: norm (LayerNorm has one scale and shift per unit and no incoming row to compare)",
        "inconclusive: a single look, without optimizer steps, cannot tell what becomes of all units "
        "(and 1 more reason)",
    ]
    assert str(diagnose(nn.ReLU())) == "Symmetry at step 0: no layer was inspected.\ninconclusive: nothing to look at"


def test_nothing_in_the_model_is_changed() -> None:
    net = backward(mlp())
    rng = torch.get_rng_state()
    before = [(p.clone(), p.grad.clone() if p.grad is not None else None) for p in net.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        diagnose(net)
    for parameter, (weight, gradient) in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, weight)
        assert isinstance(parameter.grad, Tensor)
        assert isinstance(gradient, Tensor)
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "resnet"}, TypeError, "`model` to be a torch.nn.Module but got 'resnet'"),
        ({"tolerance": 2.0}, ValueError, "0 <= tolerance < 1 but got 2.0"),
        ({"include": "fc"}, TypeError, "got 'fc'"),
        ({"exclude": {"fc": 1}}, TypeError, r"got \{'fc': 1\}"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        diagnose(**{"model": mlp(), **arguments})
