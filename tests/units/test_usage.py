"""Which modules take part in a step, judged by their calls."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry.units.usage import Usage


class Net(nn.Module):
    """An expert per row, chosen by the caller, and attention, which uses its output projection without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.loose = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, inputs: Tensor, handed: dict[int, int]) -> Tensor:
        out = torch.zeros(())
        for i, num_rows in handed.items():
            out = out + self.experts[i](inputs[:num_rows]).sum()
        hidden = nn.functional.linear(inputs, self.loose["a"].weight)  # type: ignore[arg-type]
        result: Tensor = out + self.attention(hidden, hidden, hidden)[0].sum()
        return result


LAYERS = ["experts.0.0", "experts.1.0", "experts.2.0", "loose.a", "loose.b", "attention.out_proj", "attention.q"]


def used(usage: Usage) -> dict[str, bool | None]:
    return {layer: usage.is_used(layer) for layer in LAYERS}


def test_calls_with_rows_count() -> None:
    net, usage, inputs = Net(), Usage(), torch.randn(5, 4)
    assert set(used(usage).values()) == {None}
    usage.watch(net, LAYERS)
    net(inputs, {0: 5, 1: 0})
    expected: dict[str, bool | None] = dict.fromkeys(LAYERS, False)
    # A module that is never called may be used by its parent, but not a member of a list.
    expected |= dict.fromkeys(["experts.0.0", "attention.out_proj", "attention.q"], True)
    assert used(usage) == expected
    net(inputs, {1: 2})  # a second pass of the same step
    assert used(usage) == {**expected, "experts.1.0": True}
    usage.end_step(LAYERS)
    with torch.no_grad():
        net(inputs, {0: 5})  # without gradients
    assert set(used(usage).values()) == {False}
    usage.end_step(LAYERS)
    net(inputs, {2: 1})
    assert used(usage)["experts.0.0"] is False
    assert used(usage)["experts.2.0"] is True


def test_nothing_is_left_on_the_modules() -> None:
    net, usage = Net(), Usage()
    usage.watch(net, LAYERS)
    assert sum(len(module._forward_pre_hooks) for module in net.modules()) == 10
    usage.watch(net, ["experts.1.0"])
    assert [name for name, module in net.named_modules() if module._forward_pre_hooks] == ["experts.1", "experts.1.0"]
    for copied in (pickle.loads(pickle.dumps(usage)), copy.deepcopy(usage)):
        assert not copied.is_watching
    usage.end()
    assert not usage.is_watching
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from imports of torch.compile
def test_compiled_modules_get_no_hooks_and_are_taken_for_used() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    usage = Usage()
    compiled: Any = torch.compile(net)
    usage.watch(compiled, ["0"])
    assert usage.is_used("0") is True
    assert not any(module._forward_pre_hooks for module in net.modules())
