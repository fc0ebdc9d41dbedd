"""The heads of attention modules: which units of the projections form each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lightning_symmetry.units.naming import readable_names

_ROLES = ("query", "key", "value")
# Names of projections to queries, keys and values that are layers of their own.
_SEPARATE = (
    ("q", "k", "v"),  # also the parts of nn.MultiheadAttention
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
# Names of layers that compute queries, keys and values: all queries come first, or one head after the other.
_PACKED = ("c_attn", "qkv", "qkv_proj", "Wqkv")
_PACKED_BY_HEAD = ("query_key_value",)

_NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_NUM_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_SIZE = ("head_dim", "attention_head_size", "head_size")


class Projection(NamedTuple):
    """The units of a layer that are the queries, keys or values of each head."""

    layer: str  # name of the layer
    module: str  # name of the attention module
    role: str  # "query", "key" or "value"
    starts: tuple[int, ...]  # the first unit of each head
    size: int  # number of units per head


def find_projections(model: nn.Module, widths: Mapping[str, int]) -> list[Projection]:
    """Find the projections of attention modules, given the number of units of each layer by name.

    A module counts if it, or its ``config``, holds the number or size of its heads, and if it has layers with the usual
    names and matching widths.

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
    # Parts of a layer are named after the layer; the model itself is named after its class.
    start = f"{name}." if path or isinstance(module, nn.MultiheadAttention) else ""
    num_key_heads = _number(module, _NUM_KEY_HEADS)
    for names in _SEPARATE:
        layers = [start + each for each in names]
        if all(layer in widths for layer in layers):
            starts = _starts([widths[layer] for layer in layers], num_heads, num_key_heads, size)
            for layer, role, each in zip(layers, _ROLES, starts, strict=False):
                yield Projection(layer, name, role, tuple(each), each.step)
    for packed in (*_PACKED, *_PACKED_BY_HEAD):
        layer = start + packed
        if num_heads and layer in widths:
            counts = (num_heads, *2 * (num_key_heads or num_heads,))
            width, rest = divmod(widths[layer], sum(counts))
            by_head = packed in _PACKED_BY_HEAD
            if rest or size not in (0, width) or (by_head and len(set(counts)) > 1):
                continue
            for i, role in enumerate(_ROLES):
                first = i if by_head else sum(counts[:i])
                step = len(_ROLES) if by_head else 1
                places = tuple(width * (first + step * head) for head in range(counts[i]))
                yield Projection(layer, name, role, places, width)


def _starts(widths: Sequence[int], num_heads: int, num_key_heads: int, size: int) -> list[range]:
    """Return the first units of all heads in queries, keys and values, as ranges; empty if the widths do not match.

    The widths are those of the three layers. An unknown number or size of heads is 0.
    """
    if not all(widths):
        return []
    queries, keys, values = widths
    size = size or queries // num_heads
    num_heads, num_key_heads = num_heads or queries // size, num_key_heads or keys // max(1, size)
    if (queries, keys) != (num_heads * size, num_key_heads * size):
        return []
    if num_heads % num_key_heads or values % num_key_heads:
        return []
    return [range(0, queries, size), range(0, keys, size), range(0, values, values // num_key_heads)]


def _number(module: nn.Module, names: Sequence[str]) -> int:
    """Return the number that a module, or its configuration, holds under the first of these names; 0 without one."""
    config = module.__dict__.get("config")  # not properties of the module, which may be code of users
    for name in names:
        try:
            held = module.__dict__[name] if name in module.__dict__ else getattr(config, name, None)
        except Exception:  # configurations may be code of users
            continue
        if type(held) is int and held > 0:
            return held
    return 0
