"""The tracker and the monitor under DeepSpeed's ZeRO, on two real processes with gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed import loops
from tests.deepspeed.training import (
    PRECISIONS,
    SICK,
    STAGES,
    alone,
    made_in_parts,
    refusals,
    resumed,
    skipped,
    watched,
)
from tests.distributed import NETWORKS
from tests.distributed import alone as alone_in_lightning
from tests.ranks.pool import RankPool

COPIES = "planted groups"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(2, tmp_path_factory.mktemp("ranks"), limit=120.0) as pool:
        yield pool


def agreed(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the results of both ranks; the first warns for both, and the tracker does not change the training."""
    first, second = answers
    for each in answers:
        assert each["is_same"]
        assert each["is_unhooked"]
    assert first["conclusions"] == second["conclusions"]
    assert first["state"] == second["state"]
    assert second["warned"] == []
    return first


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_stages_find_what_one_process_finds(ranks: RankPool, network: str, precision: str) -> None:
    expected = alone(network, precision)
    for stage in STAGES:
        found = agreed(ranks.call(watched, stage, network, precision))
        assert found["conclusions"] == expected, stage
        assert bool(found["warned"]) == bool(expected["findings"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stage_0_is_read_as_whole_models_are(ranks: RankPool, precision: str) -> None:
    assert agreed(ranks.call(watched, 0, COPIES, precision))["conclusions"] == alone(COPIES, precision)


def test_a_model_may_be_made_in_parts(ranks: RankPool) -> None:
    for at_once, trained in ranks.call(made_in_parts):
        assert at_once["0"] == [(tuple(range(8)), "duplicate")]
        assert trained["0"] == [(tuple(range(8)), "locked")]


@pytest.mark.parametrize("network", SICK)
def test_units_that_do_not_train_are_found(ranks: RankPool, network: str) -> None:
    steps = 60 if network == "dead" else 8
    expected = alone(network, steps=steps)
    assert expected["findings"]
    for stage in STAGES:
        assert agreed(ranks.call(watched, stage, network, "float32", steps))["conclusions"] == expected, stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_one_of_accumulated_gradients(ranks: RankPool, stage: int) -> None:
    options = {"gradient_accumulation_steps": 2}
    found = agreed(ranks.call(watched, stage, COPIES, "float32", 8, None, None, options))
    assert found["step"] == 3
    assert found["conclusions"]["findings"] == alone(COPIES)["findings"]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_concluded_from_a_step_that_is_skipped(ranks: RankPool, stage: int) -> None:
    found = agreed(ranks.call(watched, stage, COPIES, "float32", 8, 3))
    assert found["skipped_steps"] == 1
    assert found["conclusions"] == alone(COPIES)


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_are_read_where_the_optimizer_is_offloaded_to(ranks: RankPool, stage: int) -> None:
    options = {"zero": {"offload_optimizer": {"device": "cpu"}}}
    assert agreed(ranks.call(watched, stage, COPIES, "float32", 8, None, None, options))["conclusions"] == alone(COPIES)


def test_gradients_may_be_accumulated_in_another_precision(ranks: RankPool) -> None:
    options = {"data_types": {"grad_accum_dtype": "fp32"}}  # has a different optimizer class in stage 1
    for stage in STAGES:
        found = agreed(ranks.call(watched, stage, COPIES, "bfloat16", 8, None, None, options))
        assert found["conclusions"] == alone(COPIES, "bfloat16")


@pytest.mark.parametrize("stage", STAGES)
def test_the_state_survives_a_resume(ranks: RankPool, stage: int, tmp_path: Path) -> None:
    for through, after in ranks.call(resumed, stage, COPIES, str(tmp_path)):
        assert after == through


@pytest.mark.parametrize("stage", STAGES)
def test_repair_refuses_before_anything_is_changed(ranks: RankPool, stage: int) -> None:
    found = agreed(ranks.call(watched, stage, COPIES, "float32", 4, None, {"on_symmetry": "break"}))
    assert found["changes"] == 0
    assert any("cannot break the symmetry" in text and "sharded" in text for text in found["warned"])
    for wrong_optimizer, repair in ranks.call(refusals, stage):
        assert "engine.optimizer" in wrong_optimizer
        assert "sharded" in repair


def test_what_cannot_be_read_is_skipped_with_the_way_out(ranks: RankPool) -> None:
    for reasons in ranks.call(skipped, "version"):
        assert set(reasons) == {"0", "2", "4"}
        assert all("safe_get_local_grad" in reason and "update deepspeed" in reason for reason in reasons.values())
    for reasons in ranks.call(skipped, "NVMe"):
        assert all("NVMe" in reason and "offload_optimizer" in reason for reason in reasons.values())


@pytest.mark.parametrize("stage", STAGES)
def test_in_lightning(ranks: RankPool, stage: int) -> None:
    expected = alone_in_lightning(COPIES, "32-true")
    for found in ranks.call(loops.with_lightning, stage, COPIES):
        assert found.pop("is_same")
        assert found.pop("warned") == []
        assert found == expected


@pytest.mark.parametrize("stage", STAGES)
def test_in_the_trainer_of_hugging_face(ranks: RankPool, stage: int) -> None:
    for found in ranks.call(loops.with_hugging_face, stage, COPIES):
        assert found["is_same"]
        assert [(units, verdict) for _, units, verdict, *_ in found["findings"]] == [
            ((0, 7), "locked"),
            ((1, 8, 12), "locked"),
            ((2, 3, 4, 11), "locked"),
        ]


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    (tmp_path / "train.py").write_text(page.split("## DeepSpeed\n")[1].split("```python\n")[1].split("```")[0])
    start = tmp_path / "start.py"  # nothing is compiled
    start.write_text("import deepspeed, runpy; deepspeed.ops.__compatible_ops__.clear(); runpy.run_path('train.py')")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(start)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    warning = "2: all 64 units are identical in weights and gradients (locked since step 0): they train as 1 unit."
    assert done.stderr.count(warning) == 1
    assert "SYM101" in done.stderr
