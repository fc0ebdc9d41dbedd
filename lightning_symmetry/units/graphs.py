"""The adapter for a linear layer per type of node, as the torch_geometric package has it.

Its plain ``Linear`` is read like PyTorch's own; ``HeteroDictLinear`` holds one of these for each type.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_symmetry.units.registry import Units, register_layer_by_name, tensor_of, weight_of


def _of_all_types(stack: Tensor) -> Tensor:  # (types, ..., units) -> (types * units, ...)
    return stack.movedim(-1, 1).flatten(0, 1)


@register_layer_by_name("torch_geometric.nn.dense.linear.HeteroLinear")
def _linear_of_types(module: Any) -> Units:
    bias = tensor_of(module, "bias")
    with_view = None if bias is None else (bias, _of_all_types)
    return Units((weight_of(module), _of_all_types), with_view, blocks=module.num_types)
