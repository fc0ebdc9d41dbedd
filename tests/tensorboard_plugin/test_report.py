"""The Symmetry tab as one file; test_page.py tests its appearance."""

from __future__ import annotations

import base64
import html
import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.cli import main
from lightning_symmetry.tensorboard_plugin.cover import cover
from lightning_symmetry.tensorboard_plugin.events import MATRIX_TAG, pack_summary, unpack_matrix
from lightning_symmetry.tensorboard_plugin.folding import fold
from lightning_symmetry.tensorboard_plugin.page import page_files
from lightning_symmetry.tensorboard_plugin.report import build_report
from tests.outputs.test_tab import payloads
from tests.outputs.test_tensorboard import read
from tests.tab_runs import BREAKOUT, write_hostile
from tests.tensorboard_plugin.test_plugin import RUNS
from tests.training import Classifier, fill, fit, mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")


class Elements(HTMLParser):
    """All elements of a page with their attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found.pop()
            self.found.append((tag, attributes, text + data))


def test_the_report_holds_all_and_loads_nothing(gallery: Path) -> None:
    page = build_report(gallery)
    elements = Elements(page).found
    cover = ("header", "h1", "h2", "p", "ul", "li", "strong", "em", "code")
    assert [tag for tag, _, _ in elements if tag not in ("meta", "head", "html", "body", *cover)] == [
        *("title", "style", "script", "script", "div", "noscript", "script"),
    ]
    assert not any({"src", "href"} & attributes.keys() for _, attributes, _ in elements)
    assert "url(" not in page
    (data,) = (json.loads(text) for _, attributes, text in elements if attributes.get("id") == "data")
    assert {run["name"] for run in data["runs"]} == RUNS
    (copied,) = (run for run in data["runs"] if run["name"] == "copied_half")
    for step, written in payloads(read(gallery / "copied_half"), MATRIX_TAG + "fc1"):
        assert base64.b64decode(copied["matrices"]["fc1"][str(step)]) == unpack_matrix(written)[1]


def test_modules_find_one_another(gallery: Path) -> None:
    (text,) = (
        text for _, attributes, text in Elements(build_report(gallery)).found if attributes.get("type") == "importmap"
    )
    modules = {name: base64.b64decode(url.split(",")[1]).decode() for name, url in json.loads(text)["imports"].items()}
    assert modules.keys() == {f"symmetry/{name}" for name in page_files() if name.endswith(".js")}
    for source in modules.values():
        for name in re.findall(r"^(?:import|export) .*'(.*)';$|^} from '(.*)';$", source, re.M):
            assert "".join(name) in modules


def said_in(page: str) -> str:
    """Return the text of the cover."""
    head = page[page.index("<header") : page.index("</header>")]
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", head)).split())


def test_it_begins_with_what_it_is_of_and_what_was_found(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "lightning_logs" / "version_3"
    fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), logger=CSVLogger(folder, "", ""))
    page = (folder / "symmetry" / "report.html").read_text()
    said = said_in(page)
    assert said.startswith(f"Symmetry report: digits/lightning_logs/version_3 Written on {datetime.now().day} ")
    assert "of 1 run." in said
    assert "Findings (2) net.0 (locked): all 16 units. They are identical in weights and gradients" in said
    assert "<code>torch.nn.init.kaiming_uniform_(model.net[0].weight)</code>. [SYM101]" in page
    assert "To update this page, run lightning-symmetry report symmetry on" in said
    assert "<title>Symmetry report: digits/lightning_logs/version_3</title>" in page
    assert str(tmp_path) not in page


def test_of_several_runs_each_has_its_findings(gallery: Path) -> None:
    said = said_in(build_report(gallery))
    assert f"of {len(RUNS)} runs: " in said
    for run in RUNS - {"damaged"}:
        assert re.search(rf"Findings in {re.escape(run)} \(\d+\)|{re.escape(run)} up to step \d+", said), run
    assert "Nothing was found in He_normal up to step 260" in said
    assert "No check of damaged can be read." in said


def test_of_very_many_runs_those_with_findings_come_first() -> None:
    row = {"who": "all", "verdict": "locked", "origin": "start", "what": "a", "why": "b", "since": 0, "broken": None}
    layer = {"units": 4, "fan_in": 3, "width": 4, "dead": 0, "counts": {}, "groups": [], "num_groups": 0}
    summary = {"version": 1, "full": True, "layers": {"fc": layer}}
    quiet, loud = (fold([(0, pack_summary(each))]) for each in (summary, {**summary, "findings": {"fc": [row]}}))
    runs = [(f"run{i}", loud if i > 20 else quiet) for i in range(40)]
    head = cover("many", runs, "lightning-symmetry report many", datetime(2026, 1, 31, 9, 5))
    assert re.findall("Findings in (run[^ ]*)", head) == [f"run{i}" for i in range(21, 31)]
    assert "Findings in 9 more runs are below." in head
    assert "Nothing was found in run0 up to step 0, run1 up to step 0" in head


def test_hostile_names_do_not_break_out(tmp_path: Path) -> None:
    write_hostile(tmp_path / BREAKOUT.replace("/", ""))
    page = build_report(tmp_path)
    assert [tag for tag, _, _ in Elements(page).found].count("script") == 3
    assert BREAKOUT not in page
    assert page.count("<!--") == 0


def test_the_command_writes_the_report(gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a report.html"
    assert main(["report", str(gallery), "-o", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == build_report(gallery)
    assert capsys.readouterr().out.startswith(f"Wrote {output} (")


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "foreign"])
def test_the_command_says_what_is_wrong(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    logdir = tmp_path / kind
    if kind == "file":
        logdir.write_text("")
    elif kind == "empty":
        logdir.mkdir()
    elif kind == "foreign":
        with SummaryWriter(str(logdir)) as writer:
            writer.add_scalar("loss", 1.0)
    assert main(["report", str(logdir), "-o", str(tmp_path / "report.html")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert str(logdir) in said.err
    expected = "holds data of the Symmetry tab" if logdir.is_dir() else "Expected a directory with TensorBoard runs"
    assert expected in said.err
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_said(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(gallery), "-o", str(tmp_path / "no" / "report.html")]) == 1
    assert "No such file or directory" in capsys.readouterr().err
