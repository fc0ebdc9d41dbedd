"""The tracker and the monitor under DeepSpeed's ZeRO, on two real processes with gloo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.deepspeed.training import (
    PRECISIONS,
    STAGES,
    alone,
    watched,
)
from tests.distributed import NETWORKS
from tests.ranks.pool import RankPool


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("ranks"), limit=120.0) as pool:
        yield pool


def without(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in keys}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_stages_find_what_one_process_finds(ranks: RankPool, network: str, precision: str) -> None:
    expected = alone(network, precision)
    for stage in STAGES:
        first, second = ranks.call(watched, stage, network, precision)
        assert without(first, "is_same", "warned", "state") == expected, stage
        assert first["is_same"], stage
        assert second["is_same"], stage
        assert first["state"] == second["state"]
        # The first rank speaks for all.
        assert bool(first["warned"]) == bool(expected["findings"])
        assert second["warned"] == []
