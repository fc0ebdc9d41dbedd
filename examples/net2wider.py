"""Width growth by copying units, with and without noise.

Paper: Tianqi Chen, Ian Goodfellow and Jonathon Shlens (2015), "Net2Net: Accelerating Learning via Knowledge Transfer",
arXiv 1511.05641.

The claim: Net2WiderNet copies hidden units and divides their outgoing weights among the copies, which preserves the
function. A training without randomness needs a little noise on all copies but the first; otherwise the student
cannot use its full capacity; with dropout no noise is needed.

How: a small ReLU network learns scikit-learn's digits for a while (the teacher), is made twice as wide, and trains on.
A fourth student divides the outgoing weights unequally, which the paper does not do: its function is preserved too, and
the copies diverge by themselves.

What `lightning_symmetry` does in it: the tracker counts the distinct units of the hidden layer during the training, and
`break_symmetry` adds the noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.digits import Digits, load_digits
from examples.showing import Row, arguments, show
from lightning_symmetry import SymmetryTracker, break_symmetry, diagnose

WIDTH = 32
HIDDEN = "0"  # the name of the hidden layer
COPIES, NOISE, DROPOUT, UNEQUAL = "copies", "copies with noise", "copies with dropout", "copies, unequal shares"


@dataclass(frozen=True)
class Student:
    """The training of a widened network.

    Attributes:
        start_error: relative distance ``||a - b|| / ||a||`` of its first logits ``b`` from the teacher's ``a``.
        steps: the observed optimizer steps.
        distinct: the number of distinct hidden units at each of them.
        loss: the cross-entropy on the training images at each of them.
        accuracy: the final test accuracy.
    """

    start_error: float
    steps: tuple[int, ...]
    distinct: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: float


@dataclass(frozen=True)
class Result:
    """The teacher's test accuracy, and the students by name."""

    teacher_accuracy: float
    students: dict[str, Student]


def _network(width: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))


def wider(teacher: nn.Sequential, width: int, *, dropout: float = 0.0, unequal: bool = False) -> nn.Sequential:
    """Return the same function with more hidden units, by Net2WiderNet.

    Args:
        teacher: a network made by :func:`_network`.
        width: number of hidden units of the result. The first ones are those of the teacher, each of the
            others is a copy of a random one.
        dropout: dropout probability of the result's hidden units.
        unequal: whether the copies of a unit get random instead of equal shares of its outgoing weights.
    """
    generator = Generator().manual_seed(1)
    incoming, outgoing = teacher[0].state_dict(), teacher[3].state_dict()
    old = len(incoming["bias"])
    source = torch.cat([torch.arange(old), torch.randint(old, (width - old,), generator=generator)])
    shares = 0.5 + torch.rand(width, generator=generator) if unequal else torch.ones(width)
    shares = shares / torch.zeros(old).index_add_(0, source, shares)[source]
    student = _network(width, dropout)
    student[0].load_state_dict({name: rows[source] for name, rows in incoming.items()})
    student[3].load_state_dict({"weight": outgoing["weight"][:, source] * shares, "bias": outgoing["bias"]})
    return student


def students_of(teacher: nn.Sequential) -> dict[str, nn.Sequential]:
    """Return the widened networks by name."""
    noisy = wider(teacher, 2 * WIDTH)
    break_symmetry(noisy, diagnose(noisy), method="noise")
    return {
        COPIES: wider(teacher, 2 * WIDTH),
        NOISE: noisy,
        DROPOUT: wider(teacher, 2 * WIDTH, dropout=0.2),
        UNEQUAL: wider(teacher, 2 * WIDTH, unequal=True),
    }


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits in evaluation mode; the mode of the model is restored."""
    logits: Tensor = copy.deepcopy(model).eval()(images)
    return logits


def _accuracy(model: nn.Module, digits: Digits) -> float:
    return float((_logits(model, digits.test_images).argmax(dim=1) == digits.test_labels).float().mean())


def _loss(model: nn.Module, digits: Digits) -> float:
    return float(nn.functional.cross_entropy(_logits(model, digits.images), digits.labels))


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, generator: Generator) -> None:
    batch = torch.randint(len(digits.labels), (64,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch]).backward()
    optimizer.step()


def _train(model: nn.Module, digits: Digits, num_steps: int, every_n_steps: int) -> Student:
    """Continue the training, and count distinct units."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = Generator().manual_seed(2)
    history: list[tuple[int, int, float]] = []
    with SymmetryTracker(model, optimizer, every_n_steps=every_n_steps, on_symmetry="ignore") as tracker:
        for _ in range(num_steps):
            loss = _loss(model, digits)
            _train_step(model, optimizer, digits, generator)
            report = tracker.report
            if report is not None and (not history or report.step > history[-1][0]):
                history.append((report.step, report.layers[HIDDEN].effective_width, loss))
    steps, distinct, losses = zip(*history, strict=True)
    return Student(0.0, steps, distinct, losses, _accuracy(model, digits))


def run(*, short: bool) -> Result:
    """Train the teacher and its students."""
    num_steps, every_n_steps = (80, 8) if short else (1500, 25)
    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = _network(WIDTH)
        _train(teacher, digits, 100, 100)
        said = _logits(teacher, digits.test_images)
        students = {}
        for name, student in students_of(teacher).items():
            error = float((_logits(student, digits.test_images) - said).norm() / said.norm())
            trained = _train(student, digits, num_steps, every_n_steps)
            students[name] = Student(error, trained.steps, trained.distinct, trained.loss, trained.accuracy)
        return Result(_accuracy(teacher, digits), students)


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    said = {
        COPIES: ("0: the function is preserved (section 2)", "stay copies: nothing tells them apart"),
        NOISE: ("about 0: only approximately preserved", "part, and the student can use its full capacity"),
        DROPOUT: ("0: the function is preserved", "part: dropout makes noise unnecessary"),
        UNEQUAL: ("not in the paper; 0 by theory", "not in the paper; part by theory"),
    }
    table = []
    for name, student in result.students.items():
        start, end = said[name]
        table.append(Row(f"{name}: relative change of the logits", f"{student.start_error:.0e}", start))
        distinct = f"{student.distinct[0]} -> {student.distinct[-1]} of {2 * WIDTH}"
        table.append(Row(f"{name}: distinct hidden units, start -> end", distinct, end))
        table.append(Row(f"{name}: training loss at the end", f"{student.loss[-1]:.1e}", "-"))
    accuracies = " / ".join(f"{100 * student.accuracy:.1f}" for student in result.students.values())
    table.append(
        Row(
            "test accuracy in %, teacher; students",
            f"{100 * result.teacher_accuracy:.1f}; {accuracies}",
            "other data (ImageNet)",
        )
    )
    return table


def picture(result: Result) -> Figure:
    """Plot distinct units and the loss against the optimizer step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    units, loss = figure.subplots(1, 2)
    styles = ["-", "--", "-.", ":"]
    for style, (name, student) in zip(styles, result.students.items(), strict=True):
        units.plot([step + 1 for step in student.steps], student.distinct, style, label=name, linewidth=2)
        loss.plot(student.steps, student.loss, style, linewidth=2)
    units.set(xscale="log", xlabel="optimizer step + 1", ylabel=f"distinct units of {2 * WIDTH}")
    units.set_ylim(0, 2 * WIDTH + 4)
    units.axhline(WIDTH, color="grey", linewidth=0.8)
    units.text(1, WIDTH - 4, "width of the teacher", color="grey")
    units.legend(loc="lower right")
    loss.set(yscale="log", xlabel="optimizer step", ylabel="cross-entropy on the training images")
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Net2Net: width growth by copying units")
    result = run(short=options.short)
    show("Net2WiderNet (arXiv 1511.05641)", rows(result), picture(result), options.output, "net2wider")


if __name__ == "__main__":
    main()
