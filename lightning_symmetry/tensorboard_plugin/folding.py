"""The history of a run, built from the summaries of its checks.

Event files are untrusted: an event with a value of the wrong type is refused. Unknown verdicts and origins, which a
newer version may have written, are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

from lightning_symmetry.tensorboard_plugin.events import PayloadError, unpack_summary, unpack_units
from lightning_symmetry.verdicts.diagnoses import Origin
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_INT = 1 << 53  # JavaScript cannot represent all larger integers
_MAX_TEXT = 1 << 16
_MAX_QUIET = 1 << 12  # skipped checks that a summary may list; four times as many as are ever skipped
_MAX_LISTED = 1 << 13  # checks in a history; skipped ones beyond that are left out
_MAX_GROUPS = 256  # groups per layer and per finding, and findings per layer: more are never written
_MAX_SPARK = 32  # points of the curve in the table of runs
_MAX_VERDICT_TEXT = 64
_MAX_VERDICTS = 64
# The values of a layer that are kept from summaries.
_LAYER_KEYS = ("units", "fan_in", "width", "both", "counts", "groups", "num_groups", "also")
_RANKS = {str(verdict): rank for rank, verdict in enumerate(Verdict)}
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """A group of units in a summary. Units are packed by ``events.pack_units``, steps are optimizer steps."""

    units: str
    size: int  # number of units
    verdict: str  # its name, which may be unknown to this version
    since: int  # step of the check that saw the group first
    mirrored: str = ""  # the units whose row is the negative of the first unit's


@dataclass(frozen=True)
class Finding:
    """Groups of one layer that the user was warned of in one message."""

    who: str  # the units in words
    verdict: str
    origin: str  # one of `diagnoses.Origin`, or unknown to this version
    what: str  # what happens to the units
    why: str  # the likely cause and the fix
    since: int  # step of the check that saw the groups first
    broken: int | None  # step of the check at which the groups were gone; None while they hold
    groups: list[str] | None  # units of each group, at most `_MAX_GROUPS`; None in files of version 0.1
    num_groups: int  # including groups that were left out

    def to_json(self, layer: str) -> dict[str, Any]:
        """Return the finding in words, ready for JSON."""
        words = ("who", "verdict", "origin", "what", "why", "since", "broken")
        return {"layer": layer, **{name: getattr(self, name) for name in words}}


@dataclass(frozen=True)
class State:
    """A layer at one check."""

    num_units: int
    fan_in: int  # number of weights that feed one unit
    width: int  # number of distinct units
    both: int  # number of units that are dead as well as redundant; 0 in files of version 0.2
    counts: dict[str, int]  # units by verdict, without zeros; the most serious verdict first, unknown ones last
    groups: tuple[Group, ...]  # at most `_MAX_GROUPS`
    num_groups: int  # including groups that were left out
    also: tuple[str, ...]  # other names of the layer


@dataclass
class Layer:
    """A layer over time: its changes, each with the index of the check.

    Attributes:
        states: None where the model does not have the layer.
        dead: numbers of dead units.
        orientations: numbers of directions among the living units; None where they were not counted.
        values: the latest values as written, which the next summary updates.
    """

    states: list[tuple[int, State | None]] = field(default_factory=list)
    dead: list[tuple[int, int]] = field(default_factory=list)
    orientations: list[tuple[int, int | None]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def units_at(self, checks: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """Return for each check the numbers of units: all, working, redundant, dead."""
        found = [(0, 0, 0, 0)] * len(checks)
        for i, check in enumerate(checks):
            state, dead = _at(self.states, check), _at(self.dead, check) or 0
            if state is not None:
                working = max(0, state.width - dead + state.both)
                found[i] = (state.num_units, working, state.num_units - state.width, dead)
        return found


@dataclass
class RunHistory:
    """A run over time."""

    steps: list[int] = field(default_factory=list)  # of all checks, ascending
    layers: dict[str, Layer] = field(default_factory=dict)  # by name, in the order of the model
    findings: dict[str, list[Finding]] = field(default_factory=dict)  # by layer, as of the last check
    num_unreadable: int = 0  # number of events that could not be read

    def add(self, step: int, data: bytes) -> None:
        """Add the summary of one more check, or count it as unreadable.

        If the step is not later than the last one, the training has continued from an earlier checkpoint, and
        everything from that step on is forgotten.
        """
        try:
            summary = unpack_summary(data)
            is_full = summary.get("full") is True
            layers: dict[str, tuple[dict[str, Any], State]] = {}
            dead: dict[str, int] = {}
            orientations: dict[str, int | None] = {}
            for name, changes in summary["layers"].items():
                if "dead" in changes:
                    dead[name] = _int(changes.pop("dead"))
                if "orientations" in changes:
                    number = changes.pop("orientations")
                    orientations[name] = None if number is None else _int(number)
                if changes or name not in self.layers:
                    layers[name] = _merge(self.layers.get(name), changes, is_full)
            findings = {name: list(map(_finding, _short(rows))) for name, rows in summary.get("findings", {}).items()}
            quiet = unpack_units(_typed(summary, "quiet", str, ""), _MAX_QUIET)
        except PayloadError:
            self.num_unreadable += 1
            return
        if self.steps and step <= self.steps[-1]:
            self._forget_from(step)
        latest = self.steps[-1] if self.steps else -1
        if len(self.steps) + len(quiet) <= _MAX_LISTED:
            self.steps += sorted(earlier for earlier in set(quiet) if latest < earlier < step)
        check = len(self.steps)
        self.steps.append(step)
        if is_full:
            for name, layer in self.layers.items():
                if name not in layers and layer.states[-1][1] is not None:
                    layer.states.append((check, None))
            self.findings = {}
        for name, (values, state) in layers.items():
            layer = self.layers.setdefault(name, Layer())
            layer.values = values
            if not layer.states or layer.states[-1][1] != state:
                layer.states.append((check, state))
        for name, layer in self.layers.items():  # _forget_from may have dropped a layer that this summary changes
            if name in dead:
                layer.dead.append((check, dead[name]))
            if name in orientations:
                layer.orientations.append((check, orientations[name]))
        self.findings.update(findings)

    def _forget_from(self, step: int) -> None:
        self.steps = [earlier for earlier in self.steps if earlier < step]
        for layer in self.layers.values():
            layer.states = [(check, state) for check, state in layer.states if check < len(self.steps)]
            layer.dead = [(check, number) for check, number in layer.dead if check < len(self.steps)]
            layer.orientations = [(check, number) for check, number in layer.orientations if check < len(self.steps)]
        self.layers = {name: layer for name, layer in self.layers.items() if layer.states}

    def to_json(self) -> dict[str, Any]:
        """Return the run without the data of :meth:`layer_to_json`, ready for JSON."""
        return {
            "steps": self.steps,
            "layers": [self._layer_row(name, layer) for name, layer in self.layers.items()],
            "findings": [finding.to_json(layer) for layer, found in self.findings.items() for finding in found],
            "unreadable": self.num_unreadable,
        }

    def summary(self) -> dict[str, Any]:
        """Return the row of the run in the table of runs, ready for JSON."""
        last = len(self.steps) - 1
        num_places = min(len(self.steps), _MAX_SPARK)
        checks = [last * place // max(1, num_places - 1) for place in range(num_places)]
        over_layers = [layer.units_at(checks) for layer in self.layers.values()]
        counts = [
            [sum(numbers) for numbers in zip(*at_check, strict=True)] for at_check in zip(*over_layers, strict=True)
        ]
        units, working, redundant, dead = counts[-1] if counts else (0, 0, 0, 0)
        holding = [(name, each) for name, found in self.findings.items() for each in found if each.broken is None]
        worst = min(holding, key=lambda each: (_rank(each[1].verdict), each[1].since), default=None)
        return {
            "step": self.steps[-1],
            "layers": len(self.layers),
            "units": units,
            "working": working,
            "redundant": redundant,
            "dead": dead,
            "findings": len(holding),
            "worst": worst and worst[1].to_json(worst[0]),
            "shares": [round(working / units, 3) if units else None for units, working, *_ in counts],
        }

    def layer_to_json(self, name: str) -> dict[str, Any]:
        """Return the data that only the view of a layer needs: its groups over time, and those of its findings."""
        layer = self.layers[name]
        groups: list[dict[str, Any]] = []
        for check, state in layer.states:
            now = [asdict(group) for group in state.groups] if state else []
            num_groups = state.num_groups if state else 0
            if not groups or groups[-1]["groups"] != now or groups[-1]["num_groups"] != num_groups:
                groups.append({"check": check, "groups": now, "num_groups": num_groups})
        keys = ("verdict", "since", "broken", "groups", "num_groups")
        findings = [{key: getattr(finding, key) for key in keys} for finding in self.findings.get(name, ())]
        return {"groups": groups, "findings": findings}

    def _layer_row(self, name: str, layer: Layer) -> dict[str, Any]:
        latest = next(state for _, state in reversed(layer.states) if state is not None)
        return {
            "name": name,
            "also": list(latest.also),
            "units": latest.num_units,
            "fan_in": latest.fan_in,
            "states": [
                {"check": check, "width": state.width, "both": state.both, "counts": state.counts}
                if state
                else {"check": check, "width": None, "both": 0, "counts": {}}
                for check, state in layer.states
            ],
            "dead": [{"check": check, "units": number} for check, number in layer.dead],
            "orientations": [{"check": check, "number": number} for check, number in layer.orientations],
            "events": self._events(name, layer),
        }

    def _events(self, name: str, layer: Layer) -> list[dict[str, Any]]:
        """Return the events of a layer in order of time: its findings, and other changes of its width."""
        events: list[dict[str, Any]] = []
        for finding in self.findings.get(name, ()):
            # Dead units are not equal, so their death is no collapse.
            is_collapse = finding.origin == Origin.COLLAPSE and finding.verdict != Verdict.DEAD
            begins = "collapsed" if is_collapse else "appeared"
            events.append(_event(finding.since, begins, finding.verdict, finding.who))
            if finding.broken is not None:
                events.append(_event(finding.broken, "broke", finding.verdict, finding.who))
        known = {(event["step"], event["kind"]) for event in events}
        before: State | None = None
        for check, state in layer.states:
            if state is None:
                continue
            width = before.width if before else state.num_units
            if state.width != width:
                kind = "broke" if state.width > width else "collapsed" if before else "appeared"
                text = f"{state.width} of {state.num_units} units distinct" + (f", {width} before" if before else "")
                if (self.steps[check], kind) not in known:
                    events.append(_event(self.steps[check], kind, None, text))
            before = state
        return sorted(events, key=lambda event: event["step"])


def fold(events: Iterable[tuple[int, bytes]]) -> RunHistory:
    """Build the history of a run from the optimizer step and bytes of each summary, in the order of writing."""
    history = RunHistory()
    for step, data in events:
        history.add(step, data)
    return history


def _at(changes: Sequence[tuple[int, T]], check: int) -> T | None:
    """Return the value at a check, from changes in the order of their checks; None before the first."""
    i = bisect_right(changes, check, key=itemgetter(0))
    return changes[i - 1][1] if i else None


def _event(step: int, kind: str, verdict: str | None, text: str) -> dict[str, Any]:
    return {"step": step, "kind": kind, "verdict": verdict, "text": text}


def _merge(layer: Layer | None, changes: Mapping[str, Any], is_full: bool) -> tuple[dict[str, Any], State]:
    """Return the values of a layer after some changes, and its state. A full summary replaces all values."""
    before = layer.values if layer and not is_full else {}
    values = {**before, **{key: changes[key] for key in _LAYER_KEYS if key in changes}}
    groups = _short(_typed(values, "groups", list))
    also = _short(_typed(values, "also", list, []))
    return values, State(
        num_units=_count(values, "units"),
        fan_in=_count(values, "fan_in"),
        width=_count(values, "width"),
        both=_count(values, "both", 0),
        counts=_counts(_typed(values, "counts", dict)),
        groups=tuple(map(_group, groups)),
        num_groups=_count(values, "num_groups"),
        also=tuple(_text(name) for name in also),
    )


def _counts(values: Mapping[str, Any]) -> dict[str, int]:
    if len(values) > _MAX_VERDICTS:
        raise PayloadError("too many verdicts")
    counts = {_verdict(name): _int(number) for name, number in values.items()}
    ordered = sorted(counts, key=lambda name: (_rank(name), name))
    return {name: counts[name] for name in ordered if counts[name]}


def _rank(verdict: str) -> int:
    """Return the rank of a verdict: 0 for the most serious; unknown ones come last."""
    return _RANKS.get(verdict, len(_RANKS))


def _group(values: Any) -> Group:
    if not isinstance(values, list) or len(values) not in (4, 5):
        raise PayloadError("not a group")
    mirrored = _text(values[4]) if len(values) > 4 else ""
    return Group(_text(values[0]), _int(values[1]), _verdict(values[2]), _int(values[3]), mirrored)


def _finding(row: Mapping[str, Any]) -> Finding:
    groups = _short(_typed(row, "groups", list)) if "groups" in row else None
    return Finding(
        who=_text(row.get("who")),
        verdict=_verdict(row.get("verdict")),
        origin=_text(row.get("origin")),
        what=_text(row.get("what")),
        why=_text(row.get("why")),
        since=_count(row, "since"),
        broken=None if row.get("broken") is None else _count(row, "broken"),
        groups=None if groups is None else list(map(_text, groups)),
        num_groups=_count(row, "num_groups", len(groups or ())),
    )


def _short(values: list[T]) -> list[T]:
    if len(values) > _MAX_GROUPS:
        raise PayloadError("more entries than are ever written")
    return values


def _verdict(value: Any) -> str:
    """Check and return the name of a verdict, which may be unknown to this version."""
    if len(_text(value)) > _MAX_VERDICT_TEXT:
        raise PayloadError("not the name of a verdict")
    return str(value)


def _count(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return _int(values.get(key, default))


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_INT:
        raise PayloadError("not a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise PayloadError("not a text")
    return value


def _typed(values: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    value = values.get(key, default)
    if not isinstance(value, kind):
        raise PayloadError(f"{key} is of the wrong type")
    return value
