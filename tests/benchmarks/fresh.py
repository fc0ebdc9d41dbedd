"""Measurements in processes of their own, which have imported and cached nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def begin(function: Callable[..., Any], *arguments: object) -> subprocess.Popen[str]:
    """Call a function of a module in a new process; its arguments must have a ``repr``, and JSON its result."""
    call = f"{function.__name__}({', '.join(map(repr, arguments))})"
    code = f"import json; from {function.__module__} import {function.__name__}; print(json.dumps({call}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> Any:
    """What the function returned, once the process has ended.

    Raises:
        RuntimeError: if it failed; its own error is on the screen by then.
    """
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The process of a measurement ended with {process.returncode}.")
    return json.loads(printed.splitlines()[-1])


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns in a new process."""
    return result_of(begin(function, *arguments))
