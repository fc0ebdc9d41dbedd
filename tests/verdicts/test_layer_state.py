"""The state of a layer: to which parameters it belongs, and whether a look can still change it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from lightning_symmetry.units.copies import Copies
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.diagnoses import Cause, Origin
from lightning_symmetry.verdicts.layer_state import LayerState
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting
from lightning_symmetry.verdicts.records import Record
from lightning_symmetry.verdicts.streaks import ZeroStreaks
from tests.test_tracker import tracked
from tests.training import fill
from tests.verdicts.recording import record_in_state


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


def test_other_parameters_are_told_however_often_they_were_updated() -> None:
    linear = nn.Linear(3, 4)
    state = state_of(linear, is_released=True)
    other = copy.deepcopy(linear)
    with torch.no_grad():
        for parameter in other.parameters():
            for _ in range(9):
                parameter.add_(1)
    assert not state.belongs_to(layer_of(other))


def test_out_of_a_checkpoint_the_size_decides() -> None:
    for state in (LayerState(3, 0.5), pickle.loads(pickle.dumps(state_of(nn.Linear(3, 4), is_released=False)))):
        state.size = (4, 3)
        assert state.belongs_to(layer_of(nn.Linear(3, 4)))
        assert not state.belongs_to(layer_of(nn.Linear(3, 5)))
        assert not state.belongs_to(layer_of(nn.Linear(2, 4)))


def test_an_earlier_version_did_not_say_the_size() -> None:
    state = LayerState(3, 0.5)
    assert state.belongs_to(layer_of(nn.Linear(3, 4)))
    assert state.belongs_to(layer_of(nn.Linear(3, 1)))
    state.records = [Record((1, 4), True, Cause.COPIED, None, 1.0, 0, 0, Origin.START)]
    assert not state.belongs_to(layer_of(nn.Linear(3, 4)))
    assert state.belongs_to(layer_of(nn.Linear(3, 5)))
    state = LayerState(3, 0.5)
    state.dead_units.load_state(
        {"num_checks": 1, "record": None, "streaks": ZeroStreaks.of(4, 3, was_alive=True).to_state()}
    )
    assert state.belongs_to(layer_of(nn.Linear(3, 4)))
    assert not state.belongs_to(layer_of(nn.Linear(3, 5)))


LAYER = layer_of(nn.Linear(3, 4))


def see(gradients: Gradients = Gradients.EQUAL, equal_weights: bool = True, mirrored: tuple[int, ...] = ()) -> Sighting:
    return Sighting((0, 2), equal_weights, gradients, Cause.COPIED, None, 1.0, 1e-3, mirrored=mirrored)


def look_of(layer: Layer | Copies, fingerprint: int | None, sightings: Sequence[Sighting], num_idle: int = 0) -> Look:
    idle = np.arange(layer.num_units) < num_idle
    return Look(layer, lambda: (layer.weights(), None), tuple(sightings), fingerprint, True, idle, np.zeros_like(idle))


def after(*checks: Sequence[Sighting], layer: Layer | Copies = LAYER, num_idle: int = 0) -> LayerState:
    """Return a state after checks with these sightings, the first before any update."""
    state = LayerState(3, 0.5)
    state.tie_to(layer)
    for step, sightings in enumerate(checks):
        record_in_state(state, look_of(layer, step, sightings, num_idle), step)
    return state


def test_in_a_layer_that_was_not_looked_at_nothing_was_found() -> None:
    assert LayerState(3, 0.5).findings("0") == []


def test_a_layer_is_without_groups_if_a_look_saw_none() -> None:
    assert not LayerState(3, 0.5).is_without_groups
    assert after([]).is_without_groups
    assert not after([see()]).is_without_groups
    assert after([see()], []).is_without_groups


def test_what_a_quiet_check_can_change_is_open() -> None:
    assert not after([]).is_open
    assert after([see()]).is_open
    assert after([], num_idle=1).is_open


@pytest.mark.parametrize(("num_looks", "is_enough"), [(2, False), (3, True), (6, True), (7, False), (8, True)])
def test_a_quick_reading_is_enough_after_some_looks_unless_directions_are_to_be_counted(
    num_looks: int, is_enough: bool
) -> None:
    assert after(*[[]] * num_looks).can_be_quick == is_enough


@pytest.mark.parametrize(("num_looks", "is_steady"), [(2, False), (3, True), (6, True), (7, False), (8, True)])
def test_groups_are_steady_after_some_equal_checks_unless_directions_are_to_be_counted(
    num_looks: int, is_steady: bool
) -> None:
    steady = after(*[[see()]] * num_looks).steady()
    assert (steady is not None) == is_steady
    if steady is not None:
        assert [units.tolist() for units in (steady.members, steady.firsts, steady.distinct)] == [[2], [0], [0, 1, 3]]


@pytest.mark.parametrize(
    "state",
    [
        after(*[[]] * 3),
        after(*[[see(Gradients.FAINT)]] * 3),  # locked, but on what may be rounding
        after(*[[see(equal_weights=False)]] * 3),
        after(*[[see(mirrored=(2,))]] * 3),
        after(*[[see()]] * 3, num_idle=1),
        after(*[[see()]] * 3, layer=Copies(("a", "b", "c"), (nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)))),
        pickle.loads(pickle.dumps(after(*[[see()]] * 3))),  # in another process the parameters may be others
    ],
    ids=["no groups", "faint", "lockstep", "mirrored", "idle", "copies", "unpickled"],
)
def test_other_layers_are_looked_at_closely(state: LayerState) -> None:
    assert state.steady() is None


def test_a_group_without_a_verdict_is_not_steady_however_short_the_patience_has_become() -> None:
    state = after([], [see()], [see()])
    resumed = LayerState(2, 0.5)
    resumed.load_state(state.to_state())
    record_in_state(resumed, look_of(LAYER, 3, [see(Gradients.NONE)]), 3)
    assert resumed.steady() is None
    record_in_state(resumed, look_of(LAYER, 4, [see()]), 4)
    assert resumed.steady() is not None


def test_equal_units_of_a_layer_that_no_training_was_ever_wanted_of_are_no_doubt() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(fill(nn.Linear(12, 16), 0.1).requires_grad_(False), nn.Linear(16, 4))
    tracker = tracked(net, steps=4, every_n_steps=1)
    assert tracker.report.layers["0"].redundant_units == 15
    assert (tracker.report.status, tracker.report.reasons) == ("healthy", [])


def everything_known(state: LayerState) -> tuple[object, ...]:
    return state.findings("0"), state.last, state.orientations, state.dead_units.to_state()


def test_to_see_that_groups_hold_is_as_good_as_a_look() -> None:
    looked_at, held = after(*[[see()]] * 3), after(*[[see()]] * 3)
    seen = look_of(LAYER, 3, [see()])
    record_in_state(looked_at, seen, 3)
    held.keep_steady(seen, 3)
    assert everything_known(held) == everything_known(looked_at)
    assert held.last == (3, True)


def test_a_quick_reading_that_shows_nothing_is_as_good_as_a_look() -> None:
    looked_at, passed_over = after(*[[]] * 3), after(*[[]] * 3)
    record_in_state(looked_at, look_of(LAYER, None, []), 3)
    passed_over.skip(LAYER)
    assert everything_known(passed_over) == everything_known(looked_at)
    assert passed_over.last is None


@pytest.mark.parametrize(
    ("gone", "remembered"), [((1, 50, 50), (0, 50, 50)), ((150,), (150,)), ((150, 1), (99, 1)), ((2, 98), (2, 98))]
)
def test_the_latest_hundred_groups_that_are_gone_are_remembered_and_all_of_the_latest_check(
    gone: tuple[int, ...], remembered: tuple[int, ...]
) -> None:
    layer = layer_of(nn.Linear(3, 400))
    units = range(0, 2 * sum(gone), 2)
    pairs = [Sighting((unit, unit + 1), True, Gradients.EQUAL, Cause.COPIED, None, 1.0, 1e-3) for unit in units]
    state = after(*(pairs[sum(gone[:i]) :] for i in range(len(gone) + 1)), layer=layer)
    broken = [finding.broken_step for finding in state.findings("0")]
    assert broken == [step for step, number in enumerate(remembered, 1) for _ in range(number)]
