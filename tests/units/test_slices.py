"""Parameters without an adapter: what is found in their slices, and what is not reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrizations

from lightning_symmetry import SymmetryTracker, Verdict, diagnose
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.report import SymmetryReport
from tests.distributed import fsdp1, fsdp1_flat, fsdp2, on_ranks


class Bare(nn.Module):
    """A linear layer without an adapter."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.kernel.T


class Stack(nn.Module):
    """Experts ``(experts, outputs, inputs)``; the outputs of the used ones are summed."""

    def __init__(self, experts: int, outputs: int, inputs: int, used: Iterable[int] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs))
        self.out = nn.Parameter(torch.randn(experts, outputs))
        self.used = list(range(experts) if used is None else used)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("eoi,bi->beo", self.weight, inputs))
        return (hidden * self.out)[:, self.used].sum(dim=(1, 2))


class Table(nn.Module):
    """Sums chosen rows of a table."""

    def __init__(self, table: Tensor, used: Iterable[int]) -> None:
        super().__init__()
        self.table, self.used = nn.Parameter(table), list(used)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.table.flatten(0, -2)[self.used]
        return torch.tanh(inputs @ rows.T) @ torch.arange(1.0, 1.0 + len(self.used))


def groups_of(report: SymmetryReport) -> dict[str, list[tuple[int, ...]]]:
    """Return the locked groups, by layer."""
    locked = {
        name: [group.units for group in layer.groups if group.verdict is Verdict.LOCKED]
        for name, layer in report.layers.items()
    }
    return {name: groups for name, groups in locked.items() if groups}


def look_at(model: nn.Module, width: int) -> SymmetryReport:
    model(torch.randn(16, width)).square().sum().backward()
    return diagnose(model)


def train(model: nn.Module, width: int, steps: int = 30, every_n_steps: int = 1) -> SymmetryTracker:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(), SymmetryTracker(model, optimizer, every_n_steps=every_n_steps) as tracker:
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)  # so that unused slices have a gradient of zero
            (model(torch.randn(16, width)).tanh() - 1).square().mean().backward()
            optimizer.step()
    return tracker


def test_equal_slices_of_a_parameter_without_an_adapter_are_found_and_said_to_be_slices() -> None:
    model: Any = nn.Sequential(nn.Linear(5, 4), Bare(4, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[1].kernel[3] = model[1].kernel[1]
        model[3].weight[:, 3] = model[3].weight[:, 1]
    report = look_at(model, 5)
    assert groups_of(report) == {"1.kernel[dim 0]": [(1, 3)]}
    assert report.layers["1.kernel[dim 0]"].slices_of == "1.kernel"
    assert (report.skipped, report.coverage) == ({}, 1.0)
    [message] = report.messages()
    assert "No adapter knows 1.kernel, so its slices were compared" in message
    assert any(note.startswith("[dim 0]: slices of a parameter") for note in report.notes())


def test_equal_columns_of_a_parameter_without_an_adapter_are_found() -> None:
    model: Any = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Bare(4, 6))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[2] = parameter[0]
        model[2].kernel[:, 2] = model[2].kernel[:, 0]
    assert groups_of(look_at(model, 5)) == {"0": [(0, 2)], "2.kernel[dim 1]": [(0, 2)]}


def test_slices_that_differ_are_passed_over() -> None:
    model: Any = nn.Sequential(nn.Linear(5, 4), Bare(4, 6), nn.Tanh(), Bare(6, 2))
    report = look_at(model, 5)
    assert groups_of(report) == {}
    assert report.notes() == []


def test_a_parameter_of_the_model_itself_goes_by_its_name() -> None:
    assert list(diagnose(Bare(4, 6)).layers) == ["kernel[dim 0]", "kernel[dim 1]"]
    assert list(diagnose(nn.DataParallel(Bare(4, 6))).layers) == ["kernel[dim 0]", "kernel[dim 1]"]


def test_units_within_one_expert_of_a_stack() -> None:
    model = Stack(3, 5, 4)
    with torch.no_grad():
        model.weight[1, 4] = model.weight[1, 2]
        model.out[1, 4] = model.out[1, 2]
    assert groups_of(look_at(model, 4)) == {"weight[dims 0, 1]": [(7, 9)]}


def test_units_of_different_experts_are_not_compared() -> None:
    model = Stack(3, 5, 4)
    with torch.no_grad():
        model.weight[1, 4] = model.weight[2, 2]
        model.out[1, 4] = model.out[2, 2]
    assert groups_of(look_at(model, 4)) == {}


def test_whole_experts_of_a_stack_that_are_copies() -> None:
    model = Stack(3, 5, 4)
    with torch.no_grad():
        model.weight[2], model.out[2] = model.weight[0], model.out[0]
    assert groups_of(look_at(model, 4)) == {"weight[dim 0]": [(0, 2)], "out[dim 0]": [(0, 2)]}


def test_every_parameter_counts_once_in_the_totals() -> None:
    model: Any = nn.ModuleDict({"bare": Bare(4, 6), "stack": Stack(3, 5, 4)})
    report = diagnose(model)
    assert (report.num_units, report.redundant_units) == (6 + 3 + 3, 0)
    assert report.totals() == "all 12 units of 3 layers are working."
    with torch.no_grad():
        model["bare"].kernel[:, 1:3] = model["bare"].kernel[:, :1]
    report = diagnose(model)
    assert (report.num_units, report.redundant_units) == (4 + 3 + 3, 2)  # counted along the dimension with copies


def test_parameters_that_the_adapter_does_not_know_are_sliced() -> None:
    class LowRank(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 5)
            self.a, self.scale = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.ones(5))

    found = find_layers(nn.Sequential(LowRank()))
    assert [layer.name for layer in found.layers] == ["0", "0.a[dim 0]", "0.a[dim 1]"]
    assert found.skipped == {"0": "the adapter of LowRank does not know its parameters scale"}
    assert (found.unread, found.coverage) == ({}, 1.0)


def test_one_number_per_unit_is_no_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 5))
    model.register_parameter("token", nn.Parameter(torch.randn(1, 1, 5)))
    found = find_layers(model)
    assert [layer.name for layer in found.layers] == ["0"]
    assert found.skipped == {
        "Sequential": "no adapter for Sequential, whose other parameters hold one number per unit at most"
    }
    assert (found.unread, found.coverage) == ({}, 1.0)


def test_what_cannot_be_read_is_still_said_to_be_unread() -> None:
    model = nn.Sequential(Bare(4, 5), Bare(5, 2))
    model[1].kernel = nn.Parameter(torch.randn(2, 5).to(torch.float8_e5m2))
    found = find_layers(model)
    assert list(found.unread) == ["1"]
    assert "torch.float8_e5m2" in found.unread["1"]
    assert found.coverage == 20 / 30


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["0"], []),
        (["0.kernel"], []),
        (["0.kernel*"], []),
        (["0.kernel[dim 0]"], ["0.kernel[dim 1]"]),
        (["*dim 1?"], ["0.kernel[dim 0]"]),
        (["1.*"], ["0.kernel[dim 0]", "0.kernel[dim 1]"]),
    ],
)
def test_slices_are_chosen_by_their_name_or_that_of_the_parameter_or_the_module(
    exclude: list[str], left: list[str]
) -> None:
    model = nn.Sequential(Bare(4, 6))
    found = find_layers(model, exclude=exclude)
    assert [layer.name for layer in found.layers] == left
    assert ("exclude" in found.unmatched) == (exclude == ["1.*"])
    assert [layer.name for layer in find_layers(model, include=exclude).layers] == [
        name for name in ("0.kernel[dim 0]", "0.kernel[dim 1]") if name not in left
    ]


def test_a_bare_parameter_that_two_modules_share_is_looked_at_once() -> None:
    first, second = Bare(4, 4), Bare(4, 4)
    second.kernel = first.kernel
    report = diagnose(nn.Sequential(first, second))
    assert report.layers["1.kernel[dim 0]"] is report.layers["0.kernel[dim 0]"]
    assert report.num_units == 4


def test_what_an_adapter_knows_is_not_sliced_elsewhere() -> None:
    model = nn.Sequential(Bare(4, 5), nn.Linear(4, 5))
    model[0].kernel = model[1].weight
    assert [layer.name for layer in find_layers(model).layers] == ["1"]
    assert find_layers(model).skipped == {}


def test_of_a_parametrized_module_the_computed_weight_is_sliced() -> None:
    found = find_layers(nn.Sequential(parametrizations.weight_norm(Bare(4, 4), "kernel")))
    assert [layer.name for layer in found.layers] == ["0.kernel[dim 0]"]  # the norms are one per row
    assert (found.skipped, found.coverage) == ({}, 1.0)
    assert len(find_layers(nn.Sequential(parametrizations.spectral_norm(Bare(4, 4), "kernel"))).layers) == 2


# ----------------------------------------------------------------- regular initial values on purpose


def sinusoidal(length: int, width: int) -> Tensor:
    angle = torch.arange(length)[:, None] / 100 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


REGULAR: dict[str, Callable[[], nn.Module]] = {
    "zeros": lambda: Table(torch.zeros(12, 6), range(12)),
    "ones": lambda: Table(torch.ones(12, 6), range(12)),
    "zeros, most of them unused": lambda: Table(torch.zeros(12, 6), range(4)),
    "ones, most of them unused": lambda: Table(torch.ones(12, 6), range(4)),
    "padded with zeros that are never used": lambda: Table(torch.cat([torch.randn(8, 6), torch.zeros(4, 6)]), range(8)),
    "sinusoidal": lambda: Table(sinusoidal(12, 6), range(7)),
    "with a batch dimension": lambda: Table(sinusoidal(12, 6)[None], range(7)),
    "A_log": lambda: Table(torch.arange(1.0, 7.0).log().repeat(12, 1), range(12)),
    "relative positions": lambda: Table(torch.zeros(3, 4, 6), range(9)),
    "an expert that is never used": lambda: Stack(4, 5, 6, used=[0, 1, 2]),
}


@pytest.mark.parametrize("name", REGULAR)
def test_what_starts_regular_on_purpose_is_passed_over(name: str) -> None:
    torch.manual_seed(3)
    tracker = train(REGULAR[name](), 6, 70)
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.coverage == 1.0
    assert tracker.report.dead_units == 0  # unused slices are not dead


class Biased(nn.Module):
    """A linear layer without an adapter, with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.kernel.T + self.shift


class Dying(nn.Module):
    """A layer without an adapter that is closed from one step on, until a later step or for good."""

    def __init__(self, start: int, stop: int = 1000) -> None:
        super().__init__()
        self.layer, self.out, self.shut = Biased(6, 8), nn.Linear(8, 1), range(start, stop)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.calls in (self.shut.start, self.shut.stop):
            nn.init.constant_(self.layer.shift, -100.0 if self.calls == self.shut.start else 0.0)
        self.calls += 1
        outputs: Tensor = self.out(torch.relu(self.layer(inputs)))
        return outputs


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("every_n_steps", [1, 5])
def test_a_whole_parameter_without_an_adapter_that_has_no_gradient_any_more_is_dead(
    start: int, every_n_steps: int
) -> None:
    torch.manual_seed(3)
    tracker = train(Dying(start), 6, 100, every_n_steps)
    [finding] = tracker.findings
    assert (finding.layer, finding.verdict, finding.units) == ("layer.kernel[dim 0]", Verdict.DEAD, tuple(range(8)))
    assert start <= finding.first_step < start + 2 * every_n_steps
    assert finding.stop is not None
    assert (finding.stop.kind, finding.stop.at) == ("closed", "relu after layer")
    assert tracker.report is not None
    [message] = tracker.report.messages()
    assert "No adapter knows layer.kernel" in message


def test_a_whole_parameter_that_is_shut_for_a_while_is_not_dead() -> None:
    torch.manual_seed(3)
    tracker = train(Dying(20, 65), 6, 120, 5)
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.status == "healthy"


def test_a_parameter_with_a_gradient_between_two_checks_is_not_dead() -> None:
    # No row of the table is used at checks, and one row between two of them.
    class Rarely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.calls = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 1), 0

        def forward(self, inputs: Tensor) -> Tensor:
            used = self.table[self.calls % 8] * (self.calls % 5 == 2)
            self.calls += 1
            outputs: Tensor = self.layer(inputs + used)
            return outputs

    torch.manual_seed(3)
    assert train(Rarely(), 6, 150, 5).findings == []


def test_a_module_without_an_adapter_that_takes_no_part_is_not_dead() -> None:
    class Routed(nn.Module):
        """Three experts; the last one is used at the first steps only."""

        def __init__(self) -> None:
            super().__init__()
            self.experts, self.out = nn.ModuleList([Biased(6, 8) for _ in range(3)]), nn.Linear(8, 1)
            self.branch, self.calls = Biased(6, 8), 0

        def forward(self, inputs: Tensor) -> Tensor:
            number = 3 if self.calls < 20 else 2
            self.calls += 1
            hidden = torch.stack([expert(inputs) for expert in list(self.experts)[:number]]).sum(dim=0)
            outputs: Tensor = self.out(torch.tanh(hidden + self.branch(inputs) if number == 3 else hidden))
            return outputs

    torch.manual_seed(3)
    assert train(Routed(), 6, 120, 5).findings == []


def test_upcycled_experts_part_in_silence() -> None:
    torch.manual_seed(3)

    class Routed(Stack):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(torch.einsum("eoi,bi->beo", self.weight, inputs))
            choice = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
            return (hidden * self.out).sum(dim=2)[torch.arange(len(inputs)), choice]

    model = Routed(3, 5, 6)
    with torch.no_grad():
        model.weight[:], model.out[:] = model.weight[:1].clone(), model.out[:1].clone()
    assert train(model, 6).findings == []


def test_equal_slices_that_are_never_used_raise_no_doubt() -> None:
    table = torch.cat([torch.randn(8, 6), torch.zeros(4, 6)])
    report = train(Table(table, range(8)), 6).report
    assert report is not None
    assert [group.units for group in report.layers["table[dim 0]"].groups] == [(8, 9, 10, 11)]
    assert (report.status, report.reasons) == ("healthy", [])


# ----------------------------------------------------------------- on several ranks


def found_on(num_ranks: int, folder: Path) -> dict[str, tuple[list[str], dict[str, list[tuple[int, ...]]]]]:
    """Return the names of layers and the locked groups in every layout."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("data_parallel",))
    found = {}
    for name, shard in (("FSDP2", fsdp2), ("FSDP1", fsdp1), ("FSDP1 flat", fsdp1_flat)):
        torch.manual_seed(5)
        net: Any = nn.Sequential(nn.Linear(6, 4), Bare(4, 7), nn.Tanh(), Bare(7, 2))
        with torch.no_grad():
            net[1].kernel[5] = net[1].kernel[1]
            net[3].kernel[:, 5] = net[3].kernel[:, 1]
        sharded = shard(net, mesh) or net
        torch.manual_seed(6)
        sharded(torch.randn(8, 6)).square().sum().backward()
        report = diagnose(sharded)
        found[name] = (list(report.layers), groups_of(report))
    return found


def test_slices_of_sharded_parameters(tmp_path: Path) -> None:
    first, _ = on_ranks(2, partial(found_on, 2), tmp_path)
    names = ["0", "1.kernel[dim 0]", "1.kernel[dim 1]", "3.kernel[dim 0]", "3.kernel[dim 1]"]
    locked = {"1.kernel[dim 0]": [(1, 5)], "3.kernel[dim 1]": [(1, 5)]}
    assert first == dict.fromkeys(("FSDP2", "FSDP1", "FSDP1 flat"), (names, locked))
