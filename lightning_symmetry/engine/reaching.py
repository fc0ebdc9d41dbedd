"""What advice has to know of a model: how a line of code reaches its layers, and which units make up a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from lightning_symmetry.modules import held, own_parameters
from lightning_symmetry.units.heads import find_projections
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.naming import readable_names
from lightning_symmetry.verdicts.access import Access, module_expression
from lightning_symmetry.verdicts.heads import Heads


def access_to(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Access]:
    """Return by name how code reaches each module of a model, and each of its layers.

    Args:
        model: the model; code calls it ``model``.
        layers: its layers.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
        >>> access_to(net, [])["1"]
        Access(module='model[1]', weights=('model[1].weight',), biases=('model[1].bias',), can_reset=True)
    """
    every = list(readable_names(model))
    modules = {path: module for _, path, module in every}
    accesses: dict[str, Access] = {}
    expressions: dict[int, str] = {}  # by identity of a parameter
    owners: dict[int, Access] = {}  # likewise
    for name, path, module in every:
        expression = module_expression(path) if _leads_to(path, modules) else ""
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


def _attribute(module: nn.Module, expression: str, name: str) -> str:
    """Return an expression for a parameter of a module; empty if there is none."""
    if issubclass(type(module), nn.ParameterDict):
        return f"{expression}[{name!r}]"
    if issubclass(type(module), nn.ParameterList):
        return f"{expression}[{int(name)}]" if name.isdecimal() else ""
    return f"{expression}.{name}" if name.isidentifier() and module_expression(name) else ""


def heads_in(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Sequence[Heads]]:
    """Return by name of a layer of an attention module which of its units make up each head.

    Args:
        model: the model.
        layers: its layers.

    Example:
        >>> from lightning_symmetry.units.discovery import find_layers
        >>> net = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> heads_in(net, find_layers(net).layers)["0.q"]
        [Heads(module='0', role='query', starts=(0, 2), size=2)]
    """
    heads: dict[str, list[Heads]] = {}
    for found in find_projections(model, {layer.name: layer.num_units for layer in layers}):
        heads.setdefault(found.layer, []).append(Heads(found.module, found.role, found.starts, found.size))
    return {**heads}


def _access(module: str, parameters: Iterable[Tensor], expressions: Mapping[int, str], *, can_reset: bool) -> Access:
    known = [(tensor, expressions[id(tensor)]) for tensor in parameters if id(tensor) in expressions]
    weights = tuple(expression for tensor, expression in known if tensor.dim() >= 2)
    biases = tuple(expression for tensor, expression in known if tensor.dim() == 1 and _is_bias(expression))
    return Access(module, weights, biases, can_reset)


def _leads_to(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether attributes and places in lists, step by step, lead from the model to a module."""
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


def _is_bias(expression: str) -> bool:
    return "bias" in expression.rpartition(".")[2]


def _can_reset(module: nn.Module) -> bool:
    """Return whether a module has the ``reset_parameters`` of torch, which initialises all that it holds."""
    reset = getattr(type(module), "reset_parameters", None)
    return getattr(reset, "__module__", "").startswith("torch.nn.modules")
