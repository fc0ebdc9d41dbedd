from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry.units.updates import Updates


def twins() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)) for _ in range(2)]


def two_groups(**second: Any) -> Callable[[Sequence[Tensor]], list[dict[str, Any]]]:
    return lambda pair: [{"params": [pair[0]]}, {"params": [pair[1]], **second}]


@pytest.mark.parametrize(
    "second", [{"lr": 0.2}, {"weight_decay": 0.1}, {"betas": (0.8, 0.99)}, {"amsgrad": True}, {"lr": torch.tensor(0.2)}]
)
def test_other_options_make_other_updates(second: dict[str, Any]) -> None:
    pair = twins()
    optimizer = torch.optim.AdamW(two_groups(**second)(pair), lr=0.1)
    assert not Updates([optimizer]).are_alike(pair)


@pytest.mark.parametrize(
    "second", [{}, {"name": "second"}, {"lr": 0.1}, {"lr": torch.tensor(0.1, dtype=torch.float64)}]
)
def test_equal_options_in_two_groups_make_equal_updates(second: dict[str, Any]) -> None:
    pair = twins()
    optimizer = torch.optim.AdamW(two_groups(**second)(pair), lr=0.1)
    assert Updates([optimizer]).are_alike(pair)


def test_what_two_optimizers_update_alike_depends_on_their_class() -> None:
    pair = twins()
    both = [torch.optim.SGD([parameter], lr=0.1) for parameter in pair]
    assert Updates(both).are_alike(pair)
    assert not Updates([both[0], torch.optim.Adam([pair[1]], lr=0.1)]).are_alike(pair)
    assert not Updates(both[:1]).are_alike(pair)  # no optimizer updates the other


def test_state_makes_other_updates() -> None:
    pair = twins()
    optimizer = torch.optim.Adam(pair, lr=0.1)
    for parameter in pair:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert Updates([optimizer]).are_alike(pair)
    optimizer.state[pair[1]]["exp_avg"][0, 0] *= 1.1
    assert not Updates([optimizer]).are_alike(pair)


def test_units_of_a_parameter_with_other_state_are_updated_apart() -> None:
    (parameter, _) = twins()
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.tensor([[1.0], [1.0], [2.0], [1.0]]).expand(4, 3).clone()
    optimizer.step()
    updates = Updates([optimizer])
    assert updates.are_alike_along(parameter, lambda tensor: tensor, (0, 1, 3))
    assert not updates.are_alike_along(parameter, lambda tensor: tensor, (0, 2))
    assert updates.are_alike_along(parameter, torch.t, (0, 1, 2))


def test_state_of_biases_is_compared_number_by_number() -> None:
    bias = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([bias], lr=0.1, momentum=0.9)
    bias.grad = torch.tensor([1.0, 1.0, 2.0, 1.0])
    optimizer.step()
    updates = Updates([optimizer])
    assert updates.are_alike_along(bias, lambda tensor: tensor, (0, 1, 3))
    assert not updates.are_alike_along(bias, lambda tensor: tensor, (1, 2))
