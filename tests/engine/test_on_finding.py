"""The calls of a user's `on_finding`."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_symmetry import Finding, SymmetryError, SymmetryMonitor, SymmetryTracker
from tests.test_tracker import sgd, tracked, train
from tests.training import Classifier, assert_same, batches, fill, fit, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


def names(findings: list[Finding]) -> list[tuple[str, str, int]]:
    return [(finding.layer, str(finding.verdict), finding.first_step) for finding in findings]


@pytest.mark.parametrize("on_symmetry", ["warn", "ignore", "break"])
def test_each_finding_once_in_a_trainer(on_symmetry: Any) -> None:
    heard: list[Finding] = []
    monitor = SymmetryMonitor(every_n_steps=1, on_finding=heard.append, on_symmetry=on_symmetry)
    fit(Classifier(fill(mlp(), 0.5)), monitor, max_steps=20)
    assert names(heard) == names(monitor.findings) != []


def test_each_finding_once_in_a_loop() -> None:
    heard: list[Finding] = []
    tracker = tracked(fill(mlp(), 0.5), steps=20, every_n_steps=1, on_finding=heard.append)
    assert names(heard) == names(tracker.findings) != []
    heard.clear()
    assert tracked(mlp(), on_finding=heard.append).report.status == "healthy"
    assert heard == []


def test_it_is_called_before_a_training_is_made_to_fail() -> None:
    heard: list[Finding] = []
    with pytest.raises(SymmetryError) as told:
        fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(on_finding=heard.append, on_symmetry="raise"))
    assert heard == told.value.findings


def test_what_was_found_before_a_resume_is_no_news(tmp_path: Path) -> None:
    heard: list[Finding] = []
    model, checkpoint = Classifier(fill(mlp(), 0.5)), tmp_path / "any.ckpt"
    fit(model, SymmetryMonitor(on_finding=heard.append)).save_checkpoint(checkpoint)
    assert len(heard) == 2
    trainer = make_trainer([SymmetryMonitor(on_finding=heard.append)], max_steps=20)
    trainer.fit(model, batches(), ckpt_path=checkpoint)
    assert trainer.global_step == 20
    assert len(heard) == 2


@pytest.mark.parametrize("error", [ConnectionError("no network"), SymmetryError("any", None, [])])  # type: ignore[arg-type]
def test_an_error_is_said_once_and_the_training_goes_on(error: Exception) -> None:
    heard: list[Finding] = []

    def refuse(finding: Finding) -> None:
        heard.append(finding)
        raise error

    net = fill(mlp(), 0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SymmetryTracker(net, sgd(net), on_finding=refuse) as tracker:
            train(net, tracker._optimizers[0])
    texts = [str(warning.message) for warning in caught if "on_finding" in str(warning.message)]
    assert len(texts) == 1
    assert texts[0].startswith(f"The on_finding of SymmetryTracker failed with {type(error).__name__}")
    assert names(heard) == names(tracker.findings)
    assert len(heard) == 2


def test_numbers_that_it_draws_change_nothing() -> None:
    states = []
    for on_finding in (None, lambda finding: (torch.rand(3), random.random())):
        net = fill(mlp(), 0.5)
        tracked(net, on_finding=on_finding)
        states.append((dict(net.state_dict()), torch.get_rng_state(), random.getstate()))
    assert_same(*states)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected argument `on_finding` to be callable or None but got 'print'"):
        SymmetryMonitor(on_finding="print")  # type: ignore[arg-type]
