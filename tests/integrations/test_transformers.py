"""The callback of the Hugging Face Trainer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lightning_symmetry import Finding, SymmetryError, SymmetryWarning
from lightning_symmetry.integrations.transformers import SymmetryCallback
from tests.training import assert_same, batches, fill, mlp


class Model(nn.Module):
    """Return a dictionary with the loss, as the Trainer expects."""

    def __init__(self, value: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = mlp() if value is None else fill(mlp(), value)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(self.dropout(inputs))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


DATA = [
    {"inputs": inputs, "labels": label}
    for batch in batches()
    for inputs, label in zip(*batch, strict=True)
]  # fmt: skip


def train(
    model: nn.Module, folder: Path, callback: SymmetryCallback | None, resume: str | None = None, **arguments: Any
) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 32,
        "learning_rate": 0.01,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 3,
        "disable_tqdm": True,
    }
    settings = TrainingArguments(output_dir=str(folder), **{**defaults, **arguments})
    trainer = Trainer(model, settings, train_dataset=DATA, callbacks=[callback] if callback else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    states = []
    for callback in (None, SymmetryCallback(every_n_steps=1)):
        model = Model(0.1, dropout=0.2)
        train(model, tmp_path, callback)
        states.append((dict(model.state_dict()), torch.get_rng_state()))
    assert_same(*states)


def test_findings_are_kept_in_the_output_folder_if_nothing_logs(tmp_path: Path) -> None:
    callback = SymmetryCallback()
    train(Model(0.0), tmp_path, callback)
    assert {finding.layer: str(finding.verdict) for finding in callback.findings} == {
        "net.0": "frozen",
        "net.2": "frozen",
    }
    found = json.loads((tmp_path / "symmetry" / "findings.json").read_text())
    assert found["status"] == "symmetric"
    assert {finding["layer"] for finding in found["findings"]} == {"net.0", "net.2"}
    assert (tmp_path / "symmetry" / "report.html").exists()


def test_a_healthy_training_leaves_nothing(tmp_path: Path) -> None:
    callback = SymmetryCallback()
    assert (repr(callback), callback._repr_html_()) == ("<SymmetryCallback: None>", "No check so far.")
    train(Model(), tmp_path, callback)
    assert callback.report is not None
    assert callback.report.status == "healthy"
    assert callback._repr_html_() == callback.report._repr_html_()
    assert not (tmp_path / "symmetry").exists()


def test_it_writes_where_the_trainer_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(Model(0.1), tmp_path / "out", SymmetryCallback(), report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert {"train/loss", "symmetry/redundant_units"} <= set(events.Tags()["scalars"])
    assert "symmetry/overview" in events.Tags()["images"]
    assert len(list((tmp_path / "logs").iterdir())) == 1  # one file of events, that of the Trainer
    assert not (tmp_path / "out" / "symmetry").exists()


def test_stop_ends_the_training(tmp_path: Path) -> None:
    trainer = train(Model(0.0), tmp_path, SymmetryCallback(on_symmetry="stop", every_n_steps=1))
    assert trainer.state.global_step < 8


def test_raise_ends_it_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(SymmetryError, match=r"net\.2: all 8 units.*net\.0 gets no gradient"):
        train(Model(0.0), tmp_path, SymmetryCallback(on_symmetry="raise"))


def test_what_is_found_can_be_broken(tmp_path: Path) -> None:
    callback = SymmetryCallback(every_n_steps=1, on_symmetry="break")
    train(Model(0.1), tmp_path, callback, max_steps=24)
    assert {change.layer for change in callback.changes} >= {"net.0", "net.2"}
    assert callback.report is not None
    assert callback.report.redundant_units == 0


def test_a_training_that_is_too_short_can_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(SymmetryError, match="no conclusion"):
        train(Model(), tmp_path, SymmetryCallback(require_conclusion=True), max_steps=1)


def test_the_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    train(Model(0.1), tmp_path, SymmetryCallback(on_finding=print), **options)
    checkpoint = get_last_checkpoint(str(tmp_path))
    heard: list[Finding] = []
    callback = SymmetryCallback(
        on_symmetry="raise", on_finding=heard.append
    )  # which would be, were it told of the findings again
    trainer = train(
        Model(0.1), tmp_path, callback, resume=checkpoint, restore_callback_states_from_checkpoint=True, max_steps=8
    )
    resumed = next(each for each in trainer.callback_handler.callbacks if isinstance(each, SymmetryCallback))
    assert {finding.layer for finding in resumed.findings} == {"net.0", "net.2"}
    assert {finding.first_step for finding in resumed.findings} == {0}
    assert heard == []
    assert resumed.on_finding == callback.on_finding
    assert resumed.state()["attributes"]["resumed_state"]["num_steps"] == {0: 8}


def test_bad_options_are_said() -> None:
    with pytest.raises(ValueError, match="argument `on_symmetry` to be one of"):
        SymmetryCallback(on_symmetry="explode")  # type: ignore[arg-type]


def test_a_training_that_cannot_be_watched_goes_on(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "symmetry").write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="SymmetryCallback cannot watch this training .*is a file.*Training goes on"):
        trainer = train(Model(), tmp_path / "out", SymmetryCallback())
    assert trainer.state.global_step == 8
    with pytest.raises(NotADirectoryError):
        train(Model(), tmp_path / "out", SymmetryCallback(on_symmetry="raise"))
