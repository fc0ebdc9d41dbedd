"""Pictures as pixels: the similarities within a layer, and an overview of the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lightning_symmetry.matrices.numerics import CPU, exact_arithmetic
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.tensorboard_plugin.page import NO_DIRECTION, SIMILARITIES, SIMILARITY_COLOURS
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.tables import shorten
from lightning_symmetry.verdicts.verdict import Verdict

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.floating[Any]]

MAX_UNITS = 160
"""The largest number of units per side; larger layers are thinned out."""

_IN_NO_GROUP = "#dfe3e8"
# OpenBLAS, which multiplies matrices for numpy, shares larger products among threads. These then wait for more work
# without sleep, for 0.1 s and more, and take a core from the training.
_MAX_MULTIPLICATIONS = 1 << 18


class Inks(NamedTuple):
    """The colours around the square of a heatmap: background, text, and secondary text."""

    paper: str
    ink: str
    pale: str


ON_WHITE = Inks("#ffffff", "#20242c", "#6b7280")
ON_ANY_PAGE = Inks("#7d859000", "#7d8590", "#7d8590")
"""Transparent, with grey text that is legible on light and dark pages."""

_SIDE = 320
_LEFT, _TOP, _RIGHT = 50, 46, 66  # around the square: unit indices, heading, scale
_LINE = 20
_KEYS_IN_A_LINE = 3
_SMALL, _LARGE = 13, 15  # font sizes that stay legible when TensorBoard scales the picture down
_MAX_LAYERS = 40


def order_units(layer: LayerDiagnosis, limit: int = MAX_UNITS) -> list[list[int]]:
    """Return the units to show, in the order of the picture: at most ``limit``, of at most ``limit // 2`` groups.

    There is one list per group, in the order of ``layer.groups``, and a last list of units in no group.

    Example:
        >>> from lightning_symmetry.verdicts.evidence import Cause
        >>> group = UnitGroup((1, 3, 4, 5, 6, 7), Verdict.LOCKED, Cause.COPIED)
        >>> order_units(LayerDiagnosis("fc", 8, 2, groups=[group]), limit=4)
        [[1, 4, 6], [0]]
    """
    grouped = {unit for group in layer.groups for unit in group.units}
    parts = [list(group.units) for group in layer.groups[: limit // 2]]
    parts.append([unit for unit in range(layer.num_units) if unit not in grouped])
    sizes = [2] * (len(parts) - 1) + [0]
    left_over = [len(part) - size for part, size in zip(parts, sizes, strict=True)]
    room = min(limit - sum(sizes), sum(left_over))
    # Each part gets a share of the room. Rounding the bounds, not the sizes, makes the shares add up.
    bounds = [room * so_far // max(1, sum(left_over)) for so_far in accumulate(left_over, initial=0)]
    sizes = [size + b - a for size, (a, b) in zip(sizes, pairwise(bounds), strict=True)]
    return [[part[i * len(part) // size] for i in range(size)] for part, size in zip(parts, sizes, strict=True)]


def numbers_of(rows: Rows, units: Sequence[int]) -> Numbers:
    """Return a copy of the rows of some units on the host, ``(len(units), d)``."""
    with exact_arithmetic(rows.device):
        numbers: Numbers = rows.fetch(np.array(units)).to(CPU, copy=True).numpy()
    return numbers


def similarity(weights: Numbers, gradients: Numbers | None) -> npt.NDArray[np.float64]:
    """Return cosine similarities ``(n, n)``: of weights ``(n, d)`` below the diagonal, of gradients above it.

    They are NaN where a row is zero or not finite, and above the diagonal if there are no gradients.
    """
    below = _cosines(weights)
    above = np.full_like(below, np.nan) if gradients is None else _cosines(gradients)
    matrix: npt.NDArray[np.float64] = (np.tril(below) + np.triu(above, 1)).astype(np.float64)
    return matrix


def _cosines(rows: Numbers) -> Numbers:
    """Return the cosine similarities of rows ``(n, d)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        units = rows / np.abs(rows).max(axis=1, keepdims=True, initial=0)  # so that squares stay in range
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        width = max(1, _MAX_MULTIPLICATIONS // max(1, len(units)) ** 2)
        cosines: Numbers = np.zeros((len(units), len(units)), dtype=units.dtype)
        for start in range(0, units.shape[1], width):
            part = units[:, start : start + width]
            cosines += part @ part.T
    return cosines


def to_bytes(matrix: npt.NDArray[np.float64]) -> Pixels:
    """Encode similarities as bytes: 1 for -1, 128 for 0, 255 for 1, and 0 for NaN.

    Example:
        >>> to_bytes(np.array([-1.0, 0.0, 0.5, 1.0, np.nan])).tolist()
        [1, 128, 192, 255, 0]
    """
    levels = 128 + 127 * np.clip(matrix, -1, 1)
    return np.where(np.isnan(levels), 0, levels.round()).astype(np.uint8)


def colours(matrix: npt.NDArray[np.float64]) -> Pixels:
    """Map similarities ``(...)`` to colours ``(..., 3)``."""
    values = np.nan_to_num(matrix, nan=0.0)
    channels = [np.interp(values, SIMILARITIES, channel) for channel in zip(*SIMILARITY_COLOURS, strict=True)]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    pixels[np.isnan(matrix)] = NO_DIRECTION
    return pixels


def draw_layer(layer: LayerDiagnosis, weights: Rows, gradients: Rows | None, inks: Inks = ON_WHITE) -> Pixels:
    """Draw the heatmap of a layer. The units of a group are adjacent, in a frame of the colour of their verdict.

    The picture has the shape ``(height, width, 3)``, or ``(height, width, 4)`` if the background is transparent.
    """
    parts = order_units(layer)
    units = [unit for part in parts for unit in part]
    cell = max(1, _SIDE // len(units))
    numbers, of_gradients = numbers_of(weights, units), None if gradients is None else numbers_of(gradients, units)
    square = np.kron(colours(similarity(numbers, of_gradients)), np.ones((cell, cell, 1), dtype=np.uint8))
    side = len(square)
    verdicts = [verdict for verdict in Verdict if any(group.verdict is verdict for group in layer.groups)]
    below = 10 + _LINE * (2 + (len(verdicts) + 1) // 2)
    mode = "RGB" if len(inks.paper) == len("#rrggbb") else "RGBA"
    image = Image.new(mode, (_LEFT + max(side, _SIDE) + _RIGHT, _TOP + side + below), inks.paper)
    image.paste(Image.fromarray(square), (_LEFT, _TOP))
    draw = ImageDraw.Draw(image)
    shown = "" if len(units) == layer.num_units else f" ({len(units)} shown)"
    heading = f"{layer.num_units} units{shown}, {layer.working_units} working"
    draw.text((_LEFT, 4), heading, inks.ink, _font(_LARGE))
    draw.text((_LEFT, 25), "cosine of gradients above, of weights below", inks.pale, _font(_SMALL))
    _draw_frames(draw, layer.groups, parts, cell)
    _draw_ticks(draw, parts, cell, inks.ink)
    _draw_scale(image, draw, _LEFT + side + 12, _TOP, min(side, 160), inks.ink)
    bottom = _TOP + side + 6
    draw.text((_LEFT, bottom), "left: unit index, groups first", inks.pale, _font(_SMALL))
    draw.text((_LEFT, bottom + _LINE), "grey: no direction (zero, NaN, or no gradient)", inks.pale, _font(_SMALL))
    for i, verdict in enumerate(verdicts):
        num_groups = sum(group.verdict is verdict for group in layer.groups)
        text = f"{verdict}: {num_groups} group{'s' if num_groups > 1 else ''}"
        place = (_LEFT + 160 * (i % 2), bottom + _LINE * (2 + i // 2) + 2)
        _draw_key(draw, *place, text, verdict.traits.colour, inks.ink)
    return np.asarray(image)


def draw_overview(report: SymmetryReport) -> Pixels:
    """Draw the model, ``(height, width, 3)``: one bar per layer, with the share of units of each verdict."""
    layers = report.distinct_layers
    chosen = {layer.name for layer in sorted(layers, key=lambda layer: not layer.groups)[:_MAX_LAYERS]}
    layers = [layer for layer in layers if layer.name in chosen]
    names = [shorten(layer.name, 34) for layer in layers]
    font = _font(_SMALL)
    left = 24 + int(max([font.getlength(name) for name in names], default=0))
    bar, line = 260, 24
    heading = f"Step {report.step}: {report.totals()}"
    width = max(left + bar + 120, 520, 24 + int(_font(_LARGE).getlength(heading)))
    keys = {"in no group": _IN_NO_GROUP, **{str(verdict): verdict.traits.colour for verdict in Verdict}}
    num_lines = -(-len(keys) // _KEYS_IN_A_LINE)
    image = Image.new("RGB", (width, 66 + line * len(layers) + num_lines * _LINE + 10), ON_WHITE.paper)
    draw = ImageDraw.Draw(image)
    draw.text((12, 6), heading, ON_WHITE.ink, _font(_LARGE))
    draw.text((left + bar + 10, 34), "working / units", ON_WHITE.pale, font)
    left_out = len(report.distinct_layers) - len(layers)
    if left_out:
        draw.text((12, 34), f"{left_out} more layers not shown", ON_WHITE.pale, font)
    y = 56
    for layer, name in zip(layers, names, strict=True):
        draw.text((12, y + 1), name, ON_WHITE.ink, font)
        draw.rectangle((left, y + 2, left + bar, y + line - 5), fill=_IN_NO_GROUP)
        x = float(left)
        for verdict in Verdict:
            part = bar * layer.count(verdict) / layer.num_units
            if part:
                draw.rectangle((x, y + 2, x + max(1.0, part), y + line - 5), fill=verdict.traits.colour)
            x += part
        draw.text((left + bar + 10, y + 1), f"{layer.working_units} / {layer.num_units}", ON_WHITE.ink, font)
        y += line
    for i, (text, colour) in enumerate(keys.items()):
        row, column = divmod(i, _KEYS_IN_A_LINE)
        _draw_key(draw, 12 + 130 * column, y + 8 + _LINE * row, text, colour, ON_WHITE.ink)
    return np.asarray(image)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_frames(draw: ImageDraw.ImageDraw, groups: Sequence[UnitGroup], parts: list[list[int]], cell: int) -> None:
    start = 0
    for group, part in zip(groups, parts[:-1], strict=False):
        a, b = start * cell, (start + len(part)) * cell
        width = 2 if b - a > 24 else 1
        box = (_LEFT + a, _TOP + a, _LEFT + b - 1, _TOP + b - 1)
        draw.rectangle(box, outline=group.verdict.traits.colour, width=width)
        start += len(part)


def _draw_ticks(draw: ImageDraw.ImageDraw, parts: list[list[int]], cell: int, ink: str) -> None:
    """Draw unit indices on the left: first those at the start of groups, then others where there is room."""
    units = [unit for part in parts for unit in part]
    starts = {sum(map(len, parts[:i])) for i, part in enumerate(parts) if part}
    font, taken = _font(_SMALL), list[float]()
    for place in [*sorted(starts), *(place for place in range(len(units)) if place not in starts)]:
        middle = _TOP + (place + 0.5) * cell
        if all(abs(middle - other) >= _SMALL + 2 for other in taken):
            taken.append(middle)
            text = str(units[place])
            draw.text((_LEFT - 8 - font.getlength(text), middle - 8), text, ink, font)
            draw.line((_LEFT - 5, middle, _LEFT - 1, middle), ink)


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int, ink: str) -> None:
    ramp = colours(np.linspace(1, -1, height)[:, None].repeat(14, axis=1))
    image.paste(Image.fromarray(ramp), (x, y))
    for value in (1, 0, -1):
        at = y + (1 - value) * (height - 1) / 2
        place = (x + 20, min(max(at - 8, y - 2), y + height - 14))
        draw.text(place, f"{value:g}", ink, _font(_SMALL))


def _draw_key(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: str, ink: str) -> None:
    """Draw an entry of the legend: a swatch and its meaning."""
    draw.rectangle((x, y + 2, x + 11, y + 13), fill=colour)
    draw.text((x + 17, y), text, ink, _font(_SMALL))
