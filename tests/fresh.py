"""Python processes in which nothing but PyTorch is imported yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# Importing PyTorch takes longer than most of what is run: one process does, and splits off another for each code.
_SPLIT = """
import json, os, sys, traceback
exec(sys.argv[1])
said = []
for code in json.loads(sys.argv[2]):
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1)
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            sys.stdout.flush()
            os.write(writing, traceback.format_exc().encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said.append(pipe.read())
    os.wait()
print(json.dumps(said))
"""


def outputs_of(*codes: str, first: str = "import torch") -> list[str]:
    """Return what each code prints, with the traceback if it fails, in a process that begins after ``first``."""
    if not hasattr(os, "fork"):  # Windows
        return [_output_of(f"{first}\n{code}") for code in codes]
    said: list[str] = json.loads(_output_of(_SPLIT, first, json.dumps(codes)))
    return said


def _output_of(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
