"""What is known of a layer belongs to its parameters, while these are watched, afterwards, and out of a checkpoint."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.deadness import ZeroStreaks
from lightning_symmetry.verdicts.diagnoses import Cause, Origin
from lightning_symmetry.verdicts.layer_state import LayerState
from lightning_symmetry.verdicts.records import Record


def layer_of(module: nn.Module) -> Layer:
    [layer] = find_layers(nn.Sequential(module)).layers
    return layer


def state_of(module: nn.Module, *, is_released: bool) -> LayerState:
    state = LayerState(3, 0.5)
    state.tie_to(layer_of(module))
    if is_released:
        state.release()
    return state


def with_bias(linear: nn.Linear) -> nn.Linear:
    linear.bias = nn.Parameter(torch.zeros(4))
    return linear


def without_bias(linear: nn.Linear) -> nn.Linear:
    linear.bias = None  # type: ignore[assignment]
    return linear


@pytest.mark.parametrize("is_released", [False, True])
def test_a_state_belongs_to_the_very_parameters(is_released: bool) -> None:
    linear = nn.Linear(3, 4)
    state = state_of(linear, is_released=is_released)
    assert state.belongs_to(layer_of(linear))
    assert not state.belongs_to(layer_of(copy.deepcopy(linear)))
    with torch.no_grad():
        linear.weight += 1
    assert state.belongs_to(layer_of(linear))
    assert not state.belongs_to(layer_of(without_bias(linear)))
    linear = nn.Linear(3, 4, bias=False)
    state = state_of(linear, is_released=is_released)
    assert not state.belongs_to(layer_of(with_bias(linear)))


@pytest.mark.parametrize("is_released", [False, True])
@pytest.mark.parametrize("shape", [(4, 2), (5, 3)])
def test_numbers_of_another_size_are_another_layer(shape: tuple[int, int], is_released: bool) -> None:
    linear = nn.Linear(3, 4, bias=False)
    state = state_of(linear, is_released=is_released)
    linear.weight.data = torch.zeros(shape)
    assert not state.belongs_to(layer_of(linear))


def test_a_new_parameter_in_the_place_of_one_that_is_gone_is_told_by_its_updates() -> None:
    linear = nn.Linear(3, 4)
    with torch.no_grad():
        for _ in range(9):
            linear.weight += 1
    state = state_of(linear, is_released=True)
    assert state.belongs_to(layer_of(linear))
    torch._C._autograd._unsafe_set_version_counter((linear.weight,), (2,))  # as fresh from its initialisation
    assert not state.belongs_to(layer_of(linear))


def test_out_of_a_checkpoint_the_size_decides() -> None:
    for state in (LayerState(3, 0.5), pickle.loads(pickle.dumps(state_of(nn.Linear(3, 4), is_released=False)))):
        state.size = (4, 3)
        assert state.belongs_to(layer_of(nn.Linear(3, 4)))
        assert not state.belongs_to(layer_of(nn.Linear(3, 5)))
        assert not state.belongs_to(layer_of(nn.Linear(2, 4)))


def test_an_earlier_version_did_not_say_the_size() -> None:
    state = LayerState(3, 0.5)
    assert state.belongs_to(layer_of(nn.Linear(3, 4)))
    state.records = [Record((1, 4), True, Cause.COPIED, None, 1.0, 0, 0, Origin.START)]
    assert not state.belongs_to(layer_of(nn.Linear(3, 4)))
    assert state.belongs_to(layer_of(nn.Linear(3, 5)))
    state = LayerState(3, 0.5)
    state.deaths.load_state({"num_checks": 1, "record": None, "streaks": ZeroStreaks.of(4, was_alive=True).to_state()})
    assert state.belongs_to(layer_of(nn.Linear(3, 4)))
    assert not state.belongs_to(layer_of(nn.Linear(3, 5)))
