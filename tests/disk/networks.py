"""Networks to scan, and functions that save them in each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lightning_symmetry import SymmetryReport
from lightning_symmetry.units.discovery import find_layers
from tests.architectures.families import TRANSFORMERS
from tests.training import MLP
from tests.zoo import conv_bn

_FAMILIES = {family.name: family.build for family in TRANSFORMERS}


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter)  # the layers of an nn.TransformerEncoder start as copies
    return net


def convolutions() -> nn.Module:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(conv_bn(3, 8), depthwise, nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(16, 4))


def attention_of_other_widths() -> nn.Module:
    return nn.Sequential(nn.MultiheadAttention(8, 2, kdim=6, vdim=5, bias=False))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": MLP,
    "convolutions": convolutions,
    "RNN": lambda: nn.Sequential(nn.RNN(3, 6, 2)),
    "GRU": lambda: nn.Sequential(nn.GRU(3, 6, 2, bidirectional=True)),
    "LSTM": lambda: nn.Sequential(nn.LSTM(3, 6, bias=False)),
    "LSTM with projections": lambda: nn.Sequential(nn.LSTM(3, 6, 2, proj_size=4)),
    "cells": lambda: nn.ModuleList([nn.RNNCell(3, 6), nn.GRUCell(3, 6), nn.LSTMCell(3, 6, bias=False)]),
    "attention of other widths": attention_of_other_widths,
    "TransformerEncoder": encoder,
    "GPT-2": _FAMILIES["gpt2"],
    "BERT": _FAMILIES["bert"],
    "ViT": _FAMILIES["vit"],
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def copy_half(net: nn.Module) -> nn.Module:
    """Make the second half of the units of every layer copies of the first, whichever dimension counts units."""
    with torch.no_grad():
        for layer in find_layers(net).layers:
            half = layer.num_units // 2
            for incoming in layer.all_tensors():
                rows = incoming.view(incoming.weights.data)
                rows[half : 2 * half] = rows[:half].clone()
            if layer.recurrent:  # (units, gates, units)
                columns = layer.recurrent.view(layer.recurrent.weights.data)
                columns[:, :, half : 2 * half] = columns[:, :, :half].clone()
    return net


def groups_of(report: SymmetryReport) -> dict[str, list[tuple[Any, ...]]]:
    """Map each layer to its groups: units, verdict, cause, value and mirrored units."""
    return {
        name: [(group.units, group.verdict, group.cause, group.value, group.mirrored) for group in layer.groups]
        for name, layer in report.layers.items()
    }


def save_safetensors(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.safetensors"
    unique = {id(tensor): name for name, tensor in reversed(net.state_dict(keep_vars=True).items())}
    save_file({name: tensor for name, tensor in net.state_dict().items() if name in unique.values()}, path)
    return path


def save_torch(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save(net.state_dict(), path)
    return path


def save_legacy(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save({"model_state_dict": net.state_dict()}, path, _use_new_zipfile_serialization=False)
    return path


FORMATS = [save_safetensors, save_torch, save_legacy]
