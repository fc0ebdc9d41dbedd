from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, Verdict, diagnose
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.partition import stable_groups
from lightning_symmetry.units.discovery import find_layers
from tests.oracle import brute_force_groups
from tests.training import fill

CONVOLUTIONS = [
    (nn.Conv1d, nn.ConvTranspose1d, 1),
    (nn.Conv2d, nn.ConvTranspose2d, 2),
    (nn.Conv3d, nn.ConvTranspose3d, 3),
]
RECURRENT = [nn.RNN, nn.LSTM, nn.GRU]


def groups_of(model: nn.Module, layer: str) -> list[tuple[int, ...]]:
    return [group.units for group in diagnose(model).layers[layer].groups]


def verdicts_of(report: SymmetryReport, layer: str) -> dict[tuple[int, ...], Verdict]:
    return {group.units: group.verdict for group in report.layers[layer].groups}


# ----------------------------------------------------------------- convolution


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("plain", "transposed", "dims"), CONVOLUTIONS)
def test_silencing_a_row_changes_one_output_channel(plain: type, transposed: type, dims: int, groups: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, 8, *([5] * dims))
    for conv_type in (plain, transposed):
        conv = conv_type(8, 12, 3, groups=groups)
        (layer,), skipped, *_ = find_layers(nn.Sequential(conv))
        assert not skipped
        assert (layer.num_units, layer.blocks) == (12, groups)
        assert layer.fan_in == 8 // groups * 3**dims
        before = conv(inputs)
        for unit in (0, 5, 11):
            row = layer.weights().fetch(np.array([unit]))[0]
            copy = conv_type(8, 12, 3, groups=groups)
            copy.load_state_dict(conv.state_dict())
            (copied,) = find_layers(nn.Sequential(copy)).layers
            with torch.no_grad():
                for tensor, view in [(item.weights, item.view) for item in copied.tensors]:
                    mask = torch.ones_like(tensor)
                    units_first = view(mask)
                    if units_first.data_ptr() == mask.data_ptr():
                        units_first[unit] = 0.0
                    else:  # the view of a grouped transposed convolution is a copy: find the elements by marked values
                        marks = torch.arange(tensor.numel()).reshape(tensor.shape)
                        mask.view(-1)[view(marks)[unit].flatten()] = 0.0
                    tensor.mul_(mask)
            changed = (copy(inputs) != before).flatten(2).any(dim=2)[0].nonzero().flatten().tolist()
            assert changed == [unit]
            assert row.abs().sum() > 0


@pytest.mark.parametrize(("plain", "transposed", "dims"), CONVOLUTIONS)
def test_rows_of_different_conv_groups_are_never_compared(plain: type, transposed: type, dims: int) -> None:
    for conv_type in (plain, transposed):
        conv = conv_type(4, 8, 3, groups=2)
        nn.init.constant_(conv.weight, 0.5)
        nn.init.zeros_(conv.bias)
        groups = diagnose(nn.Sequential(conv)).layers["0"].groups
        assert [group.units for group in groups] == [(0, 1, 2, 3), (4, 5, 6, 7)]
        depthwise = conv_type(8, 8, 3, groups=8)
        nn.init.constant_(depthwise.weight, 0.5)
        nn.init.zeros_(depthwise.bias)
        assert diagnose(nn.Sequential(depthwise)).layers["0"].groups == []


def test_planted_filters_are_found_in_every_convolution() -> None:
    torch.manual_seed(0)
    for plain, transposed, _ in CONVOLUTIONS:
        for conv_type in (plain, transposed):
            conv = conv_type(4, 12, 2, groups=2)
            (layer,) = find_layers(nn.Sequential(conv)).layers
            rows = layer.weights().fetch(np.arange(12))
            assert brute_force_groups(rows, 1e-5) == []
            for tensor, view in [(item.weights, item.view) for item in layer.tensors]:
                marks = view(torch.arange(tensor.numel()).reshape(tensor.shape))
                tensor.data.view(-1)[marks[4].flatten()] = tensor.data.view(-1)[marks[1].flatten()]
            groups = diagnose(nn.Sequential(conv)).layers["0"].groups
            assert [group.units for group in groups] == [(1, 4)]


def test_views_are_not_copies() -> None:
    for module in (nn.Linear(8, 8), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3)):
        (layer,) = find_layers(nn.Sequential(module)).layers
        weights = layer.weights()
        assert isinstance(weights, DenseRows)
        piece = weights.pieces[0]
        assert isinstance(piece, Tensor)
        assert piece.data_ptr() == layer.tensors[0].weights.data_ptr()


# ------------------------------------------------------------------- recurrent


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield all partitions of a list."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for i, part in enumerate(smaller):
            yield [*smaller[:i], [first, *part], *smaller[i + 1 :]]


def is_stable(partition: list[list[int]], groups: list[tuple[int, ...]], weights: Tensor) -> bool:
    home = {unit: i for i, group in enumerate(groups) for unit in group}
    for part in partition:
        for a, b in itertools.combinations(part, 2):
            if home.get(a, -1 - a) != home.get(b, -1 - b):
                return False
            if any(weights[a, :, c].sum(dim=1).ne(weights[b, :, c].sum(dim=1)).any() for c in partition):
                return False
    return True


@given(st.integers(0, 2**31), st.integers(2, 5), st.sampled_from([1, 3]))
@settings(max_examples=80, deadline=None)
def test_stable_groups_are_the_coarsest(seed: int, units: int, gates: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 2, (units, gates, units), generator=generator).double()
    label = torch.randint(0, 2, (units,), generator=generator).tolist()
    groups = [tuple(i for i in range(units) if label[i] == value) for value in (0, 1)]
    found = stable_groups([group for group in groups if len(group) > 1], DenseRows([weights]), 1e-9)
    stable = [part for part in partitions(list(range(units))) if is_stable(part, groups, weights)]
    coarsest = min(stable, key=len)
    assert found == sorted(tuple(sorted(part)) for part in coarsest if len(part) > 1)


@pytest.mark.parametrize("rnn_type", RECURRENT)
def test_constant_recurrent_layers_are_one_unit(rnn_type: Callable[..., Any]) -> None:
    rnn = rnn_type(3, 5, num_layers=2, bidirectional=True)
    fill(rnn, 0.1)
    report = diagnose(nn.ModuleDict({"rnn": rnn}))
    assert list(report.layers) == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
    assert [layer.effective_width for layer in report.layers.values()] == [1] * 4
    assert report.skipped == {}
    assert [layer.num_units for layer in report.layers.values()] == [5] * 4


@pytest.mark.parametrize("rnn_type", RECURRENT)
def test_identity_recurrence_is_found_though_no_rows_are_equal(rnn_type: Callable[..., Any]) -> None:
    rnn = rnn_type(3, 6)
    fill(rnn, 0.1)
    gates = rnn.weight_hh_l0.shape[0] // 6
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.eye(6).repeat(gates, 1))
    assert groups_of(nn.Sequential(rnn), "0.l0") == [tuple(range(6))]
    # Locked: the outputs of the units stay equal, and so do their gradients.
    output, _ = rnn(torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(output, output[..., :1].expand_as(output))
    output.square().sum().backward()
    assert verdicts_of(diagnose(nn.Sequential(rnn)), "0.l0") == {tuple(range(6)): Verdict.LOCKED}


@pytest.mark.parametrize("rnn_type", RECURRENT)
def test_constant_input_weights_with_orthogonal_recurrence_are_no_finding(rnn_type: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    rnn = rnn_type(3, 6)
    fill(rnn, 0.1)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    assert groups_of(nn.Sequential(rnn), "0.l0") == []


@pytest.mark.parametrize("rnn_type", [nn.LSTM, nn.GRU])
def test_equality_in_one_gate_is_no_duplicate(rnn_type: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    rnn = rnn_type(3, 6)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(rnn, name)[:6] = 0.1  # the first gate of all units
    assert groups_of(nn.Sequential(rnn), "0.l0") == []


@pytest.mark.parametrize("rnn_type", RECURRENT)
def test_swappable_pair_in_a_random_layer(rnn_type: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    rnn = rnn_type(3, 6)
    gates = rnn.weight_hh_l0.shape[0] // 6
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        by_gate = getattr(rnn, name).data.view(gates, 6, -1)
        by_gate[:, 4] = by_gate[:, 1]
    square = rnn.weight_hh_l0.data.view(gates, 6, 6)
    swapped = square[:, 1].clone()
    swapped[:, [1, 4]] = swapped[:, [4, 1]]
    square[:, 4] = swapped
    square[:, :, 4] = square[:, :, 1]  # and their outgoing weights
    square[:, 1, 1], square[:, 4, 4] = 0.3, 0.3
    square[:, 1, 4], square[:, 4, 1] = -0.2, -0.2
    assert not torch.equal(square[:, 1], square[:, 4])
    assert groups_of(nn.Sequential(rnn), "0.l0") == [(1, 4)]
    output, _ = rnn(torch.randn(7, 2, 3))
    assert torch.allclose(output[..., 1], output[..., 4])


def test_default_recurrent_layers_are_healthy_and_projections_are_parts() -> None:
    torch.manual_seed(0)
    report = diagnose(nn.ModuleDict({"rnn": nn.LSTM(3, 8, num_layers=2, proj_size=4)}))
    assert [(name, layer.num_units) for name, layer in report.layers.items()] == [
        ("rnn.l0", 8),
        ("rnn.l0_proj", 4),
        ("rnn.l1", 8),
        ("rnn.l1_proj", 4),
    ]
    assert report.redundant_units == 0
    assert report.skipped == {}


@pytest.mark.parametrize("cell_type", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells(cell_type: Callable[..., Any]) -> None:
    cell = cell_type(3, 5)
    assert groups_of(nn.Sequential(cell), "0") == []
    assert groups_of(nn.Sequential(fill(cell, 0.1)), "0") == [tuple(range(5))]


# ------------------------------------------------------------------- attention


@pytest.mark.parametrize("separate", [False, True])
def test_attention_has_parts(separate: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=6 if separate else None, vdim=4 if separate else None)
    model = nn.ModuleDict({"attn": attention})
    report = diagnose(model)
    assert list(report.layers) == ["attn.q", "attn.k", "attn.v", "attn.out_proj"]
    assert [layer.fan_in for layer in report.layers.values()] == ([8, 6, 4, 8] if separate else [8] * 4)
    assert report.redundant_units == 0
    assert report.skipped == {}
    with torch.no_grad():
        if separate:
            attention.k_proj_weight[5] = attention.k_proj_weight[2]
        else:
            attention.in_proj_weight[8 + 5] = attention.in_proj_weight[8 + 2]
    report = diagnose(model)
    assert {name: [group.units for group in layer.groups] for name, layer in report.layers.items() if layer.groups} == {
        "attn.k": [(2, 5)]
    }


def test_transformers_are_read_to_the_last_linear() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=16, batch_first=True)
    report = diagnose(model)
    assert len(report.layers) == 4 + 2 + 2 * 4 + 2
    assert report.redundant_units == 0
    assert all("LayerNorm" in reason for reason in report.skipped.values())


# ------------------------------------------------------------- embedding, others


@pytest.mark.parametrize("embedding_type", [nn.Embedding, nn.EmbeddingBag])
def test_units_of_an_embedding_are_its_columns(embedding_type: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    embedding = embedding_type(20, 6)
    with torch.no_grad():
        embedding.weight[7] = embedding.weight[3]  # equal tokens, which are no units
    assert groups_of(nn.Sequential(embedding), "0") == []
    with torch.no_grad():
        embedding.weight[:, 4] = embedding.weight[:, 1]
    assert groups_of(nn.Sequential(embedding), "0") == [(1, 4)]


@pytest.mark.parametrize("bag", [False, True], ids=["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_are_read_row_by_row(sparse: bool, bag: bool) -> None:
    kind = nn.EmbeddingBag if bag else nn.Embedding
    embedding = kind(20, 6, sparse=sparse)
    nn.init.constant_(embedding.weight, 0.5)
    factors = torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    # The token 7 comes twice, so that the gradient is not coalesced.
    (embedding(torch.tensor([[1, 7], [7, 2]])) * factors).sum().backward()
    # Units with different factors have different gradients.
    assert verdicts_of(diagnose(nn.Sequential(embedding)), "0") == {tuple(range(6)): Verdict.BREAKING}
    embedding.zero_grad()
    embedding(torch.tensor([[1, 7], [7, 2]])).sum().backward()
    assert verdicts_of(diagnose(nn.Sequential(embedding)), "0") == {tuple(range(6)): Verdict.LOCKED}


def test_a_sparse_gradient_without_rows_says_nothing() -> None:
    embedding = nn.Embedding(20, 6, sparse=True)
    nn.init.constant_(embedding.weight, 0.5)
    embedding(torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert verdicts_of(diagnose(nn.Sequential(embedding)), "0") == {tuple(range(6)): Verdict.DUPLICATE}


def test_embedding_tied_to_a_head_is_read_both_ways() -> None:
    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 20, bias=False)
            self.head.weight = self.tokens.weight

    report = diagnose(LanguageModel())
    # Features are the columns of the embedding, and the rows of the head.
    assert {name: layer.num_units for name, layer in report.layers.items()} == {"tokens": 6, "head": 20}
    assert report.skipped == {}


def test_bilinear() -> None:
    bilinear = nn.Bilinear(3, 4, 5)
    with torch.no_grad():
        bilinear.weight[4], bilinear.bias[4] = bilinear.weight[0], bilinear.bias[0]
    assert groups_of(nn.Sequential(bilinear), "0") == [(0, 4)]
    assert diagnose(nn.Sequential(bilinear)).layers["0"].fan_in == 12


def test_conv1d_of_transformers_is_known_by_its_name() -> None:
    # The same qualified name and weight (inputs, units) as the class of the package.
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    module: Any = conv1d()
    module.weight = nn.Parameter(torch.randn(3, 7))
    module.bias = nn.Parameter(torch.zeros(7))
    with torch.no_grad():
        module.weight[:, 6] = module.weight[:, 2]
    assert groups_of(nn.Sequential(module), "0") == [(2, 6)]


def test_lazy_layers_are_looked_at_once_they_exist() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    assert diagnose(model).skipped == {"0": "not initialised yet"}
    model(torch.randn(2, 3))
    assert list(diagnose(model).layers) == ["0"]
