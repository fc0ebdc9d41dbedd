"""Which parameters train, as observed at steps and checks, and the reasons that a report gives for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_symmetry import SymmetryError, SymmetryMonitor, SymmetryTracker, assert_no_symmetry
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.progress import Ledger, Progress
from tests.test_tracker import endless, loss_of, tracked
from tests.training import Classifier, batches, fit, mlp

NO_OPTIMIZER, NO_GRADIENT, UNMOVED = "no optimizer updates it", "no gradient has reached it", "it has not moved"

pytestmark = pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05)


def run(net: nn.Module, optimizers: Any, steps: int = 60, before_step: Callable[[int], object] = id) -> SymmetryTracker:
    several = optimizers if isinstance(optimizers, list) else [optimizers]
    with SymmetryTracker(net, optimizers, every_n_steps=10) as tracker:
        for i, batch in zip(range(steps), endless(), strict=False):
            for optimizer in several:
                optimizer.zero_grad()
            loss_of(net, batch).backward()
            before_step(i)
            for optimizer in several:
                optimizer.step()
    return tracker


def untrained(tracker: SymmetryTracker) -> dict[str, str]:
    report = tracker.report
    assert report is not None
    reasons = [f"{name} does not train: {reason}" for name, reason in report.untrained.items()]
    assert report.reasons[: len(reasons)] == reasons
    assert report.to_dict()["untrained"] == report.untrained
    assert {type(reason) for reason in report.untrained.values()} <= {str}
    assert (report.status == "healthy") == (not report.reasons and not report.findings)
    return report.untrained


def test_what_trains_is_not_named() -> None:
    assert untrained(tracked(mlp(), steps=20)) == {}


@pytest.mark.parametrize("is_in_optimizer", [False, True])
def test_an_average_that_requires_gradients_is_moved_by_others(is_in_optimizer: bool) -> None:
    net = nn.ModuleDict({"model": mlp(), "average": mlp(1)})
    optimizer = sgd((net if is_in_optimizer else net["model"]).parameters())
    pairs = list(zip(net["average"].parameters(), net["model"].parameters(), strict=True))
    with SymmetryTracker(net, optimizer, every_n_steps=10) as tracker:
        for _, batch in zip(range(60), endless(), strict=False):
            optimizer.zero_grad()
            loss_of(net["model"], batch).backward()
            optimizer.step()
            with torch.no_grad():
                for mean, new in pairs:
                    mean.lerp_(new, 0.1)
    assert untrained(tracker) == {}
    assert tracker.report is not None
    assert tracker.report.status == "healthy"


def test_what_weight_decay_alone_moves_does_not_train() -> None:
    net = nn.ModuleDict({"model": mlp(), "unused": nn.Linear(12, 8)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
    with SymmetryTracker(net, optimizer, every_n_steps=10) as tracker:
        for _, batch in zip(range(60), endless(), strict=False):
            optimizer.zero_grad()
            (loss_of(net["model"], batch) + 0 * net["unused"](batch[0]).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert set(untrained(tracker).values()) == {NO_GRADIENT}


@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_a_layer_that_no_optimizer_updates(layer: str) -> None:
    net = mlp()
    rest = [parameter for name, parameter in net.named_parameters() if not name.startswith(layer)]
    assert untrained(run(net, sgd(rest))) == {layer: NO_OPTIMIZER}
    net = mlp()
    rest = [parameter for name, parameter in net.named_parameters() if name != f"{layer}.bias"]
    assert untrained(run(net, sgd(rest))) == {f"{layer}.bias": NO_OPTIMIZER}


def test_what_is_switched_off_is_meant_to_be() -> None:
    net = mlp()
    net.linear(0).requires_grad_(False)
    rest = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert untrained(run(net, sgd(rest))) == {}


class Detached(nn.Module):
    def __init__(self, until: int = 1000) -> None:
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Tanh()), nn.Linear(8, 4)
        self.num_calls, self.until = 0, until

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_calls += 1
        hidden = self.encoder(inputs)
        out: Tensor = self.head(hidden.detach() if self.num_calls <= self.until else hidden)
        return out


def test_what_no_gradient_reaches_until_one_does() -> None:
    names = ["encoder.0", "encoder.1.weight", "encoder.1.bias"]
    for until, expected in ((1000, dict.fromkeys(names, NO_GRADIENT)), (40, {})):
        net = Detached(until)
        assert untrained(run(net, sgd(net.parameters()))) == expected


def test_gradients_that_are_erased_before_the_step() -> None:
    net = mlp()
    optimizer = sgd(net.parameters())
    erased = run(net, optimizer, before_step=lambda i: optimizer.zero_grad())
    assert untrained(erased) == dict.fromkeys("024", NO_GRADIENT)

    class Erasing(Classifier):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for parameter in self.net[2].parameters():  # type: ignore[index]
                parameter.grad = None

    monitor = SymmetryMonitor()
    fit(Erasing(mlp()), monitor, max_steps=20)
    assert monitor.report is not None
    assert monitor.report.untrained == {"net.2": NO_GRADIENT}


def test_a_gradient_at_any_step_counts_whichever_are_checked() -> None:
    net, extra = mlp(), nn.Parameter(torch.ones(3))
    net.register_parameter("extra", extra)
    optimizer = sgd(net.parameters())
    seen = []
    for first in (5, 1000):
        optimizer.zero_grad()
        with SymmetryTracker(net, optimizer, every_n_steps=10) as tracker:
            for i, batch in zip(range(21), endless(), strict=False):
                optimizer.zero_grad()
                (loss_of(net, batch) + float(i % 10 == first) * extra.sum()).backward()
                optimizer.step()
        seen.append(untrained(tracker))
    assert seen == [{}, {"extra": NO_GRADIENT}]


def test_the_last_word_knows_of_the_steps_after_the_last_check() -> None:
    net = Detached(until=57)  # the last check is at step 50
    tracker = run(net, sgd(net.parameters()), steps=58)
    assert untrained(tracker) == {}
    assert tracker.report is not None
    assert not any("does not train" in reason for reason in tracker.report.reasons)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_until_they_are_mended(value: float) -> None:
    linear, norm = nn.Linear(12, 8), nn.LayerNorm(8)
    net = nn.Sequential(linear, norm, nn.Linear(8, 4))
    layers = find_layers(net).layers
    ledger = Ledger.of(net, layers, None, (), Ledger())
    trained = set(map(id, net.parameters()))
    recorded = []
    for step, (in_weight, in_bias) in enumerate([(0.0, 0.0), (value, 0.0), (value, value), (0.0, value), (0.0, 0.0)]):
        linear.weight.data[2, 1], norm.bias.data[3] = in_weight, in_bias
        ledger.take_in(trained, trained, layers[:1] if in_weight else [], step)
        every = [entry for _, entries in ledger.by_layer() for entry in entries]
        recorded.append({entry.name: entry.not_finite_since for entry in every if entry.not_finite_since is not None})
    assert recorded == [{}, {"0.weight": 1}, {"0.weight": 1, "1.bias": 2}, {"1.bias": 2}, {}]


def test_a_training_that_diverges_is_not_healthy() -> None:
    net = mlp()
    tracker = run(net, torch.optim.SGD(net.parameters(), lr=1e30), steps=30)
    assert untrained(tracker) == dict.fromkeys("024", "not finite since step 3")


@pytest.mark.parametrize("group", [0, 1])
def test_what_does_not_move(group: int) -> None:
    net = mlp()
    groups: Any = [{"params": net.linear(0).parameters()}, {"params": [*net[2].parameters(), *net[4].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    optimizer.param_groups[group]["lr"] = 0.0
    assert untrained(run(net, optimizer)) == dict.fromkeys("0" if group == 0 else "24", UNMOVED)


def test_weights_that_are_written_over_in_each_pass() -> None:
    class Fixed(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            self.weight.data.copy_(torch.eye(12))
            return super().forward(inputs)

    net = nn.Sequential(Fixed(12, 12, bias=False), nn.Linear(12, 4))
    assert untrained(run(net, sgd(net.parameters()))) == {"0": UNMOVED}


def test_the_gate_raises_and_a_training_says_it_in_one_line() -> None:
    with pytest.raises(SymmetryError, match=r"encoder.0 does not train: no gradient has reached it"):
        assert_no_symmetry(Detached(), loss_of, batches())
    net = Detached()
    line = "do not train. no gradient has reached it: encoder.0, encoder.1.weight, encoder.1.bias.$"
    with pytest.warns(UserWarning, match=line) as said:
        run(net, sgd(net.parameters()))
    assert len(said) == 1
    optimizer = sgd(net.parameters())
    tracker = SymmetryTracker(net, optimizer, require_conclusion=True)
    for _, batch in zip(range(20), endless(), strict=False):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
    with pytest.raises(SymmetryError, match="comes to no conclusion"):
        tracker.close()


@pytest.mark.filterwarnings("ignore:.*will run with no optimizer")
def test_a_trainer_without_an_optimizer() -> None:
    class Idle(Classifier):
        def configure_optimizers(self) -> Any:
            return None

    monitor = SymmetryMonitor()
    fit(Idle(mlp()), monitor, max_epochs=1, max_steps=-1)
    assert monitor.report is not None
    assert monitor.report.untrained == dict.fromkeys(["net.0", "net.2", "net.4"], NO_OPTIMIZER)


def test_weights_of_inputs_that_are_always_zero_are_counted() -> None:
    net = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = sgd(net.parameters())
    with SymmetryTracker(net, optimizer) as tracker:
        for _, (inputs, labels) in zip(range(20), endless(), strict=False):
            optimizer.zero_grad()
            loss_of(net, [nn.functional.pad(inputs, (3, 5)), labels]).backward()
            optimizer.step()
    assert untrained(tracker) == {}
    assert tracker.report is not None
    assert tracker.report.idle_inputs == {"0": 8}
    assert "0: 8 of the 20 weights of each unit have had no gradient" in str(tracker.report)


def test_an_lstm_over_one_step_never_uses_what_feeds_it_back() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(12, 8), nn.Linear(8, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.head(self.rnn(inputs[None])[0][0])
            return out

    net = Single()
    assert untrained(run(net, sgd(net.parameters()))) == {"rnn.weight_hh_l0": NO_GRADIENT}


@given(st.data())
def test_what_is_seen_of_a_parameter_is_what_happened(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    parameter = nn.Parameter(torch.ones(shape, dtype=data.draw(st.sampled_from([torch.float32, torch.complex64]))))
    seen = Progress("p", parameter)
    had_gradient, moved, before = False, False, parameter.detach().clone()
    for i, kind in enumerate(data.draw(st.lists(st.sampled_from(["none", "zero", "nan", "one", "move"]), max_size=6))):
        if kind == "move" and parameter.numel():
            parameter.data.view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] += 1
        values: dict[str, float] = {"zero": 0.0, "nan": float("nan"), "one": -1.0}
        parameter.grad = torch.full_like(parameter, values[kind]) if kind in values else None
        had_gradient |= kind == "one" and parameter.numel() > 0
        moved |= i > 0 and not torch.equal(parameter, before)  # the first check has nothing to compare with
        before = parameter.detach().clone()
        seen.see_gradient()
        seen.see_numbers()
        assert seen.had_gradient == had_gradient
        assert seen.has_moved == (moved or parameter.numel() == 0)  # of larger parameters only a sample is compared


class Refusing(Tensor):
    """A tensor whose numbers cannot be read, as in some quantisations."""

    is_locked = False

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls.is_locked and getattr(function, "__name__", "") in {"detach", "_foreach_norm", "isfinite"}:
            raise RuntimeError("mine")
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_a_parameter_that_cannot_be_read_is_left_out_and_the_others_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = mlp()
    net.register_parameter("odd", nn.Parameter(torch.ones(3).as_subclass(Refusing)))
    net.register_parameter("lost", nn.Parameter(torch.ones(3)))
    ledger = Ledger.of(net, find_layers(net).layers, None, (), Ledger())
    assert {entry.name for entry in ledger.entries.values()} >= {"odd", "lost"}
    loss_of(net, next(endless())).backward()
    monkeypatch.setattr(Refusing, "is_locked", True)
    for step in range(3):
        every = set(map(id, net.parameters()))
        ledger.take_in(every, every, [], step)
        ledger.watch(every)
    assert {entry.name for entry in ledger.entries.values()} & {"odd", "lost"} == {"lost"}
    assert not ledger.entries[id(net.lost)].had_gradient


def test_a_large_table_moves_where_its_sparse_gradient_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(4000, 3, sparse=True), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with SymmetryTracker(net, optimizer, every_n_steps=1, output=None, on_symmetry="ignore") as tracker:
        for _ in range(6):
            optimizer.zero_grad()
            (net(torch.tensor([1234])) - 1).square().mean().backward()
            optimizer.step()
    assert tracker.report is not None
    assert tracker.report.untrained == {}


@pytest.mark.parametrize(
    "parameter",
    [
        *(torch.zeros(size) for size in (1, 4095, 8191, 8192, 8193, 20_000, 40_960)),
        torch.zeros(()),
        torch.zeros(200, 90).T,
        torch.zeros(64, 40, 3, 3).to(memory_format=torch.channels_last),
    ],
    ids=lambda parameter: "x".join(map(str, parameter.shape)),
)
def test_it_is_seen_that_only_the_numbers_with_the_extreme_gradients_move(parameter: Tensor) -> None:
    size = parameter.numel()
    generator = torch.Generator().manual_seed(size)
    for places in ([0, size - 1], [size - 1, 0], torch.randint(size, (2,), generator=generator).tolist()):
        for place in places:
            progress = Progress("table", parameter := nn.Parameter(torch.zeros_like(parameter)))
            gradient = torch.rand(parameter.shape, generator=generator) - 0.5  # row by row in memory
            gradient.view(-1)[place] = 1.0 if place == places[0] else -1.0
            parameter.grad = gradient
            for _ in range(2):
                progress.num_checks += 1
                progress.see_numbers()
            assert not progress.has_moved
            with torch.no_grad():
                parameter.add_((gradient.abs() == 1).float())
            progress.see_numbers()
            assert progress.has_moved


def test_another_layout_in_memory_is_no_movement() -> None:
    parameter = nn.Parameter(torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)))
    progress = Progress("conv", parameter)
    parameter.grad = torch.ones_like(parameter)
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last, torch.contiguous_format):
        parameter.data = parameter.data.contiguous(memory_format=memory_format)
        progress.num_checks += 1
        progress.see_numbers()
    assert not progress.has_moved
    with torch.no_grad():
        parameter.add_(1)
    progress.see_numbers()
    assert progress.has_moved
