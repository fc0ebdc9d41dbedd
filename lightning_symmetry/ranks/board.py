"""Notes that ranks leave for one another, so that none of them waits for one that never comes.

A collective hangs unless every rank calls it, and mixes with those of the training where ranks make uneven steps. A
note in the store of the process group does neither: whoever reads it looks whether it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

# Ranks in step with one another arrive within milliseconds, but a loaded machine may hold one up.
_LIMIT = 10.0
_POLL = 0.002
_NUM_KEPT = 100


class Board:
    """Notes among all ranks of the default process group, about one training.

    To be made before the first backward pass, and used from the first optimizer step on. The first rank numbers its
    boards; another rank takes the first number that was not there when it made its own. So it reads no notes of an
    earlier training, also of one in which it took no part: the first rank comes to its first optimizer step only after
    the backward passes of all.
    """

    def __init__(self) -> None:
        self._store = PrefixStore("lightning_symmetry", _get_default_store())
        # A rank's trainings are numbered by itself, since nobody is to be waited for to compare hashes.
        self._training = self._store.add(f"trainings of {dist.get_rank()}", 1)
        self._is_first = dist.get_rank() == 0
        self._num_before = self._num_opened()
        self._number = 0  # of the board, once it is known
        self._num_notes = 0
        self._is_deserted = False

    def all_are_here(self) -> bool:
        """Return whether every rank calls this within ten seconds; all that do so get the same answer."""
        if not self._open():
            return False
        num_ranks, here = dist.get_world_size(), self._key("here")
        self._store.add(here, 1)
        # Only the first rank says yes, and waits for the others as long as they wait for it.
        is_full = self._is_first and self._wait(lambda: self._store.add(here, 0) >= num_ranks)
        if not self._is_first:
            self._wait(lambda: self._store.check([self._key("all")]), 2 * _LIMIT)
        # Whoever sets this first decides for all.
        answer = self._store.compare_set(self._key("all"), "", "yes" if is_full else "no")
        return bytes(answer) == b"yes"

    def other_with(self, digest: str) -> int | None:
        """Leave a hash, and return another rank that has left the same one in its training of the same number.

        Nobody waits: of two ranks with the same hash the one that comes later is told of the other. Only the first
        rank that is told of one in a training gets an answer.

        Args:
            digest: the hash.
        """
        own, notes = str(dist.get_rank()), f"digests of training {self._training}"
        earliest = self._store.compare_set(f"{notes}/{digest}", "", own).decode()
        if earliest == own or self._store.compare_set(f"{notes}/told", "", own).decode() != own:
            return None
        return int(earliest)

    def next_of_first(self, note: bytes) -> bytes | None:
        """Leave the next note on the first rank, and read it on the others.

        Args:
            note: what the first rank says; on other ranks it does not matter.

        Returns:
            What the first rank says; None if it has not said anything for ten seconds, and from then on.
        """
        if not self._open():
            return None
        number, self._num_notes = self._num_notes, self._num_notes + 1
        key = self._key(str(number))
        if not self._is_first:
            return bytes(self._store.get(key)) if self._wait(lambda: self._store.check([key])) else None
        self._store.set(key, note)  # type: ignore[arg-type] # bytes will do
        if number >= _NUM_KEPT:
            with suppress(RuntimeError):  # not every store can forget
                self._store.delete_key(self._key(str(number - _NUM_KEPT)))
        return note

    def _open(self) -> bool:
        """Take a number; returns whether there is one."""
        if self._number == 0 and self._is_first:
            self._number = self._store.add("opened", 1)
        elif self._number == 0:
            taken = f"taken by {dist.get_rank()}"
            number = max(self._num_before, self._store.add(taken, 0)) + 1
            if self._wait(lambda: self._num_opened() >= number):
                self._number = number
                self._store.add(taken, number - self._store.add(taken, 0))
        return self._number > 0 and not self._is_deserted

    def _num_opened(self) -> int:
        return int(self._store.add("opened", 0))

    def _key(self, name: str) -> str:
        return f"{self._number}/{name}"

    def _wait(self, is_there: Callable[[], bool], limit: float | None = None) -> bool:
        """Return whether it is there in time; if not, nothing more is waited for."""
        end = time.monotonic() + (_LIMIT if limit is None else limit)
        while not is_there():
            if time.monotonic() > end:
                self._is_deserted = True
                return False
            time.sleep(_POLL)
        return True
