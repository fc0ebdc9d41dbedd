"""For how long the gradients of units have been exactly zero, counted for many layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_symmetry.matrices.numerics import Indices, Mask

# Units are dead after more steps than this: a ReLU that is closed for a few batches usually opens again.
DEAD_STEPS = 50
# The patience with a unit stops growing after it had a gradient at this many watched steps.
_MAX_REFUTED = 7
_NEVER = -1
# The arrays of streaks, in the order of the fields.
_ARRAYS = ("since", "num_checks", "num_watched", "num_refuted", "woke_at", "is_dead", "was_alive")
_COLUMNS = set(_ARRAYS[:-1])  # written to checkpoints unit by unit


class Dead(NamedTuple):
    """The dead units of a layer."""

    units: tuple[int, ...] = ()  # sorted indices
    died_at: tuple[int, ...] = ()  # for each, the step of the check since which its gradient has been zero
    # for units that were dead and train again, the step of the check that found them to train
    woke_at: Mapping[int, int] = {}
    num_idle: int = 0  # number of units with a gradient of zero at `patience` checks in a row, over however few steps


_NONE_DEAD = None, Dead()


class Counts(NamedTuple):
    """The number of units of a layer in each state."""

    zero: int  # units with a gradient of zero at the latest check
    idle: int  # those of them with a gradient of zero at `patience` checks in a row
    never_alive: int  # units that have never had a gradient
    dead: int  # dead units
    woken: int  # units that were dead once, and have had a gradient since
    suspected: int  # units that may be dead
    suspected_alive: int  # those of them that have had a gradient
    soon_dead: int  # suspected units that the next check may find to be dead


@dataclass
class ZeroStreaks:
    """For how long the gradients of the units of a layer have been exactly zero; arrays ``(num_units,)``."""

    # step of the first of the checks in a row with a gradient of zero; -1 if the latest one had a gradient
    since: npt.NDArray[np.int64]
    num_checks: npt.NDArray[np.int64]  # number of these checks before which the weights of the model had moved
    num_watched: npt.NDArray[np.int64]  # number of steps in a row, checks included, with a gradient of zero
    num_refuted: npt.NDArray[np.int64]  # number of watched steps with a gradient, up to seven
    woke_at: npt.NDArray[np.int64]  # step of the check at which a dead unit had a gradient again; else -1
    is_dead: Mask  # whether the unit was dead at the latest check
    was_alive: Mask  # whether the unit has ever had a gradient
    patience: int  # number of checks in a row that makes a unit dead
    _counts: Counts | None = field(default=None, compare=False)  # None: not counted since the latest change
    # What the dead units were determined from, and these units.
    _dead: tuple[object, Dead] = field(default=_NONE_DEAD, compare=False)

    @classmethod
    def of(cls, num_units: int, patience: int, *, was_alive: bool) -> ZeroStreaks:
        """Return streaks of length zero for a layer."""
        never = np.full(num_units, _NEVER)
        zeros = np.zeros(num_units, dtype=np.int64)
        is_dead, is_alive = zeros.astype(np.bool_), np.full(num_units, was_alive)
        return cls(never, zeros, zeros.copy(), zeros.copy(), never.copy(), is_dead, is_alive, patience)

    def __reduce__(self) -> tuple[Any, ...]:
        return ZeroStreaks.from_state, (self.to_state(), self.patience)  # short, however many units there are

    @property
    def counts(self) -> Counts:
        """How many units are in each state."""
        if self._counts is None:
            [self._counts] = self._counts_of([0])
        return self._counts

    @property
    def are_open(self) -> bool:
        """Whether any unit had a gradient of zero at the latest check, or has never had a nonzero one."""
        return bool(self.counts.zero or self.counts.never_alive)

    def update(self, idle: Mask, is_unseen: Mask, step: int, *, is_fresh: bool, was_resting: bool | Mask) -> None:
        """Record which gradients are zero at a check.

        Args:
            idle: which units have a gradient of exactly zero.
            is_unseen: which gradients are unknown; ignored for idle units.
            step: completed optimizer steps.
            is_fresh: whether the weights have moved since the check before; if not, the same evidence counts once.
            was_resting: whether only units that have never had a gradient were watched since the check before.
        """
        awake = ~(idle | is_unseen)
        # The steps since the check before were watched for these units only.
        self.num_watched *= self.is_dead | self.suspected(is_resting=was_resting)
        self._end(awake, step)
        self.was_alive |= awake
        self.num_checks += idle if is_fresh else idle & (self.num_checks == 0)
        self.num_watched += idle
        np.copyto(self.since, step, where=idle & (self.since == _NEVER))
        may_have_died = idle & (self.num_watched > DEAD_STEPS)
        if np.count_nonzero(may_have_died):
            self.is_dead |= may_have_died & (self.num_checks >= self.patience)

    def watch(self, idle: Mask, is_unseen: Mask, step: int) -> None:
        """Record the gradients at a step between two checks; the arguments are as in :meth:`update`."""
        has_streak = self.since != _NEVER
        self.num_watched += idle & has_streak
        awake = has_streak & ~(idle | is_unseen)
        self.num_refuted += awake & (self.num_refuted < _MAX_REFUTED)
        self.was_alive |= awake
        self._end(awake, step)

    def watch_zeros(self, *, is_resting: bool, with_dead: bool) -> None:
        """Record a step between two checks at which the gradients of all :meth:`watched` units were zero."""
        self.num_watched[self.watched(is_resting=is_resting, with_dead=with_dead)] += 1
        self._counts = None

    def _end(self, awake: Mask, step: int) -> None:
        """End the streaks of units that have a gradient."""
        self._counts = None
        is_silent = ~awake
        if np.count_nonzero(self.is_dead):
            self.woke_at[awake & self.is_dead] = step
            self.is_dead &= is_silent
        self.num_checks *= is_silent
        self.num_watched *= is_silent
        np.copyto(self.since, _NEVER, where=awake)

    def suspected(self, *, is_resting: bool | Mask = False) -> Mask:
        """Return which units may be dead; ``is_resting``: only those that have never had a gradient.

        A unit that has had a gradient must have none at ``patience`` checks in a row, plus as many for each watched
        step at which it had one: behind a ReLU units come and go.
        """
        is_due = self.num_checks >= self.patience * (1 + self.num_refuted)
        is_due &= np.logical_not(is_resting)
        may_be_dead: Mask = (self.since != _NEVER) & ~self.is_dead & (is_due | ~self.was_alive)
        return may_be_dead

    def are_watched(self, *, is_resting: bool, with_dead: bool) -> bool:
        """Return whether there are units to watch at each step, see :meth:`watched`."""
        counts = self.counts
        num_suspected = counts.suspected - (counts.suspected_alive if is_resting else 0)
        return num_suspected > 0 or (with_dead and counts.dead > 0)

    def watched(self, *, is_resting: bool, with_dead: bool) -> Indices:
        """Return the units to watch at each step: those that may be dead and, with ``with_dead``, dead ones."""
        if self._counts is not None and not self.are_watched(is_resting=is_resting, with_dead=with_dead):
            return np.zeros(0, dtype=np.intp)
        is_suspected = self.suspected(is_resting=is_resting)
        return (is_suspected | self.is_dead if with_dead else is_suspected).nonzero()[0]

    def soon_dead(self) -> Indices:
        """Return the units that the next check may find to be dead."""
        return self._soon_dead(self.suspected()).nonzero()[0]

    def _soon_dead(self, suspected: Mask) -> Mask:
        return (self.num_watched >= DEAD_STEPS) & suspected & (self.num_checks + 1 >= self.patience)

    def restart(self, units: Sequence[int]) -> None:
        """Restart the streaks of units whose gradient was zero for a reason that is gone."""
        self._counts, self._dead = None, _NONE_DEAD
        several = list(units)
        self.since[several], self.num_checks[several], self.num_watched[several] = _NEVER, 0, 0
        self.is_dead[several], self.was_alive[several] = False, False

    def dead(self, spared: Sequence[int] = ()) -> Dead:
        """Return the units that were dead at the latest check, without those in ``spared``, which are idle."""
        counts = self.counts
        num_idle = counts.idle
        if spared:
            num_idle -= int(np.count_nonzero(self.num_checks[list(spared)] >= self.patience))
        if not counts.dead and not counts.woken:
            return Dead(num_idle=num_idle)
        key = self.is_dead.tobytes(), self.woke_at.tobytes(), tuple(spared), num_idle
        if key != self._dead[0]:  # the same from check to check, as a rule
            is_dead = self.is_dead.copy()
            is_dead[list(spared)] = False
            [units], [awake] = is_dead.nonzero(), ((self.woke_at != _NEVER) & ~self.is_dead).nonzero()
            woke_at = dict(zip(awake.tolist(), self.woke_at[awake].tolist(), strict=True))
            self._dead = key, Dead(tuple(units.tolist()), tuple(self.since[units].tolist()), woke_at, num_idle)
        return self._dead[1]

    def num_watched_of(self, units: Sequence[int]) -> int:
        """Return for how many steps in a row all gradients of some units, at least one, have been zero."""
        return int(self.num_watched[list(units)].min())

    def _counts_of(self, starts: Sequence[int]) -> list[Counts]:
        """Return the counts of each layer; ``starts`` are the indices of the layers' first units."""
        suspected = self.suspected()
        states = [
            self.num_checks > 0,
            self.num_checks >= self.patience,
            ~self.was_alive,
            self.is_dead,
            self.woke_at != _NEVER,
            suspected,
            suspected & self.was_alive,
            self._soon_dead(suspected),
        ]
        sums = np.add.reduceat(np.stack(states), starts, axis=1, dtype=np.intp)
        return [Counts(*of_layer) for of_layer in sums.T.tolist()]

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
    def from_state(cls, values: Mapping[str, Any], patience: int) -> ZeroStreaks:
        """Return the streaks that :meth:`to_state` wrote."""
        streaks = cls.of(index(values["num_units"]), patience, was_alive=True)
        for name in values.keys() & _COLUMNS:  # version 0.2 did not watch steps
            getattr(streaks, name)[values["units"]] = list(map(index, values[name]))
        streaks.was_alive[values["never_alive"]] = False
        return streaks


class Zeros(NamedTuple):
    """Which gradients of a layer are zero at a check: its streaks, and the arguments of :meth:`ZeroStreaks.update`."""

    streaks: ZeroStreaks
    idle: Mask
    is_unseen: Mask
    was_resting: bool


class JoinedStreaks:
    """The streaks of several layers. Their arrays become views of joint arrays, so that one call updates all."""

    def __init__(self) -> None:
        self._several: list[ZeroStreaks] = []  # of layers with at least one unit
        self._place_of: dict[int, int] = {}  # by `id`, the position in `_several`

    def update(self, zeros: Sequence[Zeros], step: int, *, is_fresh: bool) -> None:
        """Record a check of some layers, at least one, after ``step`` optimizer steps.

        Layers that are new to this object are joined with the others. ``is_fresh`` is as in :meth:`ZeroStreaks.update`.
        """
        new = [each.streaks for each in zeros if id(each.streaks) not in self._place_of]
        if new:
            self._join(new)
        # For layers without an update all gradients are unknown, which changes none of their streaks.
        idle, is_unseen, was_resting = list(self._nothing), list(self._everything), [False] * len(self._several)
        for each in zeros:
            i = self._place_of[id(each.streaks)]
            idle[i], is_unseen[i], was_resting[i] = each.idle, each.is_unseen, each.was_resting
        is_resting = np.repeat(was_resting, self._sizes)
        self._all.update(
            np.concatenate(idle), np.concatenate(is_unseen), step, is_fresh=is_fresh, was_resting=is_resting
        )
        for streaks, counts in zip(self._several, self._all._counts_of(self._starts), strict=True):
            streaks._counts = counts

    def _join(self, new: Sequence[ZeroStreaks]) -> None:
        self._several += new
        self._place_of = {id(streaks): i for i, streaks in enumerate(self._several)}
        self._sizes = [len(streaks.since) for streaks in self._several]
        ends = [0, *accumulate(self._sizes)]
        self._starts = ends[:-1]
        self._nothing = [np.zeros(size, dtype=np.bool_) for size in self._sizes]
        self._everything = [~mask for mask in self._nothing]
        self._all = ZeroStreaks.of(ends[-1], new[0].patience, was_alive=False)
        for name in _ARRAYS:
            array = getattr(self._all, name)
            for streaks, (first, end) in zip(self._several, pairwise(ends), strict=True):
                array[first:end] = getattr(streaks, name)
                setattr(streaks, name, array[first:end])
