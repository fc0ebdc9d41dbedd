"""Thins out checks that say what the check before has said, so that a long quiet training takes few events."""

from __future__ import annotations

_ALL = 64  # so many repetitions in a row are written
MAX_SPACING = 1 << 10
"""After so many repetitions one is written, however many there were."""


class Thinning:
    """Says which of the checks that repeat the one before are written.

    The first 64 in a row are; then every second up to 128, every fourth up to 256, and so on, at least every 1024th. A
    curve that stays flat has no gap of more than a thirty-second of its length: it looks as if all points were there.

    Example:
        >>> thinning = Thinning()
        >>> _ = thinning.is_due(is_repetition=False)
        >>> [number for number in range(1, 300) if thinning.is_due(is_repetition=True)][60:70]
        [61, 62, 63, 64, 66, 68, 70, 72, 74, 76]
    """

    def __init__(self) -> None:
        self._num_repetitions = 0

    def is_due(self, *, is_repetition: bool) -> bool:
        """Count the next check; whether it is written.

        Args:
            is_repetition: whether it says what the check before said.
        """
        self._num_repetitions = self._num_repetitions + 1 if is_repetition else 0
        spacing = 1 << max(0, self._num_repetitions.bit_length() - _ALL.bit_length() + 1)
        return self._num_repetitions % min(spacing, MAX_SPACING) == 0
