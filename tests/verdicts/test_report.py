"""The forms of a report: short reprs, plain data, tables and figures."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.verdicts.diagnoses import Cause, CopyGroup, Finding, worst_first
from lightning_symmetry.verdicts.model_diagnosis import at_step

mpl.use("agg")


def pairs(num_units: int, verdict: Verdict = Verdict.LOCKED) -> list[UnitGroup]:
    """Return groups of two neighbours each, of all units."""
    return [UnitGroup((i, i + 1), verdict, Cause.COPIED, None, 0) for i in range(0, num_units, 2)]


def report_of(*layers: LayerDiagnosis, step: int = 12) -> SymmetryReport:
    return SymmetryReport(step, {layer.name: layer for layer in layers})


WIDE = LayerDiagnosis("wide", 4096, 3, groups=pairs(4096))
HEALTHY = LayerDiagnosis("healthy", 8, 3)
WAITING = LayerDiagnosis("waiting", 8, 3, groups=pairs(8, Verdict.DUPLICATE))
PARALLEL = LayerDiagnosis("parallel", 8, 3, groups=pairs(4, Verdict.LOCKSTEP))
DEAD = LayerDiagnosis("dead", 8, 3, tuple(range(8)), [UnitGroup(tuple(range(8)), Verdict.DEAD, Cause.CUT_OFF)])


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            report_of(WIDE, HEALTHY),
            "<SymmetryReport at step 12: symmetric; 2,056 of 4,104 units of 2 layers are working (2,048 redundant)>",
        ),
        (report_of(HEALTHY), "<SymmetryReport at step 12: healthy; all 8 units of 1 layer are working>"),
        (
            report_of(PARALLEL),
            "<SymmetryReport at step 12: symmetric; 2 findings, all 8 units of 1 layer are working>",
        ),
        (
            report_of(DEAD, WAITING),
            "<SymmetryReport at step 12: symmetric; 4 of 16 units of 2 layers are working (4 redundant, 8 dead)>",
        ),
        (
            SymmetryReport(reasons=["nobody looked"]),
            "<SymmetryReport at step 0: inconclusive; no layer was inspected>",
        ),
    ],
)
def test_repr_of_a_report(report: SymmetryReport, expected: str) -> None:
    assert repr(report) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_working_units_are_neither_redundant_nor_dead(data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    dead = data.draw(st.sets(st.integers(0, len(labels) - 1)))
    verdicts = data.draw(st.lists(st.sampled_from(Verdict), min_size=6, max_size=6))
    members = {label: tuple(i for i, other in enumerate(labels) if other == label) for label in labels}
    groups = [UnitGroup(units, verdicts[label], Cause.COPIED) for label, units in members.items() if len(units) > 1]
    layer = LayerDiagnosis("fc", len(labels), 3, tuple(sorted(dead)), groups)
    equal = [set(group.units) for group in groups if group.verdict.traits.is_redundant]
    alone = set(range(len(labels))) - dead - set().union(*equal)
    assert layer.working_units == len(alone) + sum(not units <= dead for units in equal)
    if not any(units & dead for units in equal):
        assert layer.working_units == layer.num_units - layer.redundant_units - layer.dead_units
    report = report_of(layer, WAITING)
    assert report.working_units == layer.working_units + 4
    assert report.metrics()["symmetry/working_units"] == report.working_units
    as_dict = report.to_dict()
    assert as_dict["working_units"] == report.working_units
    assert as_dict["layers"]["fc"]["working_units"] == layer.working_units


def test_what_does_not_work_is_named_after_what_does() -> None:
    assert report_of(HEALTHY).totals() == "all 8 units of 1 layer are working."
    assert report_of(DEAD).totals() == "0 of 8 units of 1 layer are working (8 dead)."
    assert report_of(WIDE, HEALTHY).totals() == "2,056 of 4,104 units of 2 layers are working (2,048 redundant)."
    assert replace(report_of(DEAD, WAITING), coverage=0.5).totals() == (
        "4 of 16 units of 2 layers are working (4 redundant, 8 dead); 50 % of the weights were looked at."
    )


def test_reprs_are_short_whatever_they_are_of() -> None:
    name = "encoder." * 100
    units = tuple(range(100_000))
    modules = tuple(f"{name}{i}" for i in range(100))
    many = report_of(*(LayerDiagnosis(f"{name}{i}", 4096, 3, groups=pairs(20)) for i in range(1200)), step=10**9)
    every_verdict = [group for verdict in Verdict for group in pairs(4096, verdict)]
    for thing in (
        many,
        report_of(LayerDiagnosis(name, 4096, 3, groups=every_verdict)),
        UnitGroup(units, Verdict.LOCKSTEP, Cause.CONSTANT),
        LayerDiagnosis(name, 10**9, 3, groups=every_verdict),
        CopyGroup(modules, Verdict.LOCKED),
        report_of(LayerDiagnosis(name, 100_000, 3, groups=[UnitGroup(units, Verdict.LOCKED, Cause.ZERO)])).findings[0],
        SymmetryReport(copies=[CopyGroup(modules, Verdict.LOCKED)]).findings[0],
    ):
        assert len(repr(thing)) < 300
        assert repr(thing).startswith(f"<{type(thing).__name__} ")


def test_reprs_say_what_matters() -> None:
    (group, *_) = WIDE.groups
    (finding, *_) = report_of(WIDE).findings
    assert repr(group) == "<UnitGroup locked, copied: 2 units, {0, 1}>"
    assert repr(WIDE) == "<LayerDiagnosis wide: 2,048 of 4,096 units working, 4,096 locked>"
    assert repr(finding) == "<Finding in wide: locked since step 0; 2 units, {0, 1}>"
    gone = replace(finding, broken_step=30)
    assert repr(gone) == "<Finding in wide: locked since step 0, broken at step 30; 2 units, {0, 1}>"
    assert isinstance(gone, Finding)


@pytest.mark.parametrize("verdict", Verdict)
def test_status_agrees_with_the_findings(verdict: Verdict) -> None:
    of_units = report_of(LayerDiagnosis("fc", 4, 3, groups=pairs(4, verdict)))
    of_modules = SymmetryReport(copies=[CopyGroup(("a", "b"), verdict)])
    for report in (of_units, of_modules):
        assert (report.status == "symmetric") == bool(report.findings) == verdict.is_warning


def test_the_worst_layers_come_first() -> None:
    assert worst_first([HEALTHY, WAITING, WIDE, PARALLEL]) == [WIDE, PARALLEL, WAITING, HEALTHY]


def test_a_report_at_another_step_differs_in_nothing_else() -> None:
    report = replace(report_of(WIDE, HEALTHY, DEAD), draw_heatmaps=dict)
    totals = report.metrics()
    later = at_step(report, 40)
    assert later == replace(report, step=40)
    assert later.metrics() == totals
    assert later.draw_heatmaps is dict
    assert (report.step, [finding.last_step for finding in later.findings]) == (12, [40] * len(later.findings))


def test_what_draws_heatmaps_stays_behind() -> None:
    def draw() -> dict[str, bytes]:
        return {"wide": b"png"}

    report = SymmetryReport(3, {"wide": WIDE}, draw_heatmaps=draw)
    assert replace(report, step=4).draw_heatmaps is draw
    assert report == SymmetryReport(3, {"wide": WIDE})
    for twin in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report), copy.copy(report)):
        assert twin == report
        assert twin.draw_heatmaps is None
        assert twin._repr_html_()
    assert report.draw_heatmaps is draw


def test_plain_data_have_a_schema() -> None:
    as_dict = json.loads(json.dumps(report_of(WIDE).to_dict()))
    assert next(iter(as_dict.items())) == ("schema", 1)
    documented = SymmetryReport.to_dict.__doc__ or ""
    of_layer = as_dict["layers"]["wide"]
    for field in (*as_dict, *of_layer, *of_layer["groups"][0]):
        assert f"``{field}``" in documented


def test_dataframe() -> None:
    tied = LayerDiagnosis(
        "tied", 8, 3, (4,), [*pairs(4), UnitGroup((5, 6, 7), Verdict.LOCKSTEP, Cause.COPIED)], ("also",)
    )
    report = SymmetryReport(1, {"healthy": HEALTHY, "tied": tied, "also": tied})
    table = report.to_dataframe()
    assert table.index.name == "layer"
    assert list(table.index) == ["healthy", "tied"]
    assert list(table.columns) == ["units", "working", "redundant", "distinct", *Verdict, "groups"]
    assert table.loc["tied"].to_dict() == {
        **dict.fromkeys(map(str, Verdict), 0),
        "units": 8,
        "working": 5,
        "redundant": 2,
        "distinct": 6,
        "dead": 1,
        "locked": 4,
        "lockstep": 3,
        "groups": "locked: 4 of 8 units in 2 groups, {0, 1}, {2, 3}; lockstep: 3 of 8 units, {5, 6, 7}",
    }
    assert table["locked"].sum() == 4
    empty = SymmetryReport().to_dataframe()
    assert (len(empty), list(empty.columns)) == (0, list(table.columns))


def test_plot_has_a_bar_for_every_share() -> None:
    figure, axes = report_of(HEALTHY, WAITING, PARALLEL).plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["parallel", "waiting", "healthy"]
    bars = {to_hex(bars[0].get_facecolor()): bars for bars in axes.containers if isinstance(bars, BarContainer)}
    shares = {colour: [bar.get_width() for bar in of_layers] for colour, of_layers in bars.items()}
    assert shares.pop(Verdict.LOCKSTEP.traits.colour) == [0.5, 0, 0]
    assert shares.pop(Verdict.DUPLICATE.traits.colour) == [0, 1, 0]
    ((rest, widths),) = shares.items()
    assert widths == [0.5, 0, 1]
    assert [bar.get_x() for bar in bars[rest]] == [0.5, 1, 0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["lockstep", "duplicate", "in no group"]
    assert "20 of 24 units" in axes.get_title(loc="left").replace("\n", " ")
    figure.canvas.draw()  # names with a dollar and the like fail here
    plt.close(figure)


def test_plot_into_axes_of_the_caller() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert report_of(WIDE).plot(right) == (figure, right)
    assert right.patches
    assert not left.patches
    plt.close(figure)


def test_plot_tells_many_layers_with_odd_names_apart() -> None:
    layers = [
        LayerDiagnosis(f"base_model.model.model.layers.{i}.self_attn.q_$x_proj.weights.$", 8, 3) for i in range(60)
    ]
    figure, axes = report_of(*layers, WAITING).plot()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "waiting"
    assert len(set(labels)) == len(labels) == 40
    assert "21 more layers are not shown" in axes.get_title(loc="left")
    figure.canvas.draw()
    plt.close(figure)
    figure, _ = SymmetryReport().plot()
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize(("method", "package"), [("plot", "matplotlib"), ("to_dataframe", "pandas")])
def test_what_to_install(method: str, package: str) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None  # as if it were not installed
from lightning_symmetry.verdicts.report import SymmetryReport
try:
    SymmetryReport().{method}()
except ModuleNotFoundError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"expects {package} to be installed: pip install 'lightning-symmetry[plot]'" in said


def test_a_report_takes_nothing_but_the_standard_library() -> None:
    code = """
import sys
before = set(sys.modules)
from lightning_symmetry.verdicts.report import SymmetryReport
SymmetryReport()._repr_html_()
print(" ".join({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["lightning_symmetry"]
