"""Trainings of models of public libraries with the monitor on, and what it reports of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from lightning_symmetry import SymmetryMonitor, SymmetryTracker, SymmetryWarning
from lightning_symmetry.engine.watcher import Watcher

STEPS = 150
Fault = Callable[[nn.Module], None]
# Trains a model, with a fault planted before the first step, and returns what watched the training.
Train = Callable[[Fault | None], Watcher]


@dataclass(frozen=True)
class Plant:
    """A fault and what must be said of it.

    Attributes:
        model: the name of the model that it is planted into.
        fault: plants it.
        text: the fault in words.
        layer: the end of the name of a layer that must be found.
        code: the cause that must be given.
    """

    model: str
    fault: Fault
    text: str
    layer: str
    code: str


@dataclass(frozen=True)
class Library:
    """A library, how the monitor is passed, and trainings of its models.

    Attributes:
        name: as the package index has it.
        passed: how the monitor is passed.
        models: healthy models, by name.
        plant: the fault that must be found.
        bugs: by name of a model, the codes that a bug of the library causes, and the bug in words.
    """

    name: str
    passed: str
    models: Mapping[str, Train]
    plant: Plant
    bugs: Mapping[str, tuple[frozenset[str], str]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The installed version; empty if there is none."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return ""


@dataclass(frozen=True)
class Outcome:
    """What the monitor reports at the end of a training.

    Attributes:
        step: the last optimizer step that was checked.
        status: of the report.
        coverage: of the report.
        found: layer and code of every finding.
        warned: the text of every warning.
        reasons: why parts of the model are undecided.
    """

    step: int
    status: str
    coverage: float
    found: frozenset[tuple[str, str]]
    warned: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def codes(self) -> set[str]:
        return {code for _, code in self.found}


def _is_of_monitor(caught: warnings.WarningMessage) -> bool:
    """Return whether the monitor warns of a finding or of a failure; parts that do not train are among the reasons."""
    return issubclass(caught.category, UserWarning) and "parts of the model do not train" not in str(caught.message)


def outcome(library: Library, model: str, fault: Fault | None = None) -> Outcome:
    """Train a model in an empty folder and return what was reported; the library's own messages are dropped."""
    torch.manual_seed(0)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SymmetryWarning)
        warnings.filterwarnings("always", ".*Symmetry(Monitor|Tracker|Callback)")  # what it says of itself
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        watcher = library.models[model](fault)
    report = watcher.report
    assert report is not None
    return Outcome(
        report.step,
        report.status,
        report.coverage,
        frozenset((finding.layer, str(finding.code)) for finding in watcher.findings),
        tuple(str(each.message) for each in caught if _is_of_monitor(each)),
        tuple(report.reasons),
    )


def needs(library: Library) -> pytest.MarkDecorator:
    """Skip the tests of a library that is not installed."""
    return pytest.mark.skipif(not library.version, reason=f"{library.name} is not installed")


def check_healthy(library: Library, model: str) -> None:
    """Check that a model trains in silence, or with no other findings than those of a known bug."""
    got = outcome(library, model)
    expected, _ = library.bugs.get(model, (frozenset(), ""))
    assert got.codes == expected, got
    assert bool(got.warned) == bool(expected), got
    assert got.coverage >= 0.99, got
    assert got.step >= 100, got
    assert not any("not finite" in reason for reason in got.reasons), got  # a training that diverges proves nothing


def check_planted(library: Library) -> None:
    """Check that the planted fault is warned of, with its layer and its cause."""
    plant = library.plant
    got = outcome(library, plant.model, plant.fault)
    layers = [layer for layer, code in got.found if code == plant.code and layer.endswith(plant.layer)]
    assert layers, got
    assert any(layer in text and plant.code in text for text in got.warned for layer in layers), got


def library_tests(library: Library) -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return the two tests of a library, for its module: of all healthy models, and of the planted fault."""

    @needs(library)
    @pytest.mark.parametrize("model", library.models)
    def test_a_healthy_model_trains_in_silence(model: str) -> None:
        check_healthy(library, model)

    @needs(library)
    def test_a_planted_fault_is_named() -> None:
        check_planted(library)

    return test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named


# ----------------------------------------------------------------- Lightning


def callbacks(fault: Fault | None) -> list[Any]:
    """Return what a user passes to a Trainer of either namespace: the monitor, after what plants a fault."""
    from lightning.pytorch import Callback

    class Planting(Callback):
        def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
            assert fault is not None
            fault(pl_module)

    return [*([Planting()] if fault else []), SymmetryMonitor()]


def monitor_of(trainer: Any) -> SymmetryMonitor:
    """Return the monitor that a Trainer has used: a library may have copied the one that it was given."""
    (monitor,) = (each for each in trainer.callbacks if isinstance(each, SymmetryMonitor))
    return monitor


def fit(model: Any, batches: Any, fault: Fault | None, namespace: Any = None) -> SymmetryMonitor:
    """Train a LightningModule with a Trainer of one's own, of `lightning.pytorch` unless another is given."""
    if namespace is None:
        import lightning.pytorch as namespace
    given = callbacks(fault)
    namespace.Trainer(
        callbacks=given,
        max_steps=STEPS,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, batches)
    monitor: SymmetryMonitor = given[-1]
    return monitor


# ----------------------------------------------------------------- Hugging Face


def train_with(make_trainer: Callable[[Any], Any], model: nn.Module, fault: Fault | None) -> Watcher:
    """Train with a Trainer that is made with the callback."""
    from lightning_symmetry.integrations.transformers import SymmetryCallback

    seen = SymmetryCallback()
    if fault:
        fault(model)
    make_trainer(seen).train()
    return seen


# ----------------------------------------------------------------- a loop of one's own


def train_in_loop(
    model: nn.Module, loss: Callable[[], torch.Tensor], fault: Fault | None, optimizer: Any = None
) -> SymmetryTracker:
    """Train with Adam for `STEPS` steps, watched by a tracker."""
    if fault:
        fault(model)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    with SymmetryTracker(model, optimizer) as tracker:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    return tracker


# ----------------------------------------------------------------- faults


def constant(layer: str, value: float = 0.01) -> Fault:
    """Return what sets every parameter of a module to one number."""

    def plant(model: nn.Module) -> None:
        for parameter in model.get_submodule(layer).parameters():
            nn.init.constant_(parameter, value)

    return plant


def detached(layer: str) -> Fault:
    """Return what detaches the outputs of a module from the graph."""

    def plant(model: nn.Module) -> None:
        model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output.detach())

    return plant


def silenced(layer: str) -> Fault:
    """Return what multiplies the outputs of a module by zero."""

    def plant(model: nn.Module) -> None:
        model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: 0.0 * output)

    return plant


def closed(layer: str) -> Fault:
    """Return what gives a layer a bias so low that no ReLU after it opens."""

    def plant(model: nn.Module) -> None:
        bias = model.get_submodule(layer).bias
        assert isinstance(bias, nn.Parameter)
        nn.init.constant_(bias, -100.0)

    return plant
