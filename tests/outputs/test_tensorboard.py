"""Everything written to TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import resource
import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from lightning_symmetry import LayerDiagnosis, SymmetryMonitor, SymmetryReport, SymmetryTracker, UnitGroup, Verdict
from lightning_symmetry.callback import SymmetryWarning
from lightning_symmetry.outputs import event_file
from lightning_symmetry.outputs.output import Check
from lightning_symmetry.outputs.tab import SymmetryTab
from lightning_symmetry.outputs.tensorboard import TensorBoardScalars
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG
from lightning_symmetry.tensorboard_plugin.folding import fold
from lightning_symmetry.verdicts.diagnoses import Cause
from tests.test_tracker import sgd, tracked
from tests.test_tracker import train as train_in_a_loop
from tests.training import Classifier, batches, fill, make_trainer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


def train(net: nn.Module, folder: Path, monitor: SymmetryMonitor, **options: Any) -> EventAccumulator:
    logger = TensorBoardLogger(folder, name="", version="")
    make_trainer([monitor], logger=logger, **options).fit(Classifier(net), batches())
    return read(folder)


def pixels(events: EventAccumulator, tag: str, place: int = -1) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(events.Images(tag)[place].encoded_image_string))
    return np.asarray(image.convert("RGB"))


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def has_colour(image: np.ndarray[Any, Any], colour: str) -> bool:
    return bool((image == rgb(colour)).all(axis=-1).any())


def test_scalars_text_and_pictures_of_a_sick_run(tmp_path: Path) -> None:
    events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor(every_n_steps=4, scalars="layers"))
    tags = events.Tags()
    layers = ["net.0", "net.2", "net.4"]
    ours = {tag for tag in tags["scalars"] if tag.startswith("symmetry/")}
    assert ours == {
        "symmetry/working_units",
        "symmetry/redundant_units",
        "symmetry/effective_width_fraction",
        "symmetry/dead_units",
        *(f"symmetry/{kind}/{layer}" for kind in ("effective_width", "orientations") for layer in layers),
    }
    steps = [0, 1, 3, 4, 8]
    assert [(e.step, e.value) for e in events.Scalars("symmetry/effective_width/net.0")] == [(s, 1.0) for s in steps]
    assert [(e.step, e.value) for e in events.Scalars("symmetry/redundant_units")] == [
        (0, 15.0 + 7 + 3),
        *((step, 15.0 + 7) for step in steps[1:]),
    ]
    assert [e.value for e in events.Scalars("symmetry/working_units")] == [3.0] + [6.0] * 4
    fractions = [e.value for e in events.Scalars("symmetry/effective_width_fraction")]
    assert fractions == pytest.approx([3 / 28] + [6 / 28] * 4)

    assert set(tags["images"]) == {"symmetry/overview", "symmetry/heatmap/net.0", "symmetry/heatmap/net.2"}
    # Pictures and text come when findings change, not at every check.
    assert [e.step for e in events.Images("symmetry/overview")] == [0, 1]
    assert [e.step for e in events.Images("symmetry/heatmap/net.0")] == [1]
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors("symmetry/findings/text_summary")]
    assert [step for step, _ in texts] == [0, 1]
    assert texts[0][1].startswith("Nothing to warn of: 3 of 28 units")
    assert texts[1][1].splitlines() == [
        "| layer | units | verdict | since step |",
        "| --- | --- | --- | ---: |",
        "| net.0 | all 16 units | locked | 0 |",
        "| net.2 | all 8 units | locked | 0 |",
        "",
        *(
            f"- **net.{layer}**, locked: They are identical in weights and gradients (locked since step 0): they "
            "train as 1 unit. Every weight is 0.5: constant initialisation. "
            "Initialise at random, e.g. &#96;torch.nn.init.kaiming&#95;uniform&#95;(model.net&#91;"
            f"{layer}&#93;.weight)&#96;. &#91;SYM101&#93;"
            for layer in (0, 2)
        ),
    ]


def test_locked_block_is_bright_on_both_sides(tmp_path: Path) -> None:
    events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor())
    image = pixels(events, "symmetry/heatmap/net.0")
    assert has_colour(image, Verdict.LOCKED.traits.colour)
    bright = (image == (255, 240, 170)).all(axis=-1)
    side = 320 // 16 * 16
    square = bright[40 : 40 + side, 44 : 44 + side]
    assert square.mean() > 0.95  # all but the frame
    assert has_colour(pixels(events, "symmetry/overview"), Verdict.LOCKED.traits.colour)


def test_healthy_run_has_an_overview_and_no_heatmaps(tmp_path: Path) -> None:
    events = train(mlp(), tmp_path, SymmetryMonitor(every_n_steps=1))
    assert events.Tags()["images"] == ["symmetry/overview"]
    (text,) = events.Tensors("symmetry/findings/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "Nothing to warn of: all 28 units of 3 layers are working."
    assert not has_colour(pixels(events, "symmetry/overview")[:130], Verdict.LOCKED.traits.colour)


@pytest.mark.parametrize(("heatmaps", "expected"), [("all", [0, 1, 3, 7]), ("none", [])])
def test_heatmaps_option(heatmaps: Any, expected: list[int], tmp_path: Path) -> None:
    events = train(fill(mlp(), 0.5), tmp_path, SymmetryMonitor(heatmaps=heatmaps))
    for layer in ("net.0", "net.2", "net.4"):
        tag = f"symmetry/heatmap/{layer}"
        assert ([e.step for e in events.Images(tag)] if tag in events.Tags()["images"] else []) == expected


def test_every_tensorboard_logger_gets_all(tmp_path: Path) -> None:
    loggers = [
        TensorBoardLogger(tmp_path / "a", name="", version=""),
        CSVLogger(tmp_path / "csv", name="", version=""),
        TensorBoardLogger(tmp_path / "b", name="", version=""),
    ]
    make_trainer([SymmetryMonitor()], logger=loggers).fit(Classifier(fill(mlp(), 0.5)), batches())
    for name in ("a", "b"):
        tags = read(tmp_path / name).Tags()
        assert "symmetry/heatmap/net.0" in tags["images"]
        assert "symmetry/findings/text_summary" in tags["tensors"]
        assert "symmetry/redundant_units" in tags["scalars"]
    assert "symmetry/redundant_units" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_hostile_layer_names_stay_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>|`*_a_*`"
    net = fill(nn.Sequential(nn.ModuleDict({name: nn.Linear(12, 16)})[name], nn.ReLU(), nn.Linear(16, 4)), 0.5)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, net)

        def forward(self, inputs: Any) -> Any:
            return net(inputs)

    events = train(Named(), tmp_path, SymmetryMonitor())
    text = events.Tensors("symmetry/findings/text_summary")[-1].tensor_proto.string_val[0].decode()
    row = text.splitlines()[2]
    assert "<" not in text
    assert "*" not in row
    assert row.count("|") == 5


def test_of_a_long_quiet_training_some_checks_are_written_and_nothing_is_lost(tmp_path: Path) -> None:
    healthy = SymmetryReport(layers={"fc": LayerDiagnosis("fc", 8, 4)})
    group = UnitGroup((0, 1), Verdict.LOCKED, Cause.COPIED, first_step=1000)
    sick = SymmetryReport(layers={"fc": LayerDiagnosis("fc", 8, 4, groups=[group])})
    writer = SummaryWriter(str(tmp_path))
    outputs = [TensorBoardScalars(writer, "summary"), SymmetryTab(writer, "none")]
    for step in range(1400):
        report = replace(sick if step >= 1000 else healthy, step=step)
        for output in outputs:
            output.write(Check(report, [], [], set()))
    for output in outputs:
        output.close(report)
    writer.close()
    events = read(tmp_path)
    scalars = [(event.step, event.value) for event in events.Scalars("symmetry/redundant_units")]
    steps = [step for step, _ in scalars]
    assert steps[:64] == list(range(64))
    assert len(steps) < 2 * (64 + 32 * 5)
    assert all(after - before <= 1 + before / 32 for before, after in pairwise(steps))
    # The curve is flat up to the step at which it changes, and goes up to the last step.
    assert [step for step, value in scalars if value == 0][-1] == 999
    assert next(step for step, value in scalars if value == 1) == 1000
    assert steps[-1] == 1399
    history = fold([(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors(SUMMARY_TAG)])
    assert history.steps == list(range(1400))  # the tab knows of all checks
    assert [history.steps[check] for check, _ in history.layers["fc"].states] == [0, 1000]


def test_a_training_that_starts_again_writes_all_of_its_first_checks(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    output = TensorBoardScalars(writer, "summary")
    report = SymmetryReport(layers={"fc": LayerDiagnosis("fc", 8, 4)})
    for step in [*range(500), *range(10)]:
        output.write(Check(replace(report, step=step), [], [], set()))
    writer.close()
    # TensorBoard ignores events before the start, so the steps are read one by one.
    steps = [event.step for event in read(tmp_path).Scalars("symmetry/redundant_units")]
    assert steps[-10:] == list(range(10))


def test_warning_class_is_public() -> None:
    import lightning_symmetry

    assert lightning_symmetry.SymmetryWarning is SymmetryWarning


class Logging(Classifier):
    """Logs its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class Vanishing(Callback):
    """Removes the folder of the logger before step 5, and makes it again before step 7."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert trainer.logger is not None
        folder = Path(str(trainer.logger.log_dir))
        if trainer.global_step == 5:
            shutil.rmtree(folder)
        if trainer.global_step == 7:
            folder.mkdir()


def test_a_folder_that_is_away_for_a_while_ends_no_training(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks = [Vanishing(), SymmetryMonitor(every_n_steps=1)]
    trainer = make_trainer(callbacks, logger=logger, max_steps=20, log_every_n_steps=10)
    trainer.fit(Logging(fill(mlp(), 0.5)), batches())
    assert trainer.global_step == 20
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [9, 19]
    assert [event.step for event in events.Scalars("symmetry/redundant_units")] == list(range(5, 20))


@pytest.mark.parametrize("library", ["torch.utils.tensorboard", "tensorboardX"])
def test_a_disk_that_is_full_for_a_while_costs_the_user_nothing(library: str, tmp_path: Path) -> None:
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.importorskip(library).SummaryWriter(str(tmp_path)) as writer,
        SymmetryTracker(net, optimizer, output=writer, every_n_steps=1),
    ):
        train_in_a_loop(net, optimizer, 4)
        writer.add_scalar("own", 1, 0)
        (file,) = tmp_path.iterdir()
        writer.flush()
        # The `flush` of tensorboardX does not wait for its thread, which ends if its first flush finds the disk full.
        thread = getattr(writer.file_writer.event_writer, "_worker", None)
        while thread is not None and (thread._next_flush_time == 0 or b"own" not in file.read_bytes()):
            time.sleep(0.01)
            writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, hard))  # room for a part of an event
        try:
            train_in_a_loop(net, optimizer, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.add_scalar("own", 2, 1)
        train_in_a_loop(net, optimizer, 2)
    events = read(tmp_path)
    assert [event.value for event in events.Scalars("own")] == [1, 2]
    assert {event.step for event in events.Scalars("symmetry/redundant_units")} == set(range(8))


def test_libraries_that_listen_to_the_writer_hear_of_our_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = set[str]()
    add_event = FileWriter.add_event

    def listening(self: FileWriter, event: Any, *args: Any) -> None:
        heard.update(value.tag for value in event.summary.value)
        add_event(self, event, *args)

    monkeypatch.setattr(FileWriter, "add_event", listening)
    with SummaryWriter(str(tmp_path)) as writer:
        tracked(fill(mlp(), 0.5), output=writer)
    assert {"symmetry/redundant_units", "symmetry/overview", "symmetry/heatmap/0", SUMMARY_TAG} <= heard


@pytest.mark.filterwarnings("ignore:.*switches off its")
def test_a_writer_that_is_stuck_holds_up_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "_PATIENCE_S", 0.01)
    net, release, write = mlp(), threading.Event(), RecordWriter.write

    def stuck(self: RecordWriter, data: bytes) -> None:
        release.wait()
        write(self, data)

    with SummaryWriter(str(tmp_path)) as writer:
        monkeypatch.setattr(RecordWriter, "write", stuck)
        writer.add_scalar("own", 1, 0)
        tracked(net, output=TensorBoardScalars(writer, "summary"), every_n_steps=1)
        release.set()
    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["own"]
