"""The heads of attention modules: which units of their projections make up each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lightning_symmetry.units.naming import readable_names

_ROLES = ("query", "key", "value")
# What projections to queries, keys and values are called, each a layer of its own.
_APART = (
    ("q", "k", "v"),  # also the parts of nn.MultiheadAttention
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
# Layers that give all of them: those of all heads one after the other, or head by head.
_PACKED = ("c_attn", "qkv", "qkv_proj", "Wqkv")
_PACKED_BY_HEAD = ("query_key_value",)

_NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_NUM_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_SIZE = ("head_dim", "attention_head_size", "head_size")


class Projection(NamedTuple):
    """Where the queries, keys or values of each head are among the units of a layer.

    Attributes:
        layer: name of the layer.
        module: name of the attention module.
        role: ``"query"``, ``"key"`` or ``"value"``.
        starts: the first unit of each head.
        size: number of units per head.
    """

    layer: str
    module: str
    role: str
    starts: tuple[int, ...]
    size: int


def find_projections(model: nn.Module, widths: Mapping[str, int]) -> list[Projection]:
    """Find the projections of attention modules whose heads can be told apart.

    A module counts if it, or its ``config``, holds the number or size of its heads, and has layers with the usual names
    whose widths agree with that.

    Args:
        model: any module.
        widths: the number of units of each layer by name.

    Example:
        >>> model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
        >>> find_projections(model, {"attn.q": 8, "attn.k": 8, "attn.v": 8})[1]
        Projection(layer='attn.k', module='attn', role='key', starts=(0, 4), size=4)
    """
    return [found for name, path, module in readable_names(model) for found in _of_module(name, path, module, widths)]


def _of_module(name: str, path: str, module: nn.Module, widths: Mapping[str, int]) -> Iterator[Projection]:
    num_heads, size = _number(module, _NUM_HEADS), _number(module, _SIZE)
    if not num_heads and not size:
        return
    # The parts of a layer go by its name, which for the model itself is that of its class.
    start = f"{name}." if path or isinstance(module, nn.MultiheadAttention) else ""
    num_key_heads = _number(module, _NUM_KEY_HEADS)
    for names in _APART:
        layers = [start + each for each in names]
        if all(layer in widths for layer in layers):
            starts = _apart([widths[layer] for layer in layers], num_heads, num_key_heads, size)
            for layer, role, each in zip(layers, _ROLES, starts, strict=False):
                yield Projection(layer, name, role, tuple(each), each.step)
    for packed in (*_PACKED, *_PACKED_BY_HEAD):
        layer = start + packed
        if num_heads and layer in widths:
            counts = (num_heads, *2 * (num_key_heads or num_heads,))
            width, rest = divmod(widths[layer], sum(counts))
            if rest or size not in (0, width):
                continue
            by_head = packed in _PACKED_BY_HEAD
            if by_head and len(set(counts)) > 1:
                continue
            for i, role in enumerate(_ROLES):
                first = i if by_head else sum(counts[:i])
                step = len(_ROLES) if by_head else 1
                places = tuple(width * (first + step * head) for head in range(counts[i]))
                yield Projection(layer, name, role, places, width)


def _apart(widths: Sequence[int], num_heads: int, num_key_heads: int, size: int) -> list[range]:
    """Return where heads start in queries, keys and values, as ranges; empty if the widths do not agree.

    Args:
        widths: number of units of the three.
        num_heads: number of heads; 0 if it is not known.
        num_key_heads: number of heads of keys and values, which several queries may share; 0 if it is not known.
        size: number of units per head; 0 if it is not known.
    """
    if not all(widths):
        return []
    size = size or widths[0] // num_heads
    num_heads, num_key_heads = num_heads or widths[0] // size, num_key_heads or widths[1] // max(1, size)
    if widths[0] != num_heads * size or widths[1] != num_key_heads * size:
        return []
    if num_heads % num_key_heads or widths[2] % num_key_heads:
        return []
    return [range(0, widths[0], size), range(0, widths[1], size), range(0, widths[2], widths[2] // num_key_heads)]


def _number(module: nn.Module, names: Sequence[str]) -> int:
    """Return the number that a module, or else its configuration, holds under one of these names; 0 if there is none.

    Nothing of the module is called: properties may be code of users.
    """
    config = module.__dict__.get("config")
    for name in names:
        try:
            held = module.__dict__[name] if name in module.__dict__ else getattr(config, name, None)
        except Exception:  # configurations may be code of users
            continue
        if type(held) is int and held > 0:
            return held
    return 0
