"""Traces in real trainings: their results, their cost, and that they do not affect the training."""

from __future__ import annotations

import copy
import gc
import io
import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_symmetry import Finding, StopKind, SymmetryMonitor, SymmetryTracker, Verdict
from lightning_symmetry.tracing.trace import GradientTrace
from tests.tracing.tracing import suspects_of
from tests.training import Classifier, assert_same, fill, fit, mlp, quiet, sgd

OPTIONS: dict[str, Any] = {"heatmaps": "none", "scalars": "none", "every_n_steps": 10}


class Shut(nn.Module):
    """Return three hidden layers, the second of them closed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        nn.init.constant_(self.b.bias, -50.0)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.c(functional.relu(self.b(torch.tanh(self.a(inputs)))))
        return outputs


def inputs_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.rand(16, 12, generator=generator)
    return inputs, (inputs.sum(1) > 6).long()


def loss_of(net: nn.Module, step: int) -> Tensor:
    inputs, labels = inputs_of(step)
    return functional.cross_entropy(net(inputs), labels)


def train(
    net: nn.Module,
    step_of: Callable[[nn.Module, Any, int], None],
    optimizer: Any = None,
    *,
    steps: int = 71,
    is_watched: bool = True,
    **options: Any,
) -> SymmetryTracker | None:
    """Train a network with or without a tracker.

    Args:
        net: the network.
        step_of: makes a step with a network and its optimizer.
        optimizer: what updates it; None: SGD.
        steps: how many steps.
        is_watched: whether there is a tracker.
        options: of the tracker.
    """
    optimizer = optimizer or sgd(net.parameters())
    tracker = SymmetryTracker(net, optimizer, on_symmetry="ignore", **{**OPTIONS, **options}) if is_watched else None
    for step in range(steps):
        step_of(net, optimizer, step)
    if tracker is not None:
        tracker.abandon()
    return tracker


def plain_step(net: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    loss_of(net, step).backward()
    optimizer.step()


def accumulating_step(net: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    for part in range(3):
        (loss_of(net, 3 * step + part) / 3).backward()
    optimizer.step()


def step_with_a_closure(net: nn.Module, optimizer: Any, step: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, step)
        loss.backward()
        return loss

    optimizer.step(closure)


def autocast_step(net: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(net, step)
    loss.backward()
    optimizer.step()


def kept_graph_step(net: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    loss = loss_of(net, step)
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()


def wasteful_step(net: nn.Module, optimizer: Any, step: int) -> None:
    """A step with additional forward passes: one without a backward pass, one without gradients."""
    loss_of(net, step)
    with torch.no_grad():
        loss_of(net, step)
    plain_step(net, optimizer, step)


STEPS = [plain_step, accumulating_step, step_with_a_closure, autocast_step, kept_graph_step, wasteful_step]


def roots(findings: list[Finding]) -> dict[str, tuple[str, str, str]]:
    return {
        finding.layer: (str(finding.stop.kind), finding.stop.at, finding.follows)
        for finding in findings
        if finding.stop is not None
    }


FOUND = {"a": ("closed", "relu after b", "b"), "b": ("closed", "relu after b", "")}


@pytest.mark.parametrize("step_of", STEPS, ids=[step.__name__ for step in STEPS])
def test_every_kind_of_step(step_of: Callable[[nn.Module, Any, int], None]) -> None:
    net = Shut()
    start = copy.deepcopy(net)
    tracker = train(net, step_of)
    assert tracker is not None
    assert roots(tracker.findings) == FOUND
    train(start, step_of, is_watched=False)
    assert_same(net.state_dict(), start.state_dict())


def test_lbfgs() -> None:
    net = Shut().double()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.01, max_iter=3)
    start = copy.deepcopy(net)

    def step_of(net: nn.Module, optimizer: Any, step: int) -> None:
        inputs, labels = inputs_of(0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs.double()), labels)
            loss.backward()
            return loss

        optimizer.step(closure)

    tracker = train(net, step_of, optimizer)
    assert tracker is not None
    assert roots(tracker.findings) == FOUND
    train(start, step_of, torch.optim.LBFGS(start.parameters(), lr=0.01, max_iter=3), is_watched=False)
    assert_same(net.state_dict(), start.state_dict())


class Segmented(Shut):
    """The same network with a checkpointed segment, whose activations are recomputed in the backward pass."""

    def __init__(self, *, use_reentrant: bool, is_whole: bool) -> None:
        super().__init__()
        self.use_reentrant, self.is_whole = use_reentrant, is_whole

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.requires_grad_()
        if self.is_whole:
            outputs: Tensor = checkpoint(super().forward, inputs, use_reentrant=self.use_reentrant)
            return outputs
        hidden = checkpoint(lambda x: torch.tanh(self.a(x)), inputs, use_reentrant=self.use_reentrant)
        after: Tensor = self.c(functional.relu(self.b(hidden)))
        return after


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_segments(use_reentrant: bool, is_whole: bool) -> None:
    net = Segmented(use_reentrant=use_reentrant, is_whole=is_whole)
    start = copy.deepcopy(net)
    tracker = train(net, plain_step)
    assert tracker is not None
    assert {finding.layer for finding in tracker.findings} == {"a", "b"}
    said = roots(tracker.findings)
    if not use_reentrant:
        assert said == FOUND
    elif not is_whole:  # the inside of a segment cannot be traced, and is not reported
        assert said["b"] == FOUND["b"]
    assert {kind for kind, _, _ in said.values()} <= {"closed", "unknown"}
    train(start, plain_step, is_watched=False)
    assert_same(net.state_dict(), start.state_dict())


def test_a_compiled_model_is_not_traced() -> None:
    net = torch.compile(Shut(), backend="eager")
    tracker = train(net, plain_step)  # type: ignore[arg-type] # a module at run time
    assert tracker is not None
    assert {(finding.layer, str(finding.verdict)) for finding in tracker.findings} == {("a", "dead"), ("b", "dead")}
    assert {finding.stop.kind for finding in tracker.findings if finding.stop} == {StopKind.UNKNOWN}


class TwoPlayers(nn.Module):
    """A generator, and a closed discriminator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)), Shut()


def test_two_optimizers() -> None:
    net = TwoPlayers()
    optimizers = [sgd(net.generator.parameters()), sgd(net.discriminator.parameters())]
    tracker = SymmetryTracker(net, optimizers, on_symmetry="ignore", **OPTIONS)
    for step in range(71):
        inputs, labels = inputs_of(step)
        optimizers[0].zero_grad()
        fake = net.generator(inputs)
        (functional.cross_entropy(net.discriminator(fake), labels) + fake.square().mean()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        functional.cross_entropy(net.discriminator(fake.detach()), labels).backward()
        optimizers[1].step()
    tracker.abandon()
    assert roots(tracker.findings) == {
        "discriminator.a": ("closed", "relu after discriminator.b", "discriminator.b"),
        "discriminator.b": ("closed", "relu after discriminator.b", ""),
    }


def test_parts_of_a_model_that_a_loop_calls_one_by_one() -> None:
    torch.manual_seed(0)
    parts = nn.ModuleDict({"first": nn.Linear(12, 8), "last": nn.Linear(8, 4)})
    nn.init.constant_(parts["first"].bias, -50.0)  # type: ignore[arg-type] # a tensor

    def step_of(net: Any, optimizer: Any, step: int) -> None:
        inputs, labels = inputs_of(step)
        optimizer.zero_grad()
        functional.cross_entropy(net["last"](net["first"](inputs).relu()), labels).backward()
        optimizer.step()

    tracker = train(parts, step_of)
    assert tracker is not None
    assert roots(tracker.findings) == {"first": ("closed", "relu after first", "")}


# ---------------------------------------------------------------- in a Trainer


class ByHand(Classifier):
    """Two micro-batches per step, with manual optimization."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for inputs, labels in zip(batch[0].chunk(2), batch[1].chunk(2), strict=True):
            self.manual_backward(functional.cross_entropy(self.net(inputs), labels))
        optimizer.step()


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Classifier, {}),
        (Classifier, {"accumulate_grad_batches": 3}),
        (Classifier, {"precision": "bf16-mixed"}),
        (Classifier, {"gradient_clip_val": 0.5}),
        (ByHand, {}),
    ],
)
def test_in_a_trainer(module: type[Classifier], options: dict[str, Any]) -> None:
    watched, alone = module(Shut()), module(Shut())
    monitor = quiet(every_n_steps=10, on_symmetry="ignore")
    fit(watched, monitor, max_steps=71, **options)
    assert roots(monitor.findings) == {
        "net.a": ("closed", "relu after net.b", "net.b"),
        "net.b": ("closed", "relu after net.b", ""),
    }
    fit(alone, max_steps=71, **options)
    assert_same(watched.state_dict(), alone.state_dict())


class Erasing(Classifier):
    """A module whose gradients are erased before the step."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


def test_a_loss_that_a_trainer_hands_over_is_traced_too() -> None:
    class Weightless(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx) * 0.0
            return loss

    monitor = SymmetryMonitor(**OPTIONS)
    with pytest.warns(UserWarning, match="parts of the model do not train"):
        fit(Weightless(Shut()), monitor, max_steps=71)
    assert monitor.findings == []
    assert monitor.report is not None
    groups = [group for layer in monitor.report.layers.values() for group in layer.groups]
    assert {group.verdict for group in groups} == {Verdict.IDLE}
    assert {group.stop.detail for group in groups if group.stop} == {"mul in the loss lets none through"}
    monitor = SymmetryMonitor(**OPTIONS, on_symmetry="ignore")
    fit(Erasing(mlp()), monitor, max_steps=71)
    assert {finding.stop.kind for finding in monitor.findings if finding.stop} == {StopKind.ERASED}


# ---------------------------------------------------------------- idle units


def test_idle_units_are_logged_once_and_watched_anew(caplog: pytest.LogCaptureFixture) -> None:
    # The second head has weight 0 in the loss until step 60. Then it counts, and is closed.
    torch.manual_seed(0)
    net = nn.ModuleDict({"body": nn.Linear(12, 8), "main": nn.Linear(8, 4), "other": nn.Linear(12, 8)})
    nn.init.constant_(net["other"].bias, -50.0)  # type: ignore[arg-type] # a tensor

    def step_of(net: Any, optimizer: Any, step: int) -> None:
        inputs, labels = inputs_of(step)
        optimizer.zero_grad()
        main = functional.cross_entropy(net["main"](net["body"](inputs).tanh()), labels)
        other = net["other"](inputs)
        (main + (0.0 * other.square().mean() if step < 60 else functional.relu(other).sum())).backward()
        optimizer.step()

    optimizer = sgd(net.parameters())
    with caplog.at_level(logging.INFO, logger="lightning_symmetry"):
        tracker = SymmetryTracker(net, optimizer, **OPTIONS)
        for step in range(59):
            step_of(net, optimizer, step)
        step_of(net, optimizer, 59)
        assert tracker.findings == []
        logged = [record.message for record in caplog.records if record.message.startswith("other:")]
        assert len(logged) == 1
        assert "the loss" in logged[0]
        with warnings.catch_warnings(record=True, action="always") as warned:
            for step in range(60, 300):
                step_of(net, optimizer, step)
        tracker.abandon()
    assert [str(each.message).partition(" have ")[0] for each in warned] == ["other: all 8 units"]
    assert roots(tracker.findings) == {"other": ("closed", "relu after other", "")}
    [finding] = tracker.findings
    assert finding.num_watched > 50
    assert len([record for record in caplog.records if record.message.startswith("other:")]) == 1


# ---------------------------------------------------------------- cost of a trace


def count_traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of layers of every new trace."""
    made: list[int] = []
    init = GradientTrace.__init__

    def counted(self: GradientTrace, model: nn.Module, suspects: Any, alike: Any = (), **options: Any) -> None:
        made.append(len(suspects) + len(alike))
        init(self, model, suspects, alike, **options)

    monkeypatch.setattr(GradientTrace, "__init__", counted)
    return made


def test_one_trace_for_all_findings_of_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_traces(monkeypatch)
    train(Shut(), plain_step, steps=300)
    assert made == [2]


def test_what_keeps_units_equal_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_traces(monkeypatch)
    net = fill(nn.Sequential(nn.Linear(12, 8), nn.Softmax(1), nn.Linear(8, 4)), 0.1)  # the reason is unknown
    train(net, plain_step, steps=300)
    assert 1 <= len(made) <= 3  # of 30 checks: once per group; one more group comes later


def test_a_healthy_network_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_traces(monkeypatch)
    torch.manual_seed(0)
    train(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), plain_step, steps=300)
    assert made == []


def test_nothing_of_a_traced_step_is_kept() -> None:
    net, seen = Shut(), []
    net.a.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    tracker = train(net, plain_step, steps=52)
    assert tracker is not None
    gc.collect()
    assert [reference() for reference in seen] == [None] * len(seen)
    every = [module for module in net.modules() if module is not net.a]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in every)


def test_a_graph_that_is_kept_is_not_traced_any_more() -> None:
    net = Shut()
    loss_of(net, 0).backward()
    trace = GradientTrace(net, suspects_of(net))
    loss = loss_of(net, 0)
    loss.backward(retain_graph=True)
    assert set(trace.finish()) == {"a", "b"}
    loss.backward()
    assert trace.finish() == {}


def test_a_hook_that_fails_costs_the_trace_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no range")

    monkeypatch.setattr("lightning_symmetry.tracing.calls._ranges", fail)
    net, start = Shut(), Shut()
    with pytest.warns(UserWarning, match=r"trace of gradients.*no range"):
        tracker = train(net, plain_step)
    assert tracker is not None
    assert [finding.layer for finding in tracker.findings] == ["a", "b"]
    assert [finding.stop for finding in tracker.findings] == [None, None]
    train(start, plain_step, is_watched=False)
    assert_same(net.state_dict(), start.state_dict())


def test_a_training_that_ends_in_a_traced_step_leaves_no_hooks() -> None:
    net = fill(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)), 0.0)
    tracker = train(net, plain_step, steps=3)  # the next check is at step 3
    assert tracker is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_model_can_be_saved_and_copied_at_every_step() -> None:
    net, copies = Shut(), []

    def step_of(net: nn.Module, optimizer: Any, step: int) -> None:
        plain_step(net, optimizer, step)
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        copies.extend([copy.deepcopy(net), torch.load(file, weights_only=False)])

    train(net, step_of, steps=60)
    for twin in copies:
        assert twin(inputs_of(0)[0]).shape == (16, 4)


def test_a_finding_keeps_where_the_gradient_stopped_at_the_warning() -> None:
    # Copies that are closed until step 20, when the biases open them.
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = net[0].weight[:4], -50.0
        net[0].weight[4:] = net[0].weight[4]

    def step_of(net: Any, optimizer: Any, step: int) -> None:
        if step == 20:
            with torch.no_grad():
                net[0].bias[4:] = 1.0
        plain_step(net, optimizer, step)

    tracker = train(net, step_of)
    assert tracker is not None
    [finding, *_] = tracker.findings
    assert (str(finding.verdict), finding.units) == ("frozen", (4, 5, 6, 7))
    assert finding.stop is not None
    assert finding.stop.kind is StopKind.CLOSED
    other = SymmetryTracker(net, sgd(net.parameters()))
    other.load_state_dict(tracker.state_dict())
    assert other.findings[0].stop == finding.stop
    other.abandon()


def test_saved_tensors_of_a_segment_without_modules_are_left_alone() -> None:
    class Net(Shut):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.a(inputs)
            chosen = torch.arange(16).expand(len(inputs), 16)
            hidden = checkpoint(lambda x: torch.gather(x.sin(), 1, chosen + 0).tanh(), hidden, use_reentrant=False)
            outputs: Tensor = self.c(functional.relu(self.b(hidden)))
            return outputs

    net = Net()
    start = copy.deepcopy(net)
    tracker = train(net, plain_step)
    assert tracker is not None
    assert roots(tracker.findings)["b"] == FOUND["b"]
    train(start, plain_step, is_watched=False)
    assert_same(net.state_dict(), start.state_dict())


@pytest.mark.parametrize("every_n_steps", [1, 3, 10])
def test_a_shut_generator_is_found_beside_a_discriminator_that_steps_more_often(every_n_steps: int) -> None:
    torch.manual_seed(0)
    players: Any = nn.ModuleDict(
        {
            "g": nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12)),
            "d": nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2)),
        }
    )
    nn.init.constant_(players["g"][0].bias, -50.0)
    optimizers = [sgd(players["g"].parameters()), sgd(players["d"].parameters())]
    tracker = SymmetryTracker(players, optimizers, **{**OPTIONS, "every_n_steps": every_n_steps}, on_symmetry="ignore")
    for step in range(6 * 80):
        inputs, labels = inputs_of(step)
        is_generator = step % 6 == 5
        optimizer = optimizers[0 if is_generator else 1]
        optimizer.zero_grad()
        fake = players["g"](inputs)
        functional.cross_entropy(players["d"](fake if is_generator else inputs + fake.detach()), labels).backward()
        optimizer.step()
    tracker.abandon()
    assert roots(tracker.findings) == {"g.0": ("closed", "g.1", "")}


def test_a_pass_that_another_thread_starts_proves_nothing() -> None:
    net = Shut()
    loss_of(net, 0).backward()
    trace = GradientTrace(net, suspects_of(net))
    thread = threading.Thread(target=loss_of(net, 0).backward)
    thread.start()
    thread.join()
    assert {every[0].stopped.stop.kind for every in trace.finish().values()} <= {StopKind.UNKNOWN}


def test_idle_units_are_idle_after_a_resume_too() -> None:
    torch.manual_seed(0)
    net = nn.Linear(12, 8)
    half: Any = nn.ModuleDict({"body": net, "head": nn.Linear(4, 2)})

    def step_of(net: Any, optimizer: Any, step: int) -> None:
        inputs, labels = inputs_of(step)
        optimizer.zero_grad()
        functional.cross_entropy(net["head"](net["body"](inputs)[:, :4].tanh()), labels).backward()
        optimizer.step()

    tracker = train(half, step_of, steps=61)
    assert tracker is not None
    assert tracker.findings == []
    optimizer = sgd(half.parameters())
    resumed = SymmetryTracker(half, optimizer, on_symmetry="ignore", **OPTIONS)
    resumed.load_state_dict(tracker.state_dict())
    for step in range(61, 91):
        step_of(half, optimizer, step)
    resumed.abandon()
    assert resumed.findings == []
    assert resumed.report is not None
    assert [group.verdict for group in resumed.report.layers["body"].groups] == [Verdict.IDLE]


def test_a_trace_whose_optimizer_steps_no_more_is_given_up() -> None:
    net = TwoPlayers()
    optimizers = [sgd(net.generator.parameters()), sgd(net.discriminator.parameters())]
    tracker = SymmetryTracker(net, optimizers, on_symmetry="ignore", **OPTIONS)
    for step in range(90):  # the closed discriminator stops stepping just before it would be dead
        inputs, labels = inputs_of(step)
        optimizers[0].zero_grad()
        net.generator(inputs).square().mean().backward()
        optimizers[0].step()
        if step < 50:
            optimizers[1].zero_grad()
            functional.cross_entropy(net.discriminator(inputs), labels).backward()
            optimizers[1].step()
    assert not any(module._forward_hooks for module in net.modules())
    tracker.abandon()


def test_functions_of_the_users_own_may_be_called_as_those_of_pytorch() -> None:
    class Softmax(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] * 0

    class Net(Shut):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = Softmax.apply(self.a(inputs))  # type: ignore[no-untyped-call] # not annotated
            outputs: Tensor = self.c(torch.tanh(self.b(torch.relu(hidden))))
            return outputs

    net = Net()
    nn.init.zeros_(net.b.bias)
    tracker = train(net, plain_step)
    assert tracker is not None
    assert roots(tracker.findings) == {"a": ("unknown", "softmax after a", "")}
