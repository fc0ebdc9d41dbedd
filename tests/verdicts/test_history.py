"""Groups over time, as scripts of the sightings of each check."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from torch import nn

from lightning_symmetry import Finding, LayerDiagnosis, Verdict
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.diagnoses import Cause, Origin, Reason
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.look import Gradients, Look, Sighting
from tests.verdicts.recording import record_in_history

EQUAL, ZERO, DIFFERENT, NONE = Gradients.EQUAL, Gradients.ZERO, Gradients.DIFFERENT, Gradients.NONE
UNCLEAR = Gradients.UNCLEAR


def layer_of(num_units: int) -> Layer:
    (layer,) = find_layers(nn.Sequential(nn.Linear(3, num_units))).layers
    return layer


LAYER = layer_of(16)


def see(
    units: Sequence[int],
    gradients: Gradients = EQUAL,
    equal_weights: bool = True,
    position: float = 1.0,
    cause: Cause = Cause.COPIED,
) -> Sighting:
    return Sighting(tuple(units), equal_weights, gradients, cause, None, position, reach=1e-3)


def read() -> tuple[Rows, None]:
    return LAYER.weights(), None


def play(
    *checks: list[Sighting], history: History | None = None
) -> tuple[History, list[list[Finding]], LayerDiagnosis]:
    """Play checks with these sightings; return the history, the news of each check and the last diagnosis."""
    history = history or History(patience=3, dead_share=0.5)
    news = []
    for step, sightings in enumerate(checks):
        news.append(record_in_history(history, Look(LAYER, read, tuple(sightings), step, True), step))
    diagnosis = history[LAYER.name].diagnosis
    assert diagnosis is not None
    return history, news, diagnosis


def test_a_flapping_group_is_told_once() -> None:
    lockstep = [see(range(16), equal_weights=False)]
    history, news, _ = play(*[lockstep] * 3, [], *[lockstep] * 3, [], *[lockstep] * 3)
    assert [len(new) for new in news] == [0, 0, 1] + [0] * 8
    (finding,) = history.findings
    assert (finding.first_step, finding.broken_step, finding.verdict) == (0, None, "lockstep")


def test_a_group_that_loses_units_keeps_those_it_was_warned_with() -> None:
    history, news, diagnosis = play([see(range(6))], [see(range(4))], [see(range(2))], [])
    assert [len(new) for new in news] == [1, 0, 0, 0]
    (finding,) = history.findings
    assert (finding.units, finding.last_step, finding.broken_step) == (tuple(range(6)), 2, 3)
    assert diagnosis.groups == []


def test_a_group_that_falls_in_two_goes_on_in_both() -> None:
    history, news, diagnosis = play([see(range(8))], [see([0, 1, 2, 3, 4]), see([5, 6, 7])])
    assert [len(new) for new in news] == [1, 0]
    assert [group.units for group in diagnosis.groups] == [(0, 1, 2, 3, 4), (5, 6, 7)]
    assert {group.verdict for group in diagnosis.groups} == {Verdict.LOCKED}
    assert [group.rows for group in history["0"].known] == [(0, 1, 2, 3, 4), (5, 6, 7)]


def test_a_group_that_grows_is_news_once_it_has_doubled() -> None:
    grown = [[see(range(size))] for size in (4, 5, 6, 7, 8, 8, 8, 8)]
    history, news, _ = play(*grown)
    told = [new[0].units for new in news if new]
    assert told == [(0, 1, 2, 3), tuple(range(8))]
    (finding,) = history.findings
    assert finding.units == tuple(range(8))


def test_two_known_groups_may_become_one() -> None:
    history, _, diagnosis = play([see([0, 1]), see([2, 3])], *[[see([0, 1, 2, 3])]] * 3)
    assert [group.units for group in diagnosis.groups] == [(0, 1, 2, 3)]
    assert [finding.units for finding in history.findings] == [(0, 1, 2, 3)]


def test_pairs_that_reach_their_verdicts_one_by_one_do_not_fill_the_console() -> None:
    pairs = [(2 * i, 2 * i + 1) for i in range(8)]
    checks = [[see(pair, EQUAL if i <= step else NONE) for i, pair in enumerate(pairs)] for step in range(8)]
    history, news, _ = play(*checks)
    assert len(history.findings) == 8
    assert [len(new) for new in news] == [1, 1, 0, 0, 0, 0, 0, 0]


def test_news_of_every_kind_are_told_at_one_check() -> None:
    _, news, _ = play([see([0, 1], ZERO), see([2, 3])], history=History(patience=1, dead_share=0.5))
    assert [(finding.units, finding.verdict) for finding in news[0]] == [
        ((0, 1), Verdict.FROZEN),
        ((2, 3), Verdict.LOCKED),
    ]


def test_a_group_that_appears_later_needs_patience_and_is_a_collapse() -> None:
    history, news, _ = play([], [], *[[see([3, 9])]] * 3)
    assert [len(new) for new in news] == [0, 0, 0, 0, 1]
    assert [(f.origin, f.first_step) for f in history.findings] == [(Origin.COLLAPSE, 2)]


def test_a_group_of_a_first_look_in_the_middle_is_no_collapse() -> None:
    history = History(patience=1, dead_share=0.5)
    record_in_history(history, Look(LAYER, read, (see([3, 9]),), 0, True), 700)
    assert [(f.origin, f.first_step) for f in history.findings] == [(Origin.FIRST_LOOK, 700)]


def test_a_locked_group_is_not_let_go_for_one_odd_gradient() -> None:
    _, _, diagnosis = play([see([0, 1])], [see([0, 1], DIFFERENT)], [see([0, 1])])
    assert [group.verdict for group in diagnosis.groups] == [Verdict.LOCKED]
    _, _, diagnosis = play([see([0, 1])], *[[see([0, 1], DIFFERENT)]] * 3)
    assert [group.verdict for group in diagnosis.groups] == [Verdict.BREAKING]


def test_units_that_moved_far_together_are_locked_whatever_their_gradients() -> None:
    checks = [[see([0, 1], Gradients.UNCLEAR, position=1.0 + 0.004 * i)] for i in range(5)]
    _, news, diagnosis = play(*checks)
    assert [group.verdict for group in diagnosis.groups] == [Verdict.LOCKED]
    assert [len(new) for new in news] == [0, 0, 0, 1, 0]


def test_from_zero_any_movement_is_large_and_proves_nothing() -> None:
    checks = [[see([0, 1], Gradients.UNCLEAR, position=0.1 * i, cause=Cause.ZERO)] for i in range(5)]
    history, _, _ = play(*checks)
    assert history.findings == []


def test_zero_gradients_of_a_group_part_of_which_has_trained_are_dead_units() -> None:
    history, _, _ = play([see(range(8), DIFFERENT)], *[[see(range(4), ZERO)]] * 6)
    assert history.findings == []


def test_the_rest_of_a_group_that_falls_apart_needs_patience_from_its_last_loss() -> None:
    falling = [[see(range(8 - i))] for i in range(5)]
    history, _, _ = play([see(range(8), DIFFERENT)], *falling)
    assert history.findings == []
    history, _, _ = play([see(range(8), DIFFERENT)], *falling, *[[see(range(4))]] * 3)
    assert [finding.units for finding in history.findings] == [(0, 1, 2, 3)]


def test_looks_between_which_nothing_moved_count_once() -> None:
    history = History(patience=3, dead_share=0.5)
    history.match_layers([LAYER], 0)
    zero = (see([0, 1], ZERO),)
    for step in range(6):
        looks = [Look(LAYER, read, zero, 7, True)]
        record_in_history(history, looks[0], step, history.is_fresh(looks))
    assert history.findings == []
    for step in range(6, 8):
        looks = [Look(LAYER, read, zero, step, True)]
        record_in_history(history, looks[0], step, history.is_fresh(looks))
    assert [finding.verdict for finding in history.findings] == [Verdict.FROZEN]


@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_model_without_any_gradient_need_not_move(has_gradient: bool) -> None:
    history = History(patience=3, dead_share=0.5)
    history.match_layers([LAYER], 0)
    for step in range(3):
        looks = [Look(LAYER, read, (see([0, 1], ZERO),), 7, has_gradient)]
        record_in_history(history, looks[0], step, history.is_fresh(looks))
    assert bool(history.findings) != has_gradient


def test_gradients_of_layers_that_were_read_quickly_count_too() -> None:
    history = History(patience=3, dead_share=0.5)
    seen = Look(LAYER, read, (), 7, has_gradient=False)
    record_in_history(history, seen, 0)
    assert history.is_fresh([seen], had_gradient=False)
    assert not history.is_fresh([seen], had_gradient=True)


def test_the_latest_thousand_findings_in_layers_that_are_gone_are_remembered() -> None:
    history = History(patience=1, dead_share=0.5)
    for step, num_units in enumerate((4, 2000, 4)):
        layer = layer_of(num_units)
        pairs = tuple(see([unit, unit + 1]) for unit in range(0, num_units, 2))
        record_in_history(history, Look(layer, read, pairs, step, True), step)
    assert [finding.broken_step for finding in history.findings] == [2] * 1000 + [None] * 2


def test_lockstep_of_some_units_takes_time_too() -> None:
    some = [see([2, 5], equal_weights=False)]
    history, _, diagnosis = play(*[some] * 50)
    assert (history.findings, diagnosis.groups) == ([], [])
    history, _, diagnosis = play(*[some] * 51)
    assert [finding.verdict for finding in history.findings] == [Verdict.LOCKSTEP]
    assert [group.units for group in diagnosis.groups] == [(2, 5)]


def test_state_round_trips() -> None:
    history, _, _ = play([see([0, 1]), see([2, 3], ZERO), see([4, 5], DIFFERENT)], [see([0, 1]), see([2, 3], ZERO)])
    other = History(patience=3, dead_share=0.5)
    other.load_state_dict(history.state_dict())
    assert other.state_dict() == history.state_dict()
    assert other.findings == history.findings
    # The restored history continues: the third zero gradient in a row.
    new = record_in_history(other, Look(LAYER, read, (see([2, 3], ZERO),), 9, True), 2)
    assert [finding.verdict for finding in new] == [Verdict.FROZEN]


def test_news_come_in_the_same_order_in_every_process() -> None:
    code = """
from tests.verdicts.test_history import *
first = [see([0, 1], ZERO), see([2, 3], EQUAL), see([4, 5, 6], EQUAL), see([7, 8, 9], ZERO)]
history = History(patience=1, dead_share=0.5)
looks = Look(LAYER, read, tuple(first), 0, True)
print([(f.units, str(f.verdict)) for f in record_in_history(history, looks, 60)])
"""
    said: set[str] = set()
    for seed in range(4):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        said.add(result.stdout)
    assert len(said) == 1
    assert "frozen" in said.pop()


def test_asking_whether_looks_are_fresh_changes_nothing() -> None:
    history = History(patience=3, dead_share=0.5)
    history.match_layers([LAYER], 0)
    looks = [Look(LAYER, read, (see([0, 1], ZERO),), 7, True)]
    assert [history.is_fresh(looks) for _ in range(3)] == [True] * 3
    record_in_history(history, looks[0], 0)
    assert [history.is_fresh(looks) for _ in range(3)] == [False] * 3


def test_a_group_that_never_differed_need_not_begin_anew_when_it_loses_units() -> None:
    history, news, _ = play([], [see(range(6))], [see(range(6))], [see(range(4))])
    assert [len(new) for new in news] == [0, 0, 0, 1]
    assert [finding.units for finding in history.findings] == [(0, 1, 2, 3)]


def test_a_group_that_grows_slowly_is_told_once_and_stays_told() -> None:
    history, news, _ = play(*[[see(range(4))]] * 3, *[[see(range(5))]] * 5)
    assert [len(new) for new in news] == [1] + [0] * 7
    assert [(finding.units, finding.verdict) for finding in history.findings] == [((0, 1, 2, 3), Verdict.LOCKED)]


def test_groups_that_become_one_are_a_new_group() -> None:
    _, _, diagnosis = play([see([0, 1]), see([2, 3])], *[[see([0, 1, 2, 3])]] * 3)
    [group] = diagnosis.groups
    assert (group.first_step, group.origin) == (1, Origin.COLLAPSE)


def test_groups_that_were_told_of_and_become_one_stay_told() -> None:
    history, news, _ = play([see([0, 1]), see([2, 3])], [see([0, 1, 2, 3])])
    assert [len(new) for new in news] == [2, 0]
    [finding] = history.findings
    assert (finding.units, finding.verdict, finding.reason) == ((0, 1, 2, 3), "locked", Reason.EQUAL_FROM_START)


def test_each_part_of_a_group_that_was_not_told_is_news() -> None:
    history, news, _ = play([see(range(8), NONE)], [see([0, 1, 2, 3, 4]), see([5, 6, 7])])
    assert [len(new) for new in news] == [0, 2]
    assert [(finding.units, finding.first_step) for finding in history.findings] == [
        ((0, 1, 2, 3, 4), 0),
        ((5, 6, 7), 0),
    ]


def test_what_was_not_told_is_not_remembered() -> None:
    history, _, _ = play([see([0, 1], DIFFERENT), see([2, 3])], [])
    assert [record.units for record in history["0"].records or []] == [(2, 3)]


def test_a_group_that_is_found_again_begins_anew() -> None:
    history, _, _ = play(*[[see([2, 5])]] * 4, [], [see([2, 5], NONE)])
    [record] = history["0"].records or []
    assert (record.broken_step, record.streak, record.first_step, record.last_step) == (None, 0, 0, 5)


def test_a_part_of_a_broken_group_opens_its_record_and_other_units_do_not() -> None:
    history, _, _ = play(*[[see([2, 5, 7])]] * 4, [], [see([2, 7])], [see([2, 8])])
    records = history["0"].records or []
    assert [(record.units, record.broken_step) for record in records] == [((2, 7), 6), ((2, 8), None)]
    history, _, _ = play(*[[see([2, 5, 7])]] * 4, [], [see([2, 8])])
    records = history["0"].records or []
    assert [(record.units, record.broken_step) for record in records] == [((2, 5, 7), 4), ((2, 8), None)]
    history, _, _ = play(
        [see([0, 1], equal_weights=False)], *[[see(range(16), equal_weights=False)]] * 3, [], [see([0, 1])]
    )
    assert [record.has_equal_weights for record in history["0"].records or []] == [False, True]
