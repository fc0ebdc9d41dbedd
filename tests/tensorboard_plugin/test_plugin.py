"""The Symmetry tab's backend, in a real TensorBoard with either data server."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.demo.digits import GALLERY
from lightning_symmetry.outputs.tab import add_event
from lightning_symmetry.tensorboard_plugin.events import (
    MATRIX_TAG,
    SUMMARY_TAG,
    pack_matrix,
    pack_summary,
    unpack_matrix,
)
from lightning_symmetry.tensorboard_plugin.histories import Cache, Reader
from lightning_symmetry.tensorboard_plugin.page import page_files
from lightning_symmetry.tensorboard_plugin.plugin import SymmetryLoader
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import to_diagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict
from tests.outputs.test_tab import history, payloads
from tests.outputs.test_tensorboard import read
from tests.serving import Server
from tests.tab_runs import BREAKOUT, HOSTILE, TabWriter
from tests.test_package import modules_after

RUNS = {name.replace(" ", "_").replace(",", "") for name in GALLERY} | {"story", "hostile", "damaged"}


def test_the_plugin_needs_no_torch() -> None:
    (entry,) = [entry for entry in entry_points(group="tensorboard_plugins") if entry.name == "symmetry"]
    assert entry.value == "lightning_symmetry.tensorboard_plugin.plugin:SymmetryLoader"
    module = entry.value.split(":")[0]
    extra = modules_after(f"import {module}") - modules_after("import tensorboard.plugins.base_plugin, numpy")
    heavy = {"torch", "lightning", "torchmetrics", "PIL", "scipy", "sklearn", "matplotlib", "rich"}
    assert not heavy & {name.split(".")[0] for name in extra}
    assert {name for name in extra if name.startswith("lightning_symmetry.")} == {
        "lightning_symmetry.brief",
        "lightning_symmetry.tensorboard_plugin",
        *(
            f"lightning_symmetry.tensorboard_plugin.{room}"
            for room in ("events", "folding", "histories", "page", "plugin")
        ),
        "lightning_symmetry.verdicts",
        *(f"lightning_symmetry.verdicts.{room}" for room in ("codes", "diagnoses", "stops", "tables", "verdict")),
    }


@pytest.mark.parametrize("given", [None, {}, {"images": 5}, {"symmetry": 10}])
def test_all_events_are_kept(given: dict[str, int] | None) -> None:
    flags = argparse.Namespace(samples_per_plugin=given)
    SymmetryLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {**(given or {}), "symmetry": 0}


def test_without_a_data_provider_there_is_no_tab() -> None:
    assert SymmetryLoader().load(TBContext(data_provider=None)) is None


def test_the_tab_is_listed(server: Server) -> None:
    from urllib.request import urlopen

    with urlopen(f"{server.url}/data/plugins_listing") as answer:
        listed = json.load(answer)["symmetry"]
    assert (listed["enabled"], listed["tab_name"]) == (True, "Symmetry")


def test_runs_are_told_as_they_were_written(server: Server, gallery: Path) -> None:
    assert set(server.runs()) == RUNS
    for run in RUNS - {"story", "damaged"}:
        expected = history(read(gallery / run))
        assert server.json("run", run=run) == json.loads(json.dumps(expected.to_json()))


def test_layers_and_matrices_are_told_as_they_were_written(server: Server, gallery: Path) -> None:
    events = read(gallery / "copied_half")
    told = server.json("layer", run="copied_half", layer="fc1")
    written = {step: unpack_matrix(data) for step, data in payloads(events, MATRIX_TAG + "fc1")}
    shown = [(matrix["step"], matrix["units"]) for matrix in told["matrices"]]
    assert shown == [(step, units) for step, (units, _) in written.items()]
    assert len(told["groups"][0]["groups"]) == 32
    assert told["findings"][0]["groups"] == [group["units"] for group in told["groups"][-1]["groups"]]
    for step, (_, cells) in written.items():
        status, mimetype, content = server.get("matrix", run="copied_half", layer="fc1", step=step)
        assert (status, mimetype, content) == (200, "application/octet-stream", cells)


def test_the_page_knows_the_verdicts_in_the_order_of_their_seriousness() -> None:
    verdicts = json.loads(
        page_files()["legend.js"].decode().splitlines()[0].removeprefix("export const VERDICTS = ")[:-1]
    )
    assert [verdict["name"] for verdict in verdicts] == list(Verdict)
    for verdict in verdicts:
        assert verdict == {
            "name": verdict["name"],
            **{key: getattr(Verdict(verdict["name"]).traits, key) for key in verdict if key != "name"},
        }
    assert {"is_warning", "is_redundant", "colour", "dark_colour", "mark", "meaning"} <= verdicts[0].keys()


def test_event_files_of_version_0_1_are_read() -> None:
    """The run of ``tests.tab_runs.write_story``, from an event file of version 0.1."""
    folder = Path(__file__).parent / "written_by_version_0_1"
    events = EventMultiplexer(tensor_size_guidance={"symmetry": 0})
    events.AddRun(str(folder), "run")
    events.Reload()
    reader = Reader(MultiplexerDataProvider(events, str(folder)), RequestContext(), "", Cache())
    told = reader.history("run").to_json()
    assert (told["unreadable"], told["steps"]) == (1, [0, 10, 20, 30, 40, 50])
    assert [row["states"] for row in told["layers"]] == [
        [
            {"check": 0, "width": 16, "both": 0, "counts": {}},
            {"check": 2, "width": 13, "both": 0, "counts": {"locked": 4}},
        ],
        [
            {"check": 0, "width": 1, "both": 0, "counts": {"locked": 16}},
            {"check": 3, "width": 16, "both": 0, "counts": {}},
        ],
        [
            {"check": 0, "width": 16, "both": 0, "counts": {}},
            {"check": 4, "width": 16, "both": 0, "counts": {"lockstep": 2}},
        ],
    ]
    parting = reader.layer("run", "parting")
    assert parting["groups"][0]["groups"] == [
        {"units": "0-15", "size": 16, "verdict": "locked", "since": 0, "mirrored": ""}
    ]
    assert [(found["broken"], found["groups"]) for found in parting["findings"]] == [(30, None)]
    assert [len(matrix["units"]) for matrix in parting["matrices"]] == [16]


def test_matrices_have_keys_that_tell_their_content(tmp_path: Path) -> None:
    contents = [bytes(4), bytes([1] * 4), bytes(4)]
    with SummaryWriter(str(tmp_path)) as writer:
        summary = {"units": 2, "fan_in": 3, "width": 2, "dead": 0, "counts": {}, "groups": [], "num_groups": 0}
        add_event(writer, SUMMARY_TAG, pack_summary({"version": 1, "full": True, "layers": {"fc": summary}}), 0)
        for step, cells in enumerate(contents):
            add_event(writer, f"{MATRIX_TAG}fc", pack_matrix([0, 1], cells), step)
    events = EventMultiplexer(tensor_size_guidance={"symmetry": 0})
    events.AddRun(str(tmp_path), "run")
    events.Reload()
    reader = Reader(MultiplexerDataProvider(events, str(tmp_path)), RequestContext(), "", Cache())
    keys = [matrix["key"] for matrix in reader.layer("run", "fc")["matrices"]]
    assert keys[0] == keys[2] != keys[1]


def test_what_a_training_that_started_again_had_written_before_is_forgotten(tmp_path: Path) -> None:
    looks = look(find_layers(torch.nn.Sequential(torch.nn.Linear(3, 8)), None, ()).layers)
    layers = {seen.layer.name: to_diagnosis(seen, ()) for seen in looks}
    with SummaryWriter(str(tmp_path)) as writer:
        for steps in ((0, 10, 20, 30), (20, 25)):
            tab = TabWriter()
            for step in steps:
                torch.nn.init.normal_(looks[0].layer.originals[0])
                tab.write([writer], SymmetryReport(step, layers), [], looks, "all")
    events = EventMultiplexer(tensor_size_guidance={"symmetry": 0})
    events.AddRun(str(tmp_path), "run")
    events.Reload()
    reader = Reader(MultiplexerDataProvider(events, str(tmp_path)), RequestContext(), "", Cache())
    assert reader.history("run").steps == [0, 10, 20, 25]
    assert list(reader.matrices("run", "0")) == [0, 10, 20, 25]


def test_damaged_events_are_passed_over_and_counted(server: Server) -> None:
    told = server.json("run", run="story")
    assert told["unreadable"] == 1
    assert told["steps"] == [0, 10, 20, 30, 40, 50]
    events = {
        row["name"]: [[event["step"], event["kind"], event["verdict"]] for event in row["events"]]
        for row in told["layers"]
    }
    assert events == {
        "collapsing": [[20, "collapsed", "locked"]],
        "parting": [[0, "appeared", "locked"], [30, "broke", "locked"]],
        "marching": [[40, "appeared", "lockstep"]],
    }


def test_hostile_names_come_as_they_are(server: Server) -> None:
    names = [row["name"] for row in server.json("run", run="hostile")["layers"]]
    assert names == [f"net.layers.{HOSTILE}", f"net.layers.{BREAKOUT}"]
    assert server.json("layer", run="hostile", layer=names[0])["matrices"]


@pytest.mark.parametrize(
    ("route", "query", "said"),
    [
        ("run", {}, "`run` once but got it 0 times"),
        (
            "run",
            {"run": "../../etc/passwd"},
            "`run` to be a run with data of the Symmetry tab but got '../../etc/passwd'",
        ),
        ("layer", {"run": "zeros"}, "`layer` once"),
        ("layer", {"run": "zeros", "layer": "<b>"}, "`layer` to be a layer of run 'zeros' but got '<b>'"),
        ("layer", {"run": "no", "layer": "fc1"}, "`run` to be"),
        ("matrix", {"run": "zeros", "layer": "fc1"}, "`step` once"),
        *(
            ("matrix", {"run": "zeros", "layer": "fc1", "step": step}, "`step` to be a step with a matrix of 'fc1'")
            for step in ("x", "-1", "1e3", "", "9" * 5000, "٣", "2", "0x0", " 0")
        ),
    ],
)
def test_bad_arguments_get_a_clear_refusal(server: Server, route: str, query: dict[str, Any], said: str) -> None:
    status, mimetype, content = server.get(route, **query)
    assert (status, mimetype) == (400, "application/json")
    message = json.loads(content)["error"]
    assert said in message
    assert "Traceback" not in message
    assert str(Path(__file__).parents[2]) not in message


def test_only_the_files_of_the_page_are_served(server: Server) -> None:
    for name, expected in page_files().items():
        status, mimetype, content = server.get(f"static/{name}")
        assert (status, content) == (200, expected)
        assert mimetype == {"js": "text/javascript", "css": "text/css"}[name.rsplit(".", 1)[1]]
    for path in ("static/", "static/../plugin.py", "static/%2e%2e/plugin.py", "static/nothing.js", "static"):
        assert server.get(path)[0] == 404


def test_what_goes_wrong_inside_stays_inside(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from werkzeug.test import Client

    class Broken:
        def list_tensors(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError("/secret/path")

    plugin = SymmetryLoader().load(TBContext(data_provider=Broken()))
    assert plugin is not None
    answer = Client(plugin.get_plugin_apps()["/runs"]).get("/runs")
    assert answer.status_code == 500
    assert "secret" not in answer.get_data(as_text=True)
    assert "/secret/path" in caplog.text


def test_the_cache_computes_each_version_once_and_forgets_the_oldest() -> None:
    cache, computed = Cache(size=2), list[str]()

    def get(key: str, version: str) -> str:
        def compute() -> str:
            computed.append(key + version)
            return key + version

        return cache.get(key, version, compute)

    assert [get("a", "1"), get("a", "1"), get("a", "2"), get("b", "1"), get("a", "2")] == ["a1", "a1", "a2", "b1", "a2"]
    assert computed == ["a1", "a2", "b1"]
    get("c", "1")  # b is the least recently used
    get("a", "2")
    assert computed == ["a1", "a2", "b1", "c1"]
    get("b", "1")
    assert computed == ["a1", "a2", "b1", "c1", "b1"]
