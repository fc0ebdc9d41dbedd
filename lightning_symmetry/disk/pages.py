"""How much of a file is in memory at once: as a rule no more than its largest tensor takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_symmetry.disk.reading import CheckpointError, read
from lightning_symmetry.units.layers import Layer

# To open a file takes as long, for each tensor in it, as to read so many bytes. Files of many small tensors are not
# opened so often that this would take longer than all else.
_BYTES_TO_OPEN = 100_000


class Pages:
    """Lets go of the part of a file that has been looked at.

    The system reads a mapped file into memory as its numbers are looked at, and counts them as memory of the process
    until the mapping is closed. So it is closed and opened anew, time after time.

    Args:
        path: the checkpoint.
        tensors: those that are looked at, by their names in the checkpoint. Their numbers are read from the new mapping
            from then on.
        is_mapped: whether they lie in the file; if not, they stay where they are.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], *, is_mapped: bool) -> None:
        self._path = path
        self._tensors = tensors
        self._is_mapped = is_mapped
        self._limit = max([_BYTES_TO_OPEN * len(tensors), *map(_num_bytes, tensors.values())])
        self._looked_at = self._limit  # the search for whole modules that are copies may have looked at anything

    def make_room(self, layer: Layer) -> None:
        """Let go of what was looked at if, with the next layer, it would be more than the largest tensor takes.

        Raises:
            CheckpointError: if the file is another one by now.
        """
        coming = sum(map(_num_bytes, layer.originals))
        if self._is_mapped and self._looked_at + coming > self._limit:
            self._open_anew()
            self._looked_at = 0
        self._looked_at += coming

    def _open_anew(self) -> None:
        fresh = read(self._path).tensors
        for name, tensor in self._tensors.items():
            if name not in fresh or fresh[name].shape != tensor.shape or fresh[name].dtype != tensor.dtype:
                raise CheckpointError(
                    f"{str(self._path)!r} was changed while it was read: {name!r} is not what it was."
                )
            tensor.data = fresh[name]


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
