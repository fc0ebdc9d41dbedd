"""Notes that ranks leave for one another, so that none of them waits for one that never comes.

A collective hangs unless every rank calls it, and mixes with those of the training where ranks make uneven steps. A
note in the store of the process group does neither: whoever reads it looks whether it is there.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

# Ranks in step with one another arrive within milliseconds, but a loaded machine may hold one up.
_LIMIT = 10.0
_POLL = 0.002
_NUM_KEPT = 100
_NUMBERS = itertools.count()


class Board:
    """Notes among all ranks of the default process group; for trainings that all ranks begin in the same order."""

    def __init__(self) -> None:
        self._store = PrefixStore(f"lightning_symmetry/{next(_NUMBERS)}", _get_default_store())
        self._is_first = dist.get_rank() == 0
        self._num_notes = 0
        self._is_deserted = False

    def all_are_here(self) -> bool:
        """Return whether every rank calls this within ten seconds; all that do so get the same answer."""
        num_ranks = dist.get_world_size()
        num_here = self._store.add("here", 1)
        end = time.monotonic() + (_LIMIT if self._is_first else 2 * _LIMIT)
        while time.monotonic() < end and not self._store.check(["all"]):
            if self._is_first and num_here >= num_ranks:
                break
            time.sleep(_POLL)
            num_here = self._store.add("here", 0)
        # Whoever sets this first decides for all.
        answer = "yes" if self._is_first and num_here >= num_ranks else "no"
        return bytes(self._store.compare_set("all", "", answer)) == b"yes"

    def next_of_first(self, note: bytes) -> bytes | None:
        """Leave the next note on the first rank, and read it on the others.

        Args:
            note: what the first rank says; on other ranks it does not matter.

        Returns:
            What the first rank says; None if it has not said anything for ten seconds, and from then on.
        """
        number, self._num_notes = self._num_notes, self._num_notes + 1
        if self._is_first:
            self._store.set(str(number), note)  # type: ignore[arg-type] # bytes will do
            if number >= _NUM_KEPT:
                with suppress(RuntimeError):  # not every store can forget
                    self._store.delete_key(str(number - _NUM_KEPT))
            return note
        end = time.monotonic() + _LIMIT
        while not self._is_deserted:
            if self._store.check([str(number)]):
                return bytes(self._store.get(str(number)))
            self._is_deserted = time.monotonic() > end
            time.sleep(_POLL)
        return None
