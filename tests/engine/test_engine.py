"""The engine in a plain training loop, without a Trainer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_symmetry import SymmetryMonitor, SymmetryWarning, Verdict
from lightning_symmetry.engine.engine import Conclusion, SymmetryEngine
from lightning_symmetry.engine.options import Options
from lightning_symmetry.outputs.output import Check, Output
from lightning_symmetry.verdicts.report import SymmetryReport
from tests.training import batches, fill, mlp, sgd


class Notebook(Output):
    """Records the steps of its checks, and the last report."""

    name = "notebook"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed_with: SymmetryReport | None = None

    def write(self, check: Check) -> None:
        self.steps.append(check.report.step)

    def close(self, report: SymmetryReport) -> None:
        self.closed_with = report


def engine_of(**options: Any) -> SymmetryEngine:
    return SymmetryEngine(Options(**options), who="Engine", notify=lambda text: None)


def loop(
    net: nn.Module,
    engine: SymmetryEngine,
    outputs: list[Output],
    *,
    num_steps: int = 12,
    optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] = lambda net: [sgd(net.parameters())],
) -> list[Conclusion]:
    """Run a plain training loop under cross-entropy. Return the conclusions of the checks."""
    conclusions = []
    step = 0
    several = optimizers(net)
    for inputs, labels in list(batches(32 * num_steps))[:num_steps]:
        nn.functional.cross_entropy(net(inputs), labels).backward()
        for optimizer in several:
            conclusion = engine.before_step(net, optimizer, step, 4, lambda: outputs)
            conclusions += [conclusion] if conclusion else []
            optimizer.step()
            step += 1
        for optimizer in several:
            optimizer.zero_grad()
    engine.finish(outputs)
    return conclusions


def test_a_plain_loop() -> None:
    engine, notebook = engine_of(), Notebook()
    engine.start([])
    conclusions = loop(fill(mlp(), 0.5), engine, [notebook])
    assert notebook.steps == [0, 1, 3, 4, 8]
    assert [finding.layer for conclusion in conclusions for finding in conclusion.news] == ["0", "2"]
    assert notebook.closed_with is engine.report is not None
    assert {finding.verdict for finding in engine.findings} == {Verdict.LOCKED}


def test_acting_is_apart_from_concluding() -> None:
    engine = engine_of(on_symmetry="stop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conclusions = loop(fill(mlp(), 0.5), engine, [])
    [with_news] = [conclusion for conclusion in conclusions if conclusion.news]
    with pytest.warns(SymmetryWarning) as caught:
        assert engine.act(with_news, mlp())
    assert [str(warning.message).partition(" units")[0] for warning in caught] == ["0: all 16", "2: all 8"]
    assert not engine.act(conclusions[-1], mlp())


def test_optimizers_that_nobody_announced_are_counted_each_for_itself() -> None:
    def two(net: nn.Module) -> list[torch.optim.Optimizer]:
        first, *rest = net.children()
        return [sgd(first.parameters()), sgd(nn.Sequential(*rest).parameters())]

    engine, notebook = engine_of(), Notebook()
    loop(mlp(), engine, [notebook], optimizers=two, num_steps=6)
    assert notebook.steps == [0, 1, 2, 3, 6, 7, 8, 9]  # each optimizer's own steps 0, 1, 3, 4
    assert engine.state_dict()["num_steps"] == {0: 6, 1: 6}


def test_a_process_that_does_not_speak_says_and_writes_nothing() -> None:
    engine, notebook = engine_of(), Notebook()
    engine.start([], is_speaking=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for conclusion in loop(fill(mlp(), 0.5), engine, [notebook]):
            engine.act(conclusion, mlp())
    assert notebook.steps == []
    assert len(engine.findings) == 2


def test_the_warning_points_at_the_code_of_the_user() -> None:
    engine = engine_of()
    [with_news] = [conclusion for conclusion in loop(fill(mlp(), 0.5), engine, []) if conclusion.news]
    with pytest.warns(SymmetryWarning) as caught:
        engine.act(with_news, mlp())
    assert {warning.filename for warning in caught} == {__file__}


def test_the_state_of_version_0_2_is_taken_over() -> None:
    state = json.loads((Path(__file__).parents[1] / "golden" / "state_of_0.2.json").read_text())
    monitor = SymmetryMonitor()
    monitor.load_state_dict(state)
    found = [(f.layer, f.units, f.verdict, f.cause, f.first_step, f.last_step) for f in monitor.findings]
    assert found == [
        ("net.0", tuple(range(16)), "frozen", "dead", 0, 60),
        ("net.2", tuple(range(8)), "dead", "low bias", 0, 60),
    ]
    layers = monitor.state_dict()["layers"]
    assert {name: layer["num_checks"] for name, layer in layers.items()} == state["num_looks"]
    assert {name: layer["orientations"] for name, layer in layers.items()} == state["history"]["orientations"]
    streaks = layers["net.2"]["deaths"]["streaks"]
    assert streaks.pop("num_watched") == streaks.pop("num_refuted") == [0] * 8  # missing in that version
    assert streaks == state["history"]["deaths"]["net.2"]["streaks"]
    again = SymmetryMonitor()
    again.load_state_dict(monitor.state_dict())
    assert again.findings == monitor.findings


def test_the_state_of_version_0_1_is_taken_over() -> None:
    state = json.loads((Path(__file__).parents[1] / "golden" / "state_of_0.1.json").read_text())
    state["num_steps"] = {int(place): steps for place, steps in state["num_steps"].items()}
    monitor = SymmetryMonitor()
    monitor.load_state_dict(state)
    found = [(f.layer, f.units, f.verdict, f.first_step, f.last_step) for f in monitor.findings]
    assert found == [("net.0", tuple(range(16)), "locked", 0, 5), ("net.2", tuple(range(8)), "locked", 0, 5)]
    assert monitor.state_dict()["num_steps"] == {0: 10}
    again = SymmetryMonitor()
    again.load_state_dict(monitor.state_dict())
    assert again.findings == monitor.findings
