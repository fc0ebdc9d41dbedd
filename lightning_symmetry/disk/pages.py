"""How much of a file is in memory at once: as a rule no more than the tensors of one layer take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_symmetry.disk.files import Place

_CHUNK = 1 << 22  # numbers that are turned into a form that can be compared at once
_GLANCE = 16


class Pages:
    """The numbers of tensors whose place is in a file, read when they are looked at and let go of afterwards.

    Args:
        places: of tensors, by the identity (``id``) of the parameter of the model that stands for them. The numbers of
            all others are in memory.
    """

    def __init__(self, places: Mapping[int, Place]) -> None:
        self._places = places
        self._digests: dict[int, object] = {}

    @contextmanager
    def loaded(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Give parameters their numbers for a while.

        Raises:
            CheckpointError: if the file has been written to since it was opened.
        """
        empty = {id(parameter): parameter for parameter in parameters if id(parameter) in self._places}
        placeholders = {key: parameter.data for key, parameter in empty.items()}
        try:
            self.load(empty.values())
            yield
        finally:
            for key, parameter in empty.items():
                parameter.data = placeholders[key]

    def load(self, parameters: Iterable[Tensor]) -> None:
        """Give parameters their numbers for good; errors are those of :meth:`loaded`."""
        for parameter in parameters:
            if id(parameter) in self._places:
                parameter.data = self._places[id(parameter)].read()

    # ------------------------------------------------- what the search for copies asks, see `units.copies.Numbers`

    def head(self, parameter: Tensor) -> list[float]:
        """Return the first few numbers of a parameter."""
        place = self._places.get(id(parameter))
        first = parameter.detach().flatten()[:_GLANCE] if place is None else place.read(_GLANCE)
        numbers: list[float] = first.tolist()
        return numbers

    def digest(self, parameter: Tensor) -> object:
        """Return a value that is equal for parameters of one shape with equal numbers; each is read once only.

        As in ``torch.equal``, zeros are equal whatever their sign, and what holds a NaN is equal to nothing.
        """
        if id(parameter) not in self._digests:
            place = self._places.get(id(parameter))
            numbers = parameter.detach() if place is None else place.read()
            self._digests[id(parameter)] = _digest(numbers.flatten())
        return self._digests[id(parameter)]

    def is_constant(self, parameter: Tensor) -> bool:
        """Return whether all numbers of a parameter are one and the same."""
        place = self._places.get(id(parameter))
        numbers = (parameter.detach() if place is None else place.read()).flatten()
        return all(bool((chunk == numbers[0]).all()) for chunk in numbers.split(_CHUNK))


def _digest(numbers: Tensor) -> object:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in numbers.split(_CHUNK):
        if chunk.is_complex():
            chunk = torch.view_as_real(chunk.resolve_conj())
        chunk = chunk + 0  # -0.0 + 0 is 0.0
        if bool(chunk.isnan().any()):
            return object()
        digest.update(chunk.contiguous().view(torch.uint8).numpy())
    return digest.digest()
