"""Which units form a head: the same as in the computation of attention modules, or nothing if unclear."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
)

from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.heads import Projection, find_projections
from lightning_symmetry.units.layers import Layer

SMALL: dict[str, Any] = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, intermediate_size=16, num_key_value_heads=2)),
    "bert": lambda: BertModel(BertConfig(**SMALL, intermediate_size=16), add_pooling_layer=False),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=16, dim=32, n_layers=1, n_heads=4, hidden_dim=16)
    ),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=4)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=1, n_head=4)),
    "gpt-neox": lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL, intermediate_size=16)),
    "bloom": lambda: BloomModel(BloomConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=4)),
    "pytorch": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 16, batch_first=True), 1),
}


def projections(model: nn.Module) -> tuple[dict[str, Projection], dict[str, Layer]]:
    """Return the projections of the only attention module of a model by role, and its layers by name."""
    layers = {layer.name: layer for layer in find_layers(model).layers}
    found = find_projections(model, {name: layer.num_units for name, layer in layers.items()})
    assert len({each.module for each in found}) == 1
    assert len(found) == 3
    return {each.role: each for each in found}, layers


def units_of(projection: Projection, head: int) -> slice:
    return slice(projection.starts[head], projection.starts[head] + projection.size)


def rows_of(layer: Layer) -> list[torch.Tensor]:
    """Return writable views of all tensors that feed the units of a layer, with units first."""
    return [tensor.view(tensor.weights) for tensor in layer.all_tensors()]


def output(model: nn.Module, name: str) -> torch.Tensor:
    if name == "pytorch":
        result: torch.Tensor = model(torch.linspace(-1, 1, 4 * 32).sin().reshape(1, 4, 32) * 3)
        return result
    hidden: torch.Tensor = model(input_ids=torch.tensor([[1, 2, 3, 4]])).last_hidden_state
    return hidden


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_heads_are_where_the_module_has_them(name: str) -> None:
    """Scaling the queries of a head by a factor and its keys by the inverse leaves the output unchanged."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.uniform_(-1, 1)
    parts, layers = projections(model)
    before = output(model, name)
    num_queries_per_key = len(parts["query"].starts) // len(parts["key"].starts)
    assert len(parts["query"].starts) == 4
    for key_head in range(len(parts["key"].starts)):
        heads = range(key_head * num_queries_per_key, (key_head + 1) * num_queries_per_key)
        for rows in rows_of(layers[parts["key"].layer]):
            rows[units_of(parts["key"], key_head)] *= 2
        assert (output(model, name) - before).abs().max() > 1e-3
        for head in heads:
            for rows in rows_of(layers[parts["query"].layer]):
                rows[units_of(parts["query"], head)] /= 2
        torch.testing.assert_close(output(model, name), before, rtol=1e-3, atol=1e-4)


class Own(nn.Module):
    def __init__(self, width: int, keys: int, values: int, **held: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(4, width), nn.Linear(4, keys), nn.Linear(4, values)
        for name, value in held.items():
            setattr(self, name, value)


class Broken:
    @property
    def num_attention_heads(self) -> int:
        raise RuntimeError("nobody knows")


def starts(model: nn.Module) -> list[tuple[tuple[int, ...], int]]:
    widths = {layer.name: layer.num_units for layer in find_layers(model).layers}
    return [(each.starts, each.size) for each in find_projections(model, widths)]


@pytest.mark.parametrize(
    "held",
    [{"num_heads": 4}, {"head_dim": 3}, {"num_heads": 4, "head_dim": 3}, {"config": SimpleNamespace(n_heads=4)}],
)
def test_number_or_size_of_heads_is_enough(held: dict[str, Any]) -> None:
    assert starts(Own(12, 6, 10, **held)) == [((0, 3, 6, 9), 3), ((0, 3), 3), ((0, 5), 5)]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Own(12, 12, 12), "no number of heads"),
        (Own(12, 12, 12, num_heads=5), "widths that do not fit"),
        (Own(24, 12, 12, num_heads=4, head_dim=3), "queries with their gates"),
        (Own(12, 9, 9, num_heads=4), "keys that no number of queries shares"),
        (Own(12, 6, 9, num_heads=4), "values that do not fit the keys"),
        (Own(2, 2, 2, num_heads=4), "fewer units than heads"),
        (Own(12, 12, 12, num_heads=True), "no number"),
        (Own(12, 12, 12, config=Broken()), "a configuration that fails"),
        (nn.ModuleDict({"qkv": nn.Linear(4, 36)}), "packed, and no number of heads"),
        (GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=0, n_head=4)), "no attention"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_heads_that_are_unclear_are_not_told_apart(model: nn.Module, why: str) -> None:
    assert starts(model) == []


def test_keys_and_values_of_cross_attention_are_not_taken_for_queries() -> None:
    model = GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=1, n_head=4, add_cross_attention=True))
    widths = {layer.name: layer.num_units for layer in find_layers(model).layers}
    assert widths["h.0.crossattention.c_attn"] == 64
    assert {each.module for each in find_projections(model, widths)} == {"h.0.attn"}
