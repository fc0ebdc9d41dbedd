"""The Symmetry tab's events of real trainings, read back with TensorBoard's own reader."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import LayerDiagnosis, SymmetryMonitor, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.outputs import tab
from lightning_symmetry.outputs.event_file import EventFile
from lightning_symmetry.outputs.heatmap import similarity
from lightning_symmetry.outputs.output import Check
from lightning_symmetry.tensorboard_plugin.events import MATRIX_TAG, SUMMARY_TAG, unpack_matrix, unpack_summary
from lightning_symmetry.tensorboard_plugin.folding import RunHistory, fold
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.advice import why
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import to_diagnosis
from tests.outputs.test_tensorboard import read, train
from tests.tab_runs import TabWriter
from tests.training import Classifier, Regression, batches, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


def payloads(events: EventAccumulator, tag: str = SUMMARY_TAG) -> list[tuple[int, bytes]]:
    if tag not in events.Tags()["tensors"]:
        return []
    return [(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors(tag)]


def summaries(events: EventAccumulator) -> list[dict[str, Any]]:
    return [unpack_summary(data) for _, data in payloads(events)]


def matrix_steps(events: EventAccumulator, layer: str) -> list[int]:
    return [step for step, _ in payloads(events, MATRIX_TAG + layer)]


def history(events: EventAccumulator) -> RunHistory:
    folded = fold(payloads(events))
    assert folded.num_unreadable == 0
    return folded


def widths(folded: RunHistory, layer: str) -> dict[int, int | None]:
    return {folded.steps[check]: state.width if state else None for check, state in folded.layers[layer].states}


def test_one_summary_per_check_tells_what_the_report_told(tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=4)
    events = train(fill(mlp(), 0.5), tmp_path, monitor)
    folded = history(events)
    assert folded.steps == [0, 1, 3, 4, 8]
    assert monitor.report is not None
    for name, layer in monitor.report.layers.items():
        state = folded.layers[name].states[-1][1]
        assert state is not None
        assert (state.num_units, state.fan_in, state.width) == (layer.num_units, layer.fan_in, layer.effective_width)
        told = [(group.size, group.verdict, group.since) for group in state.groups]
        assert told == [(len(group.units), group.verdict, group.first_step) for group in layer.groups]
    assert widths(folded, "net.0") == {0: 1, 1: 1}  # frozen at first sight, locked at the next
    assert {finding["why"] for finding in folded.to_json()["findings"]} == {
        why([found], monitor.report) for found in monitor.findings
    }
    assert [finding["who"] for finding in folded.to_json()["findings"]] == ["all 16 units", "all 8 units"]


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor(every_n_steps=1), max_steps=32)
    written = summaries(events)
    assert len(written) == 32
    assert [summary.get("full", False) for summary in written] == [True] + [False] * 31
    told: dict[tuple[str, str], Any] = {}
    for summary in written:
        for name, changes in summary["layers"].items():
            for key, value in changes.items():
                assert told.get((name, key)) != value
                told[name, key] = value
    assert sum("findings" in summary for summary in written) <= 2
    assert payloads(events)[-1][1] == b'{"version":1,"layers":{}}'


def test_healthy_layers_get_a_matrix_ever_more_rarely(tmp_path: Path) -> None:
    events = train(mlp(), tmp_path, SymmetryMonitor(every_n_steps=1), max_steps=40)
    assert matrix_steps(events, "net.0") == [0, 1, 3, 7, 15, 31]


def test_all_heatmaps_means_a_matrix_at_every_check_that_shows_a_change(tmp_path: Path) -> None:
    events = train(mlp(), tmp_path / "all", SymmetryMonitor(every_n_steps=1, heatmaps="all"), max_steps=12)
    assert matrix_steps(events, "net.0") == list(range(12))
    events = train(mlp(), tmp_path / "none", SymmetryMonitor(every_n_steps=1, heatmaps="none"), max_steps=12)
    assert [tag for tag in events.Tags()["tensors"] if tag.startswith(MATRIX_TAG)] == []
    assert len(history(events).steps) == 12


@pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")
def test_a_matrix_that_looks_the_same_is_not_written_again(tmp_path: Path) -> None:
    model = Classifier(mlp(), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    logger = TensorBoardLogger(tmp_path, name="", version="")
    data = batches(num_samples=32)  # the same batch every time, so that the gradients do not change
    make_trainer([SymmetryMonitor(every_n_steps=1)], logger=logger, max_steps=20).fit(model, data)
    assert matrix_steps(read(tmp_path), "net.0") == [0]


def test_a_matrix_holds_weights_below_and_gradients_above(tmp_path: Path) -> None:
    events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor(every_n_steps=4))
    step, data = payloads(events, MATRIX_TAG + "net.0")[-1]
    units, cells = unpack_matrix(data)
    assert (step, units) == (1, list(range(16)))
    assert set(cells) == {255}
    _, data = payloads(events, MATRIX_TAG + "net.4")[0]
    matrix = np.frombuffer(unpack_matrix(data)[1], dtype=np.uint8).reshape(4, 4)
    assert (matrix[np.tril_indices(4)] == 255).all()
    assert set(matrix[np.triu_indices(4, 1)].tolist()) == {1, 255}  # with one feature, there are only two directions


def test_large_layers_are_thinned_with_all_groups_in_sight(tmp_path: Path) -> None:
    first = nn.Linear(12, 300)
    with torch.no_grad():
        first.weight[200:] = first.weight[200]
        first.bias[200:] = 0.1
    events = train(nn.Sequential(first, nn.ReLU(), nn.Linear(300, 4)), tmp_path, SymmetryMonitor())
    units, cells = unpack_matrix(payloads(events, MATRIX_TAG + "net.0")[0][1])
    assert len(units) == 64
    assert len(cells) == 64 * 64
    assert sum(unit >= 200 for unit in units) >= 2
    state = history(events).layers["net.0"].states[0][1]
    assert state is not None
    assert [group.units for group in state.groups] == ["200-299"]


def test_a_resumed_training_tells_all_again(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = make_trainer([SymmetryMonitor(every_n_steps=2)], logger=logger, max_steps=7)
    trainer.fit(Classifier(fill(mlp(), 0.5)), batches())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = make_trainer(
        [SymmetryMonitor(every_n_steps=2)], logger=TensorBoardLogger(tmp_path, name="", version=""), max_steps=12
    )
    again.fit(Classifier(mlp()), batches(), ckpt_path=tmp_path / "half.ckpt")
    events = read(tmp_path)
    folded = history(events)
    assert folded.steps == [0, 1, 2, 4, 6, 7, 8, 10]  # the first step after a resume is always checked
    assert [summary.get("full", False) for summary in summaries(events)] == [True, *[False] * 4, True, False, False]
    group = folded.layers["net.0"].states[-1][1]
    assert group is not None
    assert [found.since for found in group.groups] == [0]  # not the step at which it went on


def test_another_folder_gets_everything_anew(tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    model = Classifier(mlp())
    for folder, steps in (("a", 3), ("b", 6)):
        trainer = make_trainer(
            [monitor], logger=TensorBoardLogger(tmp_path / folder, name="", version=""), max_steps=steps
        )
        path = tmp_path / "a.ckpt" if folder == "b" else None
        trainer.fit(model, batches(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{folder}.ckpt")
    assert summaries(read(tmp_path / "b"))[0]["full"] is True


def test_every_logger_gets_the_same(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path / name, name="", version="") for name in "ab"]
    make_trainer([SymmetryMonitor()], logger=loggers).fit(Classifier(fill(mlp(), 0.5)), batches())
    assert payloads(read(tmp_path / "a")) == payloads(read(tmp_path / "b")) != []


def test_a_step_that_comes_again_is_told_in_full(tmp_path: Path) -> None:
    writer = TabWriter()
    with SummaryWriter(str(tmp_path)) as out:
        for step, width in ((0, 8), (5, 7), (5, 6), (10, 6)):
            groups = [UnitGroup(tuple(range(9 - width)), Verdict.LOCKED, Cause.COPIED, None, 0)] if width < 8 else []
            report = SymmetryReport(step, {"fc": LayerDiagnosis("fc", 8, 3, (), groups)})
            writer.write([out], report, [], [], "findings")
    assert [summary.get("full", False) for summary in summaries(read(tmp_path))] == [True, False, True, False]
    assert widths(history(read(tmp_path)), "fc") == {0: 8, 5: 6}


def test_units_that_are_dead_as_well_as_redundant_are_told(tmp_path: Path) -> None:
    groups = [UnitGroup((0, 1, 2), Verdict.LOCKED, Cause.COPIED, None, 0)]
    layers = [LayerDiagnosis("fc", 8, 3, (1, 2, 5), groups), LayerDiagnosis("fc", 8, 3, (5,), groups)]
    with SummaryWriter(str(tmp_path)) as out:
        writer = TabWriter()
        for step, layer in enumerate(layers):
            writer.write([out], SymmetryReport(step, {"fc": layer}), [], [], "findings")
    told = history(read(tmp_path)).layers["fc"]
    assert [state and (state.width, state.both) for _, state in told.states] == [(6, 2), (6, 0)]
    assert told.dead == [(0, 3), (1, 1)]
    assert [layer.working_units for layer in layers] == [6 - 3 + 2, 6 - 1 + 0]


def test_very_many_groups_are_cut_and_counted(tmp_path: Path) -> None:
    groups = [UnitGroup((i, i + 4096), Verdict.LOCKED, Cause.COPIED, None, 0) for i in range(4096)]
    report = SymmetryReport(0, {"fc": LayerDiagnosis("fc", 8192, 3, (), groups)})
    with SummaryWriter(str(tmp_path)) as out:
        TabWriter().write([out], report, [], [], "findings")
    ((_, data),) = payloads(read(tmp_path))
    assert len(data) < 4096
    state = fold([(0, data)]).layers["fc"].states[0][1]
    assert state is not None
    assert (state.width, state.num_groups, len(state.groups), state.counts["locked"]) == (4096, 4096, 256, 8192)


def test_a_long_training_stays_small(tmp_path: Path) -> None:
    """Events take a quarter of the limit of 2 kB per layer and check."""
    for name, net in {"sick": fill(mlp(), 0.5), "healthy": mlp()}.items():
        events = train(net, tmp_path / name, SymmetryMonitor(every_n_steps=1), max_steps=64)
        tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(SUMMARY_TAG)]
        size = sum(len(data) for tag in tags for _, data in payloads(events, tag))
        assert size / 64 / 3 < 512, name


def test_a_failing_tab_does_not_take_the_rest_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tab, "pack_summary", lambda summary: 1 / 0)
    with pytest.warns(UserWarning, match="switches off its Symmetry tab, which failed with ZeroDivisionError"):
        events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor())
    assert "symmetry/findings/text_summary" in events.Tags()["tensors"]


def check_of(model: nn.Module, step: int) -> Check:
    looks = look(find_layers(model).layers)
    layers = {seen.layer.name: to_diagnosis(seen, ()) for seen in looks}
    return Check(SymmetryReport(step, layers), [], looks, frozenset(layers))


def test_matrices_show_the_weights_of_their_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_moved = threading.Event()
    monkeypatch.setattr(tab, "similarity", lambda *rows: have_moved.wait(60) and similarity(*rows))
    layer = nn.Linear(300, 6, bias=False)  # without a bias, rows are fetched without a copy
    model, before = nn.Sequential(layer), layer.weight.detach().clone()
    with SummaryWriter(str(tmp_path)) as out:
        writer = tab.SymmetryTab(out, "all")
        writer.write(check_of(model, 0))
        with torch.no_grad():
            layer.weight.fill_(1.0)
        have_moved.set()
        writer.flush()
    [(_, data)] = payloads(read(tmp_path), MATRIX_TAG + "0")
    _, cells = unpack_matrix(data)
    shown = (np.frombuffer(cells, np.uint8).reshape(6, 6).astype(float) - 128) / 127
    expected = nn.functional.cosine_similarity(before[:, None], before, dim=2).numpy()
    below = np.tril_indices(6)
    assert shown[below] == pytest.approx(expected[below], abs=1 / 127)


def test_matrices_that_could_not_be_written_are_written_at_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = EventFile.add

    def fail_for_matrices(self: EventFile, values: list[Summary.Value], step: int) -> None:
        if values[0].tag.startswith(MATRIX_TAG):
            raise OSError("disk full")
        add(self, values, step)

    model = nn.Sequential(nn.Linear(8, 6))
    with SummaryWriter(str(tmp_path)) as out:
        writer = tab.SymmetryTab(out, "findings")
        with monkeypatch.context() as broken:
            broken.setattr(EventFile, "add", fail_for_matrices)
            writer.write(check_of(model, 0))
            while writer._background.is_busy:
                pass
        with pytest.raises(OSError, match="disk full"):
            writer.write(check_of(model, 1))
        for step in (1, 2):
            writer.write(check_of(model, step))
        writer.close(check_of(model, 2).report)
    events = read(tmp_path)
    assert matrix_steps(events, "0") == [1]
    assert [summary.get("full", False) for summary in summaries(events)] == [True, True, False]


def test_findings_of_copies_are_told_without_a_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(12, 4), nn.Linear(12, 4)
            self.right.load_state_dict(self.left.state_dict())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            both: torch.Tensor = self.left(inputs) + self.right(inputs)
            return both

    logger = TensorBoardLogger(tmp_path, name="", version="")
    make_trainer([SymmetryMonitor()], logger=logger).fit(Regression(Branches()), batches())
    told = history(read(tmp_path)).to_json()
    (finding,) = told["findings"]
    assert finding["layer"] not in {row["name"] for row in told["layers"]}
    assert finding["who"] == "net.left, net.right"
    assert "copies" in finding["what"]


def test_steps_of_two_optimizers_share_a_history(tmp_path: Path) -> None:
    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__(fill(mlp(), 0.5))
            self.automatic_optimization = False

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            optimizers = self.optimizers()
            assert isinstance(optimizers, list)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            return loss

        def configure_optimizers(self) -> Any:
            first, *rest = (child for child in self.net.children() if list(child.parameters()))
            others = itertools.chain.from_iterable(child.parameters() for child in rest)
            return [torch.optim.SGD(first.parameters(), lr=0.1), torch.optim.SGD(others, lr=0.1)]

    logger = TensorBoardLogger(tmp_path, name="", version="")
    make_trainer([SymmetryMonitor()], logger=logger, max_steps=32).fit(Two(), batches())
    events = read(tmp_path)
    assert history(events).layers.keys() == {"net.0", "net.2", "net.4"}
    assert {layer: matrix_steps(events, layer)[0] for layer in ("net.0", "net.4")} == {"net.0": 0, "net.4": 0}
    assert len(matrix_steps(events, "net.4")) >= 3


def test_dead_units_directions_and_signs_are_told_over_time(tmp_path: Path) -> None:
    writer = TabWriter()
    pair = UnitGroup((0, 4), Verdict.LOCKED, Cause.MIRRORED, None, 0, mirrored=(4,))
    dying = UnitGroup(tuple(range(5)), Verdict.DEAD, Cause.DEAD, None, 5)
    died = Finding("b", dying.units, Verdict.DEAD, Cause.DEAD, None, 5, 10, None, Origin.COLLAPSE)
    with SummaryWriter(str(tmp_path)) as out:
        for step, dead in ((0, 0), (5, 1), (10, 5), (15, 5)):
            groups = [dying] if dead == 5 else []
            layers = [
                LayerDiagnosis("a", 8, 3, groups=[pair], orientations=7),
                LayerDiagnosis("b", 8, 3, tuple(range(dead)), groups, orientations=8 - dead),
            ]
            report = SymmetryReport(step, {layer.name: layer for layer in layers})
            writer.write([out], report, [died] if dead == 5 else [], [], "findings")
    told = history(read(tmp_path))
    first, second = told.to_json()["layers"]
    assert told.layer_to_json("a")["groups"][0]["groups"][0]["mirrored"] == "4"
    assert first["orientations"] == [{"check": 0, "number": 7}]
    assert second["dead"] == [{"check": 0, "units": 0}, {"check": 1, "units": 1}, {"check": 2, "units": 5}]
    assert second["orientations"] == [{"check": i, "number": number} for i, number in enumerate((8, 7, 3))]
    # One dead unit is counted, but has no mark.
    assert [state["counts"] for state in second["states"]] == [{}, {"dead": 5}]
    assert [(event["step"], event["kind"], event["verdict"]) for event in second["events"]] == [(5, "appeared", "dead")]
