"""Runs examples as users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image


def run_as_script(name: str, folder: Path) -> str:
    """Run the short form of an example, check its picture, and return its output."""
    command = [sys.executable, "-m", f"examples.{name}", "--short", "--output", str(folder)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    with Image.open(folder / f"{name}.png") as picture:
        assert min(picture.size) > 500
        colors = picture.convert("RGB").getcolors(picture.size[0] * picture.size[1])
        assert colors is not None
        assert len(colors) > 10  # it is not empty
    return done.stdout
