"""Stacks of experts, and the relative attentions of transformers, recognised by class names."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, Verdict, diagnose
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.report import SymmetryReport

HIDDEN, INTER, EXPERTS = 6, 5, 3


class Experts(nn.Module):
    """Gated experts, stacked as in Mixtral, or transposed with biases as in GPT-OSS; the last one is unused."""

    def __init__(self, is_transposed: bool, is_concatenated: bool = True) -> None:
        super().__init__()
        self.is_transposed, self.is_concatenated = is_transposed, is_concatenated
        shapes = [(EXPERTS, 2 * INTER, HIDDEN), (EXPERTS, HIDDEN, INTER)]
        up, down = ([a, c, b] if is_transposed else [a, b, c] for a, b, c in shapes)
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(up)), nn.Parameter(torch.randn(down))
        if is_transposed:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(EXPERTS, 2 * INTER))
            self.down_proj_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN))

    def rows(self, name: str) -> Tensor:
        """Return a stack as ``(experts, units, inputs)``."""
        stack: Tensor = getattr(self, name)
        return stack.transpose(1, 2) if self.is_transposed else stack

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = []
        for expert in range(EXPERTS - 1):
            hidden = inputs @ self.rows("gate_up_proj")[expert].T
            if self.is_transposed:
                hidden = hidden + self.gate_up_proj_bias[expert]
            gate, up = hidden.chunk(2, dim=1) if self.is_concatenated else (hidden[:, ::2], hidden[:, 1::2])
            out = (nn.functional.silu(gate) * up) @ self.rows("down_proj")[expert].T
            outputs.append(out + self.down_proj_bias[expert] if self.is_transposed else out)
        return torch.stack(outputs).square().sum(dim=0)

    def copy_unit(self, expert: int, unit: int, onto: int) -> None:
        """Make two hidden units of an expert equal, with their outgoing weights."""
        with torch.no_grad():
            of_gate = (unit, onto) if self.is_concatenated else (2 * unit, 2 * onto)
            of_up = (INTER + unit, INTER + onto) if self.is_concatenated else (2 * unit + 1, 2 * onto + 1)
            for here, there in (of_gate, of_up):
                self.rows("gate_up_proj")[expert, there] = self.rows("gate_up_proj")[expert, here]
                if self.is_transposed:
                    self.gate_up_proj_bias[expert, there] = self.gate_up_proj_bias[expert, here]
            self.rows("down_proj")[expert, :, onto] = self.rows("down_proj")[expert, :, unit]


def groups_of(report: SymmetryReport) -> dict[str, list[tuple[int, ...]]]:
    """Return the locked groups, by layer."""
    locked = {
        name: [group.units for group in layer.groups if group.verdict is Verdict.LOCKED]
        for name, layer in report.layers.items()
    }
    return {name: groups for name, groups in locked.items() if groups}


def look_at(model: nn.Module) -> SymmetryReport:
    torch.manual_seed(0)
    model(torch.randn(16, HIDDEN)).sum().backward()
    return diagnose(nn.Sequential(model))


def test_units_within_an_expert() -> None:
    model = Experts(is_transposed=False)
    model.copy_unit(1, 1, onto=3)
    report = look_at(model)
    size = 2 * INTER
    assert groups_of(report) == {"0.gate_up_proj": [(size + 1, size + 3), (size + INTER + 1, size + INTER + 3)]}
    assert (report.skipped, report.coverage) == ({}, 1.0)
    assert list(report.layers) == ["0.gate_up_proj", "0.down_proj", "0.experts"]


@pytest.mark.parametrize("is_concatenated", [True, False])
def test_units_within_an_expert_of_a_transposed_stack(is_concatenated: bool) -> None:
    model = Experts(True, is_concatenated)
    model.copy_unit(1, 1, onto=3)
    report = look_at(model)
    assert groups_of(report) == {"0.gate_proj.1": [(1, 3)], "0.up_proj.1": [(1, 3)]}
    assert (report.skipped, report.coverage) == ({}, 1.0)
    # Units with different biases differ.
    with torch.no_grad():
        model.gate_up_proj_bias[1, 3 if is_concatenated else 6] += 1
    model.zero_grad()
    assert "0.gate_proj.1" not in groups_of(look_at(model))


@pytest.mark.parametrize("is_transposed", [True, False])
def test_the_layout_is_told_by_the_shapes(is_transposed: bool) -> None:
    model = Experts(is_transposed)
    known = [layer.name for layer in find_layers(nn.Sequential(model)).layers]
    del model.is_transposed
    assert [layer.name for layer in find_layers(nn.Sequential(model)).layers] == known


def test_a_stack_of_other_shapes_is_sliced() -> None:
    model = Experts(is_transposed=False)
    model.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INTER + 1))
    assert {layer.slices_of for layer in find_layers(model).layers} == {"gate_up_proj", "down_proj"}


def test_whole_experts_that_are_copies() -> None:
    model = Experts(is_transposed=False)
    with torch.no_grad():
        for stack in model.parameters():
            stack[1] = stack[0]
    assert groups_of(look_at(model)) == {"0.experts": [(0, 1)]}


def test_experts_without_a_gate() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.randn(EXPERTS, INTER, HIDDEN))
            self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INTER))

    layers = find_layers(Plain()).layers
    assert [(layer.name, layer.num_units, layer.blocks) for layer in layers] == [
        ("Plain.up_proj", EXPERTS * INTER, EXPERTS),
        ("Plain.down_proj", EXPERTS * HIDDEN, EXPERTS),
        ("Plain.experts", EXPERTS, 1),
    ]


@pytest.mark.parametrize("is_transposed", [True, False])
def test_an_expert_that_is_not_used_is_neither_dead_nor_frozen(is_transposed: bool) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(Experts(is_transposed), nn.Linear(HIDDEN, 2))
    with torch.no_grad():
        model[0].down_proj.zero_()  # as some networks are initialised
        model[0].down_proj[0].normal_()
        model[0].down_proj[1].normal_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with warnings.catch_warnings(), SymmetryTracker(model, optimizer, every_n_steps=1) as tracker:
        warnings.simplefilter("ignore")
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(16, HIDDEN)).square().mean().backward()
            optimizer.step()
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.dead_units == 0


def named(qualified_name: str) -> Any:
    """Return a module whose class has this name."""
    path, _, name = qualified_name.rpartition(".")
    return type(name, (nn.Module,), {"__module__": path})()


def test_parallel_experts_of_jetmoe() -> None:
    module = named("transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts")
    module.weight = nn.Parameter(torch.randn(3, 4, 5))
    layers = find_layers(nn.Sequential(module)).layers
    assert [(layer.name, layer.num_units, layer.blocks) for layer in layers] == [("0", 12, 3), ("0.experts", 3, 1)]


def test_relative_attention_of_xlnet() -> None:
    module = named("transformers.models.xlnet.modeling_xlnet.XLNetRelativeAttention")
    for part in "qkvor":
        setattr(module, part, nn.Parameter(torch.randn(6, 2, 3)))
    module.r_w_bias = nn.Parameter(torch.randn(2, 3))
    with torch.no_grad():
        module.k[:, 1, 2] = module.k[:, 0, 1]
        module.o[4] = module.o[2]
    report = diagnose(nn.Sequential(module))
    groups = {name: [group.units for group in layer.groups] for name, layer in report.layers.items() if layer.groups}
    assert groups == {"0.k": [(1, 5)], "0.o": [(2, 4)]}
    assert [name for name in report.layers if "[" in name] == ["0.r_w_bias[dim 0]", "0.r_w_bias[dim 1]"]
    assert (report.skipped, report.coverage) == ({}, 1.0)


def test_relative_attention_of_funnel() -> None:
    module = named("transformers.models.funnel.modeling_funnel.FunnelRelMultiheadAttention")
    module.r_kernel = nn.Parameter(torch.randn(6, 2, 3))
    module.r_w_bias = nn.Parameter(torch.zeros(2, 3))
    with torch.no_grad():
        module.r_kernel[:, 1, 2] = module.r_kernel[:, 0, 1]
    report = diagnose(nn.Sequential(module))
    assert [group.units for group in report.layers["0.r"].groups] == [(1, 5)]
    assert (report.skipped, report.coverage) == ({}, 1.0)
