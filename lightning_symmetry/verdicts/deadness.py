"""Dead units: units with weights of their own whose gradient stays exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
import torch

from lightning_symmetry.matrices.numerics import Indices, Mask
from lightning_symmetry.matrices.screening import directions_of
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason, UnitGroup, finding_of
from lightning_symmetry.verdicts.gradients import in_unused_blocks
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.records import from_plain, to_plain
from lightning_symmetry.verdicts.stops import Stopped, most_common
from lightning_symmetry.verdicts.streaks import DEAD_STEPS, Dead, Zeros, ZeroStreaks
from lightning_symmetry.verdicts.verdict import Verdict

# At most this many dead units are checked for rows that move.
_MAX_FOLLOWED = 16
# Where too few units of a layer may be dead for a warning, they are watched for _RUN steps, then left alone for three
# times as many.
_RUN = 2 * DEAD_STEPS
# Weight decay keeps the direction of a row, up to this many times the precision of its dtype.
_TURNED = 32.0
# The cause is read from at most this many rows.
_MAX_READ = 64
# For inputs of norm about 1, a bias this many times as large as the norm of the weights determines the output.
_FAR = 3.0
# Rows of this norm drive a tanh to where its slope vanishes in float32: 1 - tanh(9)^2 is 6e-8.
_STEEP = 9.0


@dataclass
class DeadRecord:
    """The dead units of a layer that the user was warned of; fields without a comment are as in :class:`Finding`."""

    units: tuple[int, ...]  # the units that were dead at the latest check
    warned_units: tuple[int, ...]  # the units in the warning
    cause: Cause
    origin: Origin
    first_step: int  # step of the check since which all of them have been dead
    last_step: int  # step of the latest check
    num_watched: int = 0
    reason: Reason = Reason.ZERO_AGAIN
    broken_step: int | None = None  # step of the check at which too few of them were dead; None while enough are
    stopped: Stopped | None = None  # where the gradients of most of them stop; None if no step was traced

    def to_finding(self, layer: str) -> Finding:
        """Return the finding about the units that the user was warned of."""
        group = replace(self.to_group(), units=self.warned_units)
        return finding_of(group, layer, self.last_step, self.broken_step)

    def to_group(self) -> UnitGroup:
        """Return the group for the report."""
        stop, follows = self.stopped or (None, "")
        return UnitGroup(
            self.units,
            Verdict.DEAD,
            self.cause,
            first_step=self.first_step,
            origin=self.origin,
            reason=self.reason,
            num_watched=self.num_watched,
            stop=stop,
            follows=follows,
        )


class DeadUnits:
    """The dead units of one layer over time.

    Args:
        patience: checks in a row at which the gradient of a unit must be zero.
        dead_share: the share of dead units that is worth a warning.

    Attributes:
        warned: the dead units that the user was warned of; None if there was no warning.
    """

    def __init__(self, patience: int, dead_share: float) -> None:
        self._patience, self._dead_share = patience, dead_share
        self._streaks: ZeroStreaks | None = None
        self._num_checks = 0
        self._directions: dict[int, float] = {}  # by unit, for some dead ones: direction of the row at the latest check
        self._num_left = 0  # number of further steps at which dead units are watched
        self._is_resting = False  # whether only units that have never had a gradient are watched
        self._changes_at = 0  # step of the check at which `_is_resting` changes, if few units may be dead
        self._stopped: Mapping[int, Stopped] = {}  # by unit, where its gradient stops
        self._idle: list[int] = []  # units whose gradient stops for a reason outside the units
        self.warned: DeadRecord | None = None

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were dead at the latest check."""
        return self.dead().units

    @property
    def groups(self) -> list[UnitGroup]:
        """The dead units, if they are enough for a warning, and then the groups of :attr:`idle` ones."""
        return [self.warned.to_group(), *self.idle] if self.warned is not None and self._is_warned else self.idle

    @property
    def _is_warned(self) -> bool:
        return self.warned is not None and self.warned.broken_step is None

    @property
    def idle(self) -> list[UnitGroup]:
        """Units without a gradient for a reason outside of them, as one group per reason."""
        groups: dict[Stopped, list[int]] = {}
        for unit in self._spared():
            groups.setdefault(self._stopped[unit], []).append(unit)
        return [
            UnitGroup(tuple(units), Verdict.IDLE, Cause.DEAD, reason=Reason.ZERO_AGAIN, stop=stopped.stop)
            for stopped, units in groups.items()
        ]

    def _spared(self) -> list[int]:
        """Return the units that would be dead if they were not idle."""
        if self._streaks is None or not self._idle or not self._streaks.counts.dead:
            return []
        are_dead = self._streaks.is_dead[self._idle].tolist()
        return [unit for unit, is_dead in zip(self._idle, are_dead, strict=True) if is_dead and unit in self._stopped]

    def trace(self, stopped: Mapping[int, Stopped]) -> None:
        """Record where the gradients of units stop; start over with units that are no longer idle.

        The mapping is kept, not copied: the caller removes units from it once they have a gradient again.
        """
        active = [unit for unit in self._spared() if not (unit in stopped and stopped[unit].stop.is_idle)]
        if active and self._streaks is not None:
            self._streaks.restart(active)
        self._stopped = stopped
        self._idle = [unit for unit, each in stopped.items() if each.stop.is_idle]

    @property
    def are_suspect(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check."""
        return self._streaks is not None and self._streaks.counts.zero > 0

    def is_about_to_conclude(self) -> bool:
        """Return whether the next check may warn of dead units that were not traced."""
        if self._streaks is None or not self._streaks.counts.soon_dead:
            return False
        counts = self._streaks.counts
        share = (counts.soon_dead + counts.dead) / len(self._streaks.since)  # dead units are not suspected
        return share >= self._dead_share and not self._stopped.keys() >= set(self._streaks.soon_dead().tolist())

    def zeros_to_record(self, seen: Look, *, is_unused: bool) -> Zeros | None:
        """Return the zeros of a look for :meth:`JoinedStreaks.update`; None if there is nothing to record.

        ``is_unused`` says that the module of the layer takes no part in this step: then nothing is recorded.
        """
        if seen.idle is None or seen.unseen is None or is_unused:  # the gradients are unknown
            return None
        self._num_checks += 1
        if not np.count_nonzero(seen.idle) and (self._streaks is None or not self._streaks.are_open):
            return None
        idle = seen.idle
        if 1 < seen.layer.blocks < seen.layer.num_units:  # blocks of one unit are filters, which are always used
            idle = idle & ~in_unused_blocks(idle, seen.layer.blocks)
        if self._streaks is None:
            self._streaks = ZeroStreaks.of(len(idle), self._patience, was_alive=self._num_checks > 1)
        return Zeros(self._streaks, idle, seen.unseen | seen.idle, self._is_resting)

    def conclude(self, seen: Look, step: int) -> tuple[Dead, DeadRecord | None]:
        """Conclude from a look whose zeros were recorded. Return the dead units, and their record if it is news."""
        dead = self.dead()
        self._take_turns(step)
        news = self._update_warned(seen, dead, step)
        if self._is_warned and self._have_turned(seen, dead.units[:_MAX_FOLLOWED]):
            self._num_left = DEAD_STEPS
        return dead, news

    def _take_turns(self, step: int) -> None:
        """Decide whether units that have had a gradient are watched until the next check."""
        assert self._streaks is not None
        counts = self._streaks.counts
        is_at_stake = (counts.suspected + counts.dead) / len(self._streaks.since) >= self._dead_share
        if is_at_stake or not counts.suspected_alive:
            self._is_resting, self._changes_at = False, step + _RUN
        elif step >= self._changes_at:
            self._is_resting = not self._is_resting
            self._changes_at = step + (3 * _RUN if self._is_resting else _RUN)

    def watch(self, is_zero: Mask, is_unseen: Mask, blocks: int, step: int) -> None:
        """Record which gradients are zero, and which not finite, at a step between two checks.

        The masks are ``(num_units,)``. ``blocks`` is the number of blocks of consecutive units.
        """
        self._num_left = max(0, self._num_left - 1)
        if self._streaks is not None:
            idle = is_zero & ~in_unused_blocks(is_zero, blocks) if 1 < blocks < len(is_zero) else is_zero
            self._streaks.watch(idle, is_unseen | is_zero, step)

    def watch_zeros(self) -> None:
        """Record that all suspected units still have a gradient of zero; faster than :meth:`watch`."""
        if self._streaks is not None:
            self._streaks.watch_zeros(is_resting=self._is_resting, with_dead=self._num_left > 0)
        self._num_left = max(0, self._num_left - 1)

    @property
    def are_watched(self) -> bool:
        """Whether there are units to watch at each step, see :meth:`suspected`."""
        return self._streaks is not None and self._streaks.are_watched(
            is_resting=self._is_resting, with_dead=self._num_left > 0
        )

    def suspected(self) -> Indices:
        """Return the units to watch at each step: those that may be dead, and dead ones whose rows move."""
        if self._streaks is None:
            return np.zeros(0, dtype=np.intp)
        return self._streaks.watched(is_resting=self._is_resting, with_dead=self._num_left > 0)

    def _have_turned(self, seen: Look, units: Sequence[int]) -> bool:
        """Return whether rows of dead units have changed direction since the check before.

        Weight decay only scales a row, and the momentum of earlier steps fades: rows that keep turning may have
        gradients between the checks.
        """
        rows = np.array(units, dtype=np.intp)
        directions = directions_of(seen.weights.fetch(rows)) if seen.directions is None else seen.directions[rows]
        precision = max(torch.finfo(original.dtype).eps for original in seen.layer.originals)
        before, self._directions = self._directions, dict(zip(units, directions.tolist(), strict=True))
        return any(abs(now - before.get(unit, now)) > _TURNED * precision for unit, now in self._directions.items())

    @property
    def are_open(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check, or the user was warned of dead units."""
        return self._is_warned or (self._streaks is not None and self._streaks.are_open)

    def skip(self, *, can_tell: bool) -> None:
        """Record a look without idle units while nothing is open; ``can_tell``: whether zeros would be evidence."""
        self._num_checks += can_tell

    def dead(self) -> Dead:
        """Return the units that were dead at the latest check."""
        return Dead() if self._streaks is None else self._streaks.dead(self._spared())

    def _update_warned(self, seen: Look, dead: Dead, step: int) -> DeadRecord | None:
        """Update the record of the units that the user was warned of; return it if a warning is due."""
        warned = self.warned
        if len(dead.units) < max(1.0, self._dead_share * seen.layer.num_units):
            if warned is not None and warned.broken_step is None:
                warned.broken_step = step
            return None
        assert self._streaks is not None
        if warned is None:
            # If gradients up to `floor` count as zero, the nonzero ones of earlier steps were rounding errors too.
            has_died = not seen.floor and self._streaks.was_alive[list(dead.units)].mean() > 0.5
            first_step = max(dead.died_at)
            origin = Origin.COLLAPSE if has_died else Origin.FIRST_LOOK if first_step else Origin.START
            cause = cause_in_rows(seen, np.array(dead.units))
            reason = Reason.ROUNDING_AGAIN if seen.floor else Reason.ZERO_AGAIN
            self.warned = warned = DeadRecord(dead.units, (), cause, origin, first_step, step, reason=reason)
        warned.units, warned.last_step, warned.broken_step = dead.units, step, None
        if len(warned.units) < 2 * len(warned.warned_units):
            return None
        warned.warned_units, warned.num_watched = warned.units, self._streaks.num_watched_of(dead.units)
        warned.stopped = most_common(map(self._stopped.get, warned.units))
        return warned

    def to_state(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {
            "num_checks": self._num_checks,
            "streaks": None if self._streaks is None else self._streaks.to_state(),
            "record": None if self.warned is None else to_plain(self.warned),
        }

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_state` wrote."""
        self._num_checks = index(values["num_checks"])
        self._streaks = None if values["streaks"] is None else ZeroStreaks.from_state(values["streaks"], self._patience)
        self.warned = None if values["record"] is None else from_plain(DeadRecord, values["record"])

    @property
    def num_units(self) -> int | None:
        """The number of units of the layer; None if no gradient has been zero."""
        return None if self._streaks is None else len(self._streaks.since)


def unread_layers(
    looks: Sequence[Look], members: Mapping[str, Sequence[str]], layers: Iterable[Comparable]
) -> set[str]:
    """Return the layers whose outputs may go unread, such as an expert that computes all rows but is not chosen.

    Such a layer belongs to a member of a list of modules. No layer of this member has a gradient, another member with
    layers of the same shapes has one, and the rows of the layers do not show why.

    Args:
        looks: the looks of this check.
        members: by member of a list or dict of modules, the names of its layers.
        layers: all layers; those without a look have gradients.
    """
    silent = {seen.layer.name: seen for seen in looks if not seen.has_gradient}
    if not silent:
        return set()
    shapes = {layer.name: (layer.num_units, layer.fan_in) for layer in layers}

    def kind(member: str) -> object:
        """Return a key that members of one list share if their layers have the same names and shapes."""
        return member.rpartition(".")[0], tuple((name[len(member) :], shapes.get(name)) for name in members[member])

    read = {kind(member) for member, names in members.items() if not silent.keys() >= set(names)}
    unread: set[str] = set()
    for member, names in members.items():
        if silent.keys() >= set(names) and kind(member) in read and not any(map(_shows_why, map(silent.get, names))):
            unread |= set(names)
    return unread


def _shows_why(seen: Look | None) -> bool:
    """Return whether the rows of a layer show why its units have no gradient."""
    if seen is None or seen.idle is None or not seen.idle.any():
        return False
    return cause_in_rows(seen, np.flatnonzero(seen.idle)) in (Cause.LOW_BIAS, Cause.NEGATIVE, Cause.SATURATED)


def cause_in_rows(seen: Look, dead: Indices) -> Cause:
    """Return why units with the indices ``dead``, ``(n,)``, have no gradient, as far as their rows show."""
    layer: Comparable = seen.layer
    if layer.dies_as_a_whole:  # what is computed with its rows is unknown
        return Cause.CUT_OFF
    rows = seen.weights.fetch(dead[:_MAX_READ]).to("cpu", copy=False).double().numpy()
    has_bias = seen.weights.width == layer.fan_in + 1
    weights, bias = (rows[:, :-1], rows[:, -1]) if has_bias else (rows, np.zeros(len(rows)))
    norms = np.linalg.norm(weights, axis=1)

    def is_typical(mask: Mask) -> bool:
        return bool(mask.mean() > 0.5)

    if is_typical((bias < 0) & (-bias > _FAR * norms)):
        return Cause.LOW_BIAS
    if is_typical((weights <= 0).all(axis=1) & (bias <= 0)):
        return Cause.NEGATIVE
    if is_typical((np.abs(bias) > _FAR * norms) | (norms > _STEEP)):
        return Cause.SATURATED
    return Cause.CUT_OFF if len(dead) == layer.num_units else Cause.DEAD
