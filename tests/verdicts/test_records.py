"""The record of one group: what a check adds."""

from __future__ import annotations

import pytest

from lightning_symmetry import Verdict
from lightning_symmetry.verdicts.diagnoses import Cause, Origin, Reason
from lightning_symmetry.verdicts.look import Gradients, Sighting
from lightning_symmetry.verdicts.records import Lineage, Record, from_plain, to_plain

EQUAL, ZERO, DIFFERENT = Gradients.EQUAL, Gradients.ZERO, Gradients.DIFFERENT


def see(gradients: Gradients, units: tuple[int, ...] = (0, 1, 2, 3)) -> Sighting:
    return Sighting(units, True, gradients, Cause.COPIED, None, 1.0, reach=1e-3)


def record_of(*, has_equal_weights: bool = True) -> Record:
    return Record((0, 1, 2, 3), has_equal_weights, Cause.COPIED, None, 1.0, 0, 0, Origin.COLLAPSE)


@pytest.mark.parametrize("is_fresh", [True, False])
@pytest.mark.parametrize("silent", [Gradients.NONE, Gradients.UNCLEAR])
def test_gradients_that_say_nothing_leave_what_was_said(silent: Gradients, is_fresh: bool) -> None:
    record = record_of()
    record.update(see(silent), is_fresh)
    assert (record.gradients, record.streak) == (Gradients.NONE, 0)
    for gradients in (EQUAL, EQUAL, silent):
        record.update(see(gradients), is_fresh or gradients is EQUAL)
    assert (record.gradients, record.streak, record.was_different) == (EQUAL, 2, False)


def test_the_same_evidence_counts_once_but_other_evidence_counts_at_once() -> None:
    record = record_of()
    streaks = []
    for gradients, is_fresh in (
        (EQUAL, False),
        (EQUAL, False),
        (EQUAL, True),
        (ZERO, False),
        (ZERO, False),
        (ZERO, True),
    ):
        record.update(see(gradients), is_fresh)
        streaks.append((record.gradients, record.streak))
    assert streaks == [(EQUAL, 1), (EQUAL, 1), (EQUAL, 2), (ZERO, 1), (ZERO, 1), (ZERO, 2)]


@pytest.mark.parametrize("has_equal_weights", [True, False])
def test_units_with_weights_of_their_own_are_no_group_that_was_seen_to_differ(has_equal_weights: bool) -> None:
    record = record_of(has_equal_weights=has_equal_weights)
    record.update(see(DIFFERENT), True)
    assert record.was_different == has_equal_weights


def test_what_the_user_was_warned_of_first_stays() -> None:
    record = record_of()
    record.conclude(Verdict.BREAKING, Reason.DIFFERENT)
    assert (record.warned, record.warned_units) == (None, ())
    record.conclude(Verdict.FROZEN, Reason.ZERO_AGAIN)
    assert (record.warned, record.warned_reason, record.cause) == (Verdict.FROZEN, Reason.ZERO_AGAIN, Cause.DEAD)
    record.conclude(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    assert (record.verdict, record.warned, record.warned_reason) == (Verdict.LOCKED, Verdict.FROZEN, Reason.ZERO_AGAIN)
    record.units = tuple(range(7))
    record.conclude(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    assert record.warned_units == (0, 1, 2, 3)
    record.units = tuple(range(8))
    record.conclude(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    assert record.warned_units == tuple(range(8))


@pytest.mark.parametrize("was_different", [True, False])
@pytest.mark.parametrize("num_units", [3, 4])
def test_what_is_left_of_a_group_that_was_seen_to_differ_must_hold_for_a_while(
    num_units: int, was_different: bool
) -> None:
    record = record_of()
    record.streak, record.was_different = 5, was_different
    carried = Lineage([record]).resume(see(EQUAL, tuple(range(num_units))), 7)
    assert carried is record
    assert record.streak == (0 if was_different and num_units < 4 else 5)
    assert (record.units, record.last_step) == (tuple(range(num_units)), 7)


@pytest.mark.parametrize(
    ("cause", "verdict", "reason", "expected"),
    [
        (Cause.COPIED, Verdict.FROZEN, Reason.ZERO_AGAIN, Cause.DEAD),
        (Cause.ZERO, Verdict.FROZEN, Reason.ZERO_AGAIN, Cause.ZERO),
        (Cause.COPIED, Verdict.LOCKED, Reason.EQUAL_AGAIN, Cause.COPIED),
        (Cause.ZERO, Verdict.FROZEN, Reason.ROUNDING_AGAIN, Cause.ZERO),
    ],
)
def test_zero_gradients_of_weights_that_are_not_zero_are_a_cause_of_their_own(
    cause: Cause, verdict: Verdict, reason: Reason, expected: Cause
) -> None:
    record = record_of()
    record.cause = cause
    record.conclude(verdict, reason)
    assert record.cause is expected
    record.conclude(Verdict.FROZEN, Reason.ZERO_AGAIN)  # the cause in a warning does not change later
    assert record.cause is expected


def test_a_finding_names_the_mirrored_among_the_units_that_were_warned_of() -> None:
    record = record_of()
    record.conclude(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    assert record.to_finding("fc").mirrored == ()
    record.mirrored, record.units = (3, 2, 5), (0, 1, 2, 3, 5)
    assert record.to_finding("fc").mirrored == (2, 3)
    assert record.to_group().mirrored == (3, 2, 5)


def test_a_state_is_made_of_plain_lists_strings_and_numbers() -> None:
    record = record_of()
    record.conclude(Verdict.LOCKED, Reason.EQUAL_AGAIN)
    record.row_names, record.mirrored = ("a", "b", "c", "d"), (1,)
    assert record.to_group().units == (0, 1, 2, 3)
    state = to_plain(record)
    assert {type(value) for value in state.values()} == {list, str, int, float, bool, type(None)}
    assert from_plain(Record, state) == record


def test_the_rest_of_a_group_that_falls_apart_is_not_known_to_break() -> None:
    record = record_of()
    record.verdict, record.was_different = Verdict.BREAKING, True
    lineage = Lineage([record])
    for units in ((0, 1), (2, 3)):  # the first part continues the record, the second a copy
        rest = lineage.resume(see(Gradients.NONE, units), 3)
        assert rest is not None
        assert (rest.units, rest.verdict, rest.was_different) == (units, Verdict.DUPLICATE, True)
