"""Equal units get different weights, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from lightning_symmetry import Change, SymmetryReport, break_symmetry, diagnose
from lightning_symmetry.verdicts.verdict import Verdict
from tests import zoo
from tests.test_tracker import tracked
from tests.training import assert_same, batches, fill, mlp


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def copied(net: nn.Module, name: str, first: int, others: list[int]) -> nn.Module:
    layer = net.get_submodule(name)
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter[others] = parameter[first].clone()
    return net


def proven(net: nn.Module) -> SymmetryReport:
    """Return the report of a single check, with all groups marked as lasting, as a training would show."""
    report = diagnose(net)
    layers = {
        name: replace(layer, groups=[replace(group, verdict=Verdict.FROZEN, first_step=0) for group in layer.groups])
        for name, layer in report.layers.items()
    }
    return replace(report, layers=layers)


def broken(net: nn.Module, **options: Any) -> list[Change]:
    return break_symmetry(net, diagnose(net), **options)


def are_distinct(net: nn.Module) -> bool:
    return diagnose(net).redundant_units == 0


def test_of_copies_the_first_stays_and_the_others_get_rows_of_the_same_length() -> None:
    net = copied(mlp(), "0", 3, [5, 9])
    before = state(net)
    [change] = broken(net)
    assert (change.layer, change.units, change.method) == ("0", (5, 9), "reinit")
    assert "unit 3" in change.reason
    assert are_distinct(net)
    after = state(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight"}  # a bias has no direction
    moved = (before["0.weight"] != after["0.weight"]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [5, 9]
    lengths = after["0.weight"].norm(dim=1)
    torch.testing.assert_close(lengths[[5, 9]], lengths[3].expand(2))


def test_mirror_images_are_parted_too() -> None:
    net = zoo.mirrored(zoo.perceptron(nn.Tanh), "0", "2")
    net(torch.randn(64, 12, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    report = diagnose(net)
    if not any(group.mirrored for group in report.layers["0"].groups):
        pytest.fail("the network was to have mirror images")
    [change] = [change for change in break_symmetry(net, report) if change.layer == "0"]
    assert "copies, some with the other sign, of" in change.reason
    net.zero_grad()
    net(torch.randn(64, 12, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    assert diagnose(net).layers["0"].redundant_units == 0


class Zeroed(nn.Linear):
    """A layer whose default initialisation is zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 8),
        lambda: nn.Conv2d(3, 8, 3),
        lambda: nn.ConvTranspose2d(3, 8, 3),
        lambda: nn.Conv1d(8, 8, 3, groups=2),
        lambda: nn.GRU(6, 8, num_layers=2),
        lambda: nn.LSTMCell(6, 8),
        lambda: nn.Bilinear(4, 5, 8),
        lambda: nn.Embedding(10, 8),
        lambda: nn.MultiheadAttention(8, 2),
    ],
    ids=["linear", "conv", "transposed", "grouped", "gru", "cell", "bilinear", "embedding", "attention"],
)
def test_constant_layers_are_drawn_anew_as_their_type_does(make: Callable[[], nn.Module], value: float) -> None:
    net, reference = fill(nn.Sequential(make()), value), make()
    assert break_symmetry(net, proven(net))
    assert are_distinct(net)
    for (name, new), old in zip(net.named_parameters(), reference.parameters(), strict=True):
        if new.ndim > 1 and new.numel() > 30:
            assert 0.3 < float(new.detach().std() / old.detach().std()) < 3, name


@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(nn.Linear(6, 8)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
        lambda: nn.utils.weight_norm(nn.Linear(6, 8)),
        lambda: zoo.Conv1D(6, 8),
        lambda: Zeroed(6, 8),
    ],
    ids=["weight_norm", "spectral_norm", "weight_norm by hooks", "no reset_parameters", "constant by default"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_or_of_no_known_class_are_drawn_too(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(make())
    with torch.no_grad():
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.5)
    assert broken(net)
    assert are_distinct(net)


def test_tied_weights_are_drawn_once_and_stay_tied() -> None:
    net = zoo.Decoder(nn.Linear)
    nn.init.constant_(net.tokens.weight, 0.5)
    [change] = broken(net)
    assert change.layer in ("tokens", "unembed")
    assert net.tokens.weight is net.unembed.weight
    assert are_distinct(net)


def test_copies_of_recurrent_units_are_parted() -> None:
    net = zoo.identity_recurrent()
    report = diagnose(net)
    assert report.redundant_units
    break_symmetry(net, report)
    assert are_distinct(net)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_moments_of_an_optimizer_that_belong_to_numbers_that_are_gone_become_zero(
    memory_format: torch.memory_format,
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 2)).to(
        memory_format=memory_format  # type: ignore[call-overload]
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, amsgrad=True)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 5, 5)).square().mean().backward()
        optimizer.step()
    copied(net, "0", 1, [2, 4])
    before = copy.deepcopy(optimizer.state_dict()["state"])
    gradients = {
        name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None
    }
    report = SymmetryReport(layers={"0": diagnose(copied(copy.deepcopy(net), "0", 1, [2, 4])).layers["0"]})
    net.zero_grad()
    bare = diagnose(net)
    for name, parameter in net.named_parameters():
        parameter.grad = gradients[name]
    assert report.layers
    break_symmetry(net, bare, optimizer=optimizer)
    after = optimizer.state_dict()["state"]
    kept = torch.tensor([0, 1, 3, 5])
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert not after[0][name][[2, 4]].any()
        assert torch.equal(after[0][name][kept], before[0][name][kept])
        assert torch.equal(after[2][name], before[2][name])
    assert after[0]["step"] == before[0]["step"] == 3
    assert not net[0].weight.grad[[2, 4]].any()
    assert net[0].weight.grad[kept].any()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
        (torch.optim.Rprop, {"lr": 0.03}),
        (torch.optim.ASGD, {"t0": 0}),
        (torch.optim.Adafactor, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    ],
)
def test_what_optimizers_remember_of_new_rows_is_as_before_their_first_step(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = kind(net.parameters(), **options)
    for _ in range(8):
        optimizer.zero_grad()
        net(torch.randn(16, 5)).square().mean().backward()
        optimizer.step()
    copied(net, "0", 1, [2, 4]).zero_grad()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    broken(net, optimizer=optimizer)
    weight = zoo.linear(net, "0").weight.detach()
    start = {"sum": torch.tensor(0.1), "step_size": torch.tensor(0.03), "ax": weight[[2, 4]]}
    after = optimizer.state_dict()["state"]
    seen = 0
    for name, kept in after[0].items():
        if isinstance(kept, Tensor) and kept.ndim and len(kept) == 6:
            seen += 1
            torch.testing.assert_close(
                kept[[2, 4]], start.get(name, torch.zeros(())).expand_as(kept[[2, 4]]), msg=name, rtol=0, atol=1e-9
            )
            assert torch.equal(kept[[0, 1, 3, 5]], before[0][name][[0, 1, 3, 5]])
        else:
            assert torch.equal(torch.as_tensor(kept), torch.as_tensor(before[0][name])), name
    assert seen
    assert_same({i: after[i] for i in (2, 3)}, {i: before[i] for i in (2, 3)})


def test_lbfgs_forgets_directions_that_are_of_all_parameters() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(torch.ones(2, 5)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    copied(net, "0", 1, [2, 4]).zero_grad()
    broken(net, optimizer=optimizer)
    assert not any(optimizer.state.values())
    optimizer.step(closure)


def test_it_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    nets = [copied(fill(mlp(), 0.5), "0", 0, [1]) for _ in range(3)]
    random_state = torch.get_rng_state()
    for net in nets[:2]:
        broken(net)
    broken(nets[2], generator=torch.Generator().manual_seed(5))
    assert torch.equal(random_state, torch.get_rng_state())
    weights = [zoo.linear(net, "0").weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_deterministic_algorithms_suffice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    copied(net, "0", 1, [2])
    torch.use_deterministic_algorithms(True)
    try:
        assert broken(net)
    finally:
        torch.use_deterministic_algorithms(False)
    assert are_distinct(net)


def test_a_second_call_does_not_draw_what_the_first_has_drawn() -> None:
    net = copied(mlp(), "0", 3, [5])
    broken(net)
    copied(net, "0", 4, [6])
    broken(net)
    assert are_distinct(net)


def test_with_noise_copies_compute_nearly_what_they_did() -> None:
    net = copied(mlp(), "0", 3, [5, 9])
    inputs = torch.randn(20, 12)
    before = net(inputs)
    [change] = broken(net, method="noise")
    assert change.method == "noise"
    assert are_distinct(net)
    assert 0 < float((net(inputs) - before).detach().norm() / before.detach().norm()) < 0.02


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_noise_parts_constant_layers_too(value: float) -> None:
    net = fill(mlp(), value)
    assert all(change.method == "noise" for change in break_symmetry(net, proven(net), method="noise"))
    assert are_distinct(net)


def test_dead_units_are_recycled_without_a_change_of_the_function() -> None:
    net = zoo.with_bias(mlp(), "2", -100.0, 6)
    tracker = tracked(net, steps=300, every_n_steps=10)
    dead = tracker.report.layers["2"].dead
    assert set(range(6)) <= set(dead)
    inputs = torch.cat([batch[0] for batch in batches()])
    before = net(inputs)
    [change] = [change for change in break_symmetry(net, tracker.report) if change.layer == "2"]
    assert (change.units, change.outgoing) == (dead, ("4",))
    assert torch.equal(net(inputs), before)
    assert not zoo.linear(net, "4").weight[:, list(dead)].any()
    rows = zoo.linear(net, "2").weight[list(dead)]
    fresh = nn.Linear(rows.shape[1], 64).weight
    assert 0.5 < float((rows.std() / fresh.std()).detach()) < 2
    assert (zoo.linear(net, "2").bias[list(dead)].abs() < 1).all()


def test_behind_a_flattened_image_all_numbers_of_a_dead_filter_are_cleared() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4, 3))
    with torch.no_grad():
        zoo.linear(net, "0").bias[1:4] = -100
    images = torch.randn(8, 1, 6, 6)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()

    tracker = tracked(net, loop=train, steps=120, every_n_steps=10)
    before = net(images)
    [change] = break_symmetry(net, tracker.report)
    assert (change.units, change.outgoing) == ((1, 2, 3), ("4",))
    assert torch.equal(net(images), before)


def test_zero_weights_that_block_frozen_units_are_named_and_drawn_too() -> None:
    net = fill(mlp(), 0.0)
    tracker = tracked(net, steps=6, every_n_steps=1)
    changes = break_symmetry(net, tracker.report)
    assert [change.layer for change in changes] == ["0", "2", "4"]
    assert "blocked the gradient" in changes[-1].reason
    assert zoo.linear(net, "4").weight.all()


def test_what_breaks_by_itself_or_was_left_out_stays() -> None:
    net = zoo.filled(zoo.perceptron(), "4", 0.0)  # a head that starts at zero
    nn.functional.cross_entropy(net(torch.randn(64, 12)), torch.arange(64) % 4).backward()
    before = state(net)
    assert break_symmetry(net, diagnose(net)) == []
    assert break_symmetry(net, diagnose(fill(mlp(), 0.5), exclude=["*"])) == []
    assert all(torch.equal(before[name], value) for name, value in state(net).items())


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter, whose second factor starts from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.a, self.b = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.base(inputs) + self.b(self.a(inputs))
        return out


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter[3:] = 0
    return net


def zero_convolutions() -> nn.Module:
    """Two parallel layers that start from zero, as in a ControlNet."""
    return nn.ModuleList([fill(nn.Sequential(nn.Conv2d(4, 4, 1)), 0.0) for _ in range(2)])


@pytest.mark.parametrize("make", [Adapted, pruned, zero_convolutions])
@pytest.mark.parametrize("method", ["auto", "reinit", "noise"])
def test_zeros_that_may_be_on_purpose_stay_after_a_single_look(make: Callable[[], nn.Module], method: str) -> None:
    net = make()
    before = state(net)
    with pytest.warns(UserWarning, match="left as .*: their weights are zero, which may be on purpose"):
        assert broken(net, method=method) == []
    assert_same(before, state(net))


def test_frozen_parameters_are_never_written() -> None:
    net = copied(mlp(), "0", 3, [5]).requires_grad_(False)
    before = state(net)
    with pytest.warns(UserWarning, match="0: unit 5, was left as it is: its weights are frozen"):
        assert broken(net) == []
    assert_same(before, state(net))
    net = fill(mlp(), 0.5)
    bias = nn.init.constant_(zoo.linear(net, "0").bias, 0.5).requires_grad_(False)
    assert "0" in {change.layer for change in broken(net)}
    assert (bias == 0.5).all()


def test_whole_modules_that_are_copies_get_noise_or_are_drawn_anew() -> None:
    torch.manual_seed(0)
    for method in ("auto", "reinit"):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        first = state(net.layers[0])
        changes = broken(net, method=method)
        assert [change.layer for change in changes] == ["layers.1", "layers.2"]
        assert not diagnose(net).copies
        assert all(torch.equal(first[name], value) for name, value in state(net.layers[0]).items())
        near = [
            float((one - other).detach().norm() / one.detach().norm())
            for one, other in zip(net.layers[0].parameters(), net.layers[1].parameters(), strict=True)
            if one.ndim > 1
        ]
        assert all(0 < apart < 0.02 for apart in near) if method == "auto" else all(apart > 0.5 for apart in near)


def test_upcycled_experts_are_parted() -> None:
    torch.manual_seed(0)
    expert = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    net = nn.ModuleDict(
        {"router": nn.Linear(8, 4), "experts": nn.ModuleList([copy.deepcopy(expert) for _ in range(4)])}
    )
    assert len(diagnose(net).copies[0].modules) == 4
    broken(net)
    assert not diagnose(net).copies


class Doubled(nn.Module):
    """A parametrization without ``right_inverse``."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_layer_that_cannot_be_changed_is_refused_before_anything_changes() -> None:
    net = fill(mlp(), 0.5)
    register_parametrization(net[2], "weight", Doubled())
    before = state(net)
    with pytest.raises(ValueError, match=r"'2'.*right_inverse.*Doubled"):
        broken(net)
    assert all(torch.equal(before[name], value) for name, value in state(net).items())


def test_unusual_arguments() -> None:
    net = mlp()
    with pytest.raises(TypeError, match=r"`model`.*got 3"):
        break_symmetry(3, diagnose(net))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`report`.*got None"):
        break_symmetry(net, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`report`.*'0' with 16 units"):
        break_symmetry(zoo.perceptron(), diagnose(net))
    with pytest.raises(TypeError, match=r"`optimizer`.*got 'sgd'"):
        break_symmetry(net, diagnose(net), optimizer="sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`method`.*got 'merge'"):
        break_symmetry(net, diagnose(net), method="merge")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`generator`.*got 7"):
        break_symmetry(net, diagnose(net), generator=7)  # type: ignore[arg-type]
    assert break_symmetry(net, diagnose(net)) == []


def test_it_says_what_it_did() -> None:
    assert str(Change("fc1", (4,), "noise", "they were copies of unit 0")) == (
        "fc1: unit 4, given a little noise: they were copies of unit 0."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [change] = broken(copied(mlp(), "0", 0, [1]))
    assert str(change).startswith("0: unit 1, drawn anew")
