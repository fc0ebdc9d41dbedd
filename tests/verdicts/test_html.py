"""The HTML of a report, parsed as a browser does, without anything that breaks a notebook."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace

import pytest
from PIL import Image

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup
from lightning_symmetry.verdicts.html import report_html

HOSTILE = "<script>alert(1)</script>\"'&amp;<b>"


def layer_of(name: str, *verdicts: Verdict, also: tuple[str, ...] = ()) -> LayerDiagnosis:
    """A layer of 20 units with a pair of each verdict."""
    groups = [UnitGroup((2 * i, 2 * i + 1), verdict, Cause.COPIED, None, 0) for i, verdict in enumerate(verdicts)]
    dead = tuple(unit for group in groups for unit in group.units if group.verdict is Verdict.DEAD)
    return LayerDiagnosis(name, 20, 3, dead, groups, also)


def report_of(*layers: LayerDiagnosis) -> SymmetryReport:
    return SymmetryReport(12, {layer.name: layer for layer in layers})


def png(side: int = 3) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "#d1495b").save(file, format="PNG")
    return file.getvalue()


def parse(html: str) -> ET.Element:
    """Return the elements of a fragment; fail unless all are closed properly."""
    closed = (
        re.sub(r"<(img\b[^>]*|wbr|br)>", r"<\1/>", html).replace("&nbsp;", " ").replace("<details open", "<details")
    )
    return ET.fromstring(closed)


def text_of(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows_of(report: SymmetryReport) -> list[list[str]]:
    """Return the cells of the table without its head."""
    return [[text_of(cell) for cell in row] for row in parse(report._repr_html_()).iter("tr")][1:]


def test_heading() -> None:
    report = replace(report_of(layer_of("fc", Verdict.LOCKED)), coverage=0.5)
    head = parse(report._repr_html_())[0]
    assert (
        text_of(head)
        == "symmetric Step 12: 19 of 20 units of 1 layer are working (1 redundant); 50 % of the weights were looked at."
    )


def test_a_row_per_layer_the_worst_first() -> None:
    tied = layer_of("tied", Verdict.LOCKED, Verdict.LOCKED, Verdict.BREAKING, also=("a", "b", "c"))
    report = report_of(layer_of("healthy"), layer_of("waiting", Verdict.DUPLICATE), tied)
    assert rows_of(report) == [
        [
            *("tied = a = b = 1 more", "20", "17", ""),
            "locked: 4 of 20 units in 2 groups, {0, 1}, {2, 3}breaking: 2 of 20 units, {4, 5}",
        ],
        ["waiting", "20", "19", "", "duplicate: 2 of 20 units, {0, 1}"],
        ["healthy", "20", "20", "", ""],
    ]


def test_dead_units_have_a_column_where_there_are_any() -> None:
    report = report_of(layer_of("healthy"), replace(layer_of("dying"), dead=tuple(range(7))))
    assert [row[3] for row in rows_of(report)] == ["0", "7"]


def test_bars_show_shares_and_say_them() -> None:
    (bar,) = (e for e in parse(report_of(layer_of("fc", *Verdict))._repr_html_()).iter("div") if e.get("role") == "img")
    widths = [re.findall(r"width:([\d.]+)%.*background:(#\w+)", segment.get("style", "")) for segment in bar]
    assert widths == [[("10.00", verdict.traits.colour)] for verdict in Verdict]
    expected = "2 locked, 2 frozen, 2 lockstep, 2 dead, 2 breaking, 2 duplicate, 2 idle, of 20 units"
    assert (bar.get("aria-label"), bar.get("title")) == (expected, expected)


@pytest.mark.parametrize("ground", ["#ffffff", "#111111"])
@pytest.mark.parametrize("verdict", Verdict)
def test_bars_can_be_seen_in_light_and_dark(verdict: Verdict, ground: str) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(verdict.traits.colour), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG asks of graphics


def test_many_layers_are_counted() -> None:
    sick = [layer_of(f"sick{i}", Verdict.LOCKED) for i in range(45)]
    rows = rows_of(report_of(*(layer_of(f"healthy{i}") for i in range(1155)), *sick))
    assert [row[0] for row in rows[:-1]] == [f"sick{i}" for i in range(40)]
    assert rows[-1] == ["and 1,160 more layers, 5 of them with groups"]


def test_findings_come_with_advice() -> None:
    report = report_of(layer_of("fc", Verdict.LOCKED))
    assert text_of(parse(report._repr_html_())).count(report.messages()[0]) == 1


def test_copies_are_named_once() -> None:
    starting = replace(report_of(layer_of("fc")), copies=[CopyGroup(("a", "b"), Verdict.DUPLICATE)])
    locked = replace(report_of(layer_of("fc")), copies=[CopyGroup(("a", "b"), Verdict.LOCKED)])
    assert "a, b (duplicate)" in text_of(parse(starting._repr_html_()))
    text = text_of(parse(locked._repr_html_()))
    assert "a, b: these modules are copies" in text
    assert "a, b (locked)" not in text


def test_what_is_not_known_is_folded_up_unless_it_is_all_there_is_to_say() -> None:
    sick, healthy = layer_of("sick", Verdict.LOCKED), layer_of("healthy")
    for layer, is_open in ((sick, False), (healthy, True)):
        report = replace(report_of(layer), reasons=["too few steps"], skipped={"norm": "one number per unit"})
        html = report._repr_html_()
        waiting, skipped = parse(html).iter("details")
        assert text_of(waiting) == "Inconclusive (1)too few steps"
        assert text_of(skipped) == "Not inspected (1)norm: one number per unit"
        assert html.count("<details open") == is_open
    assert not list(parse(report_of(healthy)._repr_html_()).iter("details"))


def test_heatmaps_are_part_of_the_page() -> None:
    picture = png()
    html = report_html(report_of(layer_of("fc", Verdict.LOCKED), layer_of("out")), {"fc": picture})
    (image,) = parse(html).iter("img")
    kind, _, data = image.get("src", "").partition(",")
    assert kind == "data:image/png;base64"
    assert b64decode(data) == picture
    assert image.get("alt") == "Heatmap of layer fc; locked: 2 of 20 units, {0, 1}"
    assert "Heatmaps" not in report_html(report_of(layer_of("fc", Verdict.LOCKED)), {})


def test_nothing_a_user_names_is_markup() -> None:
    report = replace(
        report_of(layer_of(HOSTILE, Verdict.LOCKED, also=(HOSTILE + "2",))),
        skipped={HOSTILE: HOSTILE},
        reasons=[HOSTILE],
        copies=[CopyGroup((HOSTILE, HOSTILE), Verdict.DUPLICATE)],
    )
    html = report_html(report, {HOSTILE: png()})
    tree = parse(html)
    assert {"script", "b"}.isdisjoint(element.tag for element in tree.iter())
    assert text_of(tree).count(HOSTILE) >= 6
    (image,) = tree.iter("img")
    assert image.get("alt", "").startswith(f"Heatmap of layer {HOSTILE};")


def test_it_stands_alone() -> None:
    report = replace(report_of(layer_of("fc", *Verdict)), reasons=["too few steps"], skipped={"norm": "no rows"})
    tree = parse(report_html(report, {"fc": png()}))
    for element in tree.iter():
        assert element.tag not in {"script", "style", "link", "iframe"}
        assert {"id", "class", "href", "onclick"}.isdisjoint(element.keys())
        assert "url(" not in element.get("style", "")
        # Text has the colour of the page; only shapes are coloured.
        assert not re.search(r"(^|;)color:(?!inherit)", element.get("style", ""))


def test_a_report_of_nothing() -> None:
    assert text_of(parse(SymmetryReport()._repr_html_())) == "healthy Step 0: no layer was inspected."


def test_thousands_of_groups_stay_short() -> None:
    groups = [UnitGroup((i, i + 1), Verdict.LOCKED, Cause.COPIED, None, 0) for i in range(0, 4096, 2)]
    report = report_of(LayerDiagnosis("wide", 4096, 3, groups=groups))
    assert len(report._repr_html_()) < 5000
