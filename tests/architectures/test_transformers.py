"""Families of the transformers package: healthy members are passed over, and copies of half of the units are found."""

from __future__ import annotations

import pytest

from tests.architectures.families import TRANSFORMERS, Family
from tests.architectures.training import LEAST_SHARE, healthy, planted, share_in

FAMILIES = [pytest.param(family, id=family.name) for family in TRANSFORMERS]
PLANTED = [pytest.param(family, id=family.name) for family in TRANSFORMERS if not family.cannot_plant]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_member_is_looked_at_in_silence(family: Family) -> None:
    tracker = healthy(family)
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.coverage >= 0.99
    assert tracker.report.status != "symmetric"


@pytest.mark.parametrize("family", PLANTED)
def test_copies_of_half_of_the_units_are_found(family: Family) -> None:
    report = planted(family).report
    assert report is not None
    assert report.status == "symmetric"
    assert share_in(report) >= LEAST_SHARE


def test_there_are_enough_families() -> None:
    assert len({family.name for family in TRANSFORMERS}) == len(TRANSFORMERS) >= 30
    assert len(PLANTED) >= 30
