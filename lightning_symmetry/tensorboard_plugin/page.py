"""The files of the page, and the verdicts and colours that it shares with Python as the module ``legend.js``."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files

from lightning_symmetry.verdicts.verdict import Verdict

STATIC = files("lightning_symmetry.tensorboard_plugin") / "static"
"""The folder of the page: modules of JavaScript and a style sheet."""

SIMILARITIES = (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0)
"""The similarities with a colour of their own; other colours are interpolated."""

# Dark at 0, bright at 1 and -1. Orange above 0 and blue below: colour-blind people can distinguish these two.
SIMILARITY_COLOURS = ((120, 200, 255), (38, 98, 160), (16, 18, 32), (128, 46, 44), (236, 124, 46), (255, 240, 170))
"""The colour of each of :data:`SIMILARITIES`, as red, green and blue."""

NO_DIRECTION = (176, 180, 188)
"""The colour of a row without a direction (zero, or not finite), which has no similarity to others."""


def page_files() -> dict[str, bytes]:
    """Return the files of the page by name, with ``legend.js``.

    Example:
        >>> print(page_files()["legend.js"].decode()[:49])
        export const VERDICTS = [{"name": "locked", "is_w
    """
    shown = ("is_warning", "is_redundant", "colour", "dark_colour", "mark", "meaning", "gone")
    verdicts = [{"name": verdict, **{key: asdict(verdict.traits)[key] for key in shown}} for verdict in Verdict]
    similarity = {"values": SIMILARITIES, "colours": SIMILARITY_COLOURS, "none": NO_DIRECTION}
    legend = f"export const VERDICTS = {json.dumps(verdicts)};\nexport const SIMILARITY = {json.dumps(similarity)};\n"
    return {**{file.name: file.read_bytes() for file in STATIC.iterdir()}, "legend.js": legend.encode()}
