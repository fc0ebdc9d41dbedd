"""The adapters of PyTorch's layers, and of similar ones in the packages transformers and torch_geometric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.modules import class_of
from lightning_symmetry.ranks.pieces import View
from lightning_symmetry.units.registry import (
    NotUnderstoodError,
    Units,
    register_layer,
    register_layer_by_name,
    tensor_of,
    weight_of,
)


@register_layer_by_name("torch_geometric.nn.dense.linear.Linear")
@register_layer(nn.Linear, nn.Bilinear)
def _linear(module: Any) -> Units:
    return Units(weight_of(module), tensor_of(module, "bias"))


@register_layer_by_name("transformers.pytorch_utils.Conv1D")
def _transposed_linear(module: Any) -> Units:
    return Units((weight_of(module), torch.t), tensor_of(module, "bias"))


def _of_all_types(stack: Tensor) -> Tensor:  # (types, ..., units) -> (types * units, ...)
    return stack.movedim(-1, 1).flatten(0, 1)


@register_layer_by_name("torch_geometric.nn.dense.linear.HeteroLinear")
def _linear_of_types(module: Any) -> Units:
    bias = tensor_of(module, "bias")
    with_view = None if bias is None else (bias, _of_all_types)
    return Units((weight_of(module), _of_all_types), with_view, blocks=module.num_types)


@register_layer(nn.Embedding, nn.EmbeddingBag)
def _embedding(module: nn.Embedding | nn.EmbeddingBag) -> Units:
    # A unit is a feature: a column of the weight. A row belongs to a token.
    return Units((weight_of(module), torch.t))


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Units:
    return Units(weight_of(module), tensor_of(module, "bias"), blocks=module.groups)


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _transposed_convolution(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> Units:
    # (inputs, units / groups, ...) -> (units, inputs / groups, ...). The units of one group are consecutive.
    # With more than one group, `flatten` has to copy.
    def by_unit(weight: Tensor) -> Tensor:
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        return by_group.transpose(1, 2).flatten(0, 1)

    return Units((weight_of(module), by_unit), tensor_of(module, "bias"), blocks=module.groups)


@register_layer(nn.MultiheadAttention)
def _attention(module: nn.MultiheadAttention) -> Iterator[Units]:
    # The fourth projection, `out_proj`, is a submodule with an adapter of its own.
    for i, part in enumerate("qkv"):
        yield _projection(module, i, part)


def _projection(module: nn.MultiheadAttention, i: int, part: str) -> Units:
    def third(packed: Tensor) -> Tensor:
        return packed[i * module.embed_dim : (i + 1) * module.embed_dim]

    packed_bias, packed = tensor_of(module, "in_proj_bias"), tensor_of(module, "in_proj_weight")
    bias = None if packed_bias is None else (packed_bias, third)
    if packed is not None:
        return Units((packed, third), bias, part=part)
    return Units(weight_of(module, f"{part}_proj_weight"), bias, part=part)


def _by_head(weight: Tensor) -> Tensor:  # (inputs, heads, units of a head) -> (heads * units of a head, inputs)
    return weight.flatten(1).T


@register_layer_by_name("transformers.models.xlnet.modeling_xlnet.XLNetRelativeAttention")
def _relative_attention(module: Any) -> Iterator[Units]:
    # Queries, keys, values, and keys of relative positions. The biases feed no single unit: queries share them.
    for part in "qkvr":
        yield Units((weight_of(module, part), _by_head), part=part)
    yield Units(weight_of(module, "o"), part="o")  # (outputs, heads, units of a head)


@register_layer_by_name("transformers.models.funnel.modeling_funnel.FunnelRelMultiheadAttention")
def _funnel_attention(module: Any) -> Units:
    # Queries, keys and values are submodules with adapters of their own.
    return Units((weight_of(module, "r_kernel"), _by_head), part="r")


@register_layer(nn.RNNBase)
def _recurrent(module: nn.RNNBase) -> Iterator[Units]:
    for layer in range(module.num_layers):
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + module.bidirectional]:
            yield _hidden_units(module, f"_{suffix}", suffix)
            if module.proj_size:
                yield Units(weight_of(module, f"weight_hr_{suffix}"), part=f"{suffix}_proj")


@register_layer(nn.RNNCellBase)
def _recurrent_cell(module: nn.RNNCellBase) -> Units:
    return _hidden_units(module, "", "")


def _hidden_units(module: nn.RNNBase | nn.RNNCellBase, suffix: str, part: str) -> Units:
    hidden = module.hidden_size

    def by_unit(gates: Tensor) -> Tensor:  # (gates * units, ...) -> (units, gates, ...)
        return gates.reshape(-1, hidden, *gates.shape[1:]).transpose(0, 1)

    def with_view(name: str) -> tuple[Tensor, View] | None:
        tensor = tensor_of(module, name + suffix)
        return None if tensor is None else (tensor, by_unit)

    fed_back = (weight_of(module, f"weight_hh{suffix}"), by_unit)
    # A projection feeds its own outputs back instead of these units: `weight_hh` is then an incoming tensor.
    is_projected = bool(getattr(module, "proj_size", 0))
    num_gates = weight_of(module, f"weight_ih{suffix}").shape[0] // hidden
    return Units(
        (weight_of(module, f"weight_ih{suffix}"), by_unit),
        with_view("bias_ih"),
        with_view("bias_hh"),
        fed_back if is_projected else None,
        recurrent=None if is_projected else fed_back,
        part=part,
        # In LSTM and GRU, the third gate is followed by a tanh.
        odd_gates=None if num_gates == 1 else (2,),
    )


@register_layer(
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
def _one_number_per_unit(module: nn.Module) -> Units:
    kind = class_of(module).__name__
    raise NotUnderstoodError(f"{kind} has one scale and shift per unit and no incoming row to compare")
