"""Pictures of checks, as images and as files. The libraries that draw them are imported when needed."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.outputs.output import Check, Heatmaps
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis
from lightning_symmetry.verdicts.report import SymmetryReport

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_LENGTH = 100
_RESERVED = re.compile(r"(aux|con|nul|prn|(com|lpt)\d)(\.|$)", re.IGNORECASE)  # names of devices on Windows


def due_heatmaps(check: Check, heatmaps: Heatmaps) -> Iterator[tuple[str, Image]]:
    """Yield name and heatmap of each layer that needs one, by the option ``heatmaps`` of the monitor."""
    with_findings = {finding.layer for finding in check.findings}
    for seen in check.looks:
        layer = check.report.layers.get(seen.layer.name)  # whole modules have no picture
        is_due = heatmaps == "findings" and seen.layer.name in with_findings & check.changed
        if layer is not None and (is_due or heatmaps == "all"):
            yield layer.name, heatmap_image(layer, seen.weights, seen.gradients)


def heatmap_image(layer: LayerDiagnosis, weights: Rows, gradients: Rows | None, *, on_any_page: bool = False) -> Image:
    """Return the heatmap of a layer; ``on_any_page`` makes it transparent, for light and dark pages."""
    from PIL.Image import fromarray

    from lightning_symmetry.outputs.heatmap import ON_ANY_PAGE, ON_WHITE, draw_layer

    return fromarray(draw_layer(layer, weights, gradients, ON_ANY_PAGE if on_any_page else ON_WHITE))


def overview_image(report: SymmetryReport) -> Image:
    """Return the picture of a model."""
    from PIL.Image import fromarray

    from lightning_symmetry.outputs.heatmap import draw_overview

    return fromarray(draw_overview(report))


def png(image: Image) -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def file_name(layer: str) -> str:
    """Return a unique and valid file name for a layer, whose name may contain any characters.

    >>> file_name("encoder.0.fc1")
    'encoder.0.fc1'
    >>> file_name("a/b")
    'a_b-c14cddc0'
    >>> file_name("aux.0")
    '_aux.0-e90b107c'
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", layer).lstrip(".")[:_MAX_LENGTH]
    if _RESERVED.match(safe):
        safe = f"_{safe}"
    # A name that ends like a checksum gets one too: it might equal the file name of another layer.
    is_unchanged = safe == layer and not re.search("-[0-9a-f]{8}$", layer)
    return safe if is_unchanged else f"{safe}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"
