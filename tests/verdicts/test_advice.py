"""Findings in words: where a gradient stops, roots before consequences, and no guesses."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from torch import nn

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.engine.attachments import access_to
from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import Options
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.access import Access
from lightning_symmetry.verdicts.advice import idle_texts, messages, why
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason
from lightning_symmetry.verdicts.stops import GradientStop, StopKind

CLOSED = GradientStop(StopKind.CLOSED, "relu after b", "its input is at most -3.1 in all 512 values seen")
GUESSES = ("detach", "Mend", "cut off", "dead behind", "torch.nn.Module.reset_parameters")


def layer(
    name: str, stop: GradientStop | None = None, follows: str = "", cause: Cause = Cause.CUT_OFF
) -> LayerDiagnosis:
    units = tuple(range(8))
    group = UnitGroup(units, Verdict.DEAD, cause, first_step=0, num_watched=51, stop=stop, follows=follows)
    return LayerDiagnosis(name, 8, 3, units, [group])


def report_of(*layers: LayerDiagnosis) -> SymmetryReport:
    known = {each.name: Access(f"model.{each.name}", (f"model.{each.name}.weight",), ()) for each in layers}
    return SymmetryReport(60, {each.name: each for each in layers}, access=known)


def test_a_message_says_where_what_why_and_the_way_out() -> None:
    assert report_of(layer("b", CLOSED)).messages() == [
        "b: all 8 units have gradients of exactly zero, though weights of their own (dead since step 0): they do not "
        "train. That was so in all of the 51 steps watched. The gradient stops at relu after b, which is closed: its "
        "input is at most -3.1 in all 512 values seen. Start the biases at 0, centre or scale what goes in, or use an "
        "activation with a slope everywhere, such as torch.nn.LeakyReLU. [SYM301]"
    ]


@pytest.mark.parametrize("kind", StopKind)
@pytest.mark.parametrize("verdict", [Verdict.DEAD, Verdict.FROZEN])
@pytest.mark.parametrize("cause", Cause)
def test_every_stop_has_words(kind: StopKind, verdict: Verdict, cause: Cause) -> None:
    report = report_of(layer("b", replace(CLOSED, kind=kind)))
    (finding,) = report.findings
    (text,) = messages([replace(finding, verdict=verdict, cause=cause)], report)
    assert text.startswith("b: all 8 units have ")
    assert text.endswith(f" [{finding.code}]")
    assert "its input is at most -3.1 in all 512 values seen" in text
    has_place = kind not in (StopKind.ERASED, StopKind.UNKNOWN, StopKind.VANISHED)
    assert ("The gradient stops at relu after b" in text) == has_place
    assert not any(guess in text for guess in GUESSES)
    assert "  " not in text
    assert ".." not in text


@pytest.mark.parametrize("stop", [None, GradientStop(StopKind.UNKNOWN)])
@pytest.mark.parametrize("verdict", [Verdict.DEAD, Verdict.FROZEN])
@pytest.mark.parametrize("cause", Cause)
def test_nothing_is_guessed_where_nothing_was_measured(
    stop: GradientStop | None, verdict: Verdict, cause: Cause
) -> None:
    report = report_of(layer("b", stop, cause=cause))
    (text,) = messages([replace(report.findings[0], verdict=verdict)], report)
    assert "Where the gradient stops was not measured." in text
    assert text.endswith("[SYM309]")
    assert not re.search(r"ReLU|sigmoid|tanh|bias(es)? at 0", text)
    assert not any(guess in text for guess in GUESSES)


def test_rounding_that_was_not_traced_is_known_all_the_same() -> None:
    (finding,) = report_of(layer("b")).findings
    assert replace(finding, reason=Reason.ROUNDING_AGAIN).code == "SYM308"


def test_consequences_are_told_with_their_root() -> None:
    layers = [layer("a", CLOSED, "b"), layer("b", CLOSED), layer("c", CLOSED, "b"), layer("d", CLOSED, "a")]
    report = report_of(*layers)
    (text,) = report.messages()
    assert text.startswith("b: ")
    assert "seen. a and 2 more layers get no gradient for this reason. Start" in text
    (text,) = report_of(layers[0], layers[1]).messages()
    assert "seen. a gets no gradient for this reason. Start" in text


def test_a_consequence_of_what_was_told_before_names_it() -> None:
    report = report_of(layer("a", CLOSED, "b"), layer("b", CLOSED))
    (text,) = messages([finding for finding in report.findings if finding.layer == "a"], report)
    assert "(dead since step 0)" in text
    assert text.endswith("This follows from b, which lets no gradient through: fix b first. [SYM301]")


def test_layers_that_follow_one_another_in_a_circle_are_all_told() -> None:
    report = report_of(layer("a", CLOSED, "b"), layer("b", CLOSED, "a"))
    assert len(report.messages()) == 2


def test_equal_units_of_a_consequence_are_parted_too() -> None:
    report = report_of(layer("a", CLOSED, "b"), layer("b", CLOSED))
    first, second = report.findings
    first = replace(first, verdict=Verdict.FROZEN, cause=Cause.ZERO)
    (text,) = messages([first, second], report)
    assert (
        "The units of a are equal, too, and need weights that differ: `torch.nn.init.kaiming_uniform_(model.a.weight)`."
        in text
    )


def locked(name: str, value: float, units: tuple[int, ...] = (0, 1, 2, 3)) -> LayerDiagnosis:
    group = UnitGroup(units, Verdict.LOCKED, Cause.CONSTANT, value, first_step=0)
    return LayerDiagnosis(name, 4, 3, groups=[group])


def test_layers_that_differ_in_their_constant_only_share_a_message() -> None:
    (text,) = report_of(*(locked(f"fc{i}", 0.01 * (i + 1)) for i in range(60))).messages()
    assert text.startswith("fc0, fc1, ..., fc59 (60 layers): all units of each layer are identical in weights")
    assert "The weights of each are one number, from 0.01 to 0.6: constant initialisation." in text
    (text,) = report_of(*(locked(f"fc{i}", 0.5) for i in range(60))).messages()
    assert "Every weight is 0.5: constant initialisation." in text
    groups = [locked("fc", 0.1 * i, (2 * i, 2 * i + 1)).groups[0] for i in range(1, 6)]
    (text,) = report_of(LayerDiagnosis("fc", 20, 3, groups=groups)).messages()
    assert text.startswith("fc: 10 units in 5 groups are identical")
    assert "The weights of each are one number, from 0.1 to 0.5" in text


def test_a_layer_of_one_unit_is_spoken_of_as_one() -> None:
    group = UnitGroup((0,), Verdict.DEAD, Cause.DEAD, stop=CLOSED, first_step=0)
    report = report_of(LayerDiagnosis("fc", 1, 3, groups=[group]))
    (text,) = report.messages()
    assert text.startswith("fc: its only unit has gradients of exactly zero, though weights of its own (dead since")
    assert "it does not train" in text
    assert "dead: its only unit" in str(report)


def test_many_layers_that_stop_alike_share_a_message() -> None:
    (text,) = report_of(*(layer(name, CLOSED) for name in "abcd")).messages()
    assert text.startswith("a, b, ..., d (4 layers): all units of each layer have")
    assert "The gradient stops at relu after b, which is closed: its input is at most -3.1" in text
    assert len(report_of(*(layer(name, CLOSED) for name in "abc")).messages()) == 3
    stops = [
        replace(CLOSED, at=f"relu after {name}", detail=f"its input is at most -{i}") for i, name in enumerate("abcd")
    ]
    (text,) = report_of(*(layer(name, stop) for name, stop in zip("abcd", stops, strict=True))).messages()
    assert "stops at relu after a, relu after b, ..., relu after d, which is closed: for example, its input" in text


def test_the_module_with_the_zeros_is_initialised_and_not_the_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    report = replace(report_of(layer("0")), access=access_to(net, find_layers(net).layers))
    finding = replace(report.findings[0], stop=GradientStop(StopKind.ZERO_WEIGHTS, "1"))
    assert why([finding], report) == (
        "The gradient stops at 1, whose weights for these units are zero. "
        "Initialise 1, or give it weights other than zero: `model[1].reset_parameters()`. [SYM303]"
    )
    # A method is named only where it exists.
    assert "reset_parameters" not in why([finding], replace(report, access={}))


def test_what_idle_units_wait_for_is_said() -> None:
    group = UnitGroup(tuple(range(24)), Verdict.IDLE, Cause.DEAD, stop=GradientStop(StopKind.UNREAD, "slice after fc"))
    text = (
        "fc: 24 of 30 units, {0, 1, 2, 3, 4, 5, 6, 7, ...}, get no gradient, since nobody reads their outputs (at "
        "slice after fc). If that is on purpose, nothing is wrong; else read them. [SYM401]"
    )
    fc, other = LayerDiagnosis("fc", 30, 8, groups=[group]), LayerDiagnosis("other", 24, 8, groups=[group])
    assert idle_texts([fc]) == [text]
    [both] = idle_texts([fc, other])
    assert both.startswith("fc, other (2 layers): 48 units get no gradient, since nobody reads")
    unknown = replace(other, groups=[replace(group, stop=None)])
    assert idle_texts([unknown])[0].startswith(
        "other: all 24 units get no gradient, for a reason that was not measured"
    )
    report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 30, 8, groups=[group])})
    assert text in str(report).splitlines()
    assert "<strong>Idle</strong><ul" in report._repr_html_()
    assert text in report._repr_html_()
    elsewhere = {name: replace(group, stop=GradientStop(StopKind.UNREAD, f"slice after {name}")) for name in "abcdefgh"}
    many = {name: LayerDiagnosis(name, 30, 8, groups=[each]) for name, each in elsewhere.items()}
    assert "and 3 more reasons of idle units" in str(SymmetryReport(3, many)).splitlines()


def test_idle_units_of_a_layer_are_told_of_once() -> None:
    heard: list[str] = []
    group = UnitGroup((0, 1), Verdict.IDLE, Cause.DEAD, stop=GradientStop(StopKind.LOSS, detail="its weight is 0"))
    report = SymmetryReport(3, {"fc": LayerDiagnosis("fc", 2, 8, groups=[group])})
    engine = SymmetryEngine(Options(), "Monitor", heard.append)
    for _ in range(3):
        engine._notify_of_idle_units(report)
    assert heard == [
        "fc: all 2 units get no gradient, since the loss gives none (its weight is 0). Nothing is wrong with these "
        "units. [SYM402]"
    ]


class Odd(nn.Module):
    """Children that no expression reaches, next to some that one does."""

    def __init__(self) -> None:
        super().__init__()
        self.ok = nn.ModuleList([nn.Linear(2, 2)])
        self.by_name = nn.ModuleDict({"a": nn.Linear(2, 2), "3": nn.Linear(2, 2)})
        self.add_module("with space", nn.Linear(2, 2))
        self.add_module("7", nn.Linear(2, 2))
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(2, 2)


def test_code_leads_to_modules_and_parts_of_them() -> None:
    net = Odd()
    access = access_to(net, find_layers(net).layers)
    for each in access.values():
        for expression in filter(None, (each.module, *each.weights, *each.biases)):
            assert eval(expression, {"model": net}) is not None
    assert access["ok.0"].module == "model.ok[0]"
    assert access["by_name.a"].module == "model.by_name.a"
    assert not access["by_name.3"].module
    assert not access["with space"].module
    assert not access["7"].module
    assert access["attention.q"] == Access(
        "model.attention", ("model.attention.in_proj_weight",), ("model.attention.in_proj_bias",)
    )
    assert access["lstm.l0"].can_reset


def test_a_finding_without_a_known_module_gives_no_code() -> None:
    report = SymmetryReport(3, {"q (part)": LayerDiagnosis("q (part)", 4, 8)})
    finding = Finding("q (part)", (0, 1), Verdict.LOCKED, Cause.CONSTANT, 0.5, 0, 3, None, Origin.START)
    (text,) = messages([finding], report)
    assert "`" not in text
    assert text.endswith("Initialise the weights at random, e.g. with torch.nn.init.kaiming_uniform_. [SYM101]")
