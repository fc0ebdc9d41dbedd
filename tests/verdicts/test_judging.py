"""`judge`, condition by condition, and trainings that it once judged wrongly."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryWarning, Verdict
from lightning_symmetry.verdicts.diagnoses import Cause, Origin, Reason
from lightning_symmetry.verdicts.judging import Judgement, judge, judge_one_look
from lightning_symmetry.verdicts.look import Gradients, Sighting
from lightning_symmetry.verdicts.records import Record
from tests.training import Classifier, fill, fit

LOCKED, FROZEN, LOCKSTEP, BREAKING = Verdict.LOCKED, Verdict.FROZEN, Verdict.LOCKSTEP, Verdict.BREAKING
UNDECIDED = Judgement(Verdict.DUPLICATE, Reason.UNDECIDED)


def record_of(**values: object) -> Record:
    """A group of equal weights from the start, after a check without evidence."""
    record = Record((0, 1), True, Cause.COPIED, None, 1.0, 0, 100, Origin.START)
    for name, value in values.items():
        assert hasattr(record, name)
        setattr(record, name, value)
    return record


def sighting_of(gradients: Gradients, position: float = 1.0, reach: float = 1e-3) -> Sighting:
    return Sighting((0, 1), True, gradients, Cause.COPIED, None, position, reach)


FAR = 1.0 + 0.011  # ten times the reach, and a bit more


@pytest.mark.parametrize(
    ("past", "gradients", "position", "expected"),
    [
        ({}, Gradients.EQUAL, 1.0, (LOCKED, Reason.EQUAL_FROM_START)),
        ({"origin": Origin.COLLAPSE, "streak": 2}, Gradients.EQUAL, 1.0, UNDECIDED),
        ({"origin": Origin.COLLAPSE, "streak": 3}, Gradients.EQUAL, 1.0, (LOCKED, Reason.EQUAL_AGAIN)),
        ({"was_different": True, "streak": 2}, Gradients.EQUAL, 1.0, UNDECIDED),
        ({"was_different": True, "streak": 3}, Gradients.EQUAL, 1.0, (LOCKED, Reason.EQUAL_AGAIN)),
        ({"streak": 3}, Gradients.FAINT, 1.0, (LOCKED, Reason.EQUAL_AGAIN)),
        ({"streak": 2}, Gradients.FAINT, 1.0, UNDECIDED),
        ({"streak": 3, "cause": Cause.ZERO}, Gradients.FAINT, 1.0, (FROZEN, Reason.ROUNDING_AGAIN)),
        ({"streak": 2, "cause": Cause.ZERO}, Gradients.FAINT, 1.0, UNDECIDED),
        ({"streak": 3, "cause": Cause.ZERO, "was_different": True}, Gradients.FAINT, 1.0, (LOCKED, Reason.EQUAL_AGAIN)),
        (
            {"streak": 3, "cause": Cause.ZERO, "origin": Origin.COLLAPSE},
            Gradients.EQUAL,
            1.0,
            (LOCKED, Reason.EQUAL_AGAIN),
        ),
        ({"streak": 3}, Gradients.ZERO, 1.0, (FROZEN, Reason.ZERO_AGAIN)),
        ({"streak": 2}, Gradients.ZERO, 1.0, UNDECIDED),
        ({"streak": 3, "was_different": True}, Gradients.ZERO, 1.0, UNDECIDED),
        ({"streak": 1, "was_different": True}, Gradients.DIFFERENT, 1.0, (BREAKING, Reason.DIFFERENT)),
        ({"streak": 2, "verdict": LOCKED}, Gradients.DIFFERENT, 1.0, (LOCKED, Reason.UNDECIDED)),
        ({"streak": 3, "verdict": LOCKED}, Gradients.DIFFERENT, 1.0, (BREAKING, Reason.DIFFERENT)),
        ({}, Gradients.UNCLEAR, FAR, (LOCKED, Reason.MOVED_AS_ONE)),
        ({}, Gradients.NONE, FAR, (LOCKED, Reason.MOVED_AS_ONE)),
        ({}, Gradients.UNCLEAR, 1.009, UNDECIDED),
        ({"cause": Cause.ZERO}, Gradients.UNCLEAR, FAR, UNDECIDED),
        ({"was_different": True}, Gradients.UNCLEAR, FAR, UNDECIDED),
        ({"was_different": True, "verdict": BREAKING}, Gradients.NONE, FAR, (BREAKING, Reason.UNDECIDED)),
        ({"verdict": LOCKED}, Gradients.NONE, 1.0, (LOCKED, Reason.UNDECIDED)),
        ({"has_equal_weights": False, "streak": 3}, Gradients.EQUAL, 1.0, (LOCKSTEP, Reason.PARALLEL_AGAIN)),
        ({"has_equal_weights": False, "streak": 2}, Gradients.EQUAL, 1.0, UNDECIDED),
        ({"has_equal_weights": False, "streak": 3, "first_step": 51}, Gradients.EQUAL, 1.0, UNDECIDED),
    ],
)
def test_conditions(past: dict[str, object], gradients: Gradients, position: float, expected: Judgement) -> None:
    record, sighting = record_of(**past), sighting_of(gradients, position)
    before = copy.deepcopy((record, sighting))
    assert judge(record, sighting, 3, is_whole_layer=False) == expected
    assert (record, sighting) == before  # judging changes nothing


def test_rows_that_have_become_zero_have_moved_beyond_any_reach_and_prove_nothing() -> None:
    sighting = sighting_of(Gradients.UNCLEAR, position=0.0, reach=0.0)
    assert judge(record_of(), sighting, 3, is_whole_layer=False) == UNDECIDED


@pytest.mark.parametrize(("position", "verdict"), [(2.25, Verdict.DUPLICATE), (2.375, LOCKED), (-0.375, LOCKED)])
def test_a_long_way_is_more_than_ten_reaches_in_any_direction(position: float, verdict: Verdict) -> None:
    sighting = sighting_of(Gradients.UNCLEAR, position, reach=0.125)
    assert judge(record_of(), sighting, 3, is_whole_layer=False).verdict is verdict


@pytest.mark.parametrize(
    ("cause", "is_whole_layer", "expected"),
    [
        (Cause.ZERO, False, (Verdict.DUPLICATE, Reason.PRUNED)),
        (Cause.ZERO, True, (FROZEN, Reason.ZERO_AGAIN)),
        (Cause.CONSTANT, False, (FROZEN, Reason.ZERO_AGAIN)),
    ],
)
def test_rows_of_zeros_among_others_are_pruned(cause: Cause, is_whole_layer: bool, expected: Judgement) -> None:
    sighting = Sighting((0, 1), True, Gradients.ZERO, cause, None, 0.0, 0.0)
    assert judge(record_of(streak=3), sighting, 3, is_whole_layer=is_whole_layer) == expected
    unlike = dataclasses.replace(sighting, gradients=Gradients.EQUAL)
    assert judge(record_of(streak=3), unlike, 3, is_whole_layer=is_whole_layer).verdict is LOCKED


@pytest.mark.parametrize(
    ("gradients", "verdict"),
    [
        (Gradients.EQUAL, LOCKED),
        (Gradients.DIFFERENT, BREAKING),
        (Gradients.FAINT, Verdict.DUPLICATE),
        (Gradients.ZERO, Verdict.DUPLICATE),
        (Gradients.NONE, Verdict.DUPLICATE),
    ],
)
def test_what_one_look_can_tell(gradients: Gradients, verdict: Verdict) -> None:
    assert judge_one_look(sighting_of(gradients)) is verdict


def test_lockstep_of_some_units_takes_fifty_steps_since_it_was_first_seen() -> None:
    for first_step, verdict in ((50, LOCKSTEP), (51, Verdict.DUPLICATE)):
        record = record_of(has_equal_weights=False, streak=3, first_step=first_step)
        assert judge(record, sighting_of(Gradients.EQUAL), 3, is_whole_layer=False).verdict is verdict


def test_lockstep_of_a_whole_layer_takes_no_steps() -> None:
    record = record_of(has_equal_weights=False, streak=3, first_step=99)
    judgement = judge(record, sighting_of(Gradients.EQUAL), 3, is_whole_layer=True)
    assert judgement == (LOCKSTEP, Reason.PARALLEL_AGAIN)


class Penalised(Classifier):
    """Regression onto noise, with a weight penalty as part of the loss."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        penalty = torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()
        loss: Tensor = (self.net(batch[0]) - batch[1]).square().mean() + 1e-6 * penalty
        return loss


def test_units_that_differed_and_died_are_not_locked() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    fill(net[0], 0.01)
    fill(net[2], 0.01)
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(torch.randn(512, 32), torch.randn(512, 1)), batch_size=64)
    monitor = SymmetryMonitor(every_n_steps=5, on_symmetry="ignore")
    model = Penalised(net, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    fit(model, monitor, data=data, max_steps=60)
    assert [(finding.layer, finding.verdict) for finding in monitor.findings] == [("net.0", LOCKED)]
    # Units of the second layer must still be a group after they have moved, which was once wrong.
    assert monitor.report is not None
    assert monitor.report.layers["net.2"].groups


@pytest.mark.parametrize(
    "optimizer",
    [lambda parameters: torch.optim.SGD(parameters, 0.05), lambda parameters: torch.optim.Adam(parameters, 1e-3)],
    ids=["sgd", "adam"],
)
def test_zero_layers_around_a_softmax_are_frozen_but_for_rounding(
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    # In exact arithmetic the softmax lets no gradient through while all columns behind it are equal. Ten units, so that
    # the rounding errors of a block of eight and of its remainder differ; on some processors that makes two groups.
    net = fill(nn.Sequential(nn.Linear(12, 10), nn.Softmax(dim=-1), nn.Linear(10, 4)), 0.0)
    monitor = SymmetryMonitor(every_n_steps=1)
    with pytest.warns(SymmetryWarning, match=r"net\.0: (all|\d of) 10 .* but for rounding \(frozen since step 0\)"):
        fit(Classifier(net, optimizer), monitor, max_steps=10)
    assert {finding.verdict for finding in monitor.findings} == {FROZEN}
    assert {finding.reason for finding in monitor.findings} <= {Reason.ROUNDING_AGAIN, Reason.ZERO_AGAIN}
