"""Weights & Biases, offline, read back from the files of the run."""

from __future__ import annotations

import json
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from wandb.proto import wandb_internal_pb2

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from tests.test_tracker import endless, loss_of, sgd
from tests.training import Classifier, fill, fit, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    yield tmp_path
    wandb.finish()


def rows_of(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that a finished run has written, and its summary."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, summary = [], {}
    for record in records_of_finished(file):
        if record.WhichOneof("record_type") == "history":
            rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        for item in record.summary.update:
            summary[_key(item)] = json.loads(item.value_json)
    return rows, summary


def records_of_finished(file: Path) -> list[Any]:
    """The records of a file up to the one that ends it: its writer may still be busy when `wandb.finish` returns."""
    deadline = time.monotonic() + 60
    while True:
        records = []
        for data in _records(file.read_bytes()):
            records.append(wandb_internal_pb2.Record())  # type: ignore[attr-defined] # it is made when it is imported
            records[-1].ParseFromString(data)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, f"{file} has no record of the run's end"
        time.sleep(0.05)


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file in the format of LevelDB's logs, behind a head of 7 bytes."""
    block_size, at, record = 32768, 7, b""
    while at + 7 <= len(data):
        if block_size - at % block_size < 7:  # no room for the head of a piece: the next one begins with a block
            at += block_size - at % block_size
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):  # the rest of this piece is not written yet
            return
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def media_of(folder: Path) -> list[Path]:
    (run,) = folder.glob("wandb/offline-run-*")
    return sorted(path for path in (run / "files" / "media").rglob("*") if path.is_file())


def test_the_logger_of_lightning_gets_text_and_pictures(folder: Path) -> None:
    fit(
        Classifier(fill(mlp(), 0.5)), SymmetryMonitor(every_n_steps=4), logger=WandbLogger(save_dir=folder), max_steps=8
    )
    wandb.finish()
    rows, summary = rows_of(folder)
    ours = [row for row in rows if "symmetry/redundant_units" in row]
    assert [row["trainer/global_step"] for row in ours] == [0, 1, 3, 4]
    assert ours[-1]["symmetry/redundant_units"] == 22.0
    assert ours[-1]["symmetry/effective_width/net.0"] == 1.0
    assert [row["symmetry/findings.nrows"] for row in ours if "symmetry/findings.nrows" in row] == [0, 2]
    pictures = {key.removesuffix("._type") for row in ours for key in row if row[key] == "image-file"}
    assert pictures == {"symmetry/overview", "symmetry/heatmap/net.0", "symmetry/heatmap/net.2"}
    assert summary["symmetry/status"] == "symmetric"
    media = media_of(folder)
    tables = [json.loads(path.read_text()) for path in media if path.name.endswith("table.json")]
    layers = {row[table["columns"].index("layer")] for table in tables for row in table["data"]}
    assert layers == {"net.0", "net.2"}
    assert any("constant initialisation" in str(row) for table in tables for row in table["data"])
    images = [path for path in media if path.suffix == ".png"]
    assert len(images) >= 3
    for path in images:
        with Image.open(path) as image:
            assert min(image.size) > 100


def train_with(run: Any, log: Any, steps: int = 40) -> None:
    """An ordinary loop that is checked 10 times, and logs after every step."""
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, output=run, every_n_steps=5):
        for step, batch in zip(range(steps), endless(), strict=False):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            optimizer.step()
            log(step, loss.item())


CHECKS = [0, 1, 3, 5, 10, 15, 20, 25, 30, 35]


@pytest.mark.parametrize("every", [1, 20, 1000])
def test_each_check_has_a_row_however_seldom_the_owner_logs(every: int, folder: Path) -> None:
    run = wandb.init(project="symmetry", dir=folder)

    def log(step: int, loss: float) -> None:
        if step % every == every - 1:
            run.log({"loss": loss, "at": step})

    train_with(run, log)
    run.finish()
    rows, summary = rows_of(folder)
    assert [row["symmetry/step"] for row in rows if "symmetry/step" in row] == CHECKS
    assert {row["symmetry/redundant_units"] for row in rows if "symmetry/step" in row} == {22.0, 25.0}
    assert [row["at"] for row in rows if "at" in row] == list(range(every - 1, 40, every))
    assert not any({"at", "symmetry/step"} <= row.keys() for row in rows)
    assert (summary["symmetry/status"], summary["symmetry/step"]) == ("symmetric", 35)
    assert [path for path in media_of(folder) if path.suffix == ".png"]


def test_a_failure_neither_loses_nor_repeats_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = wandb.init(project="symmetry", dir=folder)
    log_rightly, failures = run.log, iter(range(2))

    def log_at_last(data: dict[str, Any], **options: Any) -> None:
        if data["symmetry/step"] >= 3 and next(failures, None) is not None:
            raise ConnectionError("any")
        log_rightly(data, **options)

    def log(step: int, loss: float) -> None:
        if step == 1:
            log_rightly({"at": step})
            monkeypatch.setattr(run, "log", log_at_last)

    train_with(run, log)
    monkeypatch.undo()
    run.finish()
    rows, _ = rows_of(folder)
    assert [row["symmetry/step"] for row in rows if "symmetry/step" in row] == CHECKS


@pytest.mark.parametrize(("every", "start"), [(1, 0), (20, 0), (20, 100)])
def test_where_the_owner_numbers_rows_none_is_dropped_and_a_table_has_all_checks(
    every: int, start: int, folder: Path
) -> None:
    run = wandb.init(project="symmetry", dir=folder)

    def log(step: int, loss: float) -> None:
        if step % every == every - 1:  # once an "epoch", counted in epochs
            run.log({"loss": loss, "epoch": start + step // every}, step=start + step // every)

    train_with(run, log)
    run.finish()
    rows, summary = rows_of(folder)
    assert [row["epoch"] for row in rows if "epoch" in row] == list(range(start, start + 40 // every))
    assert (summary["symmetry/status"], summary["symmetry/step"]) == ("symmetric", 35)
    assert rows[-1]["symmetry/checks.nrows"] == 10
    tables = [json.loads(path.read_text()) for path in media_of(folder) if path.name.startswith("checks")]
    [table] = tables
    at = table["columns"].index("symmetry/step")
    assert [row[at] for row in table["data"]] == CHECKS


def test_nothing_reaches_a_run_if_nothing_is_wanted(folder: Path) -> None:
    net = fill(mlp(), 0.5)
    run = wandb.init(project="symmetry", dir=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SymmetryTracker(net, sgd(net), output=run, scalars="none", heatmaps="none"):
            pass
    run.finish()
    assert not any("symmetry" in key for row in rows_of(folder)[0] for key in row)
