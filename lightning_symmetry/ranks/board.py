"""Notes that ranks exchange in the store of the process group, without waiting for a rank that never arrives.

A collective hangs unless every rank calls it, and may be matched with one of the training if ranks make uneven steps.
Reading a note does neither: the reader polls for it, up to a time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

_LIMIT = 10.0  # seconds; ranks in step arrive within milliseconds, but a loaded machine may delay one
_POLL = 0.002
_NUM_KEPT = 100


class Board:
    """Notes among all ranks of the default process group, about one training.

    Make it before the first backward pass, and use it from the first optimizer step on. The first rank numbers its
    boards when it opens them, at its first optimizer step, after the backward passes of all ranks. Every other rank
    takes the first number that was not in use when it made its board. So no rank reads notes of an earlier training,
    even of one in which it took no part.
    """

    def __init__(self) -> None:
        self._store = PrefixStore("lightning_symmetry", _get_default_store())
        # Each rank numbers its trainings by itself, so that comparing hashes waits for no other rank.
        self._training = self._store.add(f"trainings of {dist.get_rank()}", 1)
        self._is_first = dist.get_rank() == 0
        self._num_before = self._store.add("opened", 0)
        self._number = 0  # of this board; 0 until it is known
        self._num_notes = 0
        self._has_timed_out = False

    def all_are_here(self) -> bool:
        """Return whether every rank calls this within ten seconds; all ranks that do so get the same answer."""
        if not self._open():
            return False
        num_ranks, here = dist.get_world_size(), self._key("here")
        self._store.add(here, 1)
        # Only the first rank can answer yes. The others wait twice as long, because it waits for them.
        is_full = self._is_first and self._wait(lambda: self._store.add(here, 0) >= num_ranks)
        if not self._is_first:
            self._wait(lambda: self._store.check([self._key("all")]), 2 * _LIMIT)
        # Whichever rank sets this key first decides for all.
        answer = self._store.compare_set(self._key("all"), "", "yes" if is_full else "no")
        return bytes(answer) == b"yes"

    def other_with(self, digest: str) -> int | None:
        """Leave a hash, and return another rank that has left the same hash in its training of the same number.

        Does not wait: of two ranks with the same hash, the later one gets the answer. In each training, only one rank
        gets an answer; all others get None.
        """
        own, notes = str(dist.get_rank()), f"digests of training {self._training}"
        earliest = self._store.compare_set(f"{notes}/{digest}", "", own).decode()
        if earliest == own or self._store.compare_set(f"{notes}/answered", "", own).decode() != own:
            return None
        return int(earliest)

    def next_of_first(self, note: bytes) -> bytes | None:
        """Leave the next note on the first rank, read it on the others, and return it.

        Once a note has not arrived within ten seconds, this and all later calls return None.
        """
        if not self._open():
            return None
        number, self._num_notes = self._num_notes, self._num_notes + 1
        key = self._key(str(number))
        if not self._is_first:
            return bytes(self._store.get(key)) if self._wait(lambda: self._store.check([key])) else None
        self._store.set(key, note)  # type: ignore[arg-type] # accepts bytes
        if number >= _NUM_KEPT:
            with suppress(RuntimeError):  # not every store can delete keys
                self._store.delete_key(self._key(str(number - _NUM_KEPT)))
        return note

    def _open(self) -> bool:
        """Find out the number of this board; return whether it can be used."""
        if self._number == 0 and self._is_first:
            self._number = self._store.add("opened", 1)
        elif self._number == 0:
            taken = f"taken by {dist.get_rank()}"
            number = max(self._num_before, self._store.add(taken, 0)) + 1
            if self._wait(lambda: self._store.add("opened", 0) >= number):
                self._number = number
                self._store.add(taken, number - self._store.add(taken, 0))
        return self._number > 0 and not self._has_timed_out

    def _key(self, name: str) -> str:
        return f"{self._number}/{name}"

    def _wait(self, is_there: Callable[[], bool], limit: float | None = None) -> bool:
        """Poll until a note is there; return False after the time limit, and close the board."""
        end = time.monotonic() + (_LIMIT if limit is None else limit)
        while not is_there():
            if time.monotonic() > end:
                self._has_timed_out = True
                return False
            time.sleep(_POLL)
        return True
