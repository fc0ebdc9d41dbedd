from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_symmetry import Verdict, diagnose
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.units.discovery import find_layers


@pytest.mark.parametrize(
    "parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("module_type", [lambda: nn.Linear(8, 6), lambda: nn.Conv1d(8, 6, 2, groups=2)])
def test_parametrized_layers_are_read_as_they_compute(
    parametrize: Callable[..., Any], module_type: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    module = parametrize(module_type())
    rng = torch.get_rng_state()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    (layer,), skipped, *_ = find_layers(nn.Sequential(module))
    assert skipped == {}
    assert module.training
    assert module.parametrizations.weight.training
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    module.eval()
    weights = layer.weights()
    assert isinstance(weights, DenseRows)
    piece = weights.pieces[0]
    assert isinstance(piece, Tensor)
    assert torch.equal(piece, module.weight)
    module(torch.randn(4, 8, *([5] if isinstance(module, nn.Conv1d) else []))).square().sum().backward()
    gradients = layer.gradients()
    assert gradients is not None
    assert gradients.num_rows == 6


def test_duplicates_in_a_weight_normed_layer_are_locked() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    with torch.no_grad():
        first.weight[3], first.bias[3] = first.weight[1], first.bias[1]
        second.weight[:, 3] = second.weight[:, 1]
    model = nn.Sequential(parametrizations.weight_norm(first), nn.Tanh(), second)
    model(torch.randn(8, 5)).square().sum().backward()
    groups = diagnose(model).layers["0"].groups
    assert {group.units: group.verdict for group in groups} == {(1, 3): Verdict.LOCKED}


def test_looking_at_a_spectral_norm_leaves_its_power_iteration_alone() -> None:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    diagnose(nn.Sequential(module))
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
