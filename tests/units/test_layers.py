from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_symmetry import diagnose, duplicate_groups
from lightning_symmetry.units.discovery import find_layers


def test_bias_belongs_to_the_incoming_row() -> None:
    layer = nn.Linear(3, 4)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    report = diagnose(nn.Sequential(layer))
    assert [group.units for group in report.layers["0"].groups] == [(0, 2)]
    assert (report.layers["0"].num_units, report.layers["0"].fan_in) == (4, 3)


def test_gradients_have_the_shape_of_the_weights() -> None:
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    conv(torch.randn(2, 4, 5, 5)).square().sum().backward()
    (layer,) = find_layers(nn.Sequential(conv)).layers
    gradients = layer.gradients()
    assert gradients is not None
    assert (gradients.num_rows, gradients.width) == (layer.weights().num_rows, layer.weights().width)
    assert layer.gradients(trained=set()) is None
    only_bias = layer.gradients(trained={id(conv.bias)})
    assert only_bias is not None
    assert only_bias.width == 1


def test_frozen_and_half_precision_rows() -> None:
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight[7] = layer.weight[3]
        layer.bias[7] = layer.bias[3]
    layer.requires_grad_(False)
    assert [group.units for group in diagnose(nn.Sequential(layer)).layers["0"].groups] == [(3, 7)]
    assert duplicate_groups(layer.weight) == [(3, 7)]


def test_chance_collisions_are_no_groups() -> None:
    torch.manual_seed(0)
    narrow = nn.Linear(1, 4096).to(torch.bfloat16)
    rows: Tensor = torch.cat([narrow.weight, narrow.bias[:, None]], dim=1)
    assert duplicate_groups(rows) != []  # some rows are equal
    assert diagnose(nn.Sequential(narrow)).layers["0"].groups == []
    nn.init.constant_(narrow.weight, 0.5)
    nn.init.zeros_(narrow.bias)
    assert diagnose(nn.Sequential(narrow)).layers["0"].effective_width == 1


def test_a_constant_weight_tells_no_more_than_one_number() -> None:
    # Zero weights with random biases, two of which are equal in bfloat16 by chance.
    layer = nn.Linear(64, 64).to(torch.bfloat16)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(0.5, 0.7, 64))
    assert duplicate_groups(torch.cat([layer.weight, layer.bias[:, None]], dim=1)) != []
    assert diagnose(nn.Sequential(layer)).layers["0"].groups == []
