"""Dead units: units with weights of their own whose gradient stays exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason, UnitGroup, finding_of
from lightning_symmetry.verdicts.gradients import in_unused_blocks
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.plain import from_plain, to_plain
from lightning_symmetry.verdicts.stops import Stopped, most_common
from lightning_symmetry.verdicts.verdict import Verdict

# A ReLU that is closed for a few batches usually opens again.
_DEAD_STEPS = 50
# At most this many dead units are checked for rows that move.
_MAX_FOLLOWED = 16
# Where too few units of a layer may be dead for a warning, they are watched for _RUN steps, then left alone for three
# times as many.
_RUN = 2 * _DEAD_STEPS
# The patience with a unit stops growing after it had a gradient at this many watched steps.
_MAX_REFUTED = 7
# Weight decay keeps the direction of a row, up to this many times the precision of its dtype.
_TURNED = 32.0
# The cause is read from at most this many rows.
_MAX_READ = 64
# A bias this many times as large as the norm of the weights decides alone, for inputs of a common size.
_FAR = 3.0
# Rows of this norm drive a tanh to where its slope vanishes in float32: 1 - tanh(9)^2 is 6e-8.
_STEEP = 9.0
_NEVER = -1


class Dead(NamedTuple):
    """The dead units of a layer.

    Attributes:
        units: sorted indices.
        died_at: for each, the step of the check since which its gradient has been zero.
        woke_at: for units that were dead and train again, the step of the check that found them to train.
        num_idle: number of units with a gradient of zero at ``patience`` checks in a row, over however few steps.
        num_watched: number of steps in a row at which all of their gradients were zero.
    """

    units: tuple[int, ...] = ()
    died_at: tuple[int, ...] = ()
    woke_at: Mapping[int, int] = {}
    num_idle: int = 0
    num_watched: int = 0


@dataclass
class ZeroStreaks:
    """For how long the gradients of the units of a layer have been exactly zero; arrays ``(num_units,)``.

    Attributes:
        since: step of the first of the checks in a row with a gradient of zero; -1 if the latest one had a gradient.
        num_checks: number of these checks before which the weights of the model had moved.
        num_watched: number of steps in a row, checks included, with a gradient of zero.
        num_refuted: number of watched steps with a gradient, up to seven.
        woke_at: step of the check at which a dead unit had a gradient again; else -1.
        is_dead: whether the unit was dead at the latest check.
        was_alive: whether the unit has ever had a gradient.
    """

    since: npt.NDArray[np.int64]
    num_checks: npt.NDArray[np.int64]
    num_watched: npt.NDArray[np.int64]
    num_refuted: npt.NDArray[np.int64]
    woke_at: npt.NDArray[np.int64]
    is_dead: Mask
    was_alive: Mask
    # The answers of `suspected`, which is asked several times at each check: with units that were alive, and without.
    _suspected: dict[tuple[int, bool], Mask] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, num_units: int, *, was_alive: bool) -> ZeroStreaks:
        """Return streaks of length zero for a layer."""
        never = np.full(num_units, _NEVER)
        zeros = np.zeros(num_units, dtype=np.int64)
        is_dead, is_alive = zeros.astype(np.bool_), np.full(num_units, was_alive)
        return cls(never, zeros, zeros.copy(), zeros.copy(), never.copy(), is_dead, is_alive)

    def __reduce__(self) -> tuple[Any, ...]:
        return ZeroStreaks.from_state, (self.to_state(),)  # short, however many units there are

    @property
    def are_open(self) -> bool:
        """Whether any unit had a gradient of zero at the latest check, or has never had another one."""
        return self.are_idle or not bool(self.was_alive.all())

    @property
    def are_idle(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check."""
        return bool(np.count_nonzero(self.num_checks))

    def update(
        self, idle: Mask, is_unseen: Mask, step: int, patience: int, *, is_fresh: bool, was_resting: bool = False
    ) -> None:
        """Record which gradients are zero at a check.

        Args:
            idle: which units have a gradient of exactly zero.
            is_unseen: which gradients are unknown; ignored for idle units.
            step: completed optimizer steps.
            patience: number of checks in a row that makes a unit dead.
            is_fresh: whether the weights have moved since the check before; if not, the same evidence counts once.
            was_resting: whether only units that have never had a gradient were watched since the check before.
        """
        awake = ~(idle | is_unseen)
        # The steps before were watched for these units only.
        self.num_watched *= self.is_dead | self.suspected(patience, is_resting=was_resting)
        self._end(awake, step)
        self.was_alive |= awake
        self.num_checks += idle if is_fresh else idle & (self.num_checks == 0)
        self.num_watched += idle
        np.copyto(self.since, step, where=idle & (self.since == _NEVER))
        may_have_died = idle & (self.num_watched > _DEAD_STEPS)
        if np.count_nonzero(may_have_died):
            self.is_dead |= may_have_died & (self.num_checks >= patience)

    def watch(self, idle: Mask, is_unseen: Mask, step: int) -> None:
        """Record the gradients at a step between two checks; the arguments are as in :meth:`update`."""
        has_streak = self.since != _NEVER
        self.num_watched += idle & has_streak
        awake = has_streak & ~(idle | is_unseen)
        self.num_refuted += awake & (self.num_refuted < _MAX_REFUTED)
        self.was_alive |= awake
        self._end(awake, step)

    def _end(self, awake: Mask, step: int) -> None:
        """End the streaks of units that have a gradient."""
        self._suspected.clear()
        is_silent = ~awake
        if np.count_nonzero(self.is_dead):
            self.woke_at[awake & self.is_dead] = step
            self.is_dead &= is_silent
        self.num_checks *= is_silent
        self.num_watched *= is_silent
        np.copyto(self.since, _NEVER, where=awake)

    def suspected(self, patience: int, *, is_resting: bool = False) -> Mask:
        """Return which units may be dead; ``is_resting``: only those that have never had a gradient.

        A unit that has had a gradient must have none at ``patience`` checks in a row, plus as many for each watched
        step at which it had one: behind a ReLU units come and go.
        """
        known = self._suspected.get((patience, is_resting))
        if known is None:
            known = (self.since != _NEVER) & ~self.is_dead
            if is_resting:
                known &= ~self.was_alive
            else:
                known &= ~self.was_alive | (self.num_checks >= patience * (1 + self.num_refuted))
            self._suspected[patience, is_resting] = known
        return known

    def restart(self, units: Sequence[int]) -> None:
        """Restart the streaks of units whose gradient was zero for a reason that is gone."""
        self._suspected.clear()
        several = list(units)
        self.since[several], self.num_checks[several], self.num_watched[several] = _NEVER, 0, 0
        self.is_dead[several], self.was_alive[several] = False, False

    def dead(self, patience: int, spared: Sequence[int] = ()) -> Dead:
        """Return the units that were dead at the latest check, without those in ``spared``, which are idle."""
        counts = self.num_checks >= patience
        if spared:
            counts[list(spared)] = False
        num_idle = int(np.count_nonzero(counts))
        has_woken = self.woke_at != _NEVER
        if not np.count_nonzero(self.is_dead | has_woken):
            return Dead(num_idle=num_idle)
        is_dead = self.is_dead.copy()
        if spared:
            is_dead[list(spared)] = False
        [units], [awake] = is_dead.nonzero(), (has_woken & ~self.is_dead).nonzero()
        woke_at = dict(zip(awake.tolist(), self.woke_at[awake].tolist(), strict=True))
        num_watched = int(self.num_watched[units].min()) if len(units) else 0
        return Dead(tuple(units.tolist()), tuple(self.since[units].tolist()), woke_at, num_idle, num_watched)

    def to_state(self) -> dict[str, Any]:
        """Return plain numbers and lists, without the units that have never had a gradient of zero."""
        units = np.flatnonzero((self.since != _NEVER) | (self.woke_at != _NEVER) | (self.num_refuted > 0))
        return {
            "num_units": len(self.since),
            "units": units.tolist(),
            "never_alive": np.flatnonzero(~self.was_alive).tolist(),
            **{name: getattr(self, name)[units].tolist() for name in sorted(_COLUMNS)},
        }

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> ZeroStreaks:
        """Return the streaks that :meth:`to_state` wrote."""
        streaks = cls.of(index(values["num_units"]), was_alive=True)
        for name in values.keys() & _COLUMNS:  # version 0.2 did not watch steps
            getattr(streaks, name)[values["units"]] = list(map(index, values[name]))
        streaks.was_alive[values["never_alive"]] = False
        return streaks


_COLUMNS = {"since", "num_checks", "num_watched", "num_refuted", "woke_at", "is_dead"}


@dataclass
class DeadRecord:
    """The dead units of a layer that the user was warned of; attributes not listed are as in :class:`Finding`.

    Attributes:
        units: the units that were dead at the latest check.
        warned_units: the units in the warning.
        first_step: step of the check since which all of them have been dead.
        last_step: step of the latest check.
        broken_step: step of the check at which too few of them were dead; None while enough are.
        stopped: where the gradients of most of them stop; None if no step was traced.
    """

    units: tuple[int, ...]
    warned_units: tuple[int, ...]
    cause: Cause
    origin: Origin
    first_step: int
    last_step: int
    num_watched: int = 0
    reason: Reason = Reason.ZERO_AGAIN
    broken_step: int | None = None
    stopped: Stopped | None = None

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
        self._directions: dict[int, float] = {}  # of rows of some dead units at the latest check
        self._num_left = 0  # number of steps for which dead units are watched again
        self._is_resting = False  # whether only units that have never had a gradient are watched
        self._changes_at = 0  # step of the check at which `_is_resting` changes, if few units may be dead
        self._stopped: Mapping[int, Stopped] = {}  # by unit, where its gradient stops
        self._idle: list[int] = []  # those of these units whose gradient stops for no reason of their own
        self.warned: DeadRecord | None = None

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were dead at the latest check."""
        return self._dead().units

    @property
    def group(self) -> UnitGroup | None:
        """The dead units, if they are enough for a warning."""
        return self.warned.to_group() if self.warned is not None and self.warned.broken_step is None else None

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
        if self._streaks is None:
            return []
        return [unit for unit in self._idle if unit in self._stopped and self._streaks.is_dead[unit]]

    def trace(self, stopped: Mapping[int, Stopped]) -> None:
        """Record where the gradients of units stop; start over with units that are no longer idle.

        The caller removes units from ``stopped`` once they have a gradient again.
        """
        active = [unit for unit in self._spared() if not (unit in stopped and stopped[unit].stop.is_idle)]
        if active and self._streaks is not None:
            self._streaks.restart(active)
        self._stopped = stopped
        self._idle = [unit for unit, each in stopped.items() if each.stop.is_idle]

    @property
    def are_suspect(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check."""
        return self._streaks is not None and self._streaks.are_idle

    def is_about_to_conclude(self) -> bool:
        """Return whether the next check may warn of dead units that were not traced."""
        if self._streaks is None:
            return False
        soon = self._streaks.num_watched >= _DEAD_STEPS
        soon &= self._streaks.suspected(self._patience) & (self._streaks.num_checks + 1 >= self._patience)
        if not np.count_nonzero(soon):
            return False
        is_enough = (soon | self._streaks.is_dead).mean() >= self._dead_share
        return bool(is_enough) and not set(np.flatnonzero(soon).tolist()) <= self._stopped.keys()

    def update(self, seen: Look, step: int, *, is_fresh: bool, is_unused: bool) -> tuple[Dead, DeadRecord | None]:
        """Record a look at the layer.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether the weights have moved since the check before.
            is_unused: whether the module of the layer takes no part in this step.

        Returns:
            The dead units, and what to warn of if it is news.
        """
        if seen.idle is None or seen.unseen is None or is_unused:  # the gradients are unknown
            return self._dead(), None
        self._num_checks += 1
        if not np.count_nonzero(seen.idle) and (self._streaks is None or not self._streaks.are_open):
            return self._dead(), None
        idle = seen.idle
        if 1 < seen.layer.blocks < seen.layer.num_units:  # blocks of one unit are filters, which are always used
            idle = idle & ~in_unused_blocks(idle, seen.layer.blocks)
        if self._streaks is None:
            self._streaks = ZeroStreaks.of(len(idle), was_alive=self._num_checks > 1)
        self._streaks.update(
            idle, seen.unseen | seen.idle, step, self._patience, is_fresh=is_fresh, was_resting=self._is_resting
        )
        dead = self._dead()
        self._take_turns(step)
        news = self._conclude(seen, dead, step)
        if self.group is not None and self._have_turned(seen, dead.units[:_MAX_FOLLOWED]):
            self._num_left = _DEAD_STEPS
        return dead, news

    def _take_turns(self, step: int) -> None:
        """Decide whether units that have had a gradient are watched until the next check."""
        assert self._streaks is not None
        may_be_dead = self._streaks.suspected(self._patience)
        is_at_stake = np.count_nonzero(may_be_dead | self._streaks.is_dead) / len(may_be_dead) >= self._dead_share
        if is_at_stake or not np.count_nonzero(may_be_dead & self._streaks.was_alive):
            self._is_resting, self._changes_at = False, step + _RUN
        elif step >= self._changes_at:
            self._is_resting = not self._is_resting
            self._changes_at = step + (3 * _RUN if self._is_resting else _RUN)

    def watch(self, is_zero: Mask, is_unseen: Mask, blocks: int, step: int) -> None:
        """Record the gradients at a step between two checks.

        Args:
            is_zero: which units have a gradient of exactly zero.
            is_unseen: which gradients are not finite.
            blocks: number of blocks of consecutive units.
            step: completed optimizer steps.
        """
        self._num_left = max(0, self._num_left - 1)
        if self._streaks is not None:
            idle = is_zero & ~in_unused_blocks(is_zero, blocks) if 1 < blocks < len(is_zero) else is_zero
            self._streaks.watch(idle, is_unseen | is_zero, step)

    def watch_zeros(self) -> None:
        """Record that all suspected units still have a gradient of zero; faster than :meth:`watch`."""
        if self._streaks is not None:
            self._streaks.num_watched[self.suspected()] += 1
        self._num_left = max(0, self._num_left - 1)

    def suspected(self) -> Indices:
        """Return the units to watch at each step: those that may be dead, and dead ones whose rows move."""
        if self._streaks is None:
            return np.zeros(0, dtype=np.intp)
        is_suspected = self._streaks.suspected(self._patience, is_resting=self._is_resting)
        return (is_suspected | self._streaks.is_dead if self._num_left else is_suspected).nonzero()[0]

    def _have_turned(self, seen: Look, units: Sequence[int]) -> bool:
        """Return whether rows of dead units have changed direction since the check before.

        Weight decay only scales a row, and the momentum of earlier steps fades: rows that keep turning may have
        gradients between the checks.
        """
        rows = seen.weights.fetch(np.array(units)).to("cpu", copy=False)
        tolerance = _TURNED * torch.finfo(rows.dtype).eps
        numbers = rows.double().numpy()
        directions = (
            numbers @ _vector(numbers.shape[1]) / np.maximum(np.linalg.norm(numbers, axis=1), np.finfo(np.float64).tiny)
        )
        before, self._directions = self._directions, dict(zip(units, directions.tolist(), strict=True))
        return any(abs(now - before.get(unit, now)) > tolerance for unit, now in self._directions.items())

    @property
    def are_open(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check, or the user was warned of dead units."""
        is_warned = self.warned is not None and self.warned.broken_step is None
        return is_warned or (self._streaks is not None and self._streaks.are_open)

    def skip(self, *, can_tell: bool) -> None:
        """Record a look without idle units, if nothing is open; ``can_tell``: whether zero gradients would count."""
        self._num_checks += can_tell

    def _dead(self) -> Dead:
        return Dead() if self._streaks is None else self._streaks.dead(self._patience, self._spared())

    def _conclude(self, seen: Look, dead: Dead, step: int) -> DeadRecord | None:
        """Update the warned units; return them if they are news."""
        warned = self.warned
        if len(dead.units) < max(1.0, self._dead_share * seen.layer.num_units):
            if warned is not None and warned.broken_step is None:
                warned.broken_step = step
            return None
        if warned is None:
            assert self._streaks is not None
            # Gradients seen before the model was known to pass back rounding errors only were rounding errors too.
            has_died = not seen.floor and self._streaks.was_alive[list(dead.units)].mean() > 0.5
            first_step = max(dead.died_at)
            origin = Origin.COLLAPSE if has_died else Origin.FIRST_LOOK if first_step else Origin.START
            cause = cause_in_rows(seen, np.array(dead.units))
            reason = Reason.ROUNDING_AGAIN if seen.floor else Reason.ZERO_AGAIN
            self.warned = warned = DeadRecord(dead.units, (), cause, origin, first_step, step, reason=reason)
        warned.units, warned.last_step, warned.broken_step = dead.units, step, None
        if len(warned.units) < 2 * len(warned.warned_units):
            return None
        warned.warned_units, warned.num_watched = warned.units, dead.num_watched
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
        self._streaks = None if values["streaks"] is None else ZeroStreaks.from_state(values["streaks"])
        self.warned = None if values["record"] is None else from_plain(DeadRecord, values["record"])

    @property
    def num_units(self) -> int | None:
        """The number of units of the layer; None if no gradient has been zero."""
        return None if self._streaks is None else len(self._streaks.since)


@cache
def _vector(width: int) -> Floats:
    """Return a random vector that is the same in every process."""
    return np.random.default_rng(0).standard_normal(width)


def unread_layers(
    looks: Sequence[Look], members: Mapping[str, Sequence[str]], layers: Iterable[Comparable]
) -> set[str]:
    """Return the layers whose outputs may go unread, such as an expert that computes all rows but is not chosen.

    No layer of such a member of a list of modules has a gradient, while another member with layers of the same shapes
    has one, and the rows of its layers do not show why.

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
    """Return why units are dead, as far as their rows show."""
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
