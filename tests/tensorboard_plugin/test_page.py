"""The Symmetry tab in a real browser, inside a real TensorBoard, on a log directory that the demo just wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.cli import main
from lightning_symmetry.outputs.heatmap import colours
from lightning_symmetry.outputs.tab import add_event
from lightning_symmetry.tensorboard_plugin.events import MATRIX_TAG, SUMMARY_TAG, pack_summary, unpack_matrix
from lightning_symmetry.tensorboard_plugin.page import STATIC
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin
from tests.browsing import Page
from tests.outputs.test_heatmap import layer_of
from tests.outputs.test_tab import payloads
from tests.outputs.test_tensorboard import read
from tests.serving import Server, tensorboard, wait_for
from tests.tab_runs import BREAKOUT, HOSTILE, TabWriter
from tests.tensorboard_plugin.test_plugin import RUNS

DASH = "\N{EN DASH}"
LEFT, TOP = 36, 6  # of the heatmap, around the square
BRIGHT = (255, 240, 170)  # similarity 1
SICK = {"zeros": "frozen", "constant_0.02": "locked", "constant_-0.02": "frozen", "copied_half": "locked"}
DRAWN = RUNS - {"damaged"}
HEALTHY = {"PyTorch_default", "He_normal", "tiny_tanh_Adam"}
DEAD = {"bias_-10", "normal_std_0.001"}


def card(page: Page, run: str) -> WebElement:
    page.wait(f'[data-run="{run}"] .row')  # it is empty until its history has arrived
    return page.wait(f'[data-run="{run}"]')


def row(page: Page, run: str, layer: str) -> WebElement:
    return page.wait(f'[data-run="{run}"] [data-layer="{layer}"]')


def strip(page: Page, run: str, layer: str, num_checks: int) -> list[tuple[int, ...]]:
    """Return the colour of every check, away from its middle, where a mark may be."""
    canvas = row(page, run, layer).find_element(By.CSS_SELECTOR, "canvas")
    column = canvas.size["width"] / num_checks
    return page.pixels(canvas, [((check + 0.5) * column, 1) for check in range(num_checks)])


def cells_of(page: Page, side: int, places: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The colours of the heatmap's cells in these rows and columns."""
    size = 448 // side
    canvas = page.wait("canvas.heatmap")
    return page.pixels(canvas, [(LEFT + (j + 0.5) * size, TOP + (i + 0.5) * size) for i, j in places])


def chosen_step(page: Page) -> int:
    return int(page.text(".at strong").removeprefix("step "))


def test_one_look_tells_the_sick_runs_from_the_healthy(page: Page, server: Server) -> None:
    page.open(server)
    wait_for(lambda: {node.get_attribute("data-run") for node in page.all("[data-run]")} == DRAWN)
    assert page.run("return window.top.document.body.innerText").upper().count("SYMMETRY") >= 1
    pale = strip(page, "He_normal", "fc1", 18)[0]
    darkest = sum(pale)  # of the healthy runs, in which a few units are dead
    for run in HEALTHY:
        assert ("condensed" in card(page, run).text) == (run == "tiny_tanh_Adam")
        assert "no finding" in card(page, run).text
        # Except for the last one, where the cursor may be.
        strips = [colour for layer in ("fc1", "fc2", "fc3") for colour in strip(page, run, layer, 18)[:-1]]
        darkest = min(darkest, *map(sum, strips))
        assert run != "tiny_tanh_Adam" or set(strips) == {pale}
    for run in DEAD:
        assert card(page, run).find_element(By.CSS_SELECTOR, ".headline").text == "dead"
        assert "dead" in page.texts(f'[data-run="{run}"] .totals dt')
        assert "dead" not in page.texts('[data-run="tiny_tanh_Adam"] .totals dt')
        assert strip(page, run, "fc2", 18)[0] == pale
        assert sum(strip(page, run, "fc2", 18)[12]) < darkest - 100
    for run, verdict in SICK.items():
        assert card(page, run).find_element(By.CSS_SELECTOR, ".headline").text == verdict
        (dark,) = set(strip(page, run, "fc1", 18))
        assert sum(dark) < darkest - 100
        assert strip(page, run, "fc3", 18)[9] == pale
    assert sum(strip(page, "zeros", "fc1", 18)[9]) < sum(strip(page, "copied_half", "fc1", 18)[9]) - 50
    assert page.texts('[data-run="constant_0.02"] .totals dt, [data-run="constant_0.02"] .totals dd') == [
        *("units", "106", "working", "12", "redundant", "94", "findings", "2", "step", "260"),
    ]


def test_every_mark_has_a_text_and_every_picture_a_table(page: Page, fast_server: Server) -> None:
    page.open(fast_server)
    label = row(page, "zeros", "fc1").get_attribute("aria-label")
    assert label == "fc1: 1 of 64 units working; 64 frozen, step 260"
    table = card(page, "zeros").find_element(By.CSS_SELECTOR, "summary")
    table.click()
    texts = wait_for(lambda: page.texts('[data-run="zeros"] td'))  # the click arrives a moment later
    assert texts[:6] == ["fc1", "64", "1", "0", "0", "64 frozen"]
    assert page.texts(".legend .label") == ["locked", "frozen", "lockstep", "dead", "collapsed", "appeared", "broke"]
    shapes = page.run(
        "return [...document.querySelectorAll('.legend .mark path')].map((path) => path.getAttribute('d'))"
    )
    assert len(set(shapes)) == 7


@pytest.mark.parametrize(("run", "layer", "side"), [("constant_0.02", "fc1", 64), ("copied_half", "fc2", 32)])
def test_a_locked_block_is_where_it_is(
    page: Page, server: Server, gallery: Path, run: str, layer: str, side: int
) -> None:
    page.open(server)
    row(page, run, layer).click()
    page.press(Keys.END)
    page.wait(".figure .caption", "groups first")
    _, data = payloads(read(gallery / run), MATRIX_TAG + layer)[-1]
    units, cells = unpack_matrix(data)
    stored = np.frombuffer(cells, dtype=np.uint8).reshape(side, side).astype(float)
    expected = colours(np.where(stored == 0, np.nan, (stored - 128) / 127))
    places = list(product(range(side), range(side)))
    seen = dict(zip(places, wait_for(lambda: cells_of(page, side, places)), strict=True))
    assert {place: colour for place, colour in seen.items() if colour != tuple(expected[place])} == {}
    bright = {place for place, colour in seen.items() if colour == BRIGHT}
    if run == "constant_0.02":
        assert bright == set(places)
    else:  # pairs of a unit and its copy
        assert units == [unit for pair in zip(range(16), range(16, 32), strict=True) for unit in pair]
        assert bright >= {(i + a, i + b) for i in range(0, 32, 2) for a, b in ((0, 0), (1, 1), (1, 0))}
        assert (2, 0) not in bright


def test_hover_names_the_units_their_similarities_and_their_group(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "layer", "run": "constant_0.02", "layer": "fc2"})
    page.wait(".figure .caption", "groups first")
    canvas = page.wait("canvas.heatmap")
    page.hover(canvas, LEFT + 2.5 * 14, TOP + 5.5 * 14)
    wait_for(lambda: page.texts(".tip div")[:1] == ["units 5 and 2"])
    assert page.texts(".tip div") == [
        "units 5 and 2",
        "weights 1.00",
        "gradients 1.00",
        "group 1: locked since step 0",
    ]


def test_findings_are_told_in_the_words_of_the_console(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "layer", "run": "constant_0.02", "layer": "fc1"})
    text = page.text(".finding")
    assert "all 64 units" in text
    assert "They are identical in weights and gradients (locked since step 0): they train as 1 unit." in text
    why = "Every weight is 0.02: constant initialisation. fc2 reads them alike: its weights for them are equal."
    assert f"{why} Initialise at random" in text
    wait_for(lambda: page.texts(".groups td") == ["1", "locked", f"0{DASH}63", "64", "0", DASH])
    assert (
        " ".join(page.texts(".facts > *")) == "64 units 64 inputs each 1 working 63 redundant 0 dead 1 direction locked"
    )


def test_slider_and_play_move_through_the_checks(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "layer", "run": "story", "layer": "collapsing"})
    assert chosen_step(page) == 50
    assert "collapsed onto one another" in page.text(".finding")
    page.run(
        "const slider = document.querySelector('input[type=range]'); slider.value = 1;"
        "slider.dispatchEvent(new Event('input'))"
    )
    assert chosen_step(page) == 10
    assert page.texts(".finding") == []
    assert "Nothing to warn of up to step 10." in page.text(".side")
    page.wait(".play").click()
    wait_for(lambda: chosen_step(page) == 50)
    wait_for(lambda: page.wait(".play").get_attribute("aria-label") == "Play")
    wait_for(lambda: page.texts(".groups td")[:3] == ["1", "locked", f"4{DASH}7"])


def test_broken_groups_say_when(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "layer", "run": "story", "layer": "parting"})
    assert "They have parted at step 30." in page.text(".finding")
    page.press(Keys.HOME)
    wait_for(lambda: chosen_step(page) == 0)
    assert "parted" not in page.text(".finding")
    wait_for(lambda: page.texts(".groups td") == ["1", "locked", f"0{DASH}15", "16", "0", "30"])


def test_only_the_groups_that_parted_are_said_to_have_parted(page: Page, tmp_path: Path) -> None:
    """Three of eight pairs diverge at step 30; in another layer, a group of copies diverges step by step."""

    def pairs(places: Sequence[int]) -> list[UnitGroup]:
        return [UnitGroup((i, i + 8), Verdict.LOCKED, Cause.COPIED, None, 0) for i in places]

    def found(layer: str, units: Sequence[int], broken: int | None) -> Finding:
        return Finding(layer, tuple(units), Verdict.LOCKED, Cause.COPIED, None, 0, 30, broken, Origin.START)

    def copies(*parts: Sequence[int]) -> list[UnitGroup]:
        return [UnitGroup(tuple(units), Verdict.BREAKING, Cause.COPIED, None, 0) for units in parts]

    # Units 10 and 11 leave at step 10. At step 20 the others split into two groups: the larger one continues the
    # record and diverges at step 40, the smaller one gets its own record and still holds.
    groups_of_copies = {
        0: copies(range(12)),
        10: copies(range(10)),
        20: copies(range(6), range(6, 10)),
        30: copies(range(6), range(6, 10)),
        40: copies(range(6, 10)),
    }
    tab = TabWriter()
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step, groups in groups_of_copies.items():
            layers = {
                "pairs": LayerDiagnosis("pairs", 16, 3, (), pairs(range(8) if step < 30 else range(3, 8))),
                "copies": LayerDiagnosis("copies", 16, 3, (), groups),
            }
            findings = [found("pairs", (i, i + 8), 30 if step >= 30 and i < 3 else None) for i in range(8)]
            findings.append(found("copies", range(12), 40 if step >= 40 else None))
            if step >= 20:
                findings.append(found("copies", range(6, 10), None))
            tab.write([writer], SymmetryReport(step, layers), findings, [], "none")

    def parted(layer: str, step: int) -> list[str]:
        page.open(server, {"view": "layer", "run": "run", "layer": layer, "step": step})
        cells: list[str] = wait_for(lambda: page.texts(".groups td"))
        return cells[5::6]

    with tensorboard(tmp_path) as server:
        assert parted("pairs", 10) == ["30", "30", "30", DASH, DASH, DASH, DASH, DASH]
        assert parted("pairs", 30) == [DASH] * 5
        assert parted("copies", 0) == ["40"]
        assert parted("copies", 10) == ["40"]
        assert parted("copies", 30) == ["40", DASH]


PARTED: list[tuple[str, list[tuple[list[str] | None, int, int | None]], object]] = [
    ("0-7", [(["0-3"], 1, 20), (["0-7"], 1, 30), (["0-15"], 1, 40)], 30),
    ("0-7", [(["0-3"], 1, 20), (["0-9"], 1, 30), (["0-15"], 1, 40)], 30),  # the group has lost units
    ("0-15", [(["0-3"], 1, 20), (["0-7"], 1, 30), (["3-20"], 1, 40)], 30),  # the group has gained units
    ("0,2,4", [(["0-4:2"], 1, 20)], 20),
    ("0,2,4", [(["0-5"], 1, None), (["6-9"], 1, 20)], "never"),
    ("0,2,4", [(["0-3"], 1, 20)], "never"),
    ("0-7", [(["0-7"], 1, 5)], "never"),  # it holds at step 10
    ("0-7", [(["8-9"], 7, 30)], "unknown"),  # one of the groups that were left out may be meant
    ("0-7", [(["10-12,..."], 1, 30)], "unknown"),
    ("0,3,...", [(["1,2"], 1, 30)], "unknown"),
    ("0,3,...", [(["0,3,..."], 1, 30)], 30),
    ("0-7", [(None, 0, 30)], "unknown"),
    ("0-7", [(None, 0, None)], "never"),
    ("0-999999999", [(["1-999999999"], 1, 30)], "never"),  # soon, although there are many units
]


def test_when_a_group_parted_is_told_by_its_units(page: Page, fast_server: Server) -> None:
    page.open(fast_server)
    script = """
        const [cases, done] = arguments;
        import('./static/model.js').then(({partedLater, Units}) => {
          const parted = ([units, findings]) => {
            const rows = findings.map(([groups, num_groups, broken]) => (
              {since: 0, verdict: 'any', broken, num_groups, groups: groups?.map((packed) => new Units(packed)) ?? null}
            ));
            const at = partedLater({units: new Units(units), since: 0, verdict: 'any'}, 10, rows);
            return at === null ? 'never' : at ?? 'unknown';
          };
          done(cases.map(parted));
        });
    """
    assert page.driver.execute_async_script(script, PARTED) == [parted for _, _, parted in PARTED]


def test_files_that_do_not_tell_the_units_of_findings_leave_it_open(page: Page, tmp_path: Path) -> None:
    finding = {"who": "all", "verdict": "locked", "origin": "start", "what": "a", "why": "b", "since": 0, "broken": 9}
    layer = {"units": 4, "fan_in": 3, "width": 2, "dead": 0, "counts": {"locked": 4}, "num_groups": 2}
    groups = [["0-1", 2, "locked", 0], ["2-3", 2, "locked", 0]]
    with SummaryWriter(str(tmp_path / "old")) as writer:
        summary = {"version": 1, "full": True, "layers": {"fc": {**layer, "groups": groups}}}
        add_event(writer, SUMMARY_TAG, pack_summary({**summary, "findings": {"fc": [finding]}}), 0)
    with tensorboard(tmp_path) as server:
        page.open(server, {"view": "layer", "run": "old", "layer": "fc"})
        assert wait_for(lambda: page.texts(".groups td"))[5::6] == ["", ""]


def test_dead_units_do_not_work(page: Page, tmp_path: Path) -> None:
    """The page shows working units, also from files without the number of units both dead and redundant."""
    plain = {"units": 8, "fan_in": 3, "width": 6, "counts": {"locked": 3}, "groups": [["0-2", 3, "locked", 0]]}
    layer = {**plain, "dead": 0, "num_groups": 1}
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step, layers in enumerate(
            [{"old": layer, "new": {**layer, "both": 0}}, {"old": {"dead": 3}, "new": {"dead": 3, "both": 2}}, {}]
        ):
            summary = {"version": 1, "layers": layers, **({"full": True} if step == 0 else {})}
            add_event(writer, SUMMARY_TAG, pack_summary(summary), step)
    with tensorboard(tmp_path) as server:
        page.open(server)
        assert wait_for(lambda: page.texts(".row .numbers")) == ["3 / 8", "5 / 8"]
        old, new = (strip(page, "run", name, 3) for name in ("old", "new"))
        assert old[0] == new[0]
        assert sum(old[0]) > sum(new[1]) > sum(old[1])
        assert page.texts(".totals dt, .totals dd") == [
            *("units", "16", "working", "8", "redundant", "4", "dead", "6", "findings", "0", "step", "2"),
        ]
        page.open(server, {"view": "layer", "run": "run", "layer": "new", "step": 0})
        assert wait_for(lambda: page.texts(".facts > *"))[2:5] == ["6 working", "2 redundant", "0 dead"]
        page.open(server, {"view": "timeline", "run": "run"})
        assert wait_for(lambda: page.texts(".layers .numbers")) == ["3 / 8", "5 / 8"]
        lines = "return [...document.querySelectorAll('.chart .line')].map((line) => line.getAttribute('d'))"
        heights = [[float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line)] for line in page.run(lines)]
        plot = 260 - 16 - 34
        assert [low - high for high, low in heights] == pytest.approx([plot * 3 / 8, plot / 8])


def test_verdicts_of_a_newer_version_are_shown_as_text(page: Page, tmp_path: Path) -> None:
    finding = {"who": "two", "verdict": "entangled", "origin": "rewound", "what": "They are.", "why": "Who knows."}
    plain = {"units": 8, "fan_in": 3, "dead": 0}
    groups = [["0-1", 2, "entangled", 0], ["2-3", 2, "breaking", 0], ["4-5", 2, "locked", 0]]
    layers = {
        "both": {
            **plain,
            "width": 6,
            "counts": {"entangled": 2, "breaking": 2, "locked": 2},
            "groups": groups,
            "num_groups": 3,
        },
        "new": {**plain, "width": 8, "counts": {"entangled": 2}, "groups": groups[:1], "num_groups": 1},
    }
    summary = {"version": 1, "full": True, "layers": layers}
    findings = {"new": [{**finding, "since": 0, "broken": None}], "a, b": [{**finding, "since": 0, "broken": None}]}
    with SummaryWriter(str(tmp_path / "newer")) as writer:
        add_event(writer, SUMMARY_TAG, pack_summary({**summary, "findings": findings}), 0)

    def colours_of(selector: str) -> set[str]:
        return set(
            page.run(f"return [...document.querySelectorAll('{selector}')].map((n) => getComputedStyle(n).fill)")
        )

    with tensorboard(tmp_path) as server:
        page.open(server)
        label = row(page, "newer", "both").get_attribute("aria-label")
        assert label == "both: 6 of 8 units working; 2 locked, 2 breaking, 2 entangled, step 0"
        label = row(page, "newer", "new").get_attribute("aria-label")
        assert label == "new: 8 of 8 units working; 2 entangled, step 0"
        assert page.texts(".headline") == ["locked"]
        wait_for(lambda: page.texts(".wrong h4")[1:] == ["two"])  # about modules, which are not layers
        assert page.texts(".to-do .advice") == ["new: Who knows.", "two: Who knows."]
        page.open(server, {"view": "layer", "run": "newer", "layer": "new"})
        wait_for(lambda: page.texts(".groups td") == ["1", "entangled", f"0{DASH}1", "2", "0", DASH])
        assert "two" in page.text(".finding")
        assert page.texts(".facts .label") == ["entangled"]
        assert page.texts(".meaning")[0].startswith("entangled: ")
        (neutral,) = colours_of(".groups .mark")
        assert colours_of(".facts .mark") == colours_of(".finding .mark") == {neutral}
        page.open(server, {"view": "layer", "run": "newer", "layer": "both"})
        wait_for(lambda: page.texts(".groups .label") == ["entangled", "breaking", "locked"])
        assert [text.split(":")[0] for text in page.texts(".meaning")] == ["locked", "breaking", "entangled"]
        assert len(colours_of(".groups .mark")) == 3
        page.open(server, {"view": "timeline", "run": "newer"})
        wait_for(lambda: page.texts(".events .label") == ["appeared", "appeared, entangled"])


def test_no_file_of_the_page_names_a_verdict() -> None:
    for file in STATIC.iterdir():
        words = set(re.findall(r"[a-z]+", file.read_text(encoding="utf-8")))
        # The page counts dead units, so it has that word.
        assert not words & (set(Verdict) - {Verdict.DEAD}), file.name


@pytest.mark.parametrize("is_dark", [False, True])
def test_marks_have_the_colours_of_their_verdicts(page: Page, fast_server: Server, is_dark: bool) -> None:
    page.open(fast_server, {"view": "layer", "run": "constant_0.02", "layer": "fc2"}, dark=is_dark)
    page.wait(".groups .mark")
    traits = Verdict.LOCKED.traits
    colour = traits.dark_colour if is_dark else traits.colour
    expected = f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
    for selector, name in ((".groups .mark", "fill"), (".facts .mark", "fill"), (".finding", "borderLeftColor")):
        assert page.run(f"return getComputedStyle(document.querySelector('{selector}')).{name}") == expected
    assert page.run("return document.querySelector('.groups .mark path').getAttribute('d')") == traits.mark
    assert traits.meaning in page.text(".meaning")
    wait_for(lambda: len(page.all("canvas.heatmap")) == 1 and "groups first" in page.text(".figure .caption"))
    canvas = page.wait("canvas.heatmap")
    frame = page.pixels(canvas, [(LEFT + 0.5, TOP + 100)])
    assert frame == [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))]


def test_arrows_move_through_steps_and_layers(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"run": "story", "layer": "collapsing"})
    wait_for(lambda: page.texts('[data-run="story"] .row.chosen .name') == ["collapsing"])
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    wait_for(lambda: page.texts(".row.chosen .name") == ["marching"])
    assert page.run("return document.activeElement.dataset.layer") == "marching"
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait_for(lambda: page.texts('[data-run="story"] .totals dd')[-1] == "30")
    assert page.texts(".row.chosen .name") == ["parting"]
    page.press(Keys.ENTER)
    wait_for(lambda: chosen_step(page) == 30)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    wait_for(lambda: chosen_step(page) == 40)
    assert [page.run("return arguments[0].value", choice) for choice in page.all("select")] == ["story", "marching"]
    page.press(Keys.END)
    wait_for(lambda: chosen_step(page) == 50)


def test_what_is_chosen_can_be_shared(page: Page, server: Server) -> None:
    page.open(server, {"view": "layer", "run": "story", "layer": "parting", "step": 20})
    assert chosen_step(page) == 20
    page.press(Keys.ARROW_LEFT)
    wait_for(lambda: chosen_step(page) == 10)
    address = page.address()
    assert re.search(r"#symmetry&p\.symmetry\.view=layer&p\.symmetry\.run=story&.*step=10$", address)
    page.open_url(address)
    assert chosen_step(page) == 10
    assert [page.run("return arguments[0].value", choice) for choice in page.all("select")] == ["story", "parting"]
    assert page.address() == address
    page.open(server, {"view": "nonsense", "run": "gone", "layer": "gone", "step": "x"})  # of a run that was deleted
    assert "no finding" in card(page, "He_normal").text


def test_the_address_follows_other_plugins(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "timeline", "run": "story"})
    page.run("window.top.location.hash = '#symmetry&p.symmetry.view=layer&p.symmetry.run=zeros&p.symmetry.layer=fc2'")
    page.wait(".finding", "all 32 units")


def test_timeline_draws_widths_and_marks(page: Page, fast_server: Server) -> None:
    page.open(fast_server, {"view": "timeline", "run": "story"})
    titles = wait_for(lambda: page.texts(".chart .event title"))
    assert sorted(titles) == [
        "collapsing, step 20: collapsed, locked: 4 of 16 units, {4, 5, 6, 7}",
        "marching, step 40: appeared, lockstep: 2 of 16 units, {2, 9}",
        "parting, step 0: appeared, locked: all 16 units",
        "parting, step 30: broke, locked: all 16 units",
    ]
    assert page.texts(".events td:first-child") == ["0", "20", "30", "40"]
    lines = "return [...document.querySelectorAll('.chart .line')].map((line) => line.getAttribute('d'))"
    parting = page.run(lines)[1]
    low, high = (float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", parting))
    plot = 260 - 16 - 34
    assert low - high == pytest.approx(plot * 15 / 16, abs=0.1)
    page.all(".layers input")[1].click()
    wait_for(lambda: len(page.run(lines)) == 2)
    page.all(".events .link")[0].click()
    wait_for(lambda: chosen_step(page) == 20)


def test_theme_follows_tensorboard(page: Page, fast_server: Server) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.open(fast_server, {"run": "zeros"}, dark=True)
    dark, deep = page.run(background), strip(page, "zeros", "fc1", 18)
    page.run("window.top.document.body.classList.remove('dark-mode')")
    wait_for(lambda: page.run(background) != dark)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
    assert sum(map(int, re.findall(r"\d+", page.run(background)))) > 700
    wait_for(lambda: strip(page, "zeros", "fc1", 18) != deep)


def test_hostile_names_stay_text(page: Page, fast_server: Server) -> None:
    for view, selector in (
        ("overview", '[data-run="hostile"] .name'),
        ("timeline", ".layers .name"),
        ("layer", "option"),
    ):
        page.open(fast_server, {"view": view, "run": "hostile"})
        names = {f"net.layers.{name}" for name in (HOSTILE, BREAKOUT)}
        wait_for(lambda selector=selector, names=names: names <= set(page.texts(selector)))
        assert page.all("img, script[src='x']") == []
    page.open(fast_server, {"view": "layer", "run": "hostile", "layer": f"net.layers.{HOSTILE}", "step": 1})
    wait_for(lambda: len(page.all("select")) > 1)
    assert page.run("return document.querySelectorAll('select')[1].value") == f"net.layers.{HOSTILE}"
    assert chosen_step(page) == 1
    assert "64 of 100 units" in page.wait(".caption", "units").text


def test_damaged_events_are_mentioned(page: Page, fast_server: Server) -> None:
    page.open(fast_server)
    assert "1 event could not be read and was passed over." in card(page, "story").text
    assert wait_for(lambda: page.texts(".error p")) == [
        "Run damaged holds no check that can be read: its events are damaged, or of another version."
    ]


def test_runs_can_be_chosen(page: Page, fast_server: Server) -> None:
    page.open(fast_server)
    wait_for(lambda: len(page.all(".card")) == len(DRAWN))
    page.wait(".picker summary").click()
    page.wait(".actions button", "None").click()
    wait_for(lambda: len(page.all(".card")) == 0)
    page.wait(".picker label", "zeros").click()
    wait_for(lambda: [node.get_attribute("data-run") for node in page.all(".card")] == ["zeros"])
    assert f"1 of {len(RUNS)}" in page.text(".picker summary")


def test_all_fits_into_900_pixels(page: Page, fast_server: Server) -> None:
    size = page.driver.get_window_size()
    try:
        page.driver.set_window_size(900, 800)
        for view in ("overview", "layer", "timeline"):
            page.open(fast_server, {"view": view, "run": "copied_half", "layer": "fc1"})
            too_wide = page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert too_wide == 0, view
    finally:
        page.driver.set_window_size(size["width"], size["height"])


def test_empty_then_live_then_gone(page: Page, tmp_path: Path) -> None:
    """Without data the page shows instructions; then it shows new data, and a message when TensorBoard ends."""
    with tensorboard(tmp_path) as server, page.asking_often():
        page.open(server)
        assert "trainer = Trainer(callbacks=[SymmetryMonitor()])" in page.text(".empty")
        tab = TabWriter()
        with SummaryWriter(str(tmp_path / "live")) as writer:
            for step, layer in ((0, layer_of(8, [(0, 1)])), (10, layer_of(8, []))):
                tab.write([writer], SymmetryReport(step, {"fc": layer}), [], [], "findings")
                writer.flush()
                wait_for(lambda step=step: page.texts(".totals dd")[-1:] == [str(step)])
                expected = [f"{layer.working_units} / 8"]
                wait_for(lambda expected=expected: page.texts(".row .numbers") == expected)
        server.stop()
        assert page.wait(".error", "TensorBoard does not answer. Is it still running?")
        assert page.texts(".row .numbers") == ["8 / 8"]  # the data stays
        page.clear()  # the browser logs failed requests


def test_the_report_needs_no_tensorboard(page: Page, gallery: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert main(["report", str(gallery), "-o", str(output)]) == 0
    page.driver.switch_to.default_content()
    page.driver.get("about:blank")
    page.driver.get(f"{output.as_uri()}#view=layer&run=constant_0.02&layer=fc2&step=20")
    assert chosen_step(page) == 20
    assert "constant initialisation" in page.text(".finding")
    wait_for(lambda: cells_of(page, 32, [(3, 9)]) == [BRIGHT])
    page.press(Keys.ARROW_RIGHT)
    wait_for(lambda: chosen_step(page) == 40)
    assert page.driver.current_url.endswith("step=40")
    page.wait("nav button", "Overview").click()
    assert {node.get_attribute("data-run") for node in page.all("[data-run]")} == DRAWN
    page.run("document.querySelector('[data-run=\"hostile\"]').scrollIntoView()")
    wait_for(lambda: f"net.layers.{BREAKOUT}" in page.texts('[data-run="hostile"] .name'))
    page.wait("nav button", "Timeline").click()
    page.wait(".chart .line")
