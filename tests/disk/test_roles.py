"""The roles of tensors whose names and shapes are ambiguous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_symmetry import SymmetryReport, scan
from lightning_symmetry.disk import roles as roles  # registers the adapter for stand-ins
from lightning_symmetry.disk.models import as_modules
from lightning_symmetry.units.discovery import find_layers
from tests.disk.networks import copy_half
from tests.oracle import brute_force_groups


def layers_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    """Map each layer to its number of units, its fan-in, and its number of blocks."""
    found = find_layers(as_modules(tensors).model)
    return {layer.name: (layer.num_units, layer.fan_in, layer.blocks) for layer in found.layers}


def layer(name: str, *shape: int, bias: int | None = None) -> dict[str, Tensor]:
    biases = {} if bias is None else {f"{name}.bias": torch.zeros(bias)}
    return {f"{name}.weight": torch.randn(shape), **biases}


def scanned(tensors: dict[str, Tensor], folder: Path) -> SymmetryReport:
    torch.save(tensors, folder / "model.pt")
    return scan(folder)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (layer("fc", 3, 5, bias=3), (3, 5, 1)),
        (layer("lm_head", 3, 5), (3, 5, 1)),
        (layer("embed_out", 9, 5), (9, 5, 1)),
        (layer("embeddings.projection", 3, 5), (3, 5, 1)),
        (layer("transformer.wte", 9, 5), (5, 9, 1)),
        (layer("model.embed_tokens", 9, 5), (5, 9, 1)),
        (layer("bert.word_embeddings", 9, 5), (5, 9, 1)),
        (layer("embs.0", 9, 5), (5, 9, 1)),
        (layer("emb2", 9, 5), (5, 9, 1)),
        (layer("shared", 9, 5), (5, 9, 1)),
        (layer("mlp.shared_expert_gate", 1, 5), (1, 5, 1)),
        (layer("decoder.relative_attention_bias", 9, 5), (5, 9, 1)),
        (layer("time_embed.0", 5, 5, bias=5), (5, 5, 1)),
        (layer("conv", 6, 2, 3, 3, bias=6), (6, 18, 1)),
        (layer("conv", 6, 2, 3), (6, 6, 1)),
        (layer("conv", 6, 2, 3, 3, 3), (6, 54, 1)),
        (layer("depthwise", 6, 1, 3, 3, bias=6), (6, 9, 6)),
        (layer("conv_of_some_name", 6, 2, 3, 3, bias=2), (2, 54, 1)),  # transposed, as the number of biases shows
        (layer("up", 4, 4, 2, 2, bias=4), (4, 16, 1)),
        (layer("decoder.ups.0", 6, 2, 4), (2, 24, 1)),
        (layer("up", 6, 2, 3, 3, bias=6), (6, 18, 1)),  # no transposed one could have six biases
        (layer("upper", 6, 2, 3, 3), (6, 18, 1)),
        (layer("c_fc", 3, 12, bias=12), (12, 3, 1)),
        (layer("attn.qkv", 12, 4, bias=12), (12, 4, 1)),
        (layer("query_key_value", 12, 4), (12, 4, 1)),
        (layer("q_proj.lora_A.default", 2, 8), (2, 8, 1)),
        (layer("bilinear", 3, 4, 5, bias=3), (3, 20, 1)),
    ],
)
def test_kinds(tensors: dict[str, Tensor], expected: tuple[int, int, int]) -> None:
    assert list(layers_of(tensors).values()) == [expected]


def test_gates_of_stacked_experts_lie_side_by_side_where_there_are_biases(tmp_path: Path) -> None:
    stacks = {"experts.gate_up_proj": torch.randn(2, 6, 16), "experts.down_proj": torch.randn(2, 8, 6)}
    biases = {"experts.gate_up_proj_bias": torch.randn(2, 16), "experts.down_proj_bias": torch.randn(2, 6)}
    for stack in (stacks["experts.gate_up_proj"], biases["experts.gate_up_proj_bias"]):
        stack[1, ..., 10:12] = stack[1, ..., 2:4]  # unit 5 of GPT-OSS is a copy of unit 1
    report = scanned({**stacks, **biases}, tmp_path)
    groups = {name: [group.units for group in layer.groups] for name, layer in report.layers.items() if layer.groups}
    assert groups == {"experts.gate_proj.1": [(1, 5)], "experts.up_proj.1": [(1, 5)]}
    assert "experts.gate_proj.1" in scanned(stacks, tmp_path).layers  # all gates, then all up-projections


@pytest.mark.parametrize("attention", [(4, 12), (12, 4)], ids=["GPT-2", "nanoGPT"])
def test_square_layers_of_gpt_follow_the_others(attention: tuple[int, int], tmp_path: Path) -> None:
    tensors = {
        **layer("transformer.h.0.attn.c_attn", *attention, bias=12),
        **layer("transformer.h.0.attn.c_proj", 4, 4, bias=4),
        **layer("score", 4, 4, bias=4),
    }
    tensors["transformer.h.0.attn.c_proj.weight"][:, 1] = tensors["transformer.h.0.attn.c_proj.weight"][:, 0]
    tensors["score.weight"][1] = tensors["score.weight"][0]
    report = scanned(tensors, tmp_path)
    equal = {name for name, seen in report.layers.items() if seen.groups}
    square = {"transformer.h.0.attn.c_proj"} if attention == (4, 12) else set()
    assert equal == {"score"} | square


def test_low_rank_corrections_beside_their_weight() -> None:
    tensors = {**layer("q", 4, 6, bias=4), "q.lora_A": torch.randn(2, 6), "q.lora_B": torch.randn(4, 2)}
    assert layers_of(tensors) == {"q": (4, 6, 1), "q.lora_A": (2, 6, 1), "q.lora_B": (4, 2, 1)}


def test_stacked_experts() -> None:
    gated = {"mlp.experts.gate_up_proj": torch.randn(3, 12, 4), "mlp.experts.down_proj": torch.randn(3, 4, 6)}
    assert layers_of(gated) == {
        "mlp.experts.gate_up_proj": (36, 4, 6),
        "mlp.experts.down_proj": (12, 6, 3),
        "mlp.experts.experts": (3, 48, 1),
    }
    assert layers_of(layer("input_linear", 3, 12, 4))["input_linear.weight[dims 0, 1]"] == (36, 4, 3)
    assert layers_of({"experts.w1": torch.randn(3, 12, 4)})["experts.w1[dims 0, 1]"] == (36, 4, 3)


@pytest.mark.parametrize("hidden", [(5, 8, 7), (7, 2)])
def test_recurrent_weights_of_no_known_kind_are_looked_at_in_slices(hidden: tuple[int, ...]) -> None:
    tensors = {"cell.weight_ih": torch.randn(hidden[0], 3), "cell.weight_hh": torch.randn(hidden[0], hidden[-1])}
    assert layers_of(tensors)["cell.weight_hh[dim 0]"] == (hidden[0], hidden[-1], 1)


def test_what_is_no_weight() -> None:
    tensors = {
        **layer("norm", 4, bias=4),
        "norm.num_batches_tracked": torch.tensor(3),
        "embeddings.position_ids": torch.arange(8)[None],
        "attn.mask": torch.ones(4, 4, dtype=torch.bool),
        "quantised.weight": torch.ones(4, 4, dtype=torch.int8),
    }
    found = find_layers(as_modules(tensors).model)
    assert found.layers == []
    assert found.skipped == {
        "norm": "its tensors have one number per unit at most",
        "quantised": "its dtype torch.int8 is not a floating point type this package reads",
    }


def test_tensors_of_the_model_itself() -> None:
    assert layers_of({"weight": torch.randn(2, 3), "bias": torch.zeros(2)}) == {"Checkpoint": (2, 3, 1)}
    normalised = parametrizations.weight_norm(nn.Linear(3, 2)).state_dict()
    assert layers_of(normalised) == {"Checkpoint": (2, 3, 1)}
    assert layers_of({"pos": torch.randn(1, 3, 4)}).keys() == {"pos[dim 1]", "pos[dim 2]"}


def test_names_that_modules_use_themselves() -> None:
    names = ("path", "forward", "tensors", "training", "child", "relatives")
    tensors = {f"{name}.{name}.weight": torch.randn(3, 4) for name in names}
    assert list(layers_of(tensors)) == [f"{name}.{name}" for name in names]


def _normalised_before_2_0(net: Any) -> Any:
    g, v = net.weight.detach().norm(dim=1, keepdim=True), net.weight.detach()
    return {"fc.weight_g": g, "fc.weight_v": v, "fc.bias": net.bias.detach()}


def _normalised(net: Any) -> Any:
    return nn.ModuleDict({"fc": parametrizations.weight_norm(net)}).state_dict()


@pytest.mark.parametrize("normalise", [_normalised_before_2_0, _normalised])
def test_weight_normalisation(normalise: Any, tmp_path: Path) -> None:
    report = scanned(normalise(copy_half(nn.Linear(3, 4))), tmp_path)
    assert [group.units for group in report.layers["fc"].groups] == [(0, 2), (1, 3)]
    assert list(report.layers) == ["fc"]
    assert report.coverage == 1


def test_weight_normalisation_over_another_dimension() -> None:
    tensors = {"conv.weight_g": torch.ones(1, 1, 3), "conv.weight_v": torch.randn(6, 2, 3), "conv.bias": torch.ones(6)}
    assert layers_of(tensors) == {"conv": (6, 6, 1)}


def test_filters_of_a_depthwise_convolution_are_never_compared(tmp_path: Path) -> None:
    report = scanned({"conv.weight": torch.ones(8, 1, 3, 3)}, tmp_path)
    assert (report.num_units, report.redundant_units) == (8, 0)


@given(data=st.data(), is_embedding=st.booleans(), num_units=st.integers(2, 9), width=st.integers(4, 6))
def test_groups_are_those_of_brute_force(
    data: st.DataObject, is_embedding: bool, num_units: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    distinct = torch.randn(num_units, width, generator=generator)
    chosen = data.draw(st.lists(st.integers(0, num_units - 1), min_size=num_units, max_size=num_units))
    rows = distinct[chosen]
    path = tmp_path_factory.getbasetemp() / "drawn.pt"
    torch.save({"wte.weight": rows.T.contiguous()} if is_embedding else {"fc.weight": rows}, path)
    (seen,) = scan(path).layers.values()
    assert [group.units for group in seen.groups] == brute_force_groups(rows, 1e-5)
