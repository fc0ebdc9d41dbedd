from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, Verdict, diagnose
from lightning_symmetry.callback import SymmetryError, SymmetryWarning
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.matrices.grouping import find_groups_within_budget
from lightning_symmetry.matrices.question import Question
from tests.training import MLP, Classifier, Regression, assert_same, batches, fill, fit, make_trainer, mlp, sgd


class RecordSteps(Callback):
    """Return the steps of the checks."""

    def __init__(self, monitor: SymmetryMonitor) -> None:
        self.monitor = monitor
        self.steps: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        report = self.monitor.report
        if report is not None and report.step not in self.steps:
            self.steps.append(report.step)


def warnings_of(model: LightningModule, monitor: SymmetryMonitor, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, monitor, **options)
    return [str(warning.message) for warning in caught if issubclass(warning.category, SymmetryWarning)]


# ---------------------------------------------------------------- messages


def test_constant_initialisation_is_said_before_the_first_update() -> None:
    model = Regression(fill(mlp(), 0.5))
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(SymmetryWarning), pytest.raises(SymmetryError, match="all 16 units are identical") as error:
        fit(model, SymmetryMonitor(on_symmetry="raise"))
    assert_same(before, model.state_dict())
    assert error.value.report.step == 0
    assert {name: layer.effective_width for name, layer in error.value.report.layers.items()} == {
        "net.0": 1,
        "net.2": 1,
        "net.4": 1,
    }
    assert [finding.layer for finding in error.value.findings] == ["net.0", "net.2", "net.4"]


def test_rounding_noise_is_no_evidence() -> None:
    # Softmax over equal logits: before the first update the hidden gradients are nothing but rounding errors.
    monitor = SymmetryMonitor()
    assert warnings_of(Classifier(fill(mlp(), 0.5)), monitor, max_steps=1) == []
    assert monitor.report is not None
    assert [group.verdict for group in monitor.report.layers["net.0"].groups] == [Verdict.DUPLICATE]
    assert len(warnings_of(Classifier(fill(mlp(), 0.5)), monitor, max_steps=2)) == 2


def test_message_names_layer_units_verdict_cause_and_way_out() -> None:
    messages = warnings_of(Classifier(fill(mlp(), 0.5)), SymmetryMonitor())
    assert messages == [
        f"{layer}: all {units} units are identical in weights and gradients (locked since step 0): "
        "they train as 1 unit. Every weight is 0.5: constant initialisation. "
        f"Initialise at random, e.g. `torch.nn.init.kaiming_uniform_(model.net[{place}].weight)`. [SYM101]"
        for layer, place, units in (("net.0", 0, 16), ("net.2", 2, 8))
    ]


@pytest.mark.parametrize(
    ("value", "cause", "text", "place"),
    [
        (0.0, "zero", "Every weight is 0.", "net.4: its weights for these units are zero"),
        (-0.5, "dead", "Every weight is -0.5.", "net.1, which is closed: its input is at most -"),
    ],
)
def test_frozen_layers_and_their_cause(value: float, cause: str, text: str, place: str) -> None:
    monitor = SymmetryMonitor()
    [message] = warnings_of(Classifier(fill(mlp(), value)), monitor)
    assert text in message
    assert "frozen since step 0" in message
    assert f"The gradient stops at {place}" in message
    assert " gets no gradient for this reason." in message
    assert {(finding.verdict, finding.cause) for finding in monitor.findings} == {(Verdict.FROZEN, cause)}


def duplicated(seed: int = 0) -> MLP:
    """Units 0, 3, 5 of the first hidden layer are copies, outgoing weights included."""
    net = mlp(seed)
    first, second = net.linear(0), net.linear(2)
    with torch.no_grad():
        first.bias[0] += 1.0  # never dead
        for unit in (3, 5):
            first.weight[unit] = first.weight[0]
            first.bias[unit] = first.bias[0]
            second.weight[:, unit] = second.weight[:, 0]
    return net


def test_copied_units_are_named() -> None:
    monitor = SymmetryMonitor()
    messages = warnings_of(Classifier(duplicated()), monitor, max_steps=40)
    assert len(messages) == 1
    assert "net.0: 3 of 16 units, {0, 3, 5}, are identical" in messages[0]
    assert "copies of one another" in messages[0]
    (finding,) = monitor.findings
    assert (finding.layer, finding.units, finding.verdict, finding.first_step) == ("net.0", (0, 3, 5), "locked", 0)
    assert finding.broken_step is None
    assert monitor.report is not None
    assert monitor.report.layers["net.0"].effective_width == 14


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_healthy_model_is_silent(precision: str) -> None:
    class Cast(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(Cast(mlp()), monitor, precision=precision, max_steps=30) == []
    assert monitor.findings == []


@pytest.mark.parametrize("zeroed", ["head", "second"])
def test_zero_layer_that_learns_is_silent(zeroed: str) -> None:
    net = mlp()
    fill(net[4] if zeroed == "head" else net[2], 0.0)
    monitor = SymmetryMonitor(every_n_steps=1)
    messages = warnings_of(Classifier(net), monitor, max_steps=30)
    if zeroed == "head":
        assert messages == []
    else:  # zero hidden units share outgoing weights only by chance: they diverge as soon as they move
        assert not any("net.4" in message for message in messages)


@pytest.mark.parametrize("learning_rate", [0.05, 0.0])
def test_copies_are_mentioned_once_and_not_warned_of(learning_rate: float, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    net = nn.Sequential(nn.Unflatten(1, (1, 12)), encoder, nn.Flatten(), nn.Linear(12, 4))
    monitor = SymmetryMonitor(every_n_steps=1)
    with caplog.at_level("INFO"):
        model = Classifier(net, lambda parameters: torch.optim.SGD(parameters, lr=learning_rate))
        assert warnings_of(model, monitor, max_steps=8) == []
    told = [message for message in caplog.messages if "exact copies" in message]
    assert len(told) == 1
    assert told[0].startswith("net.1.layers.0, net.1.layers.1 start as exact copies of one another.")
    assert monitor.report is not None
    if learning_rate:
        assert monitor.report.copies == []  # they have diverged
        assert monitor._engine._examiner._model.copies is None
    else:
        assert [group.verdict for group in monitor.report.copies] == [Verdict.BREAKING]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("num_classes", [100, 1000])
def test_classes_not_drawn_yet_are_silent(num_classes: int, precision: str) -> None:
    # Under a zero head, the rows of classes that no batch has held so far are equal, and so are their gradients.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), fill(nn.Linear(32, num_classes), 0.0))
    labels = torch.randint(0, num_classes, (4096,))
    data = DataLoader(TensorDataset(torch.randn(4096, 12), labels), batch_size=32)
    monitor = SymmetryMonitor(every_n_steps=10)
    assert warnings_of(Classifier(net), monitor, data=data, max_steps=100, precision=precision) == []


def test_linear_model_from_zero_is_silent() -> None:
    net = fill(nn.Sequential(nn.Linear(12, 4)), 0.0)
    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(Classifier(net), monitor, max_steps=30) == []


def test_incoming_copies_alone_break_and_are_silent() -> None:
    net = mlp()
    with torch.no_grad():
        net.linear(0).bias[2] += 1.0  # never dead
        net.linear(0).weight[5] = net.linear(0).weight[2]
        net.linear(0).bias[5] = net.linear(0).bias[2]
    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(Classifier(net), monitor, max_steps=30) == []
    assert monitor.report is not None
    assert monitor.report.layers["net.0"].groups == []


def test_frozen_by_requires_grad_is_a_duplicate_and_silent() -> None:
    net = fill(mlp(), 0.5)
    net.linear(0).requires_grad_(False)
    net.linear(2).requires_grad_(False)
    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(Classifier(net), monitor) == []
    assert monitor.report is not None
    assert [group.verdict for group in monitor.report.layers["net.0"].groups] == [Verdict.DUPLICATE]


# ------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("options", "trainer_options", "expected"),
    [
        ({"every_n_steps": 10}, {}, [0, 1, 3, 7, 10, 20, 30]),
        ({}, {"log_every_n_steps": 25}, [0, 1, 3, 7, 15, 25]),
        ({"every_n_steps": 1}, {"max_steps": 4}, [0, 1, 2, 3]),
        ({}, {"barebones": True}, [0, 1, 3, 7, 15, 31]),
        ({"every_n_steps": 10}, {"accumulate_grad_batches": 2}, [0, 1, 3, 7, 10, 20, 30]),
    ],
)
def test_schedule(options: dict[str, Any], trainer_options: dict[str, Any], expected: list[int]) -> None:
    monitor = SymmetryMonitor(**options)
    record = RecordSteps(monitor)
    if trainer_options.get("barebones"):
        trainer = Trainer(accelerator="cpu", max_steps=35, barebones=True, callbacks=[monitor, record])
    else:
        trainer = make_trainer([monitor, record], **{"max_steps": 35, **trainer_options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(mlp()), batches())
    assert record.steps == expected


class TwoOptimizers(LightningModule):
    """Two networks, stepped in turn as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.left = fill(nn.Linear(12, 5), 0.5)
        self.right = nn.Linear(12, 5)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.left, self.right), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [sgd(self.left.parameters()), sgd(self.right.parameters())]


def test_steps_of_each_optimizer_are_counted_for_themselves() -> None:
    monitor = SymmetryMonitor(every_n_steps=10)
    messages = warnings_of(TwoOptimizers(), monitor, max_steps=44)
    assert len(messages) == 1
    assert messages[0].startswith("left: all 5 units are identical")
    assert monitor.report is not None
    assert set(monitor.report.layers) == {"left", "right"}
    # 22 steps of each: the check of the 20th, in global steps.
    assert [(finding.first_step, finding.last_step) for finding in monitor.findings] == [(0, 40)]


class GAN(LightningModule):
    """Generator and discriminator, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12))
        self.discriminator = nn.Sequential(nn.Linear(12, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        to_generator, to_discriminator = self.optimizers()  # type: ignore[attr-defined]
        fake = self.generator(torch.randn(len(batch[0]), 6).to(batch[0]))
        self.toggle_optimizer(to_generator)
        to_generator.zero_grad()
        self.manual_backward(nn.functional.softplus(-self.discriminator(fake)).mean())
        to_generator.step()
        self.untoggle_optimizer(to_generator)
        self.toggle_optimizer(to_discriminator)
        to_discriminator.zero_grad()
        real, false = self.discriminator(batch[0]), self.discriminator(fake.detach())
        self.manual_backward((nn.functional.softplus(-real) + nn.functional.softplus(false)).mean())
        to_discriminator.step()
        self.untoggle_optimizer(to_discriminator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.99)) for net in networks]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_healthy_gan_is_silent(precision: str) -> None:
    torch.manual_seed(0)
    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(GAN(), monitor, max_steps=60, precision=precision) == []
    assert monitor.report is not None
    assert len(monitor.report.layers) == 4


def test_lbfgs_closures_make_one_check_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    examine = Examiner.examine

    def count(self: Examiner, *args: Any, step: int, **kwargs: Any) -> Any:
        looks.append(step)
        return examine(self, *args, step=step, **kwargs)

    monkeypatch.setattr(Examiner, "examine", count)
    model = Classifier(mlp(), lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4))
    fit(model, SymmetryMonitor(every_n_steps=1), max_steps=5)
    assert looks == [0, 1, 2, 3, 4]


# ----------------------------------------------------------------- on_symmetry


def test_stop_ends_the_training_cleanly() -> None:
    monitor = SymmetryMonitor(on_symmetry="stop")
    with pytest.warns(SymmetryWarning):
        trainer = fit(Classifier(fill(mlp(), 0.5)), monitor, max_steps=100)
    assert trainer.state.finished
    assert trainer.global_step <= 3


def test_ignore_records_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = SymmetryMonitor(on_symmetry="ignore")
    assert warnings_of(Classifier(fill(mlp(), 0.5)), monitor) == []
    assert len(monitor.findings) == 2
    assert "Symmetry" not in capsys.readouterr().out


def test_summary_at_the_end_of_fit(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.warns(SymmetryWarning):
        fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor())
    out = capsys.readouterr().out
    assert "locked: all 16 units" in out
    assert "Symmetry at step 7: 6 of 28 units of 3 layers are working (22 redundant)." in out
    with caplog.at_level("INFO"):
        fit(Classifier(mlp()), SymmetryMonitor())
    # The line on a healthy model goes to Lightning's own log.
    assert "Symmetry at step 7: all 28 units of 3 layers are working." in caplog.messages
    assert capsys.readouterr().out == ""


def test_summary_without_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.warns(SymmetryWarning):
        fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor())
    assert "net.0     16        1     0  locked: all 16 units" in capsys.readouterr().out


def test_a_fit_that_does_not_start_says_nothing_of_an_earlier_model(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer([SymmetryMonitor()])
    with caplog.at_level("INFO"):
        trainer.fit(Classifier(mlp()), batches())
        assert any("all 28 units of 3 layers" in message for message in caplog.messages)
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Classifier(nn.Sequential(nn.Linear(12, 4))), batches())  # its last step was reached before
    assert not any("Symmetry" in message for message in caplog.messages)
    assert "Symmetry" not in capsys.readouterr().out


class Deep(nn.Sequential):
    """Layers of 12 units each, with ReLUs between them."""

    def __init__(self, num_layers: int) -> None:
        layers = [module for _ in range(num_layers) for module in (nn.Linear(12, 12), nn.ReLU())]
        super().__init__(*layers, nn.Linear(12, 4))


def test_many_alike_layers_share_one_warning_and_a_short_table(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    assert warnings_of(Classifier(fill(Deep(40), 0.0)), monitor) == [
        "net.78: all 12 units have equal weights and exactly zero gradients (frozen since step 0): they do not train "
        "at all. That was so in all of the 3 steps watched. The gradient stops at net.80: its weights for these units "
        "are zero. net.0 and 38 more layers get no gradient for this reason. Every weight is 0. Initialise net.80, or "
        "give it weights other than zero: `model.net[80].reset_parameters()`. Give these units weights that differ, "
        "e.g. `torch.nn.init.kaiming_uniform_(model.net[78].weight)`. The units of net.0, net.2, ..., net.76 are "
        "equal, too, and need weights that differ. [SYM303]"
    ]
    assert len(monitor.findings) == 40
    out = capsys.readouterr().out
    assert out.count("frozen: all 12 units") == 10
    assert "and 30 more layers with groups" in out


def test_layers_that_differ_in_their_constant_only_share_one_warning() -> None:
    net = Deep(60)
    for i, layer in enumerate(module for module in net if isinstance(module, nn.Linear)):
        fill(layer, 0.1 + 0.001 * i)
    [message] = warnings_of(
        Classifier(net), SymmetryMonitor(every_n_steps=1, heatmaps="none", scalars="none"), max_steps=2
    )
    assert message.startswith(
        "net.0, net.2, ..., net.118 (60 layers): all units of each layer are identical in weights and gradients "
        "(locked since step 0): they train as 60 units. The weights of each are one number, from 0.1 to 0.159: "
        "constant initialisation. "
    )


def test_a_layer_of_a_single_unit_is_not_said_to_be_all_of_them() -> None:
    first = nn.Linear(12, 1)
    nn.init.constant_(first.bias, -100.0)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(1, 4))
    monitor = SymmetryMonitor(every_n_steps=1, heatmaps="none", scalars="none")
    messages = warnings_of(Classifier(net), monitor, max_steps=60)
    assert messages[0].startswith("net.0: its only unit ")
    assert not any("all 1 " in text for text in [*messages, str(monitor.report)])


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_that_match_nothing_are_said_before_the_first_update(argument: str) -> None:
    options: dict[str, Any] = {argument: ["net.0", "fc*"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(mlp()), SymmetryMonitor(**options))
    said = [str(warning.message) for warning in caught if "pattern" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith(f"SymmetryMonitor: `{argument}` has the pattern 'fc*', which matches no layer.")
    assert "'net.2'" in said[0]


def test_the_last_line_says_how_much_was_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(12, 12))
            self.head = nn.Linear(12, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(inputs @ self.kernel)
            return outputs

    torch.manual_seed(0)
    with caplog.at_level("INFO"):
        fit(Classifier(Odd()), SymmetryMonitor(exclude=["*.kernel"]))
    # 48 of 192: parameters of two or more dimensions.
    last = "Symmetry at step 7: all 4 units of 1 layer are working; 25 % of the weights were looked at."
    assert last in caplog.messages


def test_its_options_do_not_keep_a_monitor_alive() -> None:
    monitor = SymmetryMonitor(5)
    options, watched = monitor.options, weakref.ref(monitor)
    del monitor
    assert (options.every_n_steps, watched()) == (5, None)


def test_hydra_does_not_take_a_monitor_for_a_configuration() -> None:
    """Convert a dataclass in a list, such as that of callbacks, as Hydra does."""
    assert not dataclasses.is_dataclass(SymmetryMonitor())


def test_the_warning_points_at_the_line_that_trains() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, model = make_trainer([SymmetryMonitor()]), Classifier(fill(mlp(), 0.5))
        trainer.fit(model, batches())
    places = {warning.filename for warning in caught if issubclass(warning.category, SymmetryWarning)}
    assert places == {__file__}


def test_options_are_attributes() -> None:
    monitor = SymmetryMonitor(5, exclude=["head"])
    assert (monitor.every_n_steps, monitor.patience, monitor.exclude) == (5, 3, ["head"])
    assert vars(monitor.options).items() <= vars(monitor).items()
    with pytest.raises(AttributeError, match="'SymmetryMonitor' object has no attribute 'patient'"):
        monitor.patient  # type: ignore[attr-defined] # noqa: B018


# -------------------------------------------------------------- state, resume


def test_resumed_run_knows_what_was_said(tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=5)
    with pytest.warns(SymmetryWarning):
        trainer = fit(Classifier(fill(mlp(), 0.5)), monitor, max_steps=10)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)

    resumed = SymmetryMonitor(every_n_steps=5)
    record = RecordSteps(resumed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymmetryWarning)
        make_trainer([resumed, record], max_steps=21).fit(Classifier(fill(mlp(), 0.5)), batches(), ckpt_path=path)
    assert record.steps == [10, 15, 20]
    assert [(f.layer, f.units, f.first_step, f.last_step) for f in resumed.findings] == [
        ("net.0", tuple(range(16)), 0, 20),
        ("net.2", tuple(range(8)), 0, 20),
    ]


def test_state_round_trips_through_a_weights_only_file(tmp_path: Path) -> None:
    monitor = SymmetryMonitor(every_n_steps=5)
    with pytest.warns(SymmetryWarning):
        fit(Classifier(duplicated()), monitor, max_steps=10)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = SymmetryMonitor(every_n_steps=5)
    other.load_state_dict(state)
    assert other.findings == monitor.findings
    assert other.state_dict() == monitor.state_dict()
    assert json.dumps(state)


def test_second_training_from_scratch_starts_afresh() -> None:
    monitor = SymmetryMonitor()
    with pytest.warns(SymmetryWarning):
        fit(Classifier(fill(mlp(), 0.5)), monitor)
    fit(Classifier(mlp()), monitor)
    assert monitor.findings == []


def test_two_monitors_of_different_layers() -> None:
    monitors = [SymmetryMonitor(include=["net.0"]), SymmetryMonitor(exclude=["net.0"])]
    trainer = make_trainer(monitors)
    with pytest.warns(SymmetryWarning):
        trainer.fit(Classifier(fill(mlp(), 0.5)), batches())
    seen = [list(monitor.report.layers) for monitor in monitors if monitor.report]
    assert seen == [["net.0"], ["net.2", "net.4"]]


# ------------------------------------------------------------ never in the way


def make_adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def make_plain_adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def make_momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def final_state(
    monitor: SymmetryMonitor | None, optimizer: Any, sick: bool, options: dict[str, Any]
) -> tuple[Any, Any, Tensor]:
    options = {key: value() if key == "plugins" else value for key, value in options.items()}
    net = duplicated() if sick else mlp()
    net.insert(2, nn.Dropout(0.2))
    model = Classifier(net, optimizer)
    torch.manual_seed(7)
    trainer = make_trainer([monitor] if monitor else [], max_steps=50, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, batches())
    return model.state_dict(), trainer.optimizers[0].state_dict(), torch.get_rng_state()


def real_scaler() -> list[MixedPrecision]:
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))]


@pytest.mark.parametrize("sick", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        *((optimizer, {}) for optimizer in (sgd, make_momentum, make_plain_adam, make_adam)),
        (make_adam, {"precision": "bf16-mixed"}),
        (make_adam, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
        (make_adam, {"plugins": real_scaler}),
    ],
    ids=["sgd", "momentum", "plain-adam", "adam", "bf16-mixed", "accumulate-and-clip", "grad-scaler"],
)
def test_training_is_the_same_to_the_last_bit(optimizer: Any, options: dict[str, Any], sick: bool) -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    assert_same(final_state(None, optimizer, sick, options), final_state(monitor, optimizer, sick, options))
    assert monitor.report is not None
    assert monitor.report.step == 49


def test_nan_gradients_do_not_raise_and_are_not_identical() -> None:
    class Poisoned(Classifier):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(math.nan)

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            kwargs.get("optimizer_closure", args[-1])()
            args[2].step(closure=lambda: None)  # counts the step; the update itself is harmless at lr 0

    monitor = SymmetryMonitor(every_n_steps=1)
    model = Poisoned(fill(mlp(), 0.5), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    assert warnings_of(model, monitor) == []
    assert monitor.report is not None
    verdicts = {group.verdict for layer in monitor.report.layers.values() for group in layer.groups}
    assert verdicts <= {Verdict.DUPLICATE}


def test_model_without_a_supported_layer_says_so_once() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(12, 1))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.kernel.expand(12, 4)

    monitor = SymmetryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Regression(Odd()), monitor)
    said = [str(w.message) for w in caught if "SymmetryMonitor" in str(w.message)]
    assert len(said) == 1
    assert "finds no layer to inspect" in said[0]
    assert "net: no adapter for Odd" in said[0]
    assert trainer.global_step == 10


@pytest.mark.parametrize(
    ("target", "room"),
    [
        ("lightning_symmetry.engine.examiner.find_layers", "check"),
        ("lightning_symmetry.engine.examiner.look", "check"),
        ("lightning_symmetry.engine.examiner.Usage.is_used", "check"),
        ("lightning_symmetry.outputs.tensorboard.write_findings", "findings and pictures in TensorBoard"),
        ("lightning_symmetry.outputs.tensorboard.write_heatmap", "findings and pictures in TensorBoard"),
        ("lightning_symmetry.outputs.console.print_summary", "summary"),
    ],
)
def test_a_room_on_fire_does_not_stop_the_training(
    target: str, room: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def burn(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on fire")

    monkeypatch.setattr(target, burn)
    monitor = SymmetryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(fill(mlp(), 0.5)), monitor, logger=True, default_root_dir=tmp_path)
    said = [str(w.message) for w in caught if "switches off" in str(w.message)]
    assert len(said) == 1
    assert f"its {room}, which failed with RuntimeError: on fire. Training goes on." in said[0]
    assert trainer.state.finished
    assert trainer.global_step == 10


def test_a_layer_on_fire_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = find_groups_within_budget

    def burn(question: Question, *args: Any, **kwargs: Any) -> Any:
        if question.rows.num_rows == 8:
            raise RuntimeError("on fire")
        return original(question, *args, **kwargs)

    monkeypatch.setattr("lightning_symmetry.verdicts.evidence.find_groups_within_budget", burn)
    monitor = SymmetryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(fill(mlp(), 0.5)), monitor)
    said = [str(w.message) for w in caught if "leaves out" in str(w.message)]
    assert len(said) == 1
    assert "net.2" in said[0]
    assert [finding.layer for finding in monitor.findings] == ["net.0"]
    assert monitor.report is not None
    assert monitor.report.skipped == {"net.2": "the check failed with RuntimeError: on fire"}


def test_other_loggers_get_the_scalars(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    with pytest.warns(SymmetryWarning):
        fit(Classifier(fill(mlp(), 0.5)), SymmetryMonitor(), logger=logger)
    head = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"symmetry/redundant_units", "symmetry/effective_width/net.0"} <= set(head)


def test_two_classes_from_zero_are_told_in_time() -> None:
    # The updates of a two-class head cancel out in any plain sum over the classes.
    net = fill(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2)), 0.0)

    class TwoClasses(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1] % 2)

    monitor = SymmetryMonitor(on_symmetry="raise")
    with pytest.warns(SymmetryWarning), pytest.raises(SymmetryError) as error:
        fit(TwoClasses(net, make_adam), monitor)
    assert error.value.report.step == 3


def test_a_second_training_is_warned_of_again() -> None:
    code = """
import warnings, logging
logging.disable(logging.WARNING)
from tests.training import *
for _ in range(2):
    fit(Regression(fill(mlp(), 0.5)), SymmetryMonitor(), max_steps=1)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("net.0: all 16 units are identical") == 2


def test_monitor_and_error_can_be_pickled() -> None:
    monitor = SymmetryMonitor(on_symmetry="raise")
    with pytest.warns(SymmetryWarning), pytest.raises(SymmetryError) as error:
        fit(Regression(fill(mlp(), 0.5)), monitor)
    copied = pickle.loads(pickle.dumps(error.value))
    assert str(copied) == str(error.value)
    assert str(copied).startswith("net.0: all 16 units are identical")
    assert copied.report == error.value.report
    other = SymmetryMonitor()
    fit(Classifier(mlp()), other)
    assert pickle.loads(pickle.dumps(other)).report == other.report


def test_a_monitor_can_be_pickled_and_copied_while_it_writes(tmp_path: Path) -> None:
    copies: list[SymmetryMonitor] = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                copies.extend([pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)])

    monitor = SymmetryMonitor()
    loggers = [TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path, name="csv")]
    make_trainer([monitor, Copy()], logger=loggers).fit(Classifier(mlp()), batches())
    assert len(copies) == 2
    for other in copies:
        assert other.report is not None
        assert other.report.step == 1
        with pytest.warns(SymmetryWarning):
            fit(Classifier(fill(mlp(), 0.5)), other, logger=loggers)
        assert len(other.findings) == 2


def test_state_of_another_version_is_said_and_left(tmp_path: Path) -> None:
    trainer = fit(Classifier(mlp()), SymmetryMonitor())
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    (state,) = checkpoint["callbacks"].values()
    state["layers"]["net.0"] = [{"what": "is this"}]
    torch.save(checkpoint, path)
    resumed = SymmetryMonitor()
    with pytest.warns(UserWarning, match="SymmetryMonitor cannot read its state in the checkpoint"):
        make_trainer([resumed], max_steps=20).fit(Classifier(mlp()), batches(), ckpt_path=path)
    assert resumed.report is not None
    assert resumed.report.step > 10


def test_default_device_of_the_user_does_not_matter() -> None:
    net = duplicated()
    net(torch.rand(5, 12)).square().sum().backward()
    with torch.device("meta"):
        report = diagnose(net)
    assert [group.units for group in report.layers["0"].groups] == [(0, 3, 5)]


def test_warm_up_from_zero_counts_no_looks() -> None:
    # Zero gradients at a learning rate of zero prove nothing, however often they are seen.
    net = mlp()
    with torch.no_grad():
        net.linear(0).weight[3] = net.linear(0).weight[1]
        net.linear(0).bias[3] = net.linear(0).bias[1]
    fill(net.linear(4), 0.0)
    monitor = SymmetryMonitor(every_n_steps=1)
    still = Classifier(net, lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    assert warnings_of(still, monitor, max_steps=12) == []


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_train_batches": 0}, {"max_steps": 0}])
def test_trainings_that_hardly_train(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Classifier(mlp()), SymmetryMonitor(), **{"max_epochs": 1, "max_steps": -1, **options})


def test_training_step_that_returns_none() -> None:
    class Lazy(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    monitor = SymmetryMonitor(every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Lazy(fill(mlp(), 0.5)), monitor, max_epochs=1, max_steps=-1)
    assert monitor.findings == []


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` to be at least 1 but got 0"),
        ({"every_n_steps": 2.5}, TypeError, "`every_n_steps` to be an int but got 2.5"),
        ({"every_n_steps": True}, TypeError, "got True"),
        ({"tolerance": -1e-3}, ValueError, "got -0.001"),
        ({"tolerance": "loose"}, TypeError, "got 'loose'"),
        ({"patience": 0}, ValueError, "`patience` to be at least 1 but got 0"),
        ({"patience": None}, TypeError, "got None"),
        ({"include": "fc*"}, TypeError, r"`include` to be a sequence of patterns, e.g. \['fc\*'\], but got 'fc\*'"),
        ({"exclude": None}, TypeError, "`exclude` .* got None"),
        ({"exclude": [1]}, TypeError, r"got \[1\]"),
        ({"heatmaps": "some"}, ValueError, r"one of \['findings', 'all', 'none'\] but got 'some'"),
        (
            {"on_symmetry": "panic"},
            ValueError,
            r"one of \['warn', 'stop', 'raise', 'break', 'ignore'\] but got 'panic'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SymmetryMonitor(**arguments)


@pytest.mark.parametrize("on_symmetry", ["warn", "raise"])
def test_a_gate_that_saw_too_little_says_so(on_symmetry: Any) -> None:
    """Zeros take four optimizer steps to judge; eight batches make two epochs of four."""
    options: dict[str, Any] = {"fast_dev_run": 8, "accumulate_grad_batches": 4}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = SymmetryMonitor(on_symmetry=on_symmetry)
        fit(Classifier(fill(mlp(), 0.0)), monitor, **options)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, SymmetryWarning)]
    assert monitor.report is not None
    assert monitor.report.status == "inconclusive"
    assert len(said) == (on_symmetry == "raise")
    assert all("SymmetryMonitor comes to no conclusion (" in text for text in said)
    assert all("net.0: all 16 units are equal, and their gradients are inconclusive so far" in text for text in said)
    with pytest.raises(SymmetryError, match="comes to no conclusion") as raised:
        fit(Classifier(fill(mlp(), 0.0)), SymmetryMonitor(on_symmetry=on_symmetry, require_conclusion=True), **options)
    assert raised.value.report.status == "inconclusive"
    with pytest.raises(SymmetryError, match="frozen"):
        fit(Classifier(fill(mlp(), 0.0)), SymmetryMonitor(on_symmetry="raise"), fast_dev_run=4)


@pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
def test_a_check_that_fails_is_no_conclusion(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr("lightning_symmetry.engine.examiner.find_layers", broken)
    with (
        pytest.warns(UserWarning, match="switches off its check"),
        pytest.raises(SymmetryError, match=r"the check failed with ZeroDivisionError: no"),
    ):
        fit(Classifier(mlp()), SymmetryMonitor(require_conclusion=True))


def test_a_monitor_shows_itself_in_notebooks() -> None:
    monitor = SymmetryMonitor()
    assert repr(monitor) == "<SymmetryMonitor: None>"
    assert monitor._repr_html_() == "No check so far."
    fit(Classifier(mlp()), monitor)
    assert repr(monitor).startswith("<SymmetryMonitor: <SymmetryReport at step 7: healthy")
    assert len(repr(monitor)) < 300
    assert "healthy</strong> Step 7: all 28 units of 3 layers are working" in monitor._repr_html_()


def test_nothing_reaches_a_logger_if_nothing_is_wanted(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = SymmetryMonitor(heatmaps="none", scalars="none", on_symmetry="ignore")
    trainer = fit(Classifier(fill(mlp(), 0.5)), monitor, logger=logger)
    assert monitor.findings
    assert not any("symmetry" in str(event) for event in events_in(tmp_path))
    assert not any("symmetry" in name for name in trainer.callback_metrics)


def events_in(folder: Path) -> list[Any]:
    return [event for file in folder.glob("*tfevents*") for event in EventFileLoader(str(file)).Load()]
