"""Calls of a run of Weights & Biases, offline; test_wandb.py reads everything back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.integrations.test_wandb import records_of_finished
from tests.test_tracker import tracked
from tests.training import fill, mlp


@pytest.mark.parametrize(("options", "is_reached"), [({}, True), ({"heatmaps": "none", "scalars": "none"}, False)])
def test_a_run_that_is_to_get_nothing_is_not_even_told_of_an_axis(
    options: dict[str, Any], is_reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # the library keeps what it reads first for the tests that follow
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    with wandb.init(project="any", dir=tmp_path) as run:
        tracker = tracked(fill(mlp(), 0.5), output=run, **options)
    assert tracker.findings
    (file,) = tmp_path.rglob("*.wandb")
    data = b"".join(record.SerializeToString() for record in records_of_finished(file))
    for tag in (b"symmetry/*", b"symmetry/step", b"symmetry/redundant_units", b"symmetry/status"):
        assert (tag in data) == is_reached
