"""Dead units: units with weights of their own whose gradient is exactly zero, check after check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_symmetry.matrices.numerics import Floats, Indices, Mask
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin, Reason, UnitGroup
from lightning_symmetry.verdicts.gradients import in_unused_blocks
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.records import stopped_from_state, stopped_to_state, units_from_state
from lightning_symmetry.verdicts.stops import Stopped, most_common
from lightning_symmetry.verdicts.verdict import Verdict

# A ReLU that is shut for a few batches opens again as a rule.
_DEAD_STEPS = 50
# Of so many dead units it is seen whether their rows move.
_MAX_FOLLOWED = 16
# Where so few units of a layer may be dead that nobody is warned of them, they are watched for so many steps, and then
# left in peace for three times as many.
_RUN = 2 * _DEAD_STEPS
# A unit that was watched and had a gradient so many times needs no more patience than that.
_MAX_REFUTED = 7
# What decay leaves of a row points in the same direction, but for rounding of so many times the precision of its dtype.
_TURNED = 32.0
# As many rows as this tell why units are dead.
_MAX_READ = 64
# A bias that is so many times as large as the norm of the weights decides alone, on inputs of a common size.
_FAR = 3.0
# Rows of this norm drive a tanh to where float32 knows no slope: 1 - tanh(9)^2 is 6e-8.
_STEEP = 9.0
_NEVER = -1


class Dead(NamedTuple):
    """The dead units of a layer.

    Attributes:
        units: sorted indices.
        died_at: of each, the step of the check since which its gradient was zero whenever it was seen.
        woke_at: of units that were dead once and train again, the step of the check that saw it.
        num_idle: how many units had a gradient of zero at ``patience`` checks in a row, also over less than 50 steps.
        num_watched: the smallest number of steps in a row at which the gradient of one of them was seen to be zero.
    """

    units: tuple[int, ...] = ()
    died_at: tuple[int, ...] = ()
    woke_at: Mapping[int, int] = {}
    num_idle: int = 0
    num_watched: int = 0


@dataclass
class ZeroStreaks:
    """Since when the gradients of the units of a layer have been exactly zero.

    Attributes:
        since: of each unit the step of the first of the checks in a row at which its gradient was zero; -1 if it was
            not zero at the latest one.
        num_checks: at how many of these checks the weights of the model had moved since the one before.
        num_watched: at how many steps of the optimizer in a row the gradient was seen to be zero, checks included.
        num_refuted: how often a gradient was seen at a watched step, up to seven times.
        is_dead: whether a unit was dead at the latest check.
        woke_at: of each unit that was dead, the step of the check at which its gradient was not zero any more; else -1.
        was_alive: whether the gradient of a unit was ever seen not to be zero.
    """

    since: npt.NDArray[np.int64]
    num_checks: npt.NDArray[np.int64]
    num_watched: npt.NDArray[np.int64]
    num_refuted: npt.NDArray[np.int64]
    woke_at: npt.NDArray[np.int64]
    is_dead: Mask
    was_alive: Mask

    @classmethod
    def of(cls, num_units: int, *, was_alive: bool) -> ZeroStreaks:
        """The streaks of a layer none of whose gradients has been zero so far."""
        never = np.full(num_units, _NEVER)
        zeros = np.zeros(num_units, dtype=np.int64)
        is_dead, is_alive = zeros.astype(np.bool_), np.full(num_units, was_alive)
        return cls(never, zeros, zeros.copy(), zeros.copy(), never.copy(), is_dead, is_alive)

    def __reduce__(self) -> tuple[Any, ...]:
        return ZeroStreaks.from_state, (self.to_state(),)  # which is short, however many units there are

    @property
    def are_open(self) -> bool:
        """Whether the gradient of any unit was zero at the latest check, or whether that of some was never seen."""
        return bool(self.num_checks.any()) or not self.was_alive.all()

    def take_in(
        self, idle: Mask, is_unseen: Mask, step: int, patience: int, *, is_fresh: bool, was_resting: bool = False
    ) -> None:
        """Note which gradients are zero at this check.

        Args:
            idle: which units have a gradient of exactly zero.
            is_unseen: which units this check tells nothing about; of idle ones it makes no difference.
            step: completed optimizer steps.
            patience: the number of checks in a row that makes a unit dead.
            is_fresh: whether the weights have moved since the check before; if not, the same evidence counts once.
            was_resting: whether of the units that have had a gradient none was watched since the check before.
        """
        awake = ~(idle | is_unseen)
        # Of other units the steps before were not watched.
        self.num_watched *= self.is_dead | self.suspected(patience, is_resting=was_resting)
        self._end(awake, step)
        self.was_alive |= awake
        self.num_checks += idle & (is_fresh | (self.num_checks == 0))
        self.num_watched += idle
        np.copyto(self.since, step, where=idle & (self.since == _NEVER))
        is_settled = self.num_checks >= patience
        if is_settled.any():
            self.is_dead |= idle & is_settled & (self.num_watched > _DEAD_STEPS)

    def watch(self, idle: Mask, is_unseen: Mask, step: int) -> None:
        """Note what is seen between two checks of units whose gradient was zero at the last one.

        Args:
            idle: which units have a gradient of exactly zero.
            is_unseen: which units this step tells nothing about; of idle ones it makes no difference.
            step: completed optimizer steps.
        """
        has_streak = self.since != _NEVER
        self.num_watched += idle & has_streak
        awake = has_streak & ~(idle | is_unseen)
        self.num_refuted += awake & (self.num_refuted < _MAX_REFUTED)
        self.was_alive |= awake
        self._end(awake, step)

    def _end(self, awake: Mask, step: int) -> None:
        """End the streaks of units that have a gradient."""
        if self.is_dead.any():
            self.woke_at[awake & self.is_dead] = step
            self.is_dead &= ~awake
        self.num_checks *= ~awake
        self.num_watched *= ~awake
        np.copyto(self.since, _NEVER, where=awake)

    def suspected(self, patience: int, *, is_resting: bool = False) -> Mask:
        """Return the units that may be dead, as far as is known.

        Of a unit that has had a gradient, ``patience`` checks in a row at which it had none are needed, and as many
        more for each time that it was watched and had one: behind a ReLU units come and go.

        Args:
            patience: the number of checks.
            is_resting: whether only units count that have never had a gradient.
        """
        is_open: Mask = (self.since != _NEVER) & ~self.is_dead
        if is_resting:
            return is_open & ~self.was_alive
        return is_open & (~self.was_alive | (self.num_checks >= patience * (1 + self.num_refuted)))

    def restart(self, units: Sequence[int]) -> None:
        """Begin the streaks of some units anew: what was seen so far was due to something that is over."""
        several = list(units)
        self.since[several], self.num_checks[several], self.num_watched[several] = _NEVER, 0, 0
        self.is_dead[several], self.was_alive[several] = False, False

    def dead(self, patience: int, spared: Sequence[int] = ()) -> Dead:
        """The units that were dead at the latest check.

        Args:
            patience: at how many checks in a row the gradient of an idle unit was zero.
            spared: units that do not count: their zero gradients are not their own doing.
        """
        counts = self.num_checks >= patience
        counts[list(spared)] = False
        num_idle = np.count_nonzero(counts)
        has_woken = self.woke_at.max(initial=_NEVER) != _NEVER
        if not num_idle and not has_woken:
            return Dead()
        is_dead = self.is_dead.copy()
        is_dead[list(spared)] = False
        units = np.flatnonzero(is_dead)
        awake = np.flatnonzero((self.woke_at != _NEVER) & ~self.is_dead)
        woke_at = dict(zip(awake.tolist(), self.woke_at[awake].tolist(), strict=True))
        num_watched = int(self.num_watched[units].min(initial=np.iinfo(np.int64).max)) if len(units) else 0
        return Dead(tuple(units.tolist()), tuple(self.since[units].tolist()), woke_at, int(num_idle), num_watched)

    def to_state(self) -> dict[str, Any]:
        """Plain numbers and lists; of most units there is nothing to tell."""
        told = np.flatnonzero((self.since != _NEVER) | (self.woke_at != _NEVER) | (self.num_refuted > 0))
        return {
            "num_units": len(self.since),
            "units": told.tolist(),
            "never_alive": np.flatnonzero(~self.was_alive).tolist(),
            **{name: getattr(self, name)[told].tolist() for name in sorted(_COLUMNS)},
        }

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> ZeroStreaks:
        """The streaks that :meth:`to_state` wrote."""
        streaks = cls.of(index(values["num_units"]), was_alive=True)
        for name in values.keys() & _COLUMNS:  # version 0.2 did not watch steps
            getattr(streaks, name)[values["units"]] = list(map(index, values[name]))
        streaks.was_alive[values["never_alive"]] = False
        return streaks


_COLUMNS = {"since", "num_checks", "num_watched", "num_refuted", "woke_at", "is_dead"}


@dataclass
class DeadUnits:
    """The dead units of a layer of which the user was warned.

    Attributes:
        units: the units that were dead at the latest check.
        warned_units: the units that the user was warned of.
        cause: why they are dead, as far as their rows told when they were warned of.
        origin: whether they have trained before.
        first_step: optimizer step of the check since which all of them have been dead.
        last_step: optimizer step of the latest check.
        num_watched: at how many steps in a row their gradients had been zero when the user was warned of them.
        reason: whether their gradients are exactly zero, or zero but for rounding.
        stopped: where the gradients of most of them stop; None if no step was traced.
        broken_step: optimizer step of the check at which too few of them were dead; None while they are.
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
        """Return what the user is told of the units."""
        return Finding(
            layer,
            self.warned_units,
            Verdict.DEAD,
            self.cause,
            None,
            self.first_step,
            self.last_step,
            self.broken_step,
            self.origin,
            (),
            self.reason,
            (),
            self.num_watched,
            *(self.stopped or ()),
        )

    def to_group(self) -> UnitGroup:
        """Return what the report says of the units."""
        return UnitGroup(
            self.units,
            Verdict.DEAD,
            self.cause,
            None,
            self.first_step,
            self.origin,
            self.reason,
            (),
            self.num_watched,
            *(self.stopped or ()),
        )

    def to_state(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        lists = {"units": list(self.units), "warned_units": list(self.warned_units)}
        texts = {name: str(getattr(self, name)) for name in ("cause", "origin", "reason")}
        return {**vars(self), **lists, **texts, "stopped": stopped_to_state(self.stopped)}

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> DeadUnits:
        """Read what :meth:`to_state` wrote, also in version 0.2, which wrote more."""
        return cls(
            units=units_from_state(values["units"]),
            warned_units=units_from_state(values["warned_units"]),
            cause=Cause(values["cause"]),
            origin=Origin(values["origin"]),
            first_step=index(values["first_step"]),
            last_step=index(values["last_step"]),
            num_watched=index(values.get("num_watched", 0)),
            reason=Reason(values.get("reason", Reason.ZERO_AGAIN)),
            broken_step=None if values["broken_step"] is None else index(values["broken_step"]),
            stopped=stopped_from_state(values.get("stopped")),
        )


class Deaths:
    """Carries the dead units of one layer from check to check, and the finding about them.

    Args:
        patience: checks in a row at which the gradient of a unit must be zero.
        dead_share: the share of dead units of which the user is warned.

    Attributes:
        warned: the dead units that the user was warned of; None if there was nothing to warn of so far.
    """

    def __init__(self, patience: int, dead_share: float) -> None:
        self._patience, self._dead_share = patience, dead_share
        self._streaks: ZeroStreaks | None = None
        self._num_checks = 0
        self._directions: dict[int, float] = {}  # of some dead units, that of their rows at the latest check
        self._num_left = 0  # steps to watch dead units again
        self._is_resting = False  # whether no units are watched that have had a gradient
        self._changes_at = 0  # the step of the check at which that changes, if few units are concerned
        self._stopped: Mapping[int, Stopped] = {}  # by unit, where its gradient was found to stop
        self.warned: DeadUnits | None = None

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were dead at the latest check."""
        return self._dead().units

    @property
    def group(self) -> UnitGroup | None:
        """The dead units, if they are so many that the user is warned of them."""
        return self.warned.to_group() if self.warned is not None and self.warned.broken_step is None else None

    @property
    def idle(self) -> list[UnitGroup]:
        """The units that would be dead, if their zero gradients were their own doing; as groups of one reason each."""
        groups: dict[Stopped, list[int]] = {}
        for unit in self._spared():
            groups.setdefault(self._stopped[unit], []).append(unit)
        return [
            UnitGroup(tuple(units), Verdict.IDLE, Cause.DEAD, reason=Reason.ZERO_AGAIN, stop=stopped.stop)
            for stopped, units in groups.items()
        ]

    def _spared(self) -> list[int]:
        if self._streaks is None or not self._stopped:
            return []
        is_dead = self._streaks.is_dead
        return [unit for unit, stopped in self._stopped.items() if is_dead[unit] and stopped.stop.is_idle]

    def trace(self, stopped: Mapping[int, Stopped]) -> None:
        """Note where the gradients of units were found to stop; units that are idle no more are watched anew.

        Args:
            stopped: by unit; it is changed when units have a gradient again.
        """
        active = [unit for unit in self._spared() if not (unit in stopped and stopped[unit].stop.is_idle)]
        if active and self._streaks is not None:
            self._streaks.restart(active)
        self._stopped = stopped

    @property
    def are_suspect(self) -> bool:
        """Whether any unit may be dead, or is, for whatever reason."""
        return self._streaks is not None and bool((self._streaks.num_checks > 0).any())

    def is_about_to_conclude(self) -> bool:
        """Return whether the next check may warn of dead units some of which were not traced."""
        if self._streaks is None:
            return False
        soon = self._streaks.suspected(self._patience) & (self._streaks.num_checks + 1 >= self._patience)
        soon &= self._streaks.num_watched + 1 > _DEAD_STEPS
        is_told = (soon | self._streaks.is_dead).mean() >= self._dead_share
        return bool(soon.any()) and bool(is_told) and not set(np.flatnonzero(soon).tolist()) <= self._stopped.keys()

    def update(self, seen: Look, step: int, *, is_fresh: bool, is_unused: bool) -> tuple[Dead, DeadUnits | None]:
        """Take in a look at the layer.

        Args:
            seen: the look.
            step: completed optimizer steps.
            is_fresh: whether the weights have moved since the check before.
            is_unused: whether the module of the layer takes no part in the training at this check.

        Returns:
            The dead units, and what is to be told of them if the user does not know it yet.
        """
        if seen.idle is None or seen.unseen is None or is_unused:  # nothing is known of the gradients
            return self._dead(), None
        self._num_checks += 1
        has_idle = seen.idle.any()
        if not has_idle and (self._streaks is None or not self._streaks.are_open):
            return self._dead(), None
        idle = seen.idle
        if seen.layer.blocks < seen.layer.num_units:  # blocks of one unit each are filters, which are not left unused
            idle = idle & ~in_unused_blocks(idle, seen.layer.blocks)
        if self._streaks is None:
            self._streaks = ZeroStreaks.of(len(idle), was_alive=self._num_checks > 1)
        self._streaks.take_in(
            idle, seen.unseen | seen.idle, step, self._patience, is_fresh=is_fresh, was_resting=self._is_resting
        )
        dead = self._dead()
        self._take_turns(step)
        news = self._conclude(seen, dead, step)
        if self.group is not None and self._have_turned(seen, dead.units[:_MAX_FOLLOWED]):
            self._num_left = _DEAD_STEPS
        return dead, news

    def _take_turns(self, step: int) -> None:
        """Decide at a check whether units that have had a gradient are watched until the next one."""
        assert self._streaks is not None
        may_be_dead = self._streaks.suspected(self._patience)
        is_at_stake = (may_be_dead | self._streaks.is_dead).mean() >= self._dead_share
        if is_at_stake or not (may_be_dead & self._streaks.was_alive).any():
            self._is_resting, self._changes_at = False, step + _RUN
        elif step >= self._changes_at:
            self._is_resting = not self._is_resting
            self._changes_at = step + (3 * _RUN if self._is_resting else _RUN)

    def watch(self, is_zero: Mask, is_unseen: Mask, blocks: int, step: int) -> None:
        """Note what is seen between two checks.

        Args:
            is_zero: which units have a gradient of exactly zero.
            is_unseen: which units have a gradient that is not finite.
            blocks: number of blocks of consecutive units.
            step: completed optimizer steps.
        """
        self._num_left = max(0, self._num_left - 1)
        if self._streaks is not None:
            idle = is_zero & ~in_unused_blocks(is_zero, blocks) if blocks < len(is_zero) else is_zero
            self._streaks.watch(idle, is_unseen | is_zero, step)

    def watch_zeros(self) -> None:
        """Note between two checks that all suspected units still have a gradient of zero: as :meth:`watch`, faster."""
        if self._streaks is not None:
            self._streaks.num_watched[self.suspected()] += 1
        self._num_left = max(0, self._num_left - 1)

    def suspected(self) -> Indices:
        """Return the units that are to be watched at each step: those that may be dead, and dead ones that move."""
        if self._streaks is None:
            return np.zeros(0, dtype=np.intp)
        is_suspected = self._streaks.suspected(self._patience, is_resting=self._is_resting)
        return np.flatnonzero(is_suspected | self._streaks.is_dead if self._num_left else is_suspected)

    def _have_turned(self, seen: Look, units: Sequence[int]) -> bool:
        """Return whether rows of dead units point elsewhere than at the check before.

        Without a gradient decay only scales a row. What the momentum of earlier steps does ends soon; whatever goes on
        for longer may be gradients between the checks.
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

    def pass_over(self, *, can_tell: bool) -> None:
        """As :meth:`update` with a look at which no unit is idle, if nothing is open.

        Args:
            can_tell: whether zero gradients would tell anything.
        """
        self._num_checks += can_tell

    def _dead(self) -> Dead:
        return Dead() if self._streaks is None else self._streaks.dead(self._patience, self._spared())

    def _conclude(self, seen: Look, dead: Dead, step: int) -> DeadUnits | None:
        """Bring what the user is warned of up to date; returned if there is news to tell."""
        warned = self.warned
        if len(dead.units) < max(1.0, self._dead_share * seen.layer.num_units):
            if warned is not None and warned.broken_step is None:
                warned.broken_step = step
            return None
        if warned is None:
            assert self._streaks is not None
            # What was seen before it was known that there is nothing but rounding was rounding, too.
            has_died = not seen.floor and self._streaks.was_alive[list(dead.units)].mean() > 0.5
            first_step = max(dead.died_at)  # since then all of them are dead
            origin = Origin.COLLAPSE if has_died else Origin.FIRST_LOOK if first_step else Origin.START
            cause = cause_of_death(seen, np.array(dead.units))
            reason = Reason.ROUNDING_AGAIN if seen.floor else Reason.ZERO_AGAIN
            self.warned = warned = DeadUnits(dead.units, (), cause, origin, first_step, step, reason=reason)
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
            "record": None if self.warned is None else self.warned.to_state(),
        }

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Take over what :meth:`to_state` wrote."""
        self._num_checks = index(values["num_checks"])
        self._streaks = None if values["streaks"] is None else ZeroStreaks.from_state(values["streaks"])
        self.warned = None if values["record"] is None else DeadUnits.from_state(values["record"])

    @property
    def num_units(self) -> int | None:
        """The number of units of the layer; None if no gradient was zero so far."""
        return None if self._streaks is None else len(self._streaks.since)


@cache
def _vector(width: int) -> Floats:
    """Return a random vector of so many numbers, always the same."""
    return np.random.default_rng(0).standard_normal(width)


def unread_layers(
    looks: Sequence[Look], members: Mapping[str, Sequence[str]], layers: Iterable[Comparable]
) -> set[str]:
    """Return the layers whose outputs may go unread, as those of experts that compute all rows and that no row chooses.

    No layer of such a member of a list of modules has a gradient other than zero, while another member with layers of
    the same shapes does have one, and nothing in the rows of its layers tells why.

    Args:
        looks: what the check saw.
        members: by member of a list or dict of modules, the names of its layers.
        layers: all layers; those without a look have gradients.
    """
    silent = {seen.layer.name: seen for seen in looks if not seen.has_gradient}
    if not silent:
        return set()
    shapes = {layer.name: (layer.num_units, layer.fan_in) for layer in layers}

    def kind(member: str) -> object:
        """The same for members of one list whose layers have the same names and shapes."""
        return member.rpartition(".")[0], tuple((name[len(member) :], shapes.get(name)) for name in members[member])

    read = {kind(member) for member, names in members.items() if not silent.keys() >= set(names)}
    unread: set[str] = set()
    for member, names in members.items():
        if silent.keys() >= set(names) and kind(member) in read and not any(map(_tells_why, map(silent.get, names))):
            unread |= set(names)
    return unread


def _tells_why(seen: Look | None) -> bool:
    """Return whether the rows of a layer tell why its units have no gradient."""
    if seen is None or seen.idle is None or not seen.idle.any():
        return False
    return cause_of_death(seen, np.flatnonzero(seen.idle)) in (Cause.LOW_BIAS, Cause.NEGATIVE, Cause.SATURATED)


def cause_of_death(seen: Look, dead: Indices) -> Cause:
    """Why units are dead, as far as their rows tell.

    Args:
        seen: a look at the layer.
        dead: indices of the dead units.
    """
    layer: Comparable = seen.layer
    if layer.dies_as_a_whole:  # nobody knows what is computed with its rows
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
