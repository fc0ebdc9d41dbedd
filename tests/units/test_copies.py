"""Whole modules that are copies."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry.units.copies import copies_named, find_copies, find_equal_parameters
from lightning_symmetry.units.discovery import find_layers


def test_parts_of_copies_are_no_copies_of_their_own_whatever_comes_first() -> None:
    # The first layer has the class and shape of a part of the experts.
    expert = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(3))
    model = nn.ModuleDict({"first": nn.Linear(4, 6), "experts": experts})
    [found] = find_copies(model, find_layers(model).layers)
    assert found.row_names == ("experts.0", "experts.1", "experts.2")


def test_copies_that_are_wrapped_are_found_once() -> None:
    expert = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    compiled = (torch.compile(copy.deepcopy(expert), backend="eager") for _ in range(3))
    experts = nn.ModuleDict({str(i): cast("nn.Module", expert) for i, expert in enumerate(compiled)})
    [found] = find_copies(experts, find_layers(experts).layers)
    assert found.row_names == ("0", "1", "2")
    assert copies_named(experts, found.row_names) == found


def trained_twins() -> nn.ModuleDict:
    """Return two equal networks, and a copy of both."""
    critic = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    critics = nn.ModuleList([critic, copy.deepcopy(critic)])
    return nn.ModuleDict({"critics": critics, "targets": copy.deepcopy(critics)})


def names_of_copies(model: nn.Module, trained: set[int] | None = None) -> list[tuple[str, ...]]:
    return [found.row_names for found in find_copies(model, find_layers(model).layers, trained=trained)]


def test_frozen_copies_do_not_hide_those_that_train() -> None:
    model = trained_twins()
    assert names_of_copies(model) == [("critics", "targets")]
    model["targets"].requires_grad_(False)
    assert names_of_copies(model) == [("critics.0", "critics.1"), ("targets.0", "targets.1")]


def test_copies_that_no_optimizer_updates_do_not_hide_those_that_train() -> None:
    model = trained_twins()
    trained = {id(parameter) for parameter in model["critics"].parameters()}
    assert names_of_copies(model, trained) == [("critics.0", "critics.1")]


class Holder(nn.Module):
    """Holds parameters under given names."""

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        for name, numbers in parameters.items():
            self.register_parameter(name, nn.Parameter(numbers))


def equal_parameters(model: nn.Module) -> list[tuple[str, ...]]:
    return [found.row_names for found in find_equal_parameters(model, find_layers(model).layers)]


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8), (4, 4)])
def test_equal_parameters_of_a_list_are_found(shape: tuple[int, ...]) -> None:
    tokens = nn.ParameterList([torch.zeros(shape), torch.ones(shape), torch.zeros(shape), torch.zeros(shape)])
    assert equal_parameters(nn.ModuleDict({"tokens": tokens})) == [("tokens.0", "tokens.2", "tokens.3")]


def test_equal_parameters_of_a_dict_and_attributes_are_found() -> None:
    matrix = torch.randn(3, 4)
    assert equal_parameters(nn.ParameterDict({"a": matrix, "b": matrix.clone()})) == [("a", "b")]
    assert equal_parameters(Holder(expert_a=matrix, expert_b=matrix.clone(), other=matrix + 1)) == [
        ("expert_a", "expert_b")
    ]


def test_equal_parameters_that_are_harmless_or_known_are_passed_over() -> None:
    assert equal_parameters(Holder(bias_ih=torch.zeros(8), bias_hh=torch.zeros(8))) == []
    assert equal_parameters(Holder(b_i=torch.zeros(8), b_h=torch.zeros(8))) == []
    assert equal_parameters(Holder(gate_a=torch.zeros(1), gate_b=torch.zeros(1))) == []
    assert equal_parameters(Holder(a=torch.zeros(8), b=torch.zeros(9))) == []
    bilinear = nn.Bilinear(3, 3, 4)
    assert equal_parameters(nn.LSTM(4, 4)) == equal_parameters(bilinear) == []
    shared = nn.Parameter(torch.zeros(8))
    assert equal_parameters(nn.ParameterList([shared, shared])) == []


def test_copies_of_parameters_are_known_by_their_names() -> None:
    model = nn.ModuleDict({"tokens": nn.ParameterList([torch.zeros(8), torch.zeros(8)])})
    [found] = find_equal_parameters(model, [])
    assert copies_named(model, found.row_names) == found


def test_sparse_gradients_of_copies_are_laid_side_by_side() -> None:
    first = nn.Embedding(10, 3, sparse=True)
    model = nn.ModuleList([first, copy.deepcopy(first)])
    both = cast("list[nn.Embedding]", list(model))
    [found] = find_copies(model, find_layers(model).layers)
    both[0](torch.tensor([1, 4])).sum().backward()
    assert found.gradients() is None
    both[1](torch.tensor([4, 4, 7])).sum().backward()
    gradients = found.gradients()
    assert gradients is not None
    rows = gradients.fetch(np.arange(2)).unflatten(1, (3, 3))  # of the tokens 1, 4 and 7
    assert rows[:, :, 0].tolist() == [[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]


def test_modules_that_do_not_train_are_no_copies_where_that_is_known() -> None:
    critic = nn.Linear(6, 4)
    model = nn.ModuleDict({name: copy.deepcopy(critic) for name in ("a", "b", "target_a", "target_b")})
    layers = find_layers(model).layers
    trained = {id(parameter) for name in ("a", "b") for parameter in model[name].parameters()}
    assert [found.row_names for found in find_copies(model, layers, trained=trained)] == [("a", "b")]
    assert [found.row_names for found in find_copies(model, layers)] == [tuple(model)]


def test_parameters_that_do_not_train_are_no_copies_where_that_is_known() -> None:
    tokens = nn.ParameterList(torch.ones(4) for _ in range(3))
    assert find_equal_parameters(tokens, [], set()) == []
    assert [found.row_names for found in find_equal_parameters(tokens, [])] == [("0", "1", "2")]
