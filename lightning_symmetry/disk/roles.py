"""The roles of stored tensors: which dimension counts units, going by the names and shapes alone.

The first role of the table :data:`ROLES` that recognises a module describes its units. To support another kind of
module, add a line. Parameters without a role are checked slice by slice, as in a live model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_symmetry.disk.models import StoredModule
from lightning_symmetry.units.registry import NotUnderstoodError, Units, register_layer, units_of

_NOTHING = torch.empty(0)
_GATES = {1: "RNN_TANH", 3: "GRU", 4: "LSTM"}
_EMBEDDING = {"emb", "embs", "embed", "embeds", "embedding", "embeddings", "wte", "wpe"}
_EMBEDDINGS_OF_T5 = ("shared", "relative_attention_bias")
_NO_EMBEDDING = {"out", "proj", "projection", "mapping", "head"}  # GPT-NeoX's `embed_out`, for example, is linear
_TRANSPOSED = {"up", "ups", "upconv", "deconv", "deconvs", "transpose", "transposed", "convtranspose"}
_LOW_RANK = ("lora_A", "lora_B")
_CONV1D = {"c_attn", "c_fc", "c_proj", "q_attn"}


class Role(NamedTuple):
    """A kind of module: how to recognise it, and its units."""

    kind: str  # the kind in words
    recognises: Callable[[StoredModule], bool]  # returns whether a module is of this kind
    # an adapter, as for :func:`~lightning_symmetry.register_layer`
    units: Callable[[StoredModule], Units | Iterable[Units]]


# ----------------------------------------------------------------- properties of a module


def _weight(module: StoredModule) -> Tensor | None:
    """Return the matrix or filters of a module; under weight normalisation, the directions."""
    for name in ("weight", "weight_v", "parametrizations.weight.original1"):
        tensor = module.tensors.get(name)
        if tensor is not None and tensor.ndim > 1:
            return tensor
    return None


def _shape(module: StoredModule) -> tuple[int, ...]:
    weight = _weight(module)
    return () if weight is None else tuple(weight.shape)


def _num_biases(module: StoredModule) -> int | None:
    """Return the number of biases: None without a bias, -1 if it is not a vector."""
    bias = module.tensors.get("bias")
    if bias is None:
        return None
    return len(bias) if bias.ndim == 1 else -1


def _words(module: StoredModule) -> set[str]:
    """Return the words in the name of a module."""
    return set(re.split(r"_|(?<=[a-z])(?=\d)", _own_name(module).lower()))


def _own_name(module: StoredModule) -> str:
    """Return the last step of a module's path that is not an index, as in ``nn.ModuleList``."""
    return next((step for step in reversed(module.path.split(".")) if not step.isdigit()), "")


def _incoming(module: StoredModule, *, transposed: bool = False, blocks: int = 1) -> Units:
    """Describe units by their weights, biases, and under weight normalisation their lengths."""
    weight = _weight(module)
    assert weight is not None
    lengths = module.tensors.get("weight_g", module.tensors.get("parametrizations.weight.original0"))
    has_own = lengths is not None and not transposed and len(lengths) == len(weight)
    by_unit = (weight, lambda whole: whole.transpose(0, 1)) if transposed else weight
    return Units(by_unit, module.tensors.get("bias"), lengths if has_own else None, blocks=blocks)


# ----------------------------------------------------------------- kinds of modules


def _is_attention(module: StoredModule) -> bool:
    packed, query = (module.tensors.get(name) for name in ("in_proj_weight", "q_proj_weight"))
    return (packed is not None and packed.ndim == 2 and len(packed) % 3 == 0) or (query is not None and query.ndim == 2)


def _attention(module: StoredModule) -> Units | Iterable[Units]:
    packed = module.tensors.get("in_proj_weight")
    width = len(module.tensors["q_proj_weight"]) if packed is None else len(packed) // 3
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
    return _units_as_of(nn.MultiheadAttention(width, 1, device="meta"), module, names)


def _recurrent(module: StoredModule) -> Units | Iterable[Units]:
    fed_back, projection = module.tensors["weight_hh_l0"], module.tensors.get("weight_hr_l0")
    hidden = fed_back.shape[1] if projection is None else projection.shape[1]
    like = nn.RNNBase(
        _GATES[_num_gates(fed_back, hidden)],
        module.tensors["weight_ih_l0"].shape[1],
        hidden,
        num_layers=sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in module.tensors),
        bidirectional="weight_ih_l0_reverse" in module.tensors,
        proj_size=0 if projection is None else len(projection),
        device="meta",
    )
    return _units_as_of(like, module, module.tensors)


def _cell(module: StoredModule) -> Units | Iterable[Units]:
    num_inputs, hidden = module.tensors["weight_ih"].shape[1], module.tensors["weight_hh"].shape[1]
    gates = _num_gates(module.tensors["weight_hh"], hidden)
    like = nn.RNNCellBase(num_inputs, hidden, bias=True, num_chunks=gates, device="meta")
    return _units_as_of(like, module, module.tensors)


def _num_gates(fed_back: Tensor, hidden: int) -> int:
    gates = len(fed_back) // hidden
    if gates not in _GATES or len(fed_back) % hidden:
        kinds = ", ".join(f"{number} ({kind.partition('_')[0]})" for number, kind in _GATES.items())
        raise NotUnderstoodError(
            f"recurrent weights of shape {tuple(fed_back.shape)} for {hidden} units, of which there are {kinds} each"
        )
    return gates


def _units_as_of(like: nn.Module, module: StoredModule, names: Iterable[str]) -> Units | Iterable[Units]:
    """Describe units with the adapter of a PyTorch module ``like``, given the stored tensors of these names."""
    like._parameters = {name: module._parameters.get(name) for name in names}
    return units_of(like)


def _is_gated_stack(module: StoredModule) -> bool:
    return module.tensors.get("down_proj", _NOTHING).ndim == 3


def _gated_stack(module: StoredModule) -> Units | Iterable[Units]:
    like = nn.Module()
    # GPT-OSS, whose stacks have biases, interleaves gate and up; the shapes do not show it.
    like.is_concatenated = "gate_up_proj_bias" not in module.tensors  # type: ignore[assignment]
    return _units_as_of(like, module, module.tensors)


def _is_stack(module: StoredModule) -> bool:
    # The weights of a 1d convolution have three dimensions, too; only the name differs.
    return len(_shape(module)) == 3 and any(re.match("linear|experts?", word) for word in _words(module))


def _no_units(module: StoredModule) -> Units:
    raise NotUnderstoodError("a stack of matrices")  # so it is checked slice by slice


def _is_embedding(module: StoredModule) -> bool:
    words = _words(module)
    is_named = bool(words & _EMBEDDING and not words & _NO_EMBEDDING) or _own_name(module) in _EMBEDDINGS_OF_T5
    return len(_shape(module)) == 2 and _num_biases(module) is None and is_named


def _is_transposed_convolution(module: StoredModule) -> bool:
    shape, biases = _shape(module), _num_biases(module)
    if not 3 <= len(shape) <= 5 or biases not in (None, shape[1]):
        return False
    return bool(_words(module) & _TRANSPOSED) if biases in (None, shape[0]) else True


def _is_convolution(module: StoredModule) -> bool:
    shape = _shape(module)
    return 3 <= len(shape) <= 5 and _num_biases(module) in (None, shape[0])


def _is_depthwise(module: StoredModule) -> bool:
    return _is_convolution(module) and _shape(module)[1] == 1


def _is_conv1d(module: StoredModule) -> bool:
    shape = _shape(module)
    if len(shape) != 2 or _num_biases(module) != shape[1]:
        return False
    if shape[0] != shape[1]:
        return True
    # A square weight does not show which dimension counts units; the shape of another layer named as in GPT-2 may.
    if _own_name(module) not in _CONV1D:
        return False
    named = (each for each in module.relatives.values() if _own_name(each) in _CONV1D)
    shapes = ((_shape(each), _num_biases(each)) for each in named)
    return any(len(shape) == 2 and biases == shape[1] != shape[0] for shape, biases in shapes)


def _is_linear(module: StoredModule) -> bool:
    shape = _shape(module)
    return len(shape) == 2 and _num_biases(module) in (None, shape[0])


_columns = partial(_incoming, transposed=True)

ROLES = (
    Role("attention with packed projections", _is_attention, _attention),
    Role("RNN, GRU, LSTM", lambda module: {"weight_ih_l0", "weight_hh_l0"} <= module.tensors.keys(), _recurrent),
    Role("cell of an RNN, GRU, LSTM", lambda module: {"weight_ih", "weight_hh"} <= module.tensors.keys(), _cell),
    Role("stacked experts of the transformers package", _is_gated_stack, _gated_stack),
    Role("stacked matrices, (experts, out, in)", _is_stack, _no_units),
    Role("embedding", _is_embedding, _columns),
    Role("transposed convolution", _is_transposed_convolution, _columns),
    Role("depthwise convolution", _is_depthwise, lambda module: _incoming(module, blocks=_shape(module)[0])),
    Role("convolution", _is_convolution, _incoming),
    Role("linear layer of GPT-2, (in, out)", _is_conv1d, _columns),
    Role("linear layer", _is_linear, _incoming),
)
"""The recognised kinds of modules; the first match counts."""


@register_layer(StoredModule)
def _stored(module: StoredModule) -> Iterator[Units]:
    role = next((role for role in ROLES if role.recognises(module)), None)
    # LoRA matrices are stored beside the weight that they correct, or as linear modules of their own.
    low_rank = [name for name in _LOW_RANK if name in module.tensors and module.tensors[name].ndim == 2]
    if role is None and not low_rank:
        has_matrix = any(tensor.ndim > 1 for tensor in module.tensors.values())
        what = "names and shapes that say nothing of its units" if has_matrix else "one number per unit at most"
        raise NotUnderstoodError(f"its tensors have {what}")
    if role is not None:
        described = role.units(module)
        yield from [described] if isinstance(described, Units) else described
    for name in low_rank:
        yield Units(module.tensors[name], part=name)
