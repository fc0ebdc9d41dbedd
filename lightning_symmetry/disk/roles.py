"""The roles of stored tensors: which dimension counts units, going by the names and shapes alone.

The table :data:`ROLES` is gone through from the top; the first role that recognises a module describes it. To teach it
another kind of module, add a line. Parameters that no role speaks of are looked at slice by slice, as in a live model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_symmetry.disk.stored import StoredModule
from lightning_symmetry.units.registry import NotUnderstoodError, Units, register_layer, units_of

_NOTHING = torch.empty(0)
_GATES = {1: "RNN_TANH", 3: "GRU", 4: "LSTM"}
_EMBEDDING = {"emb", "embs", "embed", "embeds", "embedding", "embeddings", "wte", "wpe"}
_EMBEDDINGS_OF_T5 = ("shared", "relative_attention_bias")
_NO_EMBEDDING = {"out", "proj", "projection", "mapping", "head"}  # as in the `embed_out` of GPT-NeoX, which is linear
_TRANSPOSED = {"up", "ups", "upconv", "deconv", "deconvs", "transpose", "transposed", "convtranspose"}
_LOW_RANK = ("lora_A", "lora_B")
_CONV1D = {"c_attn", "c_fc", "c_proj", "q_attn"}


class Role(NamedTuple):
    """What a kind of module is recognised by, and what its units are.

    Attributes:
        kind: the modules in question, in words.
        recognises: tells whether a module is of this kind.
        units: describes it, as an adapter of :func:`~lightning_symmetry.register_layer` does.
    """

    kind: str
    recognises: Callable[[StoredModule], bool]
    units: Callable[[StoredModule], Units | Iterable[Units]]


# ----------------------------------------------------------------- what a module has


def _weight(module: StoredModule) -> Tensor | None:
    """The matrix or the filters of a module; under weight normalisation, their directions."""
    for name in ("weight", "weight_v", "parametrizations.weight.original1"):
        tensor = module.tensors.get(name)
        if tensor is not None and tensor.ndim > 1:
            return tensor
    return None


def _shape(module: StoredModule) -> tuple[int, ...]:
    weight = _weight(module)
    return () if weight is None else tuple(weight.shape)


def _num_biases(module: StoredModule) -> int | None:
    """How many units have a bias; None if there is no bias."""
    bias = module.tensors.get("bias")
    if bias is None:
        return None
    return len(bias) if bias.ndim == 1 else -1


def _words(module: StoredModule) -> set[str]:
    """The words in the name of a module."""
    return set(re.split(r"_|(?<=[a-z])(?=\d)", _own_name(module).lower()))


def _own_name(module: StoredModule) -> str:
    """The last step of the path of a module; in a list, whose steps are numbers, that of the list."""
    return next((step for step in reversed(module.path.split(".")) if not step.isdigit()), "")


def _incoming(module: StoredModule, *, transposed: bool = False, blocks: int = 1) -> Units:
    """Units with their weights, their biases, and under weight normalisation their lengths."""

    def by_unit(weight: Tensor) -> Tensor:
        return weight.transpose(0, 1) if transposed else weight

    weight = _weight(module)
    assert weight is not None
    lengths = module.tensors.get("weight_g", module.tensors.get("parametrizations.weight.original0"))
    has_own = lengths is not None and not transposed and len(lengths) == len(weight)
    return Units((weight, by_unit), module.tensors.get("bias"), lengths if has_own else None, blocks=blocks)


# ----------------------------------------------------------------- kinds of modules


def _is_attention(module: StoredModule) -> bool:
    packed, query = (module.tensors.get(name) for name in ("in_proj_weight", "q_proj_weight"))
    return (packed is not None and packed.ndim == 2 and len(packed) % 3 == 0) or (query is not None and query.ndim == 2)


def _attention(module: StoredModule) -> Units | Iterable[Units]:
    packed = module.tensors.get("in_proj_weight")
    width = len(module.tensors["q_proj_weight"]) if packed is None else len(packed) // 3
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
    return _units_as_of(nn.MultiheadAttention(width, 1, device="meta"), module, names)


def _is_recurrent(module: StoredModule) -> bool:
    return all(f"weight_{which}_l0" in module.tensors for which in ("ih", "hh"))


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


def _is_cell(module: StoredModule) -> bool:
    return all(f"weight_{which}" in module.tensors for which in ("ih", "hh"))


def _cell(module: StoredModule) -> Units | Iterable[Units]:
    incoming, fed_back = module.tensors["weight_ih"], module.tensors["weight_hh"]
    hidden = fed_back.shape[1]
    gates = _num_gates(fed_back, hidden)
    like = nn.RNNCellBase(incoming.shape[1], hidden, bias=True, num_chunks=gates, device="meta")
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
    """What the adapter of a module of PyTorch says, if it has the stored tensors of these names."""
    like._parameters = {name: module._parameters.get(name) for name in names}
    return units_of(like)


def _is_gated_stack(module: StoredModule) -> bool:
    return module.tensors.get("down_proj", _NOTHING).ndim == 3


def _gated_stack(module: StoredModule) -> Units | Iterable[Units]:
    like = nn.Module()
    # GPT-OSS, whose stacks have biases, keeps gate and up of each unit side by side. A file does not say so.
    like.is_concatenated = "gate_up_proj_bias" not in module.tensors  # type: ignore[assignment]
    return _units_as_of(like, module, module.tensors)  # by its names and shapes, as in a live model


def _is_stack(module: StoredModule) -> bool:
    # A convolution over one dimension has weights of three dimensions, too, but not such a name.
    return len(_shape(module)) == 3 and any(re.match("linear|experts?", word) for word in _words(module))


def _no_units(module: StoredModule) -> Units:
    raise NotUnderstoodError("a stack of matrices")  # whose slices are looked at


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


def _depthwise(module: StoredModule) -> Units:
    return _incoming(module, blocks=_shape(module)[0])


def _is_conv1d(module: StoredModule) -> bool:
    shape = _shape(module)
    if len(shape) != 2 or _num_biases(module) != shape[1]:
        return False
    return shape[0] != shape[1] or (_is_named_conv1d(module) and _has_conv1d(module.relatives.values()))


def _is_named_conv1d(module: StoredModule) -> bool:
    return _own_name(module) in _CONV1D


def _has_conv1d(modules: Iterable[StoredModule]) -> bool:
    """Whether layers with the names of GPT-2's have its weights ``(in, out)``, which a square one does not show."""
    shapes = [(_shape(module), _num_biases(module)) for module in modules if _is_named_conv1d(module)]
    return any(len(shape) == 2 and biases == shape[1] != shape[0] for shape, biases in shapes)


def _is_linear(module: StoredModule) -> bool:
    shape = _shape(module)
    return len(shape) == 2 and _num_biases(module) in (None, shape[0])


def _columns(module: StoredModule) -> Units:
    return _incoming(module, transposed=True)


ROLES = (
    Role("attention with packed projections", _is_attention, _attention),
    Role("RNN, GRU, LSTM", _is_recurrent, _recurrent),
    Role("cell of an RNN, GRU, LSTM", _is_cell, _cell),
    Role("stacked experts of the transformers package", _is_gated_stack, _gated_stack),
    Role("stacked matrices, (experts, out, in)", _is_stack, _no_units),
    Role("embedding", _is_embedding, _columns),
    Role("transposed convolution", _is_transposed_convolution, _columns),
    Role("depthwise convolution", _is_depthwise, _depthwise),
    Role("convolution", _is_convolution, _incoming),
    Role("linear layer of GPT-2, (in, out)", _is_conv1d, _columns),
    Role("linear layer", _is_linear, _incoming),
)
"""The kinds of modules that are recognised, the first match counts."""


@register_layer(StoredModule)
def _stored(module: StoredModule) -> Iterator[Units]:
    role = next((role for role in ROLES if role.recognises(module)), None)
    # The corrections of LoRA lie beside the weight that they correct, or in modules of their own, which are linear.
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
