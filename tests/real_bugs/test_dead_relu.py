"""ReLU networks that are dead from the start, or die at their first steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import zoo
from tests.real_bugs.cases import Case, Found, assert_found, assert_silent, train_buggy, train_fixed


def hidden() -> nn.Sequential:
    return nn.Sequential(nn.Linear(zoo.INPUTS, 16), nn.ReLU(), nn.Linear(16, zoo.OUTPUTS))


def negative() -> nn.Module:
    """Weights that all start below zero, on inputs that are never negative."""
    net = hidden()
    with torch.no_grad():
        zoo.linear(net, "0").weight.abs_().neg_()
        zoo.linear(net, "0").bias.zero_()
    return net


CASES = [
    Case(
        "A learning rate that is too high",
        (
            "https://datascience.stackexchange.com/questions/5706",
            "https://cs231n.github.io/neural-networks-1/",
        ),
        hidden,
        hidden,
        (
            Found(
                "0",
                "dead",
                "negative weights",
                (tuple(unit for unit in range(16) if unit not in (3, 10)),),
                way_out="They trained until step 3.",
            ),
        ),
        lr=80.0,
        fixed_lr=0.05,
        steps=100,
    ),
    Case(
        "Weights that start negative",
        (
            "https://ai.stackexchange.com/questions/39853/how-does-gradient-descent-work-with-relu-if-weights-are-negative",
        ),
        negative,
        hidden,
        (Found("0", "dead", "negative weights", way_out="None of their weights is positive."),),
        steps=80,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bug_is_found(case: Case) -> None:
    assert_found(case, train_buggy(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fix_is_silent(case: Case) -> None:
    assert_silent(train_fixed(case))
