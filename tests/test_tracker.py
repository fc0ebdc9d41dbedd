"""The tracker in plain loops."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryError, SymmetryTracker, SymmetryWarning
from tests.training import MLP, assert_same, batches, fill, mlp

Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def loss_of(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def endless() -> Any:
    while True:
        yield from batches()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> None:
    """An ordinary loop."""
    for _, batch in zip(range(steps), endless(), strict=False):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def train_with_closure(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> None:
    for _, batch in zip(range(steps), endless(), strict=False):

        def closure(batch: list[Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]


def train_with_compiled_step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> None:
    step: Any = torch.compile(optimizer.step, backend="eager")
    for _, batch in zip(range(steps), endless(), strict=False):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        step()


def tracked(model: nn.Module, optimizer: Any = None, loop: Any = train, steps: int = 8, **options: Any) -> Any:
    optimizer = optimizer or sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        with SymmetryTracker(model, optimizer, **options) as tracker:
            loop(model, optimizer, steps)
    return tracker


OPTIMIZERS: dict[str, tuple[Optimizers, Any]] = {
    "sgd": (sgd, train),
    "adamw": (lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3), train),
    "fused": (lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), train),
    "closure": (sgd, train_with_closure),
    "compiled": (sgd, train_with_compiled_step),
    "lbfgs": (lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4), train_with_closure),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler about PyTorch
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_training_is_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    make, loop = OPTIMIZERS[name]
    results = []
    for is_tracked in (False, True):
        net = nn.Sequential(fill(nn.Linear(12, 16), 0.1), nn.Dropout(0.2), *list(mlp())[1:])
        optimizer = make(net)
        torch.manual_seed(3)
        if is_tracked:
            tracked(net, optimizer, loop, output=tmp_path, every_n_steps=1, heatmaps="all", scalars="layers")
        else:
            loop(net, optimizer)
        results.append((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    assert_same(results[0], results[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_constants_are_found_before_the_first_update(name: str) -> None:
    make, loop = OPTIMIZERS[name]
    net = fill(mlp(), 0.1)
    net.linear(4).reset_parameters()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = make(net)
    with pytest.raises(SymmetryError, match=r"0: all 16 units are identical"):
        tracked(net, optimizer, loop, on_symmetry="raise")
    assert_same(before, dict(net.state_dict()))


def test_zeros_are_frozen_in_a_loop_too() -> None:
    tracker = tracked(fill(mlp(), 0.0))
    assert {finding.layer: str(finding.verdict) for finding in tracker.findings} == {"0": "frozen", "2": "frozen"}
    assert tracker.report.status == "symmetric"
    assert any("do not train at all" in text for text in tracker.report.messages())


def test_lbfgs_is_looked_at_once_a_step_at_the_weights_that_the_step_starts_from() -> None:
    net = mlp()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
    seen: list[Tensor] = []

    class Looking(SymmetryTracker):
        def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
            assert net.linear(0).weight.grad is not None
            seen.append(net.linear(0).weight.detach().clone())
            super()._before_update(optimizer)

    starts = []
    with Looking(net, optimizer):
        for _ in range(3):
            starts.append(net.linear(0).weight.detach().clone())
            train_with_closure(net, optimizer, steps=1)
    assert_same(seen, starts)


def test_accumulated_gradients_count_once() -> None:
    net, steps = mlp(), []
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        for i, batch in zip(range(12), endless(), strict=False):
            loss_of(net, batch).backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
                assert tracker.report is not None
                steps.append(tracker.report.step)
    assert steps == [0, 1, 2]


def test_steps_that_the_gradient_scaler_skips_are_not_seen() -> None:
    net = mlp()
    optimizer = sgd(net)
    scaler = torch.amp.GradScaler("cpu")
    steps = []
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        for i, batch in zip(range(6), endless(), strict=False):
            optimizer.zero_grad()
            loss = loss_of(net, batch) * (torch.inf if i == 2 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert tracker.report is not None
            steps.append(tracker.report.step)
    assert steps == [0, 1, 1, 2, 3, 4]
    assert tracker.report is not None
    assert tracker.report.status == "healthy"


def test_several_optimizers_are_counted_each_for_itself() -> None:
    net = fill(mlp(), 0.1)
    first = torch.optim.SGD(net.linear(0).parameters(), lr=0.05)
    second = torch.optim.SGD([*net.linear(2).parameters(), *net.linear(4).parameters()], lr=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        with SymmetryTracker(net, [first, second]) as tracker:
            for i, batch in zip(range(12), endless(), strict=False):
                net.zero_grad()
                loss_of(net, batch).backward()
                (first if i % 3 else second).step()
    assert {finding.layer for finding in tracker.findings} == {"0", "2"}
    assert sum(tracker.state_dict()["num_steps"].values()) == 12


class WithModule(nn.Module):
    """A model with an attribute that is named like the inner model of a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.module(inputs))
        return out


def wrapped(net: nn.Module, kind: str) -> nn.Module:
    if kind == "compile":
        return torch.compile(net, backend="eager")  # type: ignore[return-value]
    if kind == "DataParallel":
        return nn.DataParallel(net)
    return nn.parallel.DistributedDataParallel(net)


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["compile", "DataParallel", "DDP"])
def test_names_carry_no_wrapper(kind: str) -> None:
    model = wrapped(WithModule(), kind)
    tracker = tracked(model)
    assert list(tracker.report.layers) == ["module", "head"]
    if kind != "compile":  # two wrappers, one in the other
        assert list(tracked(wrapped(model, "compile")).report.layers) == ["module", "head"]


def test_a_resumed_training_does_not_warn_again(tmp_path: Path) -> None:
    net = fill(mlp(), 0.1)
    before = tracked(net)
    assert before.findings
    torch.save(before.state_dict(), tmp_path / "state.pt")
    optimizer = sgd(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymmetryWarning)
        with SymmetryTracker(net, optimizer) as tracker:
            tracker.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            train(net, optimizer, 4)
    assert [f.units for f in tracker.findings] == [f.units for f in before.findings]
    assert sum(tracker.state_dict()["num_steps"].values()) == 12
    assert tracker.report is not None
    assert tracker.report.step == 8  # a check at once, for a report, and then when one is due


def test_a_state_of_something_else_is_said_and_forgotten() -> None:
    net = mlp()
    tracker = SymmetryTracker(net, sgd(net))
    with pytest.warns(UserWarning, match="SymmetryTracker cannot read its state in the checkpoint .KeyError"):
        tracker.load_state_dict({"weights": 1})
    tracker.abandon()


def test_stop_is_said_and_leaves_the_loop_to_the_user() -> None:
    tracker = tracked(fill(mlp(), 0.1), on_symmetry="stop")
    assert tracker.should_stop
    assert not tracked(mlp(), on_symmetry="stop").should_stop


def test_ignored_findings_are_recorded_and_not_said() -> None:
    net = fill(mlp(), 0.1)
    optimizer = sgd(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SymmetryTracker(net, optimizer, on_symmetry="ignore") as tracker:
            train(net, optimizer)
    assert tracker.findings


def test_a_healthy_training_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tracked(mlp()).report.status == "healthy"
    assert capsys.readouterr() == ("", "")


def test_the_warning_points_at_the_step_of_the_users_loop() -> None:
    net = fill(mlp(), 0.1)
    optimizer = sgd(net)
    with pytest.warns(SymmetryWarning) as caught, SymmetryTracker(net, optimizer):
        train(net, optimizer)
    assert {Path(warning.filename).name for warning in caught} == {"test_tracker.py"}


def test_no_conclusion_is_an_error_only_where_one_is_required() -> None:
    tracked(mlp(), steps=1)
    with pytest.raises(SymmetryError, match=r"SymmetryTracker comes to no conclusion \(0, 2, 4: only 1 check of the 3"):
        tracked(mlp(), steps=1, require_conclusion=True)
    with (
        pytest.warns(UserWarning, match=r"SymmetryTracker saw no step of optimizer 0 \(SGD\)"),
        pytest.raises(SymmetryError, match="no optimizer step was checked") as raised,
    ):
        tracked(mlp(), steps=0, require_conclusion=True)
    assert raised.value.report.status == "inconclusive"
    assert tracked(mlp(), steps=4, require_conclusion=True).report.status == "healthy"


def test_a_gate_that_saw_too_little_says_so() -> None:
    net = fill(mlp(), 0.0)
    optimizer = sgd(net)
    with (
        pytest.warns(SymmetryWarning, match=r"comes to no conclusion \(.*That nothing was raised does not mean"),
        SymmetryTracker(net, optimizer, on_symmetry="raise") as tracker,
    ):
        train(net, optimizer, steps=2)
    assert tracker.report is not None
    assert tracker.report.status == "inconclusive"


def test_an_error_of_the_loop_is_not_replaced() -> None:
    net = mlp()
    with pytest.raises(ZeroDivisionError), SymmetryTracker(net, sgd(net), require_conclusion=True):
        _ = 1 / 0


def test_nothing_is_hooked_once_it_is_closed() -> None:
    net = mlp()
    optimizer = sgd(net)
    tracker = SymmetryTracker(net, optimizer)
    train(net, optimizer, 1)
    report = tracker.report
    tracker.close()
    tracker.close()
    train(net, optimizer, 4)
    assert tracker.report is report
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(
        RuntimeError, match="Expected an open SymmetryTracker for load_state_dict but this one is closed"
    ):
        tracker.load_state_dict({})
    with pytest.raises(RuntimeError, match="Expected an open SymmetryTracker for a with statement"), tracker:
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda net: ("net", sgd(net)), TypeError, "argument `model` to be a torch.nn.Module but got 'net'"),
        (lambda net: (net, "adam"), TypeError, "argument `optimizer` to be a torch.optim.Optimizer .* but got 'adam'"),
        (lambda net: (net, []), ValueError, r"argument `optimizer` to hold at least one optimizer but got \[\]"),
        (
            lambda net: (net, sgd(mlp())),
            ValueError,
            "to update parameters of `model` but none of the parameters of SGD",
        ),
        (lambda net: (net, net.parameters()), TypeError, "argument `optimizer` .* but got <generator"),
    ],
)
def test_a_wrong_model_or_optimizer_is_an_error(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SymmetryTracker(*arguments(mlp()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scalars": "some"}, ValueError, "argument `scalars` to be one of .* but got 'some'"),
        ({"require_conclusion": 1}, TypeError, "argument `require_conclusion` to be a bool but got 1"),
        ({"output": 3}, TypeError, "argument `output` to be .* but got 3"),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], error: type[Exception], message: str) -> None:
    net = mlp()
    with pytest.raises(error, match=message):
        SymmetryTracker(net, sgd(net), **options)


def test_an_output_that_cannot_be_written_is_an_error_before_the_training(tmp_path: Path) -> None:
    net, file = mlp(), tmp_path / "file"
    file.write_text("")
    optimizer = sgd(net)
    with pytest.raises(OSError, match="file"):
        SymmetryTracker(net, optimizer, output=file)
    assert not optimizer._optimizer_step_pre_hooks


def test_it_can_be_saved_with_the_optimizer_that_it_watches() -> None:
    net = mlp()
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer):
        torch.save(optimizer.state_dict(), io.BytesIO())
        train(net, optimizer, 2)


def test_repr_is_short() -> None:
    tracker = tracked(fill(MLP(), 0.1))
    assert repr(tracker).startswith("<SymmetryTracker of MLP, closed: ")
    assert len(repr(tracker)) < 300


def test_a_loop_that_steps_another_optimizer_is_told_at_the_end() -> None:
    net = mlp()
    tracker = SymmetryTracker(net, sgd(net))
    train(net, sgd(net), 4)
    with pytest.warns(
        UserWarning, match=r"SymmetryTracker saw no step of optimizer 0 \(SGD\): what it updates"
    ) as said:
        tracker.close()
    assert len(said) == 1
    with pytest.raises(KeyboardInterrupt), SymmetryTracker(net, sgd(net)):  # which is not a regular end
        raise KeyboardInterrupt


def test_an_optimizer_that_has_not_stepped_leaves_its_layers_open() -> None:
    net = fill(mlp(), 0.0)
    net.linear(0).reset_parameters()
    net.linear(4).reset_parameters()
    first = torch.optim.SGD([*net.linear(0).parameters(), *net.linear(4).parameters()], lr=0.05)
    second = torch.optim.SGD(net.linear(2).parameters(), lr=0.05)
    tracker = SymmetryTracker(net, [first, second], every_n_steps=1)
    train(net, first)
    with pytest.warns(UserWarning, match="SymmetryTracker") as said:
        tracker.close()
    assert [str(warning.message).partition(":")[0] for warning in said] == [
        "SymmetryTracker saw no step of optimizer 1 (SGD)",
        "SymmetryTracker",
    ]
    assert str(said[1].message).endswith("parts of the model do not train. no gradient has reached it: 0, 4.weight.")
    assert tracker.report is not None
    assert tracker.report.status == "inconclusive"
    assert tracker.report.untrained == dict.fromkeys(["0", "4.weight"], "no gradient has reached it")
    assert any(
        reason.startswith("2: all 8 units are equal, and their gradients are inconclusive so far")
        for reason in tracker.report.reasons
    )


def test_units_that_nearly_agree_are_too_many_to_compare_until_they_part() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 1024, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(1024, 2))
    noise = torch.randn(1024, 64, generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    statuses = []
    sentence = "0: too many near rows to compare: 1,024 of 1,024 units, whose weights lie within "
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        for scale in [2e-5] * 4 + [1.0] * 2:
            with torch.no_grad():
                layer.weight.copy_(0.1 + 0.1 * scale * noise)
            optimizer.zero_grad()
            net(torch.randn(8, 64, generator=generator)).square().mean().backward()
            optimizer.step()
            report = tracker.report
            assert report is not None
            seen, reasons = report.layers["0"], [r for r in report.reasons if r.startswith(sentence)]
            if scale == 1.0:
                assert (seen.crowded_units, seen.crowd_radius, reasons) == (0, 0.0, [])
            else:
                assert seen.crowded_units == 1024
                assert seen.crowd_radius == pytest.approx(2e-5 * 2**0.5, rel=0.5)
                assert len(reasons) == 1
            statuses.append(report.status)
    assert statuses == 4 * ["inconclusive"] + 2 * ["healthy"]
    assert not tracker.findings
