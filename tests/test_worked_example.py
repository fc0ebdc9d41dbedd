"""The worked example of docs/idea.md, in float64 with SGD, against gradients written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryWarning, Verdict
from tests.training import make_trainer

LEARNING_RATE = 1e-3


class WorkedExample(LightningModule):
    """x1, x2 -> y1, y2 -> y3, y4 -> y with identity activations, no bias, and y as the loss."""

    def __init__(self, initialise: Callable[[WorkedExample], None]) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False, dtype=torch.float64)  # rows y1 = (w1, w3), y2 = (w2, w4)
        self.second = nn.Linear(2, 2, bias=False, dtype=torch.float64)  # rows y3 = (w5, w7), y4 = (w6, w8)
        self.third = nn.Linear(2, 1, bias=False, dtype=torch.float64)  # row y = (w9, w10)
        with torch.no_grad():
            initialise(self)

    def weights(self) -> list[float]:
        """w1 ... w10."""
        (w1, w3), (w2, w4) = self.first.weight.tolist()
        (w5, w7), (w6, w8) = self.second.weight.tolist()
        ((w9, w10),) = self.third.weight.tolist()
        return [w1, w2, w3, w4, w5, w6, w7, w8, w9, w10]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.third(self.second(self.first(batch[0]))).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def gradients_by_hand(w: list[float], x1: float, x2: float) -> list[float]:
    w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 = w
    y1, y2 = w1 * x1 + w3 * x2, w2 * x1 + w4 * x2
    y3, y4 = w5 * y1 + w7 * y2, w6 * y1 + w8 * y2
    to_y1, to_y2 = w9 * w5 + w10 * w6, w9 * w7 + w10 * w8
    first = [to_y1 * x1, to_y2 * x1, to_y1 * x2, to_y2 * x2]
    return [*first, w9 * y1, w10 * y1, w9 * y2, w10 * y2, y3, y4]


class Follow(Callback):
    """Compare every update with the one by hand, and record the looks."""

    def __init__(self, monitor: SymmetryMonitor, sample: tuple[float, float]) -> None:
        self.monitor, self.sample = monitor, sample
        self.weights: list[list[float]] = []
        self.groups: list[dict[str, list[tuple[tuple[int, ...], Verdict]]]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        assert isinstance(pl_module, WorkedExample)
        self.weights.append(pl_module.weights())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, WorkedExample)
        before = self.weights[-1]
        by_hand = gradients_by_hand(before, *self.sample)
        expected = [w - LEARNING_RATE * g for w, g in zip(before, by_hand, strict=True)]
        assert pl_module.weights() == pytest.approx(expected, rel=1e-12, abs=0)
        assert self.monitor.report is not None
        self.groups.append(
            {
                name: [(group.units, group.verdict) for group in layer.groups]
                for name, layer in self.monitor.report.layers.items()
            }
        )


def train(initialise: Callable[[WorkedExample], None], steps: int, **options: int) -> tuple[SymmetryMonitor, Follow]:
    sample = (0.6, -0.35)
    monitor = SymmetryMonitor(every_n_steps=1, **options)  # type: ignore[arg-type]
    follow = Follow(monitor, sample)
    data = DataLoader(TensorDataset(torch.tensor([sample] * 100, dtype=torch.float64)))
    make_trainer([monitor, follow], max_steps=steps, precision="64-true").fit(WorkedExample(initialise), data)
    assert len(follow.groups) == steps
    return monitor, follow


def fill(value: float) -> Callable[[WorkedExample], None]:
    def initialise(model: WorkedExample) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)

    return initialise


@pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
def test_constant_weights_stay_locked_for_ever() -> None:
    with pytest.warns(SymmetryWarning, match="first: all 2 units are identical in weights and gradients"):
        monitor, follow = train(fill(0.5), steps=1000)
    locked = [((0, 1), Verdict.LOCKED)]
    assert all(groups == {"first": locked, "second": locked, "third": []} for groups in follow.groups)
    for w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 in follow.weights:
        assert w1 == pytest.approx(w2, rel=1e-12)
        assert w3 == pytest.approx(w4, rel=1e-12)
        assert [w5, w6, w7] == pytest.approx([w8] * 3, rel=1e-12)
        assert w9 == pytest.approx(w10, rel=1e-12)
    # "The first layer is fine because its inputs differ": its inputs are told apart, its units are not.
    w1, _, w3, *_ = follow.weights[-1]
    assert abs(w1 - w3) > 0.01
    assert [(f.layer, f.units, f.first_step, f.last_step, f.broken_step) for f in monitor.findings] == [
        ("first", (0, 1), 0, 999, None),
        ("second", (0, 1), 0, 999, None),
    ]


@pytest.mark.filterwarnings("error::lightning_symmetry.SymmetryWarning")
def test_random_second_layer_breaks_the_symmetry_of_the_first() -> None:
    def initialise(model: WorkedExample) -> None:
        fill(0.5)(model)
        nn.init.normal_(model.second.weight, generator=torch.Generator().manual_seed(3))

    monitor, follow = train(initialise, steps=60)
    assert follow.groups[0] == {"first": [((0, 1), Verdict.BREAKING)], "second": [], "third": []}
    assert all(groups["second"] == [] for groups in follow.groups)
    # Apart after one update, though group membership ends only beyond the looser tolerance.
    w1, w2, w3, w4, *_ = follow.weights[1]
    assert w1 != w2
    assert w3 != w4
    assert follow.groups[1]["first"] == []
    assert follow.groups[-1] == {"first": [], "second": [], "third": []}
    assert monitor.findings == []


@pytest.mark.filterwarnings("ignore:Symmetry.*no gradient has reached it. third")
def test_zero_weights_never_move() -> None:
    with pytest.warns(SymmetryWarning, match="frozen since step 0"):
        monitor, follow = train(fill(0.0), steps=20)
    assert all(weights == [0.0] * 10 for weights in follow.weights)
    assert {group[1] for group in follow.groups[0]["first"]} == {Verdict.DUPLICATE}  # one look is not enough
    frozen = [((0, 1), Verdict.FROZEN)]
    assert follow.groups[2] == follow.groups[-1] == {"first": frozen, "second": frozen, "third": []}
    assert {(f.layer, f.verdict, f.cause) for f in monitor.findings} == {
        ("first", "frozen", "zero"),
        ("second", "frozen", "zero"),
    }


@pytest.mark.filterwarnings("ignore:Symmetry.*no gradient has reached it. third")
def test_patience_decides_when_zero_gradients_are_said_to_be_frozen() -> None:
    with pytest.warns(SymmetryWarning, match="frozen"):
        _, follow = train(fill(0.0), steps=8, patience=6)
    verdicts = [groups["first"][0][1] for groups in follow.groups]
    assert verdicts == [Verdict.DUPLICATE] * 5 + [Verdict.FROZEN] * 3


@pytest.mark.filterwarnings("ignore::lightning_symmetry.SymmetryWarning")
def test_permuted_rows_move_in_lockstep() -> None:
    # w5 = w8 != w6 = w7: the same function, the same gradients, different weights.
    def initialise(model: WorkedExample) -> None:
        fill(0.5)(model)
        model.second.weight.copy_(torch.tensor([[0.3, 0.7], [0.7, 0.3]]))

    with pytest.warns(SymmetryWarning, match="second: all 2 units have different weights but identical gradients"):
        monitor, follow = train(initialise, steps=10)
    assert follow.groups[1]["second"] == []
    assert follow.groups[-1] == {
        "first": [((0, 1), Verdict.LOCKED)],
        "second": [((0, 1), Verdict.LOCKSTEP)],
        "third": [],
    }
    assert monitor.report is not None
    assert monitor.report.layers["second"].effective_width == 2
