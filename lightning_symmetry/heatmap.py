"""Similarity to pixels: a picture of one layer, and one of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torchmetrics.functional import pairwise_cosine_similarity

from lightning_symmetry.diagnosis import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.grouping import Rows, exact_arithmetic

Pixels = npt.NDArray[np.uint8]

MAX_UNITS = 160
"""Units a side; larger layers are thinned out."""

VERDICT_COLOURS: dict[Verdict, str] = {
    Verdict.LOCKED: "#d1495b",
    Verdict.FROZEN: "#2e86de",
    Verdict.LOCKSTEP: "#8e5bb5",
    Verdict.BREAKING: "#3a9d5d",
    Verdict.DUPLICATE: "#8a8f98",
}
_INK, _PAPER, _PALE, _DISTINCT = "#20242c", "#ffffff", "#6b7280", "#dfe3e8"
# Bright at 1, dark at 0, and another hue below: blue and orange stay apart for colour-blind eyes.
_STOPS = (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0)
_COLOURS = ((120, 200, 255), (38, 98, 160), (16, 18, 32), (128, 46, 44), (236, 124, 46), (255, 240, 170))
_NO_DIRECTION = (176, 180, 188)
_SIDE = 320
_MAX_LAYERS = 40


def order_units(layer: LayerDiagnosis, limit: int = MAX_UNITS) -> list[list[int]]:
    """Units in the order of the picture, group by group, then the others; thinned to ``limit``, all groups still there.

    Returns:
        One list per group, in the order of ``layer.groups``, and last the units of no group.

    Example:
        >>> from lightning_symmetry.evidence import Cause
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
    # Shares of the room, rounded so that they add up to it.
    bounds = [room * so_far // max(1, sum(left_over)) for so_far in accumulate(left_over, initial=0)]
    sizes = [size + b - a for size, (a, b) in zip(sizes, pairwise(bounds), strict=True)]
    return [_spread(part, size) for part, size in zip(parts, sizes, strict=True)]


def similarity(weights: Rows, gradients: Rows | None, units: Sequence[int]) -> npt.NDArray[np.float64]:
    """Cosine similarities of weights below the diagonal and of gradients above it.

    Returns:
        Matrix of shape ``(len(units), len(units))``; NaN where a row is zero or not finite and so has no direction, and
        above the diagonal if there are no gradients.
    """
    index = torch.tensor(units, dtype=torch.long, device="cpu")
    with exact_arithmetic(weights.device):
        below = pairwise_cosine_similarity(weights.fetch(index).cpu().double(), zero_diagonal=False)
        above = torch.full_like(below, torch.nan)
        if gradients is not None:
            above = pairwise_cosine_similarity(gradients.fetch(index).cpu().double(), zero_diagonal=False)
    matrix: npt.NDArray[np.float64] = (below.tril() + above.triu(1)).numpy()
    return matrix


def colours(matrix: npt.NDArray[np.float64]) -> Pixels:
    """Colour of every similarity; ``(...)`` to ``(..., 3)``."""
    stops = np.array(_COLOURS, dtype=np.float64)
    values = np.nan_to_num(matrix, nan=0.0)
    channels = [np.interp(values, _STOPS, stops[:, channel]) for channel in range(3)]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    pixels[np.isnan(matrix)] = _NO_DIRECTION
    return pixels


def draw_layer(layer: LayerDiagnosis, weights: Rows, gradients: Rows | None) -> Pixels:
    """The picture of a layer: one square, groups next to each other, framed in the colour of their verdict.

    Returns:
        Array ``(height, width, 3)``.
    """
    parts = order_units(layer)
    units = [unit for part in parts for unit in part]
    cell = max(1, _SIDE // len(units))
    square = np.kron(colours(similarity(weights, gradients, units)), np.ones((cell, cell, 1), dtype=np.uint8))
    side = len(square)
    left, top = 44, 40
    verdicts = [verdict for verdict in Verdict if any(group.verdict is verdict for group in layer.groups)]
    image = Image.new("RGB", (max(left + side + 76, 420), top + side + 46 + 16 * (len(verdicts) > 0)), _PAPER)
    image.paste(Image.fromarray(square), (left, top))
    draw = ImageDraw.Draw(image)
    shown = "" if len(units) == layer.num_units else f" ({len(units)} shown)"
    heading = f"{layer.num_units} units{shown}, {layer.effective_width} distinct"
    draw.text((left, 6), heading, _INK, _font(13))
    draw.text((left, 23), "cosine of gradients above the diagonal, of weights below", _PALE, _font(10))
    _draw_frames(draw, layer.groups, parts, cell, left, top)
    _draw_ticks(draw, parts, cell, left, top)
    _draw_scale(image, draw, left + side + 14, top, min(side, 160))
    bottom = top + side + 10
    draw.text((left, bottom), "unit index, groups first; grey: a zero row, no direction", _PALE, _font(10))
    x = left
    for verdict in verdicts:
        num_groups = sum(group.verdict is verdict for group in layer.groups)
        x = _draw_key(draw, x, bottom + 18, f"{verdict} ({num_groups})", VERDICT_COLOURS[verdict])
    return np.asarray(image)


def draw_overview(report: SymmetryReport) -> Pixels:
    """The picture of the model: a bar per layer, filled by what becomes of its units.

    Returns:
        Array ``(height, width, 3)``.
    """
    layers = report.distinct_layers
    if len(layers) > _MAX_LAYERS:
        sick = [layer for layer in layers if layer.groups]
        chosen = {layer.name for layer in [*sick, *(layer for layer in layers if not layer.groups)][:_MAX_LAYERS]}
        layers = [layer for layer in layers if layer.name in chosen]
    names = [_shorten(layer.name, 34) for layer in layers]
    font = _font(12)
    left = 24 + int(max([font.getlength(name) for name in names], default=0))
    bar, line = 260, 22
    image = Image.new("RGB", (max(left + bar + 110, 480), 62 + line * len(layers) + 32), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((12, 8), f"Step {report.step}: {report.totals()}", _INK, _font(13))
    draw.text((left + bar + 10, 36), "distinct / units", _PALE, _font(10))
    y = 54
    for layer, name in zip(layers, names, strict=True):
        draw.text((12, y + 2), name, _INK, font)
        draw.rectangle((left, y + 2, left + bar, y + line - 5), fill=_DISTINCT)
        x = float(left)
        for verdict in Verdict:
            width = bar * layer.count(verdict) / layer.num_units
            if width:
                draw.rectangle((x, y + 2, x + max(1.0, width), y + line - 5), fill=VERDICT_COLOURS[verdict])
            x += width
        draw.text((left + bar + 10, y + 2), f"{layer.effective_width} / {layer.num_units}", _INK, font)
        y += line
    left_out = len(report.distinct_layers) - len(layers)
    if left_out:
        draw.text((12, 36), f"{left_out} more layers not shown", _PALE, _font(10))
    x_key = _draw_key(draw, 12, y + 10, "distinct", _DISTINCT)
    for verdict in Verdict:
        x_key = _draw_key(draw, x_key, y + 10, str(verdict), VERDICT_COLOURS[verdict])
    return np.asarray(image)


def _spread(items: list[int], size: int) -> list[int]:
    """``size`` of the items, evenly spaced."""
    return [items[i * len(items) // size] for i in range(size)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_frames(
    draw: ImageDraw.ImageDraw, groups: Sequence[UnitGroup], parts: list[list[int]], cell: int, left: int, top: int
) -> None:
    start = 0
    for group, part in zip(groups, parts[:-1], strict=False):
        a, b = start * cell, (start + len(part)) * cell
        width = 2 if b - a > 24 else 1
        box = (left + a, top + a, left + b - 1, top + b - 1)
        draw.rectangle(box, outline=VERDICT_COLOURS[group.verdict], width=width)
        start += len(part)


def _draw_ticks(draw: ImageDraw.ImageDraw, parts: list[list[int]], cell: int, left: int, top: int) -> None:
    """Unit indices along the left side: where groups begin, then as many others as there is room for."""
    units = [unit for part in parts for unit in part]
    starts = {sum(map(len, parts[:i])) for i, part in enumerate(parts) if part}
    font, taken = _font(10), list[float]()
    for place in [*sorted(starts), *(place for place in range(len(units)) if place not in starts)]:
        middle = top + (place + 0.5) * cell if cell > 11 else top + place * cell + 4
        if all(abs(middle - other) >= 11 for other in taken):
            taken.append(middle)
            text = str(units[place])
            draw.text((left - 6 - font.getlength(text), middle - 6), text, _INK, font)
            draw.line((left - 4, middle, left - 1, middle), _INK)


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int) -> None:
    ramp = colours(np.linspace(1, -1, height)[:, None].repeat(12, axis=1))
    image.paste(Image.fromarray(ramp), (x, y))
    for value in (1, 0, -1):
        at = y + (1 - value) * (height - 1) / 2
        place = (x + 17, min(max(at - 6, y - 2), y + height - 10))
        draw.text(place, f"{value:g}", _INK, _font(10))


def _draw_key(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: str) -> int:
    """A swatch with its meaning; returns where the next one goes."""
    draw.rectangle((x, y + 1, x + 10, y + 11), fill=colour)
    draw.text((x + 15, y), text, _INK, _font(11))
    return x + 15 + int(_font(11).getlength(text)) + 16


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else "..." + name[3 - length :]
