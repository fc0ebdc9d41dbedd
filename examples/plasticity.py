"""Loss of plasticity: a network that learns one task after another learns worse and worse.

Paper: Shibhansh Dohare, J. Fernando Hernandez-Garcia, Parash Rahman, A. Rupam Mahmood and Richard S. Sutton (2023),
"Loss of Plasticity in Deep Continual Learning", arXiv 2306.13812, called "Maintaining Plasticity in Deep Continual
Learning" in some of its versions; in 2024 in Nature, https://doi.org/10.1038/s41586-024-07711-7.

The claim: with plain backpropagation, the accuracy on later tasks falls, while dead units become more, weights larger,
and the effective rank of the representation smaller. L2 regularisation and shrink-and-perturb (the same, and a little
noise on all weights at each step) ease it. So does making little used units anew all the time, which keeps dead units
away altogether (the authors' continual backpropagation).

How: in place of MNIST, scikit-learn's digits, whose pixels are permuted anew for each task. A ReLU network with two
hidden layers sees every image of a task once, in small batches. Its online accuracy is the share of images that it has
right as it sees them for the first time. Plain backpropagation is compared with L2 regularisation, shrink-and-perturb,
and dead units that are recycled after each task, which is close to continual backpropagation, but not the same.

What comes out, for one network each: all that is claimed of plain backpropagation. Recycling keeps dead units away, but
accuracy and effective rank fall a little. Shrink-and-perturb eases the fall of the accuracy; L2 regularisation alone
hardly does, at this strength and in so few tasks.

What `lightning_symmetry` does in it: the `ActivationProbe` measures dead units and the effective rank at the start of
each task, as the authors do; `SymmetryTracker` tells which units are dead, and `break_symmetry` recycles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from examples.showing import Row, arguments, show
from lightning_symmetry import ActivationProbe, SymmetryTracker, break_symmetry

PLAIN, L2, PERTURB, RECYCLE = "backpropagation", "L2 regularisation", "shrink and perturb", "dead units recycled"
_WIDTH = 50
_RATE = 0.2
_BATCH = 8
_ACTIVATIONS = ("1", "3")  # the names of the two hidden layers' ReLUs
_SMOOTH = 5


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Attributes:
        weight_decay: the factor of the L2 penalty.
        noise: the standard deviation of the noise that is added to every parameter at each step.
        recycles: whether dead units are made anew after each task.
    """

    weight_decay: float = 0.0
    noise: float = 0.0
    recycles: bool = False


METHODS = {
    PLAIN: Method(),
    L2: Method(weight_decay=1e-3),
    PERTURB: Method(weight_decay=1e-3, noise=1e-3),
    RECYCLE: Method(recycles=True),
}


@dataclass(frozen=True)
class Task:
    """One task in the life of a network.

    Attributes:
        accuracy: the share of images that it had right when it saw them for the first time.
        dead: the share of hidden units that are zero for every image, at the start of the task.
        rank: the effective rank of the hidden layers, their mean, at the start of the task.
        weight: the mean absolute weight at the start of the task.
        num_recycled: how many units were made anew after it.
    """

    accuracy: float
    dead: float
    rank: float
    weight: float
    num_recycled: int


@dataclass(frozen=True)
class Result:
    """The tasks of each method, in their order."""

    lives: dict[str, list[Task]]


def _network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(64, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 10)
    )
    generator = Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    return network


@torch.no_grad()
def redundancy(network: nn.Sequential, images: Tensor) -> tuple[float, float]:
    """The share of dead hidden units, and the effective rank of the hidden layers, both as means of the layers."""
    with ActivationProbe(network, every_n_steps=1) as probe:
        network(images)
    measured = probe.compute()
    dead, rank = (
        mean(float(measured[f"symmetry/{metric}/{name}"]) for name in _ACTIVATIONS)
        for metric in ("dead_activations", "effective_rank")
    )
    return dead, rank


@torch.no_grad()
def _perturb(network: nn.Sequential, scale: float, generator: Generator) -> None:
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


@torch.no_grad()
def _mean_weight(network: nn.Sequential) -> float:
    return float(torch.cat([weight.flatten() for weight in network.parameters() if weight.ndim > 1]).abs().mean())


def live(method: Method, num_tasks: int) -> list[Task]:
    """Train a network on one task after another."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    generator, noise = Generator().manual_seed(1), Generator().manual_seed(2)
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, weight_decay=method.weight_decay)
    tasks = []
    with SymmetryTracker(network, optimizer, every_n_steps=25, on_symmetry="ignore") as tracker:
        for _ in range(num_tasks):
            permuted = images[:, torch.randperm(64, generator=generator)]
            dead, rank = redundancy(network, permuted)
            weight = _mean_weight(network)
            num_right = torch.zeros(())
            for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
                logits = network(permuted[batch])
                num_right += (logits.argmax(dim=1) == labels[batch]).sum()
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, labels[batch]).backward()
                optimizer.step()
                if method.noise:
                    _perturb(network, method.noise, noise)
            num_recycled = 0
            if method.recycles and tracker.report is not None:
                changes = break_symmetry(network, tracker.report, optimizer=optimizer)
                num_recycled = sum(len(change.units) for change in changes)
            tasks.append(Task(float(num_right) / len(labels), dead, rank, weight, num_recycled))
    return tasks


def run(*, short: bool) -> Result:
    """Train one network per method; the short form plain backpropagation and recycling on a few tasks only."""
    names = (PLAIN, RECYCLE) if short else tuple(METHODS)
    return Result({name: live(METHODS[name], 8 if short else 30) for name in names})


def early_and_late(values: list[float]) -> tuple[float, float]:
    """The means over the first and the last fifth of the tasks.

    >>> early_and_late([1.0, 2.0, 3.0, 4.0, 6.0])
    (1.0, 6.0)
    """
    fifth = max(1, len(values) // 5)
    return mean(values[:fifth]), mean(values[-fifth:])


def rows(result: Result) -> list[Row]:
    """The table: means over the first and the last fifth of the tasks."""
    said = {
        PLAIN: ("falls", "more", "smaller", "larger"),
        L2: ("falls less", "more", "smaller", "stay small"),
        PERTURB: ("hardly falls", "more", "smaller", "stay small"),
        RECYCLE: ("does not fall *", "almost none *", "stays high *", "stay small *"),
    }
    table = []
    for name, tasks in result.lives.items():
        figures = (
            ("online accuracy in %", [100 * task.accuracy for task in tasks], "{:.1f}"),
            ("dead units in %", [100 * task.dead for task in tasks], "{:.0f}"),
            ("effective rank", [task.rank for task in tasks], "{:.1f}"),
            ("mean absolute weight", [task.weight for task in tasks], "{:.2f}"),
        )
        for (quantity, values, style), paper in zip(figures, said[name], strict=True):
            ours = " -> ".join(style.format(value) for value in early_and_late(values))
            table.append(Row(f"{name}: {quantity}, early -> late tasks", ours, paper))
    table.append(Row("units recycled in all", str(sum(task.num_recycled for task in result.lives[RECYCLE])), "-"))
    table.append(Row("*", "dead units only", "continual backpropagation: little used ones"))
    return table


def smooth(values: list[float]) -> list[float]:
    """The means of five values in a row each.

    >>> smooth([1.0, 2.0, 3.0, 4.0, 5.0, 11.0])
    [3.0, 5.0]
    """
    return [mean(values[end - _SMOOTH : end]) for end in range(_SMOOTH, len(values) + 1)]


def picture(result: Result) -> Figure:
    """Accuracy, dead units and effective rank against the number of the task."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, dead, rank = figure.subplots(1, 3)
    for style, (name, tasks) in zip(["-", "--", "-.", ":"], result.lives.items(), strict=False):
        numbers = range(_SMOOTH, len(tasks) + 1)
        accuracy.plot(numbers, smooth([100 * task.accuracy for task in tasks]), style, linewidth=2, label=name)
        dead.plot(numbers, smooth([100 * task.dead for task in tasks]), style, linewidth=2)
        rank.plot(numbers, smooth([task.rank for task in tasks]), style, linewidth=2)
    accuracy.set_ylabel("online accuracy in %")
    dead.set_ylabel("dead units in %, at the start of a task")
    rank.set_ylabel(f"effective rank of {_WIDTH} units, likewise")
    for axes in (accuracy, dead, rank):
        axes.set_xlabel(f"task; means of the latest {_SMOOTH}")
    figure.legend(loc="outside upper center", ncols=len(result.lives))
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Loss of plasticity in continual learning")
    torch.set_num_threads(1)  # in networks as small as these, threads wait for one another most of the time
    result = run(short=options.short)
    show("Loss of plasticity (arXiv 2306.13812)", rows(result), picture(result), options.output, "plasticity")


if __name__ == "__main__":
    main()
