"""Adapters for the linear layers of the torch_geometric package, which its convolutions of graphs consist of.

``HeteroDictLinear`` needs none: it holds one of them for each type.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_symmetry.units.registry import Units, register_layer_by_name, tensor_of, weight_of


@register_layer_by_name("torch_geometric.nn.dense.linear.Linear")
def _linear(module: Any) -> Units:
    return Units(weight_of(module), tensor_of(module, "bias"))


def _of_all_types(stack: Tensor) -> Tensor:  # (types, ..., units) -> (types * units, ...)
    return stack.movedim(-1, 1).flatten(0, 1)


@register_layer_by_name("torch_geometric.nn.dense.linear.HeteroLinear")
def _linear_of_types(module: Any) -> Units:
    bias = tensor_of(module, "bias")
    with_view = None if bias is None else (bias, _of_all_types)
    return Units((weight_of(module), _of_all_types), with_view, blocks=module.num_types)
