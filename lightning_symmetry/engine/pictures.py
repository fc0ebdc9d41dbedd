"""Heatmaps for whoever looks at a report later, drawn from the model if it is still there."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from torch import nn

from lightning_symmetry.ranks.sketches import team_of
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, worst_first

MAX_HEATMAPS: Final = 6
"""How many layers are drawn, the worst ones first."""


class HeatmapsOnDemand:
    """Draws the layers of a report that have groups, from the weights and gradients that the model has when called.

    A report holds no weights, and this does not keep the model alive. It costs nothing until it is called. Whoever
    shows a report wants to see the rest of it even if the pictures cannot be drawn, so what fails is left out.

    Args:
        model: the model.
        layers: the layers of the report, those that share a weight once.
        include: patterns of layer names that the report is of, as for :func:`find_layers`.
        exclude: patterns of layer names that were left out.

    Example:
        >>> from lightning_symmetry import diagnose
        >>> model = nn.Sequential(nn.Linear(3, 4))
        >>> _ = nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
        >>> report = diagnose(model)
        >>> list(HeatmapsOnDemand(model, report.distinct_layers, None, ())())
        ['0']
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[LayerDiagnosis], include: Sequence[str] | None, exclude: Sequence[str]
    ) -> None:
        self._model = weakref.ref(model)
        self._layers = layers
        self._include = include
        self._exclude = exclude

    def __call__(self) -> dict[str, bytes]:
        """PNG files by layer name, at most :data:`MAX_HEATMAPS`; none if the model is gone or lies on several ranks."""
        sick = [layer for layer in worst_first(self._layers) if layer.groups]
        here: dict[str, Layer] = {}
        if sick:
            with suppress(Exception):
                here = {layer.name: layer for layer in self._find()}
        pictures: dict[str, bytes] = {}
        for diagnosis in sick[:MAX_HEATMAPS]:
            layer = here.get(diagnosis.name)
            if layer is not None and layer.num_units == diagnosis.num_units:
                with suppress(Exception):
                    pictures[diagnosis.name] = _draw(diagnosis, layer)
        return pictures

    def _find(self) -> Iterable[Layer]:
        model = self._model()
        # One rank alone cannot read a sharded model, and must not even ask the others, who would not answer.
        if model is None or team_of(model) is not None:
            return []
        return find_layers(model, self._include, self._exclude).layers


def _draw(diagnosis: LayerDiagnosis, layer: Layer) -> bytes:
    from lightning_symmetry.outputs.pictures import heatmap_image, png

    return png(heatmap_image(diagnosis, layer.weights(), layer.gradients(), on_any_page=True))
