"""Summaries of single checks, laid together into the history of a run.

Everything here may come from a file that somebody else made: what has the wrong type is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning_symmetry.tensorboard_plugin.events import VERDICTS, PayloadError, unpack_summary

_MAX_INT = 1 << 53  # what JavaScript can count to
_MAX_TEXT = 1 << 16
_FINDING_TEXTS = ("who", "verdict", "origin", "what", "why")
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """A group of units, as far as a summary tells.

    Attributes:
        units: their indices, packed; with an ellipsis where it was cut.
        size: number of units.
        verdict: what becomes of them.
        since: step of the check that saw them first.
    """

    units: str
    size: int
    verdict: str
    since: int

    def to_json(self) -> list[Any]:
        """Ready for JSON."""
        return [self.units, self.size, self.verdict, self.since]


@dataclass(frozen=True)
class State:
    """A layer at one check.

    Attributes:
        num_units: number of units.
        fan_in: number of weights that feed one unit.
        width: number of distinct units.
        counts: number of units by verdict.
        groups: the groups, the first ones if there are very many.
        num_groups: number of all of them.
        also: other names of the layer.
    """

    num_units: int
    fan_in: int
    width: int
    counts: tuple[int, ...]
    groups: tuple[Group, ...]
    num_groups: int
    also: tuple[str, ...]

    def to_json(self) -> list[int]:
        """Width and counts, ready for JSON."""
        return [self.width, *self.counts]


@dataclass
class Layer:
    """A layer over time.

    Attributes:
        states: the check and the state, wherever that changed; None where the layer is there no longer.
        dead: the check and the number of units with a zero gradient and weights of their own, wherever that changed.
            It changes a lot, and is only asked for of a layer that somebody looks at.
        values: the latest state as it was written.
    """

    states: list[tuple[int, State | None]] = field(default_factory=list)
    dead: list[tuple[int, int]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunHistory:
    """What a run's summaries tell.

    Attributes:
        steps: of all checks.
        layers: by name, in the order of the model.
        findings: by layer, what was warned of, as of the last check.
        num_unreadable: events that were passed over.
    """

    steps: list[int] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    findings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    num_unreadable: int = 0

    def add(self, step: int, data: bytes) -> None:
        """Take in one more event; one that cannot be read is counted and passed over."""
        try:
            summary = unpack_summary(data)
            is_full = summary.get("full") is True
            layers: dict[str, tuple[dict[str, Any], State]] = {}
            dead: dict[str, int] = {}
            for name, changes in summary["layers"].items():
                if "dead" in changes:
                    dead[name] = _int(changes.pop("dead"))
                if changes or name not in self.layers:
                    layers[name] = _merge(self.layers.get(name), changes, is_full)
            findings = {layer: [_finding(row) for row in rows] for layer, rows in summary.get("findings", {}).items()}
        except PayloadError:
            self.num_unreadable += 1
            return
        if self.steps and step <= self.steps[-1]:  # a training that went on from an earlier checkpoint
            self._forget_from(step)
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
        for name, number in dead.items():
            if name in self.layers:  # else it was forgotten just now
                self.layers[name].dead.append((check, number))
        self.findings.update(findings)

    def _forget_from(self, step: int) -> None:
        self.steps = [earlier for earlier in self.steps if earlier < step]
        for layer in self.layers.values():
            layer.states = [(check, state) for check, state in layer.states if check < len(self.steps)]
            layer.dead = [(check, number) for check, number in layer.dead if check < len(self.steps)]
        self.layers = {name: layer for name, layer in self.layers.items() if layer.states}

    def to_json(self) -> dict[str, Any]:
        """All but what is only asked for of a layer that somebody looks at."""
        rows = [{"layer": layer, **row} for layer, rows in self.findings.items() for row in rows]
        return {
            "steps": self.steps,
            "layers": [self._row(name, layer) for name, layer in self.layers.items()],
            "findings": rows,
            "unreadable": self.num_unreadable,
        }

    def layer_to_json(self, name: str) -> dict[str, Any]:
        """Of one layer, the dead units, and the groups with their number, from each check at which they changed."""
        layer = self.layers[name]
        groups: list[list[Any]] = []
        for check, state in layer.states:
            now = [[group.to_json() for group in state.groups], state.num_groups] if state else [[], 0]
            if not groups or groups[-1][1:] != now:
                groups.append([check, *now])
        return {"dead": layer.dead, "groups": groups}

    def _row(self, name: str, layer: Layer) -> dict[str, Any]:
        latest = next(state for _, state in reversed(layer.states) if state is not None)
        return {
            "name": name,
            "also": list(latest.also),
            "units": latest.num_units,
            "fan_in": latest.fan_in,
            "states": [[check, *(state.to_json() if state else ())] for check, state in layer.states],
            "events": self._events(name, layer),
        }

    def _events(self, name: str, layer: Layer) -> list[list[Any]]:
        """What happened to a layer: ``[step, kind, verdict, text]``, in the order of time."""
        events: list[list[Any]] = []
        for row in self.findings.get(name, ()):
            begins = "collapsed" if row["origin"] == "collapse" else "appeared"
            events.append([row["since"], begins, row["verdict"], row["who"]])
            if row["broken"] is not None:
                events.append([row["broken"], "broke", row["verdict"], row["who"]])
        told = {(step, kind) for step, kind, *_ in events}
        before: State | None = None
        for check, state in layer.states:
            if state is None:
                continue
            width = before.width if before else state.num_units
            if state.width != width:
                kind = "broke" if state.width > width else "collapsed" if before else "appeared"
                text = f"{state.width} of {state.num_units} units distinct" + (f", {width} before" if before else "")
                if (self.steps[check], kind) not in told:
                    events.append([self.steps[check], kind, "", text])
            before = state
        return sorted(events, key=lambda event: event[0])


def fold(events: Iterable[tuple[int, bytes]]) -> RunHistory:
    """The history that events, each a step and its bytes, make up."""
    history = RunHistory()
    for step, data in events:
        history.add(step, data)
    return history


def _merge(layer: Layer | None, changes: Mapping[str, Any], is_full: bool) -> tuple[dict[str, Any], State]:
    before = layer.values if layer and not is_full else {}
    values = {**before, **changes}
    counts = _typed(values, "counts", dict)
    groups = _typed(values, "groups", list)
    also = _typed(values, "also", list, [])
    return values, State(
        num_units=_count(values, "units"),
        fan_in=_count(values, "fan_in"),
        width=_count(values, "width"),
        counts=tuple(_count(counts, verdict, 0) for verdict in VERDICTS),
        groups=tuple(map(_group, groups)),
        num_groups=_count(values, "num_groups"),
        also=tuple(_text(name) for name in also),
    )


def _group(values: Any) -> Group:
    if not isinstance(values, list) or len(values) != 4 or values[2] not in VERDICTS:
        raise PayloadError("not a group")
    return Group(_text(values[0]), _int(values[1]), values[2], _int(values[3]))


def _finding(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: _text(row.get(key)) for key in _FINDING_TEXTS}
    broken = row.get("broken")
    return {**texts, "since": _count(row, "since"), "broken": None if broken is None else _int(broken)}


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
