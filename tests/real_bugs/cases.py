"""What a reported bug is made of, and how it is trained: small real trainings with a SymmetryTracker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryTracker, SymmetryWarning, Verdict
from lightning_symmetry.verdicts.stops import GradientStop
from tests import zoo
from tests.logs import logged

RANDOM_INIT = "torch.nn.init.kaiming_uniform_"
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """A finding that must be made.

    Attributes:
        layer: the layer as the report names it; of copies of whole modules, all their names.
        verdict: what must be said of the units.
        cause: what the weights must be said to look like.
        units: the sets of units that must be named, one set per finding; None: one set, all units of the layer.
        way_out: what the message must recommend, or say of units that are idle.
        stop: the kind of the place at which the gradient must be said to stop, and the place; None: either may be any.
        begins: what the message must begin with, of layers that are told of together; empty: the name of the layer.
    """

    layer: str
    verdict: str
    cause: str
    units: tuple[tuple[int, ...], ...] | None = None
    way_out: str = RANDOM_INIT
    stop: tuple[str, str] | None = None
    begins: str = ""


def classify(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The usual loss: softmax cross-entropy of four classes."""
    return nn.functional.cross_entropy(net(inputs), labels)


@dataclass(frozen=True)
class Case:
    """A bug that was reported, the program that has it, and the program that does not.

    Attributes:
        name: what it is; the row of docs/real_bugs.md that begins with it tells of it.
        sources: addresses of the reports.
        buggy: makes the network with the bug. Both makers find the global random numbers seeded.
        fixed: makes the network as the report, or an answer to it, mends it.
        found: the findings that the bug leads to; nothing else may be found.
        idle: the units that must be told of in the log as idle, without a warning; no others may be.
        mentioned: modules that must be mentioned as copies, in these words and without a warning; empty if none.
        loss: what is minimised, of a network, inputs and labels.
        lr: learning rate of SGD.
        fixed_lr: learning rate of the mended program, where that is the mend.
        steps: length of the training. Units are called dead only after 50 steps.
    """

    name: str
    sources: tuple[str, ...]
    buggy: Callable[[], nn.Module]
    fixed: Callable[[], nn.Module]
    found: tuple[Found, ...] = ()
    idle: tuple[Found, ...] = ()
    mentioned: str = ""
    loss: Loss = classify
    lr: float = 0.05
    fixed_lr: float | None = None
    steps: int = 60

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What a training led to: the tracker, and all that it said, in order."""

    tracker: SymmetryTracker
    said: list[str]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Positive inputs ``(32, 12)`` with labels of four classes that depend on them, without end."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(zoo.INPUTS, zoo.OUTPUTS, generator=generator)
    while True:
        inputs = torch.rand(32, zoo.INPUTS, generator=generator) + 0.1
        yield inputs, ((inputs - 0.6) @ teacher).argmax(dim=1)


def train_buggy(case: Case) -> Outcome:
    """Train the program with the bug."""
    return _train(case, case.buggy, case.lr)


def train_fixed(case: Case) -> Outcome:
    """Train the mended program."""
    return _train(case, case.fixed, case.fixed_lr or case.lr)


def _train(case: Case, build: Callable[[], nn.Module], lr: float) -> Outcome:
    torch.manual_seed(3)
    net = build()
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=lr)
    with _listening() as said, SymmetryTracker(net, optimizer, every_n_steps=5) as tracker:
        for _, (inputs, labels) in zip(range(case.steps), batches(), strict=False):
            optimizer.zero_grad()
            case.loss(net, inputs, labels).backward()
            optimizer.step()
    return Outcome(tracker, said)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what the tracker warns of and logs; other warnings are errors, as in every test.

    The closing line on the whole model is no news.
    """
    with (
        logged("lightning_symmetry.tracker", lambda text: not text.startswith("Symmetry at step")) as said,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        warnings.simplefilter("always", SymmetryWarning)
        warnings.filterwarnings("always", "SymmetryTracker: parts of the model do not train")
        warnings.showwarning = lambda message, *_args, **_options: said.append(str(message))
        yield said


def assert_found(case: Case, outcome: Outcome) -> None:
    """Exactly what is expected was found, and each message names its layer and the way out."""
    found: dict[tuple[str, str, str], set[tuple[int, ...]]] = {}
    for finding in outcome.tracker.findings:
        key = (finding.layer, str(finding.verdict), str(finding.cause))
        found.setdefault(key, set()).add(finding.units)
    assert found == {(each.layer, each.verdict, each.cause): _units(each, outcome.tracker) for each in case.found}, (
        outcome.said
    )
    _assert_stops(case.found, {finding.layer: finding.stop for finding in outcome.tracker.findings})
    _assert_idle(case, outcome.tracker)
    followers = {finding.layer for finding in outcome.tracker.findings if finding.follows}
    for each in (*case.found, *case.idle):
        if each.layer in followers:  # told together with the layer that they follow from
            continue
        first, *_ = each.layer.split(", ")  # of several modules a message may leave out some
        begins = each.begins or first
        assert any(text.startswith(begins) and each.way_out in text for text in outcome.said), outcome.said
    mentioned = [text.partition(" start as exact copies")[0] for text in outcome.said if "start as exact" in text]
    assert mentioned == ([case.mentioned] if case.mentioned else [])


def _assert_idle(case: Case, tracker: SymmetryTracker) -> None:
    assert tracker.report is not None
    groups = {
        name: group
        for name, layer in tracker.report.layers.items()
        for group in layer.groups
        if group.verdict is Verdict.IDLE
    }
    told = {name: {group.units} for name, group in groups.items()}
    assert told == {each.layer: _units(each, tracker) for each in case.idle}
    _assert_stops(case.idle, {name: group.stop for name, group in groups.items()})


def _assert_stops(expected: Iterable[Found], stops: Mapping[str, GradientStop | None]) -> None:
    for each in expected:
        if each.stop is not None:
            stop = stops[each.layer]
            assert stop is not None
            assert (str(stop.kind), stop.at) == each.stop


def assert_silent(outcome: Outcome) -> None:
    """Nothing was found, nothing said, and something was looked at."""
    assert outcome.said == []
    assert outcome.tracker.findings == []
    assert outcome.tracker.report is not None
    assert outcome.tracker.report.coverage == 1.0


def _units(expected: Found, tracker: SymmetryTracker) -> set[tuple[int, ...]]:
    if expected.units is not None:
        return set(expected.units)
    assert tracker.report is not None
    return {tuple(range(tracker.report.layers[expected.layer].num_units))}
