"""What a report carries besides diagnoses: code to reach each layer, the heads of attention, and heatmaps on demand."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from torch import Tensor, nn

from lightning_symmetry.modules import held, own_parameters
from lightning_symmetry.ranks.sketches import team_of
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.heads import find_projections
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.naming import readable_names
from lightning_symmetry.verdicts.access import Access, module_expression
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, worst_first
from lightning_symmetry.verdicts.heads import Heads

MAX_HEATMAPS: Final = 6
"""How many layers are drawn, the worst ones first."""


def access_to(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Access]:
    """Map each module, parameter and layer of a model, by name, to the expressions that reach it.

    Args:
        model: the model, called ``model`` in the expressions.
        layers: its layers.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
        >>> access_to(net, [])["1"]
        Access(module='model[1]', weights=('model[1].weight',), biases=('model[1].bias',), can_reset=True)
    """
    named = list(readable_names(model))
    modules = {path: module for _, path, module in named}
    accesses: dict[str, Access] = {}
    expressions: dict[int, str] = {}  # by `id` of a parameter
    owners: dict[int, Access] = {}  # by `id` of a parameter
    for name, path, module in named:
        expression = module_expression(path) if _is_reachable(path, modules) else ""
        if not expression:
            continue
        own = own_parameters(module)
        for each, parameter in own.items():
            line = _attribute(module, expression, each)
            if line and id(parameter) not in expressions:
                expressions[id(parameter)] = line
                accesses[f"{path}.{each}" if path else each] = Access(weights=(line,))
        accesses[name] = _access(expression, own.values(), expressions, can_reset=_can_reset(module))
        owners |= {id(parameter): accesses[name] for parameter in own.values()}
    for layer in layers:
        tensors = layer.all_tensors()
        owner = owners.get(id(tensors[0].weights), Access())
        plain = [tensor.weights for tensor in tensors if tensor.is_plain]
        accesses[layer.name] = _access(owner.module, plain, expressions, can_reset=owner.can_reset)
    return accesses


def _is_reachable(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether attributes and list indices, step by step, lead from the model to a module."""
    before = ""
    for step in path.split(".") if path else []:
        parent = modules.get(before)
        if parent is None:
            return False
        if step.isdecimal():
            in_order = isinstance(parent, (nn.Sequential, nn.ModuleList)) and list(held(parent, "_modules"))
            if not in_order or in_order.index(step) != int(step):
                return False
        elif hasattr(type(parent), step):
            return False
        before = f"{before}.{step}" if before else step
    return path in modules


def _attribute(module: nn.Module, expression: str, name: str) -> str:
    """Return an expression for a parameter of a module; empty if there is none."""
    if issubclass(type(module), nn.ParameterDict):
        return f"{expression}[{name!r}]"
    if issubclass(type(module), nn.ParameterList):
        return f"{expression}[{int(name)}]" if name.isdecimal() else ""
    return f"{expression}.{name}" if name.isidentifier() and module_expression(name) else ""


def _access(module: str, parameters: Iterable[Tensor], expressions: Mapping[int, str], *, can_reset: bool) -> Access:
    known = [(tensor, expressions[id(tensor)]) for tensor in parameters if id(tensor) in expressions]
    weights = tuple(expression for tensor, expression in known if tensor.dim() >= 2)
    biases = tuple(line for tensor, line in known if tensor.dim() == 1 and "bias" in line.rpartition(".")[2])
    return Access(module, weights, biases, can_reset)


def _can_reset(module: nn.Module) -> bool:
    """Return whether a module has torch's ``reset_parameters``, which initialises all own parameters."""
    reset = getattr(type(module), "reset_parameters", None)
    return getattr(reset, "__module__", "").startswith("torch.nn.modules")


def heads_in(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Sequence[Heads]]:
    """Map each layer of an attention module, by name, to the units of its heads.

    Example:
        >>> net = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> heads_in(net, find_layers(net).layers)["0.q"]
        [Heads(module='0', role='query', starts=(0, 2), size=2)]
    """
    heads: dict[str, list[Heads]] = {}
    for found in find_projections(model, {layer.name: layer.num_units for layer in layers}):
        heads.setdefault(found.layer, []).append(Heads(found.module, found.role, found.starts, found.size))
    return {**heads}


class HeatmapsOnDemand:
    """Draws the layers of a report that have groups, with the weights and gradients at the time of the call.

    It does not keep the model alive, and costs nothing until it is called. A picture that cannot be drawn is left out,
    since the rest of the report is worth showing.

    Args:
        model: the model.
        layers: the layers of the report; of those that share a weight, one.
        include: the patterns of the report, as for :func:`find_layers`.
        exclude: likewise.

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
        """Return PNG files by layer name, at most :data:`MAX_HEATMAPS`; none if the model is gone or sharded."""
        from lightning_symmetry.outputs.pictures import heatmap_image, png

        sick = [layer for layer in worst_first(self._layers) if layer.groups]
        present: dict[str, Layer] = {}
        if sick:
            with suppress(Exception):
                present = {layer.name: layer for layer in self._find()}
        pictures: dict[str, bytes] = {}
        for diagnosis in sick[:MAX_HEATMAPS]:
            layer = present.get(diagnosis.name)
            if layer is not None and layer.num_units == diagnosis.num_units:
                with suppress(Exception):
                    image = heatmap_image(diagnosis, layer.weights(), layer.gradients(), on_any_page=True)
                    pictures[diagnosis.name] = png(image)
        return pictures

    def _find(self) -> Iterable[Layer]:
        model = self._model()
        # One rank alone cannot read a sharded model, nor ask the other ranks, which would not answer.
        if model is None or team_of(model) is not None:
            return []
        return find_layers(model, self._include, self._exclude).layers
