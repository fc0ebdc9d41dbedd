"""The units of the layers of PyTorch, one small adapter each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.ranks.pieces import View
from lightning_symmetry.units.layers import NotUnderstoodError, Units, register_layer, register_layer_by_name


@register_layer(nn.Linear)
@register_layer(nn.Bilinear)
def _linear(module: nn.Linear | nn.Bilinear) -> Units:
    return Units(module.weight, module.bias)


@register_layer_by_name("transformers.pytorch_utils.Conv1D")
def _transposed_linear(module: Any) -> Units:
    return Units((module.weight, torch.t), module.bias)


@register_layer(nn.Embedding)
@register_layer(nn.EmbeddingBag)
def _embedding(module: nn.Embedding | nn.EmbeddingBag) -> Units:
    return Units((module.weight, torch.t))  # a unit is a feature, that is a column; a row is a token


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Units:
    return Units(module.weight, module.bias, blocks=module.groups)


def _transposed_convolution(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> Units:
    # (inputs, units / groups, ...) -> (units, inputs / groups, ...); unit = group * units / groups + place in group.
    # With more than one group the last step has to copy.
    def by_unit(weight: Tensor) -> Tensor:
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        return by_group.transpose(1, 2).flatten(0, 1)

    return Units((module.weight, by_unit), module.bias, blocks=module.groups)


for _convolution_type in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_layer(_convolution_type)(_convolution)
for _transposed_type in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_layer(_transposed_type)(_transposed_convolution)


@register_layer(nn.MultiheadAttention)
def _attention(module: nn.MultiheadAttention) -> Iterator[Units]:
    # The fourth part, out_proj, is a module of its own.
    for i, part in enumerate("qkv"):
        yield _projection(module, i, part)


def _projection(module: nn.MultiheadAttention, i: int, part: str) -> Units:
    def third(packed: Tensor) -> Tensor:
        return packed[i * module.embed_dim : (i + 1) * module.embed_dim]

    bias = None if module.in_proj_bias is None else (module.in_proj_bias, third)
    if module.in_proj_weight is not None:
        return Units((module.in_proj_weight, third), bias, part=part)
    return Units(getattr(module, f"{part}_proj_weight"), bias, part=part)


@register_layer(nn.RNNBase)
def _recurrent(module: nn.RNNBase) -> Iterator[Units]:
    for layer in range(module.num_layers):
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + module.bidirectional]:
            yield _hidden_units(module, f"_{suffix}", suffix)
            if module.proj_size:
                yield Units(getattr(module, f"weight_hr_{suffix}"), part=f"{suffix}_proj")


@register_layer(nn.RNNCellBase)
def _recurrent_cell(module: nn.RNNCellBase) -> Units:
    return _hidden_units(module, "", "")


def _hidden_units(module: nn.RNNBase | nn.RNNCellBase, suffix: str, part: str) -> Units:
    hidden = module.hidden_size

    def by_unit(gates: Tensor) -> Tensor:  # (gates * units, ...) -> (units, gates, ...)
        return gates.reshape(-1, hidden, *gates.shape[1:]).transpose(0, 1)

    def with_view(name: str) -> tuple[Tensor, View] | None:
        tensor = getattr(module, name + suffix, None)
        return None if tensor is None else (tensor, by_unit)

    fed_back = with_view("weight_hh")
    # What is fed back through a projection are other units than these, so rows are compared as they are.
    is_projected = bool(getattr(module, "proj_size", 0))
    return Units(
        with_view("weight_ih"),
        with_view("bias_ih"),
        with_view("bias_hh"),
        fed_back if is_projected else None,
        recurrent=None if is_projected else fed_back,
        part=part,
    )


def _one_number_per_unit(module: nn.Module) -> Units:
    raise NotUnderstoodError(f"{type(module).__name__} has one scale and shift per unit and no incoming row to compare")


for _norm_type in (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
):
    register_layer(_norm_type)(_one_number_per_unit)
