"""The Symmetry tab in a real browser in use: with growing runs, many runs, and windows of any width."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.cli import main
from lightning_symmetry.outputs.tab import add_event
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG, pack_summary
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin
from tests.browsing import Page
from tests.serving import Server, tensorboard, wait_for
from tests.tab_runs import TabWriter
from tests.tensorboard_plugin.test_page import chosen_step


class Run:
    """A run of made-up layers of eight units, whose checks are written one by one.

    Args:
        folder: where the events go.
        names: the layers.
        found: by name of a layer, the verdict of its first four units and the step at which it was seen first.
        dead: by name of a layer, how many of its last units are dead.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        found: Mapping[str, tuple[Verdict, int]] | None = None,
        dead: Mapping[str, int] | None = None,
    ) -> None:
        self._writer, self._tab = SummaryWriter(str(folder)), TabWriter()
        self._names, self._found, self._dead = names, found or {}, dead or {}

    def write(self, *steps: int) -> None:
        for step in steps:
            found = {name: each for name, each in self._found.items() if each[1] <= step}
            layers = {}
            for name in self._names:
                groups = [UnitGroup((0, 1, 2, 3), found[name][0], Cause.CONSTANT, 0.5, 0)] if name in found else []
                layers[name] = LayerDiagnosis(name, 8, 3, tuple(range(8 - self._dead.get(name, 0), 8)), groups)
            findings = [
                Finding(
                    name,
                    (0, 1, 2, 3),
                    verdict,
                    Cause.CONSTANT,
                    0.5,
                    since,
                    step,
                    None,
                    Origin.COLLAPSE if since else Origin.START,
                )
                for name, (verdict, since) in found.items()
            ]
            self._tab.write([self._writer], SymmetryReport(step, layers), findings, [], "none")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def write(folder: Path, names: list[str], *steps: int, **options: Any) -> None:
    run = Run(folder, names, **options)
    run.write(*steps)
    run.close()


@contextmanager
def sized(page: Page, width: int, height: int = 900) -> Iterator[None]:
    """Resize the window temporarily."""
    size = page.driver.get_window_size()
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        yield
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.set_window_size(size["width"], size["height"])


NAMES = [f"model.encoder.layers.{i}.{part}" for i in range(20) for part in ("attention.out_proj", "mlp.up", "mlp.down")]
SICK = {NAMES[7]: (Verdict.LOCKED, 0), NAMES[40]: (Verdict.FROZEN, 20)}
# The actions of a reader in each view, and checks that their effects persist.
DONE = {
    "overview": (
        "document.querySelector('.rows').scrollTop = 500; document.querySelector('details.as-table').open = true;",
        "document.querySelectorAll('.row')[9].focus();"
        "document.getSelection().selectAllChildren(document.querySelector('.wrong h4'));",
        "[document.querySelector('.rows').scrollTop, document.querySelector('details.as-table').open,"
        "document.querySelector('.as-table table') !== null, document.activeElement.dataset.layer,"
        "document.getSelection().toString()]",
        "document.querySelector('.totals div:last-child dd').textContent",
    ),
    "layer": (
        "window.scrollTo(0, 120);",
        "document.querySelectorAll('select')[1].focus({preventScroll: true});"
        "document.getSelection().selectAllChildren(document.querySelector('.finding p'));",
        "[Math.round(window.scrollY), document.activeElement.value, document.getSelection().toString()]",
        "document.querySelector('.at strong')?.textContent.replace('step ', '')",
    ),
    "timeline": (
        "document.querySelector('.layers').scrollTop = 300;",
        "document.querySelectorAll('.layers input')[14].focus();"
        "document.getSelection().selectAllChildren(document.querySelector('.events tbody td:nth-child(2)'));",
        "[document.querySelector('.layers').scrollTop, document.activeElement.closest('label')?.dataset.layer,"
        "document.activeElement.checked, document.getSelection().toString()]",
        "[...document.querySelectorAll('.chart text')]"
        ".map((text) => text.textContent).findLast((text) => /^\\d+$/.test(text))",
    ),
}


@pytest.mark.parametrize("view", list(DONE))
def test_ten_refreshes_leave_the_page_as_the_reader_left_it(page: Page, tmp_path: Path, view: str) -> None:
    first, then, state, shown = DONE[view]
    run = Run(tmp_path / "live", NAMES, SICK)
    run.write(0, 20)
    with tensorboard(tmp_path, "--load_fast=false") as server, page.asking_often(), sized(page, 1200, 500):
        page.open(server, {"view": view, "run": "live", "layer": NAMES[7]})
        wait_for(lambda: page.run(f"return {shown}") is not None)
        wait_for(lambda: page.texts(".row, .layers label, .groups td"))
        page.run(first)
        page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.run(then)
        before = page.run(f"return {state}")
        assert before[0] > 0
        assert before[-1]
        for step in range(40, 240, 20):
            run.write(step)
            wait_for(lambda step=step: page.run(f"return {shown}") == str(step))
            assert page.run(f"return {state}") == before
        page.clear()  # the browser logs the server's end
    run.close()


def test_runs_that_come_and_go_are_noticed(page: Page, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"run{i}", ["fc"], 0, 10)
    with tensorboard(tmp_path, "--load_fast=false") as server, page.asking_often():
        page.open(server)
        wait_for(lambda: len(page.all(".card")) == 3)
        write(tmp_path / "late", ["fc"], 0, found={"fc": (Verdict.LOCKED, 0)})
        wait_for(lambda: page.text(".picker summary") == "Runs: 4 of 4")
        wait_for(lambda: page.texts(".runs .run .name")[0] == "late")  # the one with a finding comes first
        for file in (tmp_path / "run1").iterdir():
            file.unlink()
        (tmp_path / "run1").rmdir()
        wait_for(lambda: page.text(".picker summary") == "Runs: 3 of 3")
        assert "run1" not in page.texts(".runs .run .name") + page.texts(".card h2")
        page.clear()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Forty runs: one has dead units, two have findings, and one has no layers."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(40):
        found = {
            7: {NAMES[7]: (Verdict.FROZEN, 10)},
            31: {NAMES[3]: (Verdict.LOCKED, 20), NAMES[4]: (Verdict.LOCKED, 20)},
        }
        dead = {NAMES[5]: 5} if i == 12 else {}
        write(folder / f"run{i}", [] if i == 20 else NAMES[:30], 0, 10, 20, found=found.get(i), dead=dead)
    with tensorboard(folder) as server:
        yield server


def asked_for(page: Page) -> set[str]:
    """Return the runs whose histories the page has requested."""
    script = (
        "return performance.getEntriesByType('resource').map(({name}) => new URL(name))"
        ".filter(({pathname}) => pathname.endsWith('/run')).map(({searchParams}) => searchParams.get('run'))"
    )
    return set(page.run(script))


def test_of_many_runs_the_worst_are_opened_and_only_those_in_sight_are_fetched(page: Page, many: Server) -> None:
    page.open(many)
    wait_for(lambda: [node.get_attribute("data-run") for node in page.all(".card")] == ["run7", "run31"])
    wait_for(lambda: page.texts(".runs .run .name")[:3] == ["run31", "run7", "run12"])
    assert page.texts(".runs .worst")[0] == f"locked{NAMES[3]}: 4 of 8 units, {{0, 1, 2, 3}}"
    wait_for(lambda: asked_for(page) == {"run7", "run31"})
    wait_for(lambda: len(page.all(".runs tbody tr")) == 40)
    page.wait(".picker summary").click()
    page.wait(".actions button", "All").click()
    wait_for(lambda: len(page.all(".card")) == 40)
    wait_for(lambda: len(asked_for(page)) > 2)
    page.wait(".card .row")
    assert len(asked_for(page)) < 30
    page.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    wait_for(lambda: "run39" in asked_for(page))
    wait_for(lambda: page.all('[data-run="run39"] .row'))


def test_the_table_of_runs_is_sorted_filtered_and_saved(page: Page, many: Server, tmp_path: Path) -> None:
    page.open(many)
    wait_for(lambda: len(page.all(".runs tbody tr")) == 40)
    wait_for(lambda: page.texts('.runs [data-name="run12"] td')[2] == "97 %")
    bar = "document.querySelectorAll('.runs [data-name=\"run12\"] .bar span')"
    dead = page.run(f"return [...{bar}].map((part) => parseFloat(part.style.width))")
    assert dead == pytest.approx([100 * 235 / 240, 100 * 5 / 240, 0], abs=0.01)
    run, working = (next(button for button in page.all(".sort") if button.text == text) for text in ("run", "working"))
    run.click()
    assert page.texts(".runs .run .name")[:3] == ["run0", "run1", "run2"]
    run.click()
    assert page.texts(".runs .run .name")[:2] == ["run39", "run38"]
    working.click()
    wait_for(lambda: page.texts(".runs .run .name")[0] == "run31")
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.wait(".all-runs .small").click()
    file = wait_for(lambda: next(iter(tmp_path.glob("*.csv")), None))
    rows = wait_for(lambda: list(csv.reader(file.read_text(encoding="utf-8").splitlines())))
    assert rows[0][:3] == ["run", "units", "working"]
    assert rows[1] == ["run31", "240", "234", "6", "0", "2", "20", "locked", NAMES[3], "20"]
    page.wait(".all-runs input[type=search]").send_keys("run3")
    wait_for(lambda: len(page.all(".runs tbody tr")) == 11)
    assert page.texts(".all-runs .quiet")[0] == "11 of 40 runs"
    page.wait(".runs .run .link", "run33").click()
    wait_for(lambda: page.texts(".card h2") == ["run33"])


def test_layers_are_filtered_in_every_view(page: Page, many: Server) -> None:
    page.open(many, {"run": "run31"})
    wait_for(lambda: len(page.all('[data-run="run31"] .row')) > 10)
    page.wait(".filter").send_keys("layers.2.MLP")
    wait_for(lambda: page.texts('[data-run="run31"] .row .name') == [NAMES[7], NAMES[8]])
    page.wait("nav button", "Layer").click()
    wait_for(
        lambda: (
            page.texts(".layer select:nth-of-type(1)")
            and page.texts("select")[1] == "".join([NAMES[3], NAMES[7], NAMES[8]])
        )
    )
    page.wait("nav button", "Timeline").click()
    wait_for(lambda: page.texts(".layers .name") == [NAMES[7], NAMES[8]])
    page.run("document.querySelector('.filter').value = ''")
    page.wait(".filters label").click()
    wait_for(lambda: page.texts(".layers .name") == [NAMES[3], NAMES[4]])
    # Equal events of two layers at one step share a row.
    assert page.texts(".events tbody tr") == [f"20{NAMES[3]}, {NAMES[4]}collapsed, locked4 of 8 units, {{0, 1, 2, 3}}"]
    page.wait("nav button", "Overview").click()
    wait_for(lambda: page.texts('[data-run="run31"] .row .name') == [NAMES[3], NAMES[4]])
    assert page.texts('[data-run="run31"] .wrong h4') == [f"{NAMES[3]}, {NAMES[4]}: 4 of 8 units, {{0, 1, 2, 3}}"]


def test_back_goes_back_and_the_keyboard_stays_where_it_was(page: Page, many: Server) -> None:
    page.open(many, {"view": "overview", "run": "run31", "layer": NAMES[4]})
    wait_for(lambda: len(page.all('[data-run="run31"] .row')) > 10)
    page.press(Keys.ARROW_DOWN)
    wait_for(lambda: page.run("return document.activeElement.dataset.layer") == NAMES[5])
    page.press(Keys.ENTER)
    wait_for(lambda: chosen_step(page) == 20)
    assert page.run("return document.activeElement.type") == "range"
    page.press(Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    wait_for(lambda: chosen_step(page) == 10)
    assert page.run("return document.querySelectorAll('select')[1].value") == NAMES[6]
    page.run("window.top.history.back()")
    wait_for(lambda: page.all(".overview"))
    assert f"layer={NAMES[5]}" in page.address()
    page.run("window.top.history.forward()")
    wait_for(lambda: chosen_step(page) == 10)


@pytest.mark.parametrize(
    "link",
    [
        {"view": "constructor"},
        {"view": "__proto__", "run": "toString", "layer": "valueOf", "step": "-1"},
        {"view": "layer", "run": "run31", "layer": "nothing", "step": "9" * 15},
        {"view": "%E0%A4%A", "run": "%", "step": "1e3"},
    ],
)
def test_any_address_shows_something(page: Page, many: Server, link: dict[str, str]) -> None:
    page.open(many, link)
    wait_for(lambda: page.all(".row, .groups"))
    assert page.texts(".error p") == []
    assert page.run("return document.querySelector('nav [aria-current=true]').textContent") in ("Overview", "Layer")


def test_a_run_without_layers_shows_none_of_another(page: Page, many: Server) -> None:
    for view in ("layer", "timeline", "overview"):
        page.open(many, {"view": view, "run": "run31", "layer": NAMES[3]})
        wait_for(lambda: page.texts(".row, .layers .name, .groups"))
        page.run(
            "window.top.location.hash = '#symmetry&p.symmetry.view=' + arguments[0] + '&p.symmetry.run=run20'", view
        )
        if view == "layer":
            assert page.wait(".none", "No layer of this run was looked at.")
            wait_for(lambda: page.run("return document.querySelector('.columns').offsetHeight") == 0)
        elif view == "timeline":
            wait_for(lambda: page.texts(".layers .name") == [])


def test_a_run_that_cannot_be_read_shows_nothing_of_another(page: Page, tmp_path: Path) -> None:
    write(tmp_path / "good", ["fc"], 0, 10, found={"fc": (Verdict.LOCKED, 0)})
    with SummaryWriter(str(tmp_path / "damaged")) as writer:
        add_event(writer, SUMMARY_TAG, b"{damaged", 0)
    with tensorboard(tmp_path) as server:
        for view, content in (("layer", ".columns"), ("timeline", ".beside")):
            page.open(server, {"view": view, "run": "good"})
            wait_for(lambda: page.texts(".groups td, .layers .name"))
            page.run("window.top.location.hash = '#symmetry&p.symmetry.run=damaged'")
            assert page.wait(".none", "Run damaged cannot be shown.")
            assert page.run(f"return document.querySelector('{content}').offsetHeight") == 0
            assert page.run("return document.querySelector('select').value") == "damaged"


def test_a_link_to_a_run_that_comes_later_is_kept(page: Page, tmp_path: Path) -> None:
    write(tmp_path / "early", ["fc"], 0, 30)
    with tensorboard(tmp_path, "--load_fast=false") as server, page.asking_often():
        page.open(server, {"view": "layer", "run": "late", "layer": "head", "step": 10})
        wait_for(lambda: chosen_step(page) == 30)
        assert "run=late" in page.address()
        write(tmp_path / "late", ["fc", "head"], 0, 10, 20)
        wait_for(lambda: chosen_step(page) == 10)
        chosen = "return [...document.querySelectorAll('select')].map(({value}) => value)"
        assert page.run(chosen) == ["late", "head"]
        for file in (tmp_path / "late").iterdir():
            file.unlink()
        (tmp_path / "late").rmdir()
        wait_for(lambda: page.run(chosen) == ["early", "fc"])
        wait_for(lambda: chosen_step(page) == 30)  # step 10 was the choice in the other run
        page.clear()


def test_a_layer_that_cannot_be_fetched_shows_nothing_of_another(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "layer", "run": "copied_half", "layer": "fc1"})
    wait_for(lambda: page.texts(".groups td"))
    shown = "return document.querySelector('canvas.heatmap').offsetHeight > 0"
    wait_for(lambda: page.run(shown))
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/layer?*"]})
    page.press(Keys.ARROW_DOWN)
    page.wait(".error p", "TensorBoard does not answer.")
    assert page.run("return document.querySelectorAll('select')[1].value") != "fc1"
    assert not page.run(shown)
    assert page.texts(".groups td") == []
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    page.wait(".error button").click()
    wait_for(lambda: page.run(shown))
    page.clear()


def test_names_are_cut_where_they_are_alike(page: Page, many: Server) -> None:
    with sized(page, 1400):
        page.open(many, {"run": "run31"})
        wait_for(lambda: len(page.all('[data-run="run31"] .row')) > 10)
        ends: list[str] = page.run(
            "return [...document.querySelectorAll('[data-run=run31] .row .name')].map((name) => name.lastChild.data)"
        )
        assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("width", [400, 900, 1400, 2560])
def test_nothing_is_wider_than_the_window(page: Page, many: Server, gallery: Path, tmp_path: Path, width: int) -> None:
    too_wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    report = tmp_path / "report.html"
    if width == 400:
        assert main(["report", str(gallery), "-o", str(report)]) == 0
    with sized(page, width):
        for view in ("overview", "layer", "timeline"):
            page.open(many, {"view": view, "run": "run31", "layer": NAMES[3]})
            wait_for(lambda: page.texts(".row, .groups td, .layers .name"))
            assert page.run(too_wide) <= 0, view
            if width == 400:
                page.driver.switch_to.default_content()
                page.driver.get("about:blank")
                page.driver.get(f"{report.as_uri()}#view={view}&run=copied_half&layer=fc1")
                wait_for(lambda: page.texts(".row, .groups td, .layers .name"))
                assert page.run(too_wide) <= 0, f"{view} of the report"


def test_what_is_shown_of_one_run_answers_in_order(page: Page, tmp_path: Path) -> None:
    write(tmp_path / "one", NAMES[:4], 0, 10, 20, found={NAMES[2]: (Verdict.LOCKED, 10)})
    with tensorboard(tmp_path) as server, sized(page, 1400):
        page.open(server)
        wait_for(lambda: page.texts(".to-do .advice"))
        assert page.texts(".question") == [
            *("What is wrong", "Where", "Since when", f"What it looks like: {NAMES[2]}", "What to do"),
        ]
        assert page.texts(".wrong h4") == [f"{NAMES[2]}: 4 of 8 units, {{0, 1, 2, 3}}"]
        assert "smaller learning rate" in page.text(".to-do .advice")
        wait_for(lambda: "heatmaps=" in page.text(".missing"))
        assert page.run("return document.querySelector('.looks .key').offsetHeight") == 0
        width = page.run("return document.querySelector('.card').offsetWidth")
        assert width > 1300
        page.wait(".wrong .link").click()
        wait_for(lambda: chosen_step(page) == 10)
        assert page.run("return document.querySelectorAll('select')[1].value") == NAMES[2]


def test_figures_of_hostile_layers_do_not_become_formulas(page: Page, tmp_path: Path) -> None:
    layer = {"units": 4, "fan_in": 3, "width": 4, "dead": 0, "counts": {}, "groups": [], "num_groups": 0}
    name = '=HYPERLINK("http://x","y")'
    with SummaryWriter(str(tmp_path / "run")) as writer:
        add_event(writer, SUMMARY_TAG, pack_summary({"version": 1, "full": True, "layers": {name: layer}}), 0)
    folder = tmp_path / "saved"
    folder.mkdir()
    with tensorboard(tmp_path) as server:
        page.open(server)
        page.wait(".row")
        page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        page.wait(".as-table summary").click()
        page.wait(".as-table .small").click()
        file = wait_for(lambda: next(iter(folder.glob("*.csv")), None))
        rows = wait_for(lambda: list(csv.reader(file.read_text(encoding="utf-8").splitlines())))
    assert rows[1][:3] == [f"'{name}", "4", "4"]


def test_runs_are_summed_up_on_the_server(many: Server) -> None:
    rows = {row["name"]: row for row in many.json("runs")["runs"]}
    summary = rows["run31"]["summary"]
    assert {key: summary[key] for key in ("step", "layers", "units", "working", "redundant", "dead", "findings")} == {
        "step": 20,
        "layers": 30,
        "units": 240,
        "working": 234,
        "redundant": 6,
        "dead": 0,
        "findings": 2,
    }
    assert summary["shares"] == [1.0, 1.0, 0.975]
    assert (summary["worst"]["layer"], summary["worst"]["since"]) == (NAMES[3], 20)
    assert rows["run20"]["summary"]["shares"] == []
    assert json.dumps(rows["run12"]["summary"]["worst"]) == "null"
