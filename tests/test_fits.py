"""Several fits of one or several Trainers with one monitor: the monitor separates the trainings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn

from lightning_symmetry import SymmetryMonitor, SymmetryWarning
from tests.fresh import outputs_of
from tests.training import Classifier, batches, fill, fit, make_trainer, mlp, sgd


def sick() -> Classifier:
    return Classifier(fill(mlp(), 0.5))


def more(trainer: Trainer, steps: int = 10) -> None:
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + steps


def heard(trainer: Trainer, model: LightningModule, **options: Any) -> list[str]:
    """Return the warnings of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, batches(), **options)
    return [str(warning.message) for warning in caught if issubclass(warning.category, SymmetryWarning)]


def dated(monitor: SymmetryMonitor) -> list[Any]:
    return [(f.layer, f.first_step, f.broken_step, f.origin, f.cause) for f in monitor.findings]


def test_the_same_model_again_is_told_nothing_twice() -> None:
    monitor, model = SymmetryMonitor(every_n_steps=5), sick()
    trainer = make_trainer([monitor])
    assert len(heard(trainer, model)) == 2
    before = dated(monitor)
    more(trainer)
    assert heard(trainer, model) == []
    assert dated(monitor) == before
    assert [finding.last_step for finding in monitor.findings] == [15, 15]


@pytest.mark.parametrize("first_is_sick", [False, True])
@pytest.mark.parametrize("second_is_sick", [False, True])
def test_another_model_has_no_past(first_is_sick: bool, second_is_sick: bool) -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    trainer = make_trainer([monitor])
    heard(trainer, sick() if first_is_sick else Classifier(mlp()))
    more(trainer)
    said = heard(trainer, sick() if second_is_sick else Classifier(mlp()))
    assert len(said) == 2 * second_is_sick
    assert all("constant initialisation" in text for text in said)
    assert [(finding.first_step, finding.broken_step) for finding in monitor.findings] == [(10, None)] * len(said)


def test_another_network_in_the_same_module_has_no_past() -> None:
    monitor, model = SymmetryMonitor(every_n_steps=1), sick()
    trainer = make_trainer([monitor])
    heard(trainer, model)
    more(trainer)
    model.net = mlp(seed=1)
    assert heard(trainer, model) == []
    assert [(finding.first_step, finding.broken_step) for finding in monitor.findings] == [(0, 10), (0, 10)]


class FailsOnce(Classifier):
    """Raises before its fifth step, once."""

    has_failed = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 5 and not self.has_failed:
            self.has_failed = True
            raise RuntimeError("a bad batch")
        return super().training_step(batch, batch_idx)


def test_a_training_that_goes_on_after_an_exception_keeps_its_past() -> None:
    monitor, model = SymmetryMonitor(every_n_steps=2), FailsOnce(fill(mlp(), 0.5))
    trainer = make_trainer([monitor])
    with pytest.raises(RuntimeError, match="a bad batch"), pytest.warns(SymmetryWarning):
        trainer.fit(model, batches())
    before = dated(monitor)
    assert len(before) == 2
    assert heard(trainer, model) == []
    assert dated(monitor) == before


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_checkpoint_that_is_validated_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self.training_step(batch, batch_idx))

    sick_one = Validated(fill(mlp(), 0.5))
    with pytest.warns(SymmetryWarning):
        fit(sick_one, SymmetryMonitor(), max_steps=4).save_checkpoint(tmp_path / "sick.ckpt")
    monitor, model = SymmetryMonitor(), Validated(mlp())
    trainer = make_trainer([monitor], num_sanity_val_steps=0, limit_val_batches=0)
    assert heard(trainer, model, val_dataloaders=batches()) == []
    trainer.limit_val_batches = 1
    trainer.validate(Validated(mlp()), batches(), ckpt_path=tmp_path / "sick.ckpt", verbose=False)
    assert monitor.findings == []
    assert monitor.state_dict()["num_steps"] == {0: 10}


def test_steps_that_are_taken_back_are_not_counted() -> None:
    class Again(LearningRateFinder):
        def on_fit_start(self, *args: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch in (0, 2):
                self.lr_find(trainer, pl_module)

    class WithRate(Classifier):
        lr = 1e-2

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    monitor = SymmetryMonitor(every_n_steps=1)
    trainer = make_trainer([Again(num_training_steps=20), monitor], max_epochs=3, max_steps=-1)
    trainer.fit(WithRate(mlp()), batches())
    assert trainer.global_step == 24
    assert monitor.report is not None
    assert monitor.report.step == 23
    assert monitor.state_dict()["num_steps"] == {0: 24}


class Lookahead(torch.optim.Optimizer):
    """Around another optimizer, without calling its own base class."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, base.defaults

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


class Optimizable:
    """Has only what a Trainer uses."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, base.defaults
        self.state_dict, self.load_state_dict = base.state_dict, base.load_state_dict

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


@pytest.mark.parametrize("kind", [Lookahead, Optimizable])
def test_optimizers_without_hooks_are_watched(kind: Any) -> None:
    monitor, model = SymmetryMonitor(every_n_steps=5), Classifier(fill(mlp(), 0.5), lambda p: kind(sgd(p)))
    assert len(heard(make_trainer([monitor]), model)) == 2
    assert monitor.report is not None
    assert monitor.report.step == 5


def test_the_globals_of_lightning_are_those_of_the_package_imported_first() -> None:
    code = """
import importlib, lightning_utilities.core.rank_zero as rank_zero
importlib.import_module("FIRST")
before = rank_zero.log.name, rank_zero.rank_zero_deprecation_category
from lightning_symmetry import SymmetryMonitor
assert (rank_zero.log.name, rank_zero.rank_zero_deprecation_category) == before, rank_zero.log
import lightning.pytorch, pytorch_lightning
assert isinstance(SymmetryMonitor(), lightning.pytorch.Callback)
assert isinstance(SymmetryMonitor(), pytorch_lightning.Callback)
print(*before)
"""
    packages = ["lightning.pytorch", "pytorch_lightning", "lightning_symmetry.callback"]
    found = outputs_of(*(code.replace("FIRST", name) for name in packages), first="import torch, torchmetrics")
    for first, said in zip(packages, found, strict=True):
        package = "pytorch_lightning" if first == "pytorch_lightning" else "lightning"
        assert said.startswith(f"{package}."), said


@pytest.mark.warnings_go_to_the_log
def test_warnings_that_are_errors_end_no_training(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymmetryWarning)
        trainer = fit(sick(), SymmetryMonitor())
    assert trainer.global_step == 10
    assert sum("all 16 units are identical" in message for message in caplog.messages) == 1


def test_an_optimizer_that_never_steps_is_named_at_the_end() -> None:
    class Half(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            several: Any = self.optimizers()
            first = several[0]
            first.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            first.step()

        def configure_optimizers(self) -> Any:
            first, *rest = self.net.children()
            return [sgd(first.parameters()), sgd(nn.Sequential(*rest).parameters())]

    with pytest.warns(UserWarning, match=r"SymmetryMonitor saw no step of optimizer 1 \(SGD\)"):
        fit(Half(mlp()), SymmetryMonitor())


def test_a_monitor_whose_hooks_fail_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def burn(*args: Any) -> None:
        raise RuntimeError("on fire")

    for name in ("_begin", "_before_step", "_unhook", "_outputs_for"):
        with monkeypatch.context() as patch:
            patch.setattr(SymmetryMonitor, name, burn)
            with pytest.warns(UserWarning, match="switches off its watch, which failed with RuntimeError: on fire"):
                assert fit(Classifier(mlp()), SymmetryMonitor()).global_step == 10
