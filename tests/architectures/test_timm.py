"""Families of timm: healthy members are passed over, and copies of half of the units are found."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")

from tests.architectures.families import TIMM, Family
from tests.architectures.training import check_healthy, check_number, check_planted

FAMILIES = [pytest.param(family, id=family.name) for family in TIMM]
PLANTED = [pytest.param(family, id=family.name) for family in TIMM if not family.cannot_plant]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_member_is_looked_at_in_silence(family: Family) -> None:
    check_healthy(family)


@pytest.mark.parametrize("family", PLANTED)
def test_copies_of_half_of_the_units_are_found(family: Family) -> None:
    check_planted(family)


def test_there_are_enough_families() -> None:
    check_number(TIMM)
