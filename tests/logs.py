"""Recording of log messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Notes(logging.Handler):
    def __init__(self, texts: list[str], is_wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self._texts, self._is_wanted = texts, is_wanted

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self._is_wanted(text):
            self._texts.append(text)


@contextmanager
def logged(name: str, is_wanted: Callable[[str], bool] = lambda text: True) -> Iterator[list[str]]:
    """Collect the messages of a logger, from INFO on.

    Args:
        name: name of the logger.
        is_wanted: returns whether to keep a message.
    """
    texts: list[str] = []
    logger = logging.getLogger(name)
    notes, level = _Notes(texts, is_wanted), logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield texts
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)
