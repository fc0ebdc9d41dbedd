"""The history of a layer ends with its parameters, and no state keeps the training alive."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_symmetry import SymmetryMonitor, SymmetryTracker, SymmetryWarning, diagnose
from lightning_symmetry.matrices import projections
from lightning_symmetry.verdicts import judging, layer_state
from lightning_symmetry.verdicts.diagnoses import Cause, Origin
from tests.training import Classifier, fill, fit, mlp

QUIET: dict[str, Any] = {"heatmaps": "none", "scalars": "none", "every_n_steps": 2}


def network(hidden: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def watch(
    net: nn.Module, change: Callable[[int], None] = lambda step: None, steps: int = 30, **options: Any
) -> tuple[SymmetryTracker, list[str]]:
    """Train the parameters that the network has at each step. Return the tracker and its warnings."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SymmetryTracker(net, optimizer, **{**QUIET, **options}) as tracker:
            for step in range(steps):
                change(step)
                optimizer.param_groups[0]["params"] = list(net.parameters())
                optimizer.zero_grad()
                inputs = torch.randn(16, 4, generator=generator)
                nn.functional.cross_entropy(net(inputs), torch.arange(16) % 3).backward()
                optimizer.step()
    return tracker, [str(warning.message) for warning in caught]


def constant(inputs: int, units: int) -> nn.Linear:
    layer = fill(nn.Linear(inputs, units), 0.2)
    with torch.no_grad():
        layer.bias.add_(0.1)
    return layer


# ------------------------------------------------------------ which layer a past belongs to


@pytest.mark.parametrize("how", ["module", "parameters", "data"])
def test_a_layer_with_other_parameters_has_no_past(how: str) -> None:
    net = network()

    def change(step: int) -> None:
        if step != 20:
            return
        first, last = constant(4, 8 if how != "data" else 6), constant(8 if how != "data" else 6, 3)
        if how == "module":
            net[0], net[2] = first, last
        else:
            for old, new in ((net[0], first), (net[2], last)):
                for name, parameter in new.named_parameters():
                    if how == "data":  # of another size
                        getattr(old, name).grad = None
                        getattr(old, name).data = parameter.data
                    else:
                        setattr(old, name, parameter)

    tracker, said = watch(net, change, steps=40)
    [found] = tracker.findings
    assert (found.layer, found.first_step, found.origin) == ("0", 20, Origin.FIRST_LOOK)
    assert found.cause is Cause.CONSTANT
    assert not any("collapsed" in text for text in said)
    assert not any("switches off" in text or "leaves out" in text for text in said)


@pytest.mark.parametrize(("width", "num_idle"), [(12, 1), (6, 3), (3, 8)])
def test_idle_units_of_a_layer_that_was_resized_are_forgotten(width: int, num_idle: int) -> None:
    net = network()
    net[1] = nn.ReLU()
    nn.init.constant_(net[0].bias.data[:num_idle], -1e3)

    def change(step: int) -> None:
        if step == 10:
            net[0], net[2] = constant(4, width), constant(width, 3)

    tracker, said = watch(net, change)
    assert tracker.report is not None
    assert tracker.report.step == 28
    assert "0" in {finding.layer for finding in tracker.findings if finding.verdict == "locked"}
    assert not any("switches off" in text for text in said)


def test_what_was_found_in_a_layer_that_is_gone_has_ended() -> None:
    net = fill(network(), 0.2)

    def change(step: int) -> None:
        if step == 10:
            net[0] = nn.Linear(4, 8)
        if step == 20:
            net[1] = nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    tracker, _ = watch(net, change)
    of_first = [finding for finding in tracker.findings if finding.layer == "0"]
    assert [(finding.first_step, finding.broken_step) for finding in of_first] == [(0, 10)]
    assert tracker.report is not None
    assert not tracker.report.layers["0"].groups
    # The same holds in a checkpoint, and in a training resumed from it.
    other = SymmetryTracker(net, torch.optim.SGD(net.parameters(), lr=0.1))
    other.load_state_dict(pickle.loads(pickle.dumps(tracker.state_dict())))
    assert other.findings == tracker.findings
    other.close()


def test_the_same_parameters_in_another_module_keep_their_past() -> None:
    net = fill(network(), 0.2)

    def change(step: int) -> None:
        if step == 10:  # as when a layer is wrapped
            old, net[0] = net[0], nn.Linear(4, 8)
            net[0].weight, net[0].bias = old.weight, old.bias

    tracker, said = watch(net, change)
    assert [(f.layer, f.first_step, f.broken_step) for f in tracker.findings] == [("0", 0, None)]
    assert sum("all 8 units" in text for text in said) == 1


def test_a_parametrized_layer_keeps_its_past_from_check_to_check() -> None:
    net = fill(network(), 0.2)
    weight_norm(net[0])
    tracker, said = watch(net)
    assert [(f.layer, f.first_step, f.last_step) for f in tracker.findings] == [("0", 0, 28)]
    assert sum("all 8 units" in text for text in said) == 1


def test_a_resume_with_another_width_starts_anew() -> None:
    tracker, _ = watch(fill(network(8), 0.2))
    wider = fill(network(12), 0.2)
    optimizer = torch.optim.SGD(wider.parameters(), lr=0.05)
    with SymmetryTracker(wider, optimizer, **QUIET, on_symmetry="ignore") as other:
        other.load_state_dict(tracker.state_dict())
        for _ in range(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wider(torch.ones(2, 4)), torch.arange(2)).backward()
            optimizer.step()
    [ended, found] = [finding for finding in other.findings if finding.layer == "0"]
    assert (len(ended.units), ended.broken_step) == (8, 30)
    assert (len(found.units), found.origin, found.broken_step) == (12, Origin.FIRST_LOOK, None)


class Branches(nn.Module):
    """Two branches whose outputs are added, the second a copy of the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches: Any = nn.ModuleList([network(), network()])

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.branches[0](inputs) + self.branches[1](inputs)


def test_copies_that_were_replaced_are_let_go() -> None:
    net = Branches()

    def change(step: int) -> None:
        if step == 9:
            torch.manual_seed(3)
            for i in range(2):
                net.branches[i] = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    tracker, _ = watch(net, change, on_symmetry="ignore")
    assert tracker.report is not None
    assert tracker.report.copies == diagnose(net).copies == []
    assert [(finding.modules, finding.broken_step) for finding in tracker.findings] == [
        (("branches.0", "branches.1"), 10)
    ]


def test_new_copies_are_found() -> None:
    net = Branches()
    net.branches[1][0].reset_parameters()

    def change(step: int) -> None:
        if step == 9:
            net.branches = Branches().branches

    tracker, _ = watch(net, change, on_symmetry="ignore")
    assert tracker.report is not None
    assert [group.modules for group in tracker.report.copies] == [("branches.0", "branches.1")]


# ------------------------------------------------------------ a layer that fails


def test_a_layer_that_cannot_be_judged_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = judging.to_diagnosis

    def burn(seen: Any, *args: Any) -> Any:
        if seen.layer.name == "2":
            raise RuntimeError("on fire")
        return original(seen, *args)

    monkeypatch.setattr(layer_state, "to_diagnosis", burn)
    tracker, said = watch(fill(network(), 0.2))
    assert [text for text in said if "on fire" in text] == [
        "SymmetryTracker leaves out 2: the check failed with RuntimeError: on fire. Training goes on."
    ]
    assert tracker.report is not None
    assert tracker.report.step == 28
    assert tracker.report.skipped == {"2": "the check failed with RuntimeError: on fire"}
    assert [finding.layer for finding in tracker.findings] == ["0"]


# ------------------------------------------------------------ states from files


def damage(state: Any, key: str, value: Any) -> Any:
    """Replace all values of a key, however deep."""
    if isinstance(state, dict):
        return {name: value if name == key else damage(each, key, value) for name, each in state.items()}
    return [damage(each, key, value) for each in state] if isinstance(state, list) else state


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_steps", value) for value in ({"0": "24"}, {"a": 1}, None, [3])),
        *((key, "24") for key in ("first_step", "last_step", "broken_step", "streak", "num_checks", "size", "since")),
        *(("units", value) for value in ("all", ["0", "1"], 3)),
        *((key, "sick") for key in ("verdict", "cause", "origin", "gradients", "warned")),
        *((key, 3) for key in ("layers", "groups", "deaths", "orientations", "ended", "streaks")),
    ],
)
def test_a_damaged_state_is_left_with_one_warning_and_a_good_one_is_taken_after_it(key: str, value: Any) -> None:
    good = state_with_a_bit_of_everything()
    assert good["ended"]
    damaged = damage(good, key, value)
    assert damaged != good
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with SymmetryTracker(net, optimizer, **QUIET) as tracker:
        with pytest.warns(UserWarning, match="cannot read its state in the checkpoint") as caught:
            tracker.load_state_dict(damaged)
        assert len(caught) == 1
        assert tracker.findings == []
        net(torch.ones(2, 12)).square().mean().backward()
        tracker.load_state_dict(good)
        assert tracker.state_dict() == good
        optimizer.step()
        assert tracker.state_dict()["num_steps"] == {0: 31}


@functools.cache
def state_with_a_bit_of_everything() -> dict[str, Any]:
    net = fill(network(), 0.2)
    net[1] = nn.ReLU()

    def change(step: int) -> None:
        if step == 7:
            net[0] = nn.Linear(4, 8)
            with torch.no_grad():
                net[0].bias[:2] = -100.0
        if step == 9:
            with torch.no_grad():
                for parameter in (net[0].weight, net[0].bias, net[2].weight.T):
                    parameter[4:] = parameter[4]

    return watch(net, change)[0].state_dict()


# ------------------------------------------------------------ what stays


def recurrent() -> nn.Module:
    class Last(nn.GRU):
        def forward(self, inputs: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(inputs)[0]

    return nn.Sequential(Last(12, 16), nn.Linear(16, 4))


def with_a_lock() -> nn.Module:
    net = mlp()
    net.lock = threading.Lock()  # type: ignore[assignment]
    net.register_forward_hook(lambda module, inputs, outputs: None)
    return net


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 4))


@pytest.mark.parametrize("build", [recurrent, with_a_lock, large])
def test_a_monitor_is_some_kilobytes_whatever_the_model_holds(build: Callable[[], nn.Module]) -> None:
    monitor = SymmetryMonitor()
    fit(Classifier(build()), monitor, max_steps=4)
    data = pickle.dumps(monitor)
    assert len(data) < 20_000
    for other in (pickle.loads(data), copy.deepcopy(monitor)):
        assert other.report == monitor.report
        assert other.state_dict() == monitor.state_dict()
        with pytest.warns(SymmetryWarning):
            fit(Classifier(fill(mlp(), 0.5)), other, max_steps=4)


@pytest.mark.parametrize("is_lightning", [True, False])
def test_nothing_of_the_model_stays(is_lightning: bool) -> None:
    net = mlp()
    if is_lightning:
        watcher: Any = SymmetryMonitor()
        fit(Classifier(net), watcher, max_steps=4)
        for name in ("log", "log_dict"):  # which the Trainer sets on every callback
            watcher.__dict__.pop(name, None)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with SymmetryTracker(net, optimizer) as watcher:
            net(torch.rand(4, 12)).square().mean().backward()
            optimizer.step()
        del optimizer
    weight = weakref.ref(net[0].weight)
    del net
    gc.collect()
    assert watcher.report is not None
    assert weight() is None


def test_optimizers_made_anew_are_not_kept() -> None:
    net = mlp()
    made: list[weakref.ref[Any]] = []

    class Anew(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(self.parameters())
            made.append(weakref.ref(optimizer))
            return optimizer

        def on_train_epoch_start(self) -> None:
            if self.current_epoch:
                self.trainer.strategy.setup_optimizers(self.trainer)

        def on_train_epoch_end(self) -> None:
            gc.collect()
            alive.append(sum(reference() is not None for reference in made))

    alive: list[int] = []
    monitor = SymmetryMonitor(every_n_steps=8)
    fit(Anew(net), monitor, max_epochs=5, max_steps=-1)
    assert len(made) == 5
    assert max(alive) <= 2
    # Each continues where the previous one ended: one schedule for one index.
    assert monitor.state_dict()["num_steps"] == {0: 40}
    assert monitor.report is not None
    assert monitor.report.step == 32


@pytest.mark.parametrize("num_pairs", [1, 4])
def test_groups_that_have_long_parted_are_let_go(num_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_state, "_MAX_GONE", 20)
    net: Any = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    generator = torch.Generator().manual_seed(0)
    sizes: dict[int, int] = {}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with SymmetryTracker(net, optimizer, **{**QUIET, "every_n_steps": 1, "on_symmetry": "ignore"}) as tracker:
        for step in range(204):
            if step % 4 == 0:
                with torch.no_grad():
                    net[0].weight.copy_(torch.randn(32, 4, generator=generator))
                    twins = torch.randperm(32, generator=generator)[: 2 * num_pairs].view(2, -1)
                    for parameter in (net[0].weight, net[0].bias, net[2].weight.T):
                        parameter[twins[0]] = parameter[twins[1]]
            optimizer.zero_grad()
            net(torch.randn(8, 4, generator=generator)).square().mean().backward()
            optimizer.step()
            if step in (103, 203):
                sizes[step] = len(pickle.dumps(tracker.state_dict()))
                now = [finding for finding in tracker.findings if finding.broken_step is None]
                assert len(now) == num_pairs  # groups that hold are never dropped
    assert sizes[203] < 1.3 * sizes[103]
    assert 10 < len(tracker.findings) < 40


def test_all_groups_that_part_at_one_step_are_remembered() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 512), nn.Tanh(), nn.Linear(512, 3))
    with torch.no_grad():
        for parameter in (net[0].weight, net[0].bias, net[2].weight.T):
            parameter[256:] = parameter[:256]

    def change(step: int) -> None:
        if step == 4:
            net[0].reset_parameters()

    tracker, _ = watch(net, change, steps=8, every_n_steps=1)
    assert sum(finding.broken_step == 4 for finding in tracker.findings) == 256


def test_random_vectors_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "_kept", {})
    arguments = (torch.float64, torch.device("cpu"))
    first = projections.random_vectors(0, 2, 1000, *arguments)
    assert projections.random_vectors(0, 2, 1000, *arguments) is first
    width = projections.MAX_KEPT_BYTES // 8 // 4
    for offset in range(1, 8):
        projections.random_vectors(offset, 1, width, *arguments)
        assert sum(vectors.nbytes for vectors in projections._kept.values()) <= projections.MAX_KEPT_BYTES
    again = projections.random_vectors(0, 2, 1000, *arguments)
    assert again is not first
    assert torch.equal(again, first)
    projections.random_vectors(9, 5, width, *arguments)  # more than that
    assert len(projections._kept) == 1


def test_parameters_can_be_swapped_while_they_are_watched() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        for _ in range(4):
            net(torch.rand(4, 12)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for parameter in net.parameters():  # as `nn.Module.to` does with tensors of some classes
                torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().clone()))
    assert tracker.report is not None
    assert tracker.report.step == 3
