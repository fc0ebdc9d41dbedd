"""A terminal: the output of a program, and the final content of the screen."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

WIDTH = 120
_PIECES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """The lines of a terminal of 120 columns, after :func:`screen` has ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def show(self, text: str) -> None:
        """Draw the output: text, line ends, and the cursor movements with which Rich redraws a bar."""
        rows, x, y = [""], 0, 0
        for arguments, command, end, words in _PIECES.findall(text):
            if end == "\r":
                x = 0
            elif end == "\n" or (command == "B"):
                x, y = 0, y + 1
            elif command == "A":
                y = max(0, y - int(arguments or 1))
            elif command == "K":
                rows[y] = "" if arguments == "2" else rows[y][:x]
            for character in words:
                if x == WIDTH:
                    x, y = 0, y + 1
                rows += [""] * (y + 1 - len(rows))
                rows[y] = rows[y][:x].ljust(x) + character + rows[y][x + 1 :]
                x += 1
            rows += [""] * (y + 1 - len(rows))
        self.lines = [row.rstrip() for row in rows]


@contextmanager
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Replace standard output and standard error of this process by a terminal."""
    shown, data = Screen(), io.BytesIO()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))

    def listen() -> None:
        try:
            while part := os.read(ours, 65536):
                data.write(part)
        except OSError:  # which ends a terminal on Linux
            pass

    thread = threading.Thread(target=listen)
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "50"}.items():
            patch.setenv(name, value)
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        thread.start()
        yield shown
        terminal.flush()
    thread.join()
    os.close(ours)
    shown.show(data.getvalue().decode().replace("\r\n", "\n"))
