"""The bytes of the Symmetry tab's events, and histories built from them."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.tensorboard_plugin.events import (
    PayloadError,
    natural_order,
    pack_matrix,
    pack_summary,
    pack_units,
    unpack_matrix,
    unpack_summary,
    unpack_units,
)
from lightning_symmetry.tensorboard_plugin.folding import RunHistory, fold


def layer(width: int = 8, units: int = 8, **values: Any) -> dict[str, Any]:
    plain = {"units": units, "fan_in": 3, "width": width, "dead": 0, "counts": {}, "groups": [], "num_groups": 0}
    return {**plain, **values}


def full(**layers: Any) -> dict[str, Any]:
    return {"version": 1, "full": True, "layers": layers}


def delta(**layers: Any) -> dict[str, Any]:
    return {"version": 1, "layers": layers}


def history_of(*summaries: tuple[int, dict[str, Any]]) -> RunHistory:
    history = fold((step, pack_summary(summary)) for step, summary in summaries)
    assert history.num_unreadable == 0
    return history


def states(history: RunHistory, name: str = "fc") -> list[tuple[int, int | None]]:
    return [(check, state.width if state else None) for check, state in history.layers[name].states]


def finding(**values: Any) -> dict[str, Any]:
    plain = {"who": "all", "verdict": "locked", "origin": "start", "what": "a", "why": "b", "since": 0, "broken": None}
    return {**plain, **values}


# ---------------------------------------------------------------- bytes


@given(st.lists(st.integers(0, 2000), max_size=200))
def test_units_survive_packing_in_their_order(units: list[int]) -> None:
    assert unpack_units(pack_units(units), 200) == units


@given(st.integers(0, 9), st.integers(1, 5), st.integers(3, 5000))
def test_units_in_a_row_take_a_few_characters(first: int, stride: int, count: int) -> None:
    assert len(pack_units(range(first, first + stride * count, stride))) < 16


def test_more_runs_than_fit_are_left_out_and_said_so() -> None:
    packed = pack_units([unit * unit for unit in range(1000)], limit=10)
    assert packed.endswith(",...")
    assert packed.count(",") == 10


@pytest.mark.parametrize("text", ["x", "1-", "-1", "0-5:0x", "1,,2", "0-999999999", "9" * 16, "...", "0-100:1"])
def test_texts_that_are_no_units_are_refused(text: str) -> None:
    with pytest.raises(PayloadError):
        unpack_units(text)


@given(st.integers(0, 64), st.randoms(use_true_random=False))
def test_matrices_survive_packing(side: int, random: Any) -> None:
    units = random.sample(range(5000), side)
    cells = random.randbytes(side * side)
    assert unpack_matrix(pack_matrix(units, cells)) == (units, cells)


def test_summaries_are_compressed_only_if_that_helps() -> None:
    small, large = delta(fc={"dead": 1}), full(**{f"block{i}": layer() for i in range(100)})
    assert json.loads(pack_summary(small)) == small
    assert len(pack_summary(large)) < len(json.dumps(large)) / 10
    for summary in (small, large):
        assert unpack_summary(pack_summary(summary)) == summary


HOSTILE_PAYLOADS = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"version":1,"layers":{"a":{"width":NaN}}}',
    b'{"version":2,"layers":{}}',
    b'{"version":1,"layers":[]}',
    b'{"version":1,"layers":{"a":3}}',
    b'{"version":1,"layers":{},"findings":{"a":3}}',
    b'{"version":1,"layers":{},"findings":{"a":[3]}}',
    b"{" * 100_000,
    b'{"version":1,"layers":' + b"[" * 100_000,
    zlib.compress(b"[" * 100_000),
    zlib.compress(b'{"version":1,"layers":{}}')[:-2],
    zlib.compress(b'{"version":1,"layers":{}}' + b" " * (1 << 26)),
]


@pytest.mark.parametrize("data", HOSTILE_PAYLOADS, ids=range(len(HOSTILE_PAYLOADS)))
def test_bytes_of_others_are_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack_summary(data)
    with pytest.raises(PayloadError):
        unpack_matrix(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(data: bytes) -> None:
    for unpack in (unpack_summary, unpack_matrix):
        with pytest.raises(PayloadError):
            unpack(data)


@pytest.mark.parametrize(
    ("head", "cells"), [({"units": "0-3"}, 16), ({"version": 1, "units": [0]}, 1), ({"version": 1, "units": "0-3"}, 15)]
)
def test_matrices_that_do_not_fit_are_refused(head: dict[str, Any], cells: int) -> None:
    with pytest.raises(PayloadError):
        unpack_matrix(zlib.compress(json.dumps(head).encode() + b"\n" + bytes(cells)))


def test_runs_are_put_in_natural_order() -> None:
    names = ["run10", "run9", "a", "run", "10", "9", "run10b", ""]
    assert sorted(names, key=natural_order) == ["", "9", "10", "a", "run", "run9", "run10", "run10b"]


# ---------------------------------------------------------------- histories


def test_changes_build_on_what_was_there() -> None:
    history = history_of(
        (
            0,
            full(fc=layer(1, counts={"duplicate": 8}, groups=[["0-7", 8, "duplicate", 0]], num_groups=1), head=layer()),
        ),
        (1, delta(fc={"counts": {"locked": 8}, "groups": [["0-7", 8, "locked", 0]]})),
        (3, delta()),
        (7, delta(fc={"width": 8, "counts": {}, "groups": [], "num_groups": 0}, head={"dead": 2})),
    )
    assert history.steps == [0, 1, 3, 7]
    told = history.to_json()
    assert [row["name"] for row in told["layers"]] == ["fc", "head"]
    assert told["layers"][0]["states"] == [
        {"check": 0, "width": 1, "both": 0, "counts": {"duplicate": 8}},
        {"check": 1, "width": 1, "both": 0, "counts": {"locked": 8}},
        {"check": 3, "width": 8, "both": 0, "counts": {}},
    ]
    assert told["layers"][1]["states"] == [{"check": 0, "width": 8, "both": 0, "counts": {}}]
    group = {"units": "0-7", "size": 8, "since": 0, "mirrored": ""}
    assert history.layer_to_json("fc")["groups"] == [
        {"check": 0, "groups": [{**group, "verdict": "duplicate"}], "num_groups": 1},
        {"check": 1, "groups": [{**group, "verdict": "locked"}], "num_groups": 1},
        {"check": 3, "groups": [], "num_groups": 0},
    ]
    assert told["layers"][1]["dead"] == [{"check": 0, "units": 0}, {"check": 3, "units": 2}]
    assert history.layer_to_json("head") == {
        "groups": [{"check": 0, "groups": [], "num_groups": 0}],
        "findings": [],
    }


def test_a_training_that_goes_on_from_earlier_forgets_what_came_later() -> None:
    history = history_of(
        (0, full(fc=layer(1))),
        (5, delta(fc={"width": 4})),
        (10, delta(fc={"width": 5, "dead": 3})),
        (5, full(fc=layer(2))),
        (10, delta(fc={"width": 3})),
    )
    assert history.steps == [0, 5, 10]
    assert states(history) == [(0, 1), (1, 2), (2, 3)]
    assert history.layers["fc"].dead == [(0, 0), (1, 0)]


def test_layers_that_are_there_no_longer_end() -> None:
    history = history_of(
        (0, full(fc=layer(), old=layer(2))), (1, full(fc=layer())), (2, full(fc=layer(), old=layer(3)))
    )
    assert states(history, "old") == [(0, 2), (1, None), (2, 3)]
    assert history.to_json()["layers"][1]["states"][1] == {"check": 1, "width": None, "both": 0, "counts": {}}
    assert history.layer_to_json("old")["groups"] == [{"check": 0, "groups": [], "num_groups": 0}]


def test_checks_without_news_are_told_later() -> None:
    history = history_of(
        (0, full(fc=layer(8))),
        (50, delta()),
        (70, {**delta(fc={"width": 5}), "quiet": "55,60,65"}),
        (10**10, {**delta(), "quiet": pack_units([80, 90, 10**9 + 7, 10**9 + 8])}),
    )
    assert history.steps == [0, 50, 55, 60, 65, 70, 80, 90, 10**9 + 7, 10**9 + 8, 10**10]
    assert states(history) == [(0, 8), (5, 5)]


def test_checks_that_cannot_have_been_passed_over_are_not_believed() -> None:
    history = history_of((10, full(fc=layer(8))), (20, {**delta(), "quiet": "4,10,15,12,12,20,30"}))
    assert history.steps == [10, 12, 15, 20]


@pytest.mark.parametrize("quiet", [7, ["1"], "1,...", "0-100000", "a", None])
def test_steps_of_others_are_refused(quiet: object) -> None:
    history = fold([(0, pack_summary(full(fc=layer(8)))), (9, pack_summary({**delta(), "quiet": quiet}))])
    assert (history.steps, history.num_unreadable) == ([0], 1)


def test_findings_stand_until_they_are_told_anew() -> None:
    row = {"who": "all", "verdict": "locked", "origin": "start", "what": "a", "why": "b", "since": 0, "broken": None}
    history = history_of(
        (0, {**full(fc=layer(1)), "findings": {"fc": [row], "a, b": [row]}}),
        (1, delta()),
        (2, {**delta(), "findings": {"fc": [{**row, "broken": 2}]}}),
    )
    assert history.to_json()["findings"] == [{"layer": "fc", **row, "broken": 2}, {"layer": "a, b", **row}]
    history.add(3, pack_summary({**full(fc=layer(8)), "findings": {"a, b": [row]}}))
    assert history.to_json()["findings"] == [{"layer": "a, b", **row}]


def test_what_happened_is_told_once() -> None:
    row = {"who": "two", "verdict": "locked", "what": "a", "why": "b", "broken": None}
    findings = {"fc": [{**row, "origin": "start", "since": 0, "broken": 2}, {**row, "origin": "collapse", "since": 3}]}
    history = history_of(
        (0, full(fc=layer(7), head=layer(1), tail=layer(8))),
        (1, delta(head={"width": 5})),
        (2, delta(fc={"width": 8})),
        (3, {**delta(fc={"width": 7}, tail={"width": 6}), "findings": findings}),
    )
    events = {row["name"]: row["events"] for row in history.to_json()["layers"]}
    assert events == {
        "fc": [
            {"step": 0, "kind": "appeared", "verdict": "locked", "text": "two"},
            {"step": 2, "kind": "broke", "verdict": "locked", "text": "two"},
            {"step": 3, "kind": "collapsed", "verdict": "locked", "text": "two"},
        ],
        "head": [
            {"step": 0, "kind": "appeared", "verdict": None, "text": "1 of 8 units distinct"},
            {"step": 1, "kind": "broke", "verdict": None, "text": "5 of 8 units distinct, 1 before"},
        ],
        "tail": [{"step": 3, "kind": "collapsed", "verdict": None, "text": "6 of 8 units distinct, 8 before"}],
    }


def test_verdicts_and_origins_of_a_newer_version_are_kept_after_the_known_ones() -> None:
    row = {"who": "two", "verdict": "entangled", "what": "a", "why": "b", "origin": "rewound", "since": 0}
    counts = {"zipped": 1, "entangled": 2, "breaking": 0, "duplicate": 3, "locked": 4}
    sick = layer(6, counts=counts, groups=[["0-1", 2, "entangled", 0]], num_groups=1)
    history = history_of((0, {**full(fc=sick), "findings": {"fc": [{**row, "broken": 5}]}}))
    (told,) = history.to_json()["layers"]
    assert list(told["states"][0]["counts"].items()) == [
        ("locked", 4),
        ("duplicate", 3),
        ("entangled", 2),
        ("zipped", 1),
    ]
    assert [(event["kind"], event["verdict"]) for event in told["events"]] == [
        ("appeared", "entangled"),
        ("broke", "entangled"),
    ]
    assert history.layer_to_json("fc")["groups"][0]["groups"][0]["verdict"] == "entangled"
    assert history.to_json()["findings"][0]["origin"] == "rewound"


def test_findings_tell_the_units_of_their_groups() -> None:
    row = {"who": "two", "verdict": "locked", "origin": "start", "what": "a", "why": "b", "since": 0, "broken": None}
    rows = [
        {**row, "broken": 2, "groups": ["0,8", "1,9"], "num_groups": 2},
        {**row, "groups": ["2,10"], "num_groups": 6},
    ]
    history = history_of((0, {**full(fc=layer()), "findings": {"fc": [*rows, row]}}))
    plain = {"verdict": "locked", "since": 0, "broken": None}
    assert history.layer_to_json("fc")["findings"] == [
        {**plain, "broken": 2, "groups": ["0,8", "1,9"], "num_groups": 2},
        {**plain, "groups": ["2,10"], "num_groups": 6},
        {**plain, "groups": None, "num_groups": 0},  # as in version 0.1
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"width": "1"},
        {"width": -1},
        {"width": True},
        {"width": 1 << 60},
        {"width": 0.5},
        {"dead": None},
        {"both": -1},
        {"counts": []},
        {"counts": {"locked": "many"}},
        {"groups": [["0-7", 8, "x" * 100, 0]]},
        {"groups": [["0-7", 8, None, 0]]},
        {"counts": {"x" * 100: 1}},
        {"groups": [["0-7", 8, "locked"]]},
        {"groups": [[0, 8, "locked", 0]]},
        {"groups": {}},
        {"also": [1]},
        {"also": ["x" * 100_000]},
    ],
)
def test_values_of_the_wrong_type_are_passed_over_whole(bad: dict[str, Any]) -> None:
    events = [(0, full(fc=layer(), head=layer())), (1, delta(head={"width": 3}, fc=bad)), (2, delta(fc={"width": 2}))]
    history = fold((step, pack_summary(summary)) for step, summary in events)
    assert history.num_unreadable == 1
    assert history.steps == [0, 2]
    assert states(history) == [(0, 8), (1, 2)]
    assert states(history, "head") == [(0, 8)]


@pytest.mark.parametrize(
    "bad",
    [
        {"since": None},
        {"why": 3},
        {"broken": "no"},
        {"what": "x" * 100_000},
        {"verdict": "x" * 100},
        {"groups": "0-7"},
        {"groups": [[0]]},
        {"num_groups": "1"},
    ],
)
def test_findings_of_the_wrong_type_are_passed_over(bad: dict[str, Any]) -> None:
    summary = {**full(fc=layer()), "findings": {"fc": [finding(**bad)]}}
    assert fold([(0, pack_summary(summary))]).num_unreadable == 1


def test_a_change_from_before_the_beginning_does_no_harm() -> None:
    history = history_of((5, full(fc=layer())), (0, delta(fc={"dead": 1})), (6, full(fc=layer())))
    assert history.steps == [0, 6]
    assert states(history) == [(1, 8)]


def test_a_change_of_a_layer_that_was_never_told_in_full_is_passed_over() -> None:
    history = fold([(0, pack_summary(delta(fc={"dead": 3}))), (1, pack_summary(delta(fc={"width": 3})))])
    assert (history.num_unreadable, history.steps, history.layers) == (2, [], {})
    assert history.to_json() == {"steps": [], "layers": [], "findings": [], "unreadable": 2}


def test_what_a_summary_holds_besides_is_not_kept() -> None:
    history = RunHistory()
    junk: dict[str, Any] = {"junk": [[] for _ in range(1000)], "more": {"deep": [1, 2, 3]}}
    history.add(0, pack_summary({**full(fc=layer(8, **junk)), **junk}))
    history.add(1, pack_summary(delta(fc={"width": 5, **junk})))
    assert states(history) == [(0, 8), (1, 5)]
    assert history.layers["fc"].values == {key: layer(5)[key] for key in history.layers["fc"].values}
    assert not {"junk", "more"} & history.layers["fc"].values.keys()


@pytest.mark.parametrize(
    "bad",
    [
        full(fc=layer(8, groups=[["0-1", 2, "locked", 0]] * 257)),
        full(fc=layer(8, also=["a"] * 257)),
        full(fc=layer(8, counts={f"verdict {i}": 1 for i in range(65)})),
        {**full(fc=layer(8)), "findings": {"fc": [finding()] * 257}},
        {**full(fc=layer(8)), "findings": {"fc": [finding(groups=["0-1"] * 257)]}},
    ],
)
def test_more_than_is_ever_written_is_refused(bad: dict[str, Any]) -> None:
    assert fold([(0, pack_summary(bad))]).num_unreadable == 1


def test_events_that_unpack_into_very_much_are_refused() -> None:
    many = ",".join(["[]"] * 6_000_000)
    data = zlib.compress(f'{{"version":1,"layers":{{}},"junk":[{many}]}}'.encode(), 9)
    assert len(data) < 20_000
    assert fold([(0, data)]).num_unreadable == 1


def test_steps_that_are_only_claimed_are_listed_up_to_a_bound() -> None:
    history = RunHistory()
    for i in range(20):
        claimed = f"{5000 * i + 1}-{5000 * i + 4096}"
        history.add(5000 * (i + 1), pack_summary({**(delta() if i else full(fc=layer(8))), "quiet": claimed}))
    assert history.num_unreadable == 0
    assert history.steps[-18:] == [5000 * (i + 1) for i in range(2, 20)]  # written checks are always listed
    assert len(history.steps) < 8192 + 20


def test_a_summary_counts_as_the_histories_do() -> None:
    history = history_of(
        (0, {**full(a=layer(8), b=layer(2, both=0)), "findings": {"b": [finding(since=0)]}}),
        (10, delta(a={"width": 4, "dead": 3, "both": 1})),
        (20, {**full(a=layer(4, dead=3, both=1)), "findings": {"a": [finding(since=5), finding(since=7, broken=9)]}}),
    )
    summary = history.summary()
    assert summary["shares"] == [round(10 / 16, 3), round(4 / 16, 3), round(2 / 8, 3)]
    assert (summary["units"], summary["working"], summary["redundant"], summary["dead"]) == (8, 2, 4, 3)
    assert (summary["step"], summary["layers"], summary["findings"]) == (20, 2, 1)
    assert (summary["worst"]["layer"], summary["worst"]["since"]) == ("a", 5)


def test_a_long_run_is_summed_up_in_a_few_numbers() -> None:
    history = history_of((0, full(fc=layer(8))), *((i, delta(fc={"width": 8 - i % 8})) for i in range(1, 1000)))
    shares = history.summary()["shares"]
    assert len(shares) == 32
    assert (shares[0], shares[-1]) == (1.0, round((8 - 999 % 8) / 8, 3))
