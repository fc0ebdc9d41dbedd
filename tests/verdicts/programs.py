"""Small programs of plain torch that follow recipes of public libraries, and what a SymmetryTracker finds in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry import SymmetryTracker
from tests import zoo
from tests.logs import logged
from tests.real_bugs.cases import batches

Step = Callable[[Tensor, Tensor], None]
_COPIES = " start as exact copies"


@dataclass(frozen=True)
class Program:
    """A training.

    Attributes:
        model: what the tracker is given.
        optimizers: likewise.
        step: one step of the training, with inputs ``(32, 12)`` and labels of four classes.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    step: Step


@dataclass(frozen=True)
class Recipe:
    """A recipe of a library and the expected outcome.

    Attributes:
        name: the library and what it does.
        build: makes the program; the global random numbers are seeded before.
        found: by layer, or names of modules that are copies, the verdict that must be warned of; nothing else may be.
        mentioned: modules that must be mentioned in the log as copies that part, in these words; empty: none may be.
        untrained: parts that must be said not to train, each with the reason; no others may be.
        is_open: whether so few steps leave something open, such as a part that is not used.
        steps: length of the training.
    """

    name: str
    build: Callable[[], Program]
    found: Mapping[str, str] = field(default_factory=dict)
    mentioned: Sequence[str] = ()
    untrained: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    steps: int = 30

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """Findings by layer, mentioned copies, layers that do not train, open reasons, and all warnings."""

    found: dict[str, str]
    mentioned: list[str]
    untrained: dict[str, str]
    reasons: list[str]
    warned: list[str]


def train(recipe: Recipe, every_n_steps: int = 3) -> Outcome:
    """Run a program under a tracker.

    Args:
        recipe: the recipe.
        every_n_steps: how often the tracker looks.
    """
    torch.manual_seed(4)
    program = recipe.build()
    with listening() as (logged, warned):
        with SymmetryTracker(program.model, program.optimizers, every_n_steps=every_n_steps) as tracker:
            for _, (inputs, labels) in zip(range(recipe.steps), batches(), strict=False):
                program.step(inputs, labels)
        assert tracker.report is not None
        assert tracker.report.coverage == 1.0, tracker.report.skipped
        mentioned = [text.partition(_COPIES)[0] for text in logged if _COPIES in text]
        found = {", ".join(finding.modules) or finding.layer: str(finding.verdict) for finding in tracker.findings}
        return Outcome(found, mentioned, dict(tracker.report.untrained), tracker.report.reasons, warned)


@contextmanager
def listening() -> Iterator[tuple[list[str], list[str]]]:
    """Collect all log messages and all warnings."""
    warned: list[str] = []
    with logged("lightning_symmetry") as texts, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_args, **_options: warned.append(str(message))
        yield texts, warned


def minimise(optimizer: Optimizer, loss: Tensor) -> None:
    """Make one step of an optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def supervised(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    net: nn.Module | None = None,
    after: Callable[[int], object] | None = None,
) -> Program:
    """Return the usual training of a classifier.

    Args:
        model: what the tracker is given.
        optimizer: what updates it; None: Adam over all that requires a gradient.
        net: what classifies; None: the model.
        after: called with the number of each step once it has been made.
    """
    classifier = net or model
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    updates = optimizer or torch.optim.Adam(wanted, lr=1e-2)
    count = iter(range(10**6))

    def step(inputs: Tensor, labels: Tensor) -> None:
        minimise(updates, nn.functional.cross_entropy(classifier(inputs), labels))
        if after is not None:
            after(next(count))

    return Program(model, [updates], step)


def mlp(outputs: int = zoo.OUTPUTS, inputs: int = zoo.INPUTS, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, tau: float = 0.05) -> None:
    """Move the parameters of one module towards those of another one."""
    for mean, new in zip(slow.parameters(), fast.parameters(), strict=True):
        mean.lerp_(new, tau)


class Holder(nn.ModuleDict):
    """The networks of a program, as a LightningModule holds them."""
