"""Adapters for experts whose weights are stacked into one parameter, as in the transformers package.

Experts with a gate hold a ``gate_up_proj`` and a ``down_proj`` of three dimensions; the first dimension counts experts.
There are dozens of such classes, so they are recognised by the names and shapes of these parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_symmetry.modules import held
from lightning_symmetry.ranks.pieces import View
from lightning_symmetry.units.registry import Units, register_layer_by_name, register_layer_by_shape, weight_of


def _of_all_experts(stack: Tensor) -> Tensor:  # (experts, units, ...) -> (experts * units, ...)
    return stack.flatten(0, 1)


@register_layer_by_name(
    "transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts",
    # These exist in transformers before version 5.
    "transformers.models.granitemoe.modeling_granitemoe.GraniteMoeParallelExperts",
    "transformers.models.granitemoeshared.modeling_granitemoeshared.GraniteMoeSharedParallelExperts",
    "transformers.models.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridParallelExperts",
)
def _parallel_experts(module: Any) -> Iterator[Units]:
    weight = weight_of(module)
    yield Units((weight, _of_all_experts), blocks=len(weight))
    yield Units(weight, part="experts", may_go_unused=True)


def _stacks(module: nn.Module) -> dict[str, Tensor]:
    """Return the stacked weights of experts, with or without a gate, by name; empty for other modules."""
    for names in (("gate_up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj"), ("up_proj", "down_proj")):
        stacks: dict[str, Any] = {name: held(module, "_parameters").get(name) for name in names}
        if all(stack is not None and stack.ndim == 3 for stack in stacks.values()):
            return stacks
    return {}


def _is_transposed(module: nn.Module) -> bool | None:
    """Return True for stacks ``(experts, inputs, units)``, False for ``(experts, units, inputs)``, None for neither."""
    stacks = _stacks(module)
    if not stacks:
        return None
    first, down = next(iter(stacks.values())).shape, stacks["down_proj"].shape
    factor = 2 if "gate_up_proj" in stacks else 1
    declared = getattr(module, "is_transposed", None)  # since version 5 of transformers
    fits = {False: (factor * down[2], down[1]), True: (down[2], factor * down[1])}
    return next((layout for layout, fit in fits.items() if fit == first[1:] and declared in (None, layout)), None)


@register_layer_by_shape(lambda module: _is_transposed(module) is not None)
def _experts(module: nn.Module) -> Iterator[Units]:
    stacks = _stacks(module)
    for name, stack in stacks.items():
        bias = held(module, "_parameters").get(f"{name}_bias")
        if _is_transposed(module):
            yield from _of_transposed(module, name, stack, bias)
            continue
        with_view = None if bias is None else (bias, _of_all_experts)
        # `gate_up_proj` holds the gates of all units first, then the units that they scale: two blocks.
        blocks = (2 if name == "gate_up_proj" else 1) * len(stack)
        yield Units((stack, _of_all_experts), with_view, blocks=blocks, part=name)
    # Whole experts are compared as well, without the biases, which belong to the rows above.
    if len({len(stack) for stack in stacks.values()}) == 1:
        yield Units(*stacks.values(), part="experts", may_go_unused=True)


def _of_transposed(module: nn.Module, name: str, stack: Tensor, bias: Tensor | None) -> Iterator[Units]:
    # No view lists the units of all experts one after the other, so each expert is a part of its own.
    size = stack.shape[2]
    choices = {name: slice(None)}
    if name == "gate_up_proj":
        halves = (slice(0, size // 2), slice(size // 2, size))
        if not getattr(module, "is_concatenated", True):
            halves = (slice(0, size, 2), slice(1, size, 2))
        choices = dict(zip(("gate_proj", "up_proj"), halves, strict=True))
    for part, choice in choices.items():
        for expert in range(len(stack)):
            view = _columns(expert, choice)
            with_view = None if bias is None else (bias, view)
            yield Units((stack, view), with_view, part=f"{part}.{expert}", may_go_unused=True)


def _columns(expert: int, choice: slice) -> View:  # (experts, ..., units) -> (chosen units, ...)
    return lambda stack: stack[expert, ..., choice].movedim(-1, 0)
