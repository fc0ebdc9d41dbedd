"""Loss of plasticity: a network learns worse and worse in a sequence of tasks.

Paper: Shibhansh Dohare, J. Fernando Hernandez-Garcia, Parash Rahman, A. Rupam Mahmood and Richard S. Sutton (2023),
"Loss of Plasticity in Deep Continual Learning", arXiv 2306.13812, called "Maintaining Plasticity in Deep Continual
Learning" in some of its versions; in 2024 in Nature, https://doi.org/10.1038/s41586-024-07711-7.

The claim: with plain backpropagation, the accuracy on later tasks falls, while dead units become more, weights larger,
and the effective rank of the representation smaller. L2 regularisation and shrink-and-perturb (the same, and a little
noise on all weights at each step) reduce the loss. So does steady reinitialisation of little used units, which keeps
dead units away completely (the authors' continual backpropagation).

How: instead of MNIST, scikit-learn's digits, with a new permutation of pixels for each task. A ReLU network with two
hidden layers sees every image of a task once, in small batches. Its online accuracy is the share of images that it has
right when it first sees them. Plain backpropagation is compared with L2 regularisation, shrink-and-perturb,
and dead units that are recycled after each task, which is close to continual backpropagation, but not the same.

Results, for one network each: all claims about plain backpropagation hold. Recycling keeps dead units away, but
accuracy and effective rank fall a little. Shrink-and-perturb reduces the loss of accuracy; L2 regularisation alone
hardly does, at this strength and in so few tasks.

What `lightning_symmetry` does in it: the `ActivationProbe` measures dead units and the effective rank at the start of
each task, as the authors do; `SymmetryTracker` finds the dead units, and `break_symmetry` recycles them.
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
    """A method of training.

    Attributes:
        weight_decay: factor of the L2 penalty.
        noise: standard deviation of the noise added to every parameter at each step.
        recycles: whether dead units are recycled after each task.
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
    """One task of a network.

    Attributes:
        accuracy: the online accuracy.
        dead: share of hidden units that are zero for every image at the start of the task.
        rank: mean effective rank of the hidden layers at the start of the task.
        weight: mean absolute weight at the start of the task.
        num_recycled: number of units recycled after the task.
    """

    accuracy: float
    dead: float
    rank: float
    weight: float
    num_recycled: int


@dataclass(frozen=True)
class Result:
    """The tasks of each method, in order."""

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
    """Return the share of dead units and the effective rank, both as means of the hidden layers."""
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
    """Train one network per method; in the short form, only two methods on a few tasks."""
    names = (PLAIN, RECYCLE) if short else tuple(METHODS)
    return Result({name: live(METHODS[name], 8 if short else 30) for name in names})


def early_and_late(values: list[float]) -> tuple[float, float]:
    """Return the means over the first and the last fifth of the tasks.

    >>> early_and_late([1.0, 2.0, 3.0, 4.0, 6.0])
    (1.0, 6.0)
    """
    fifth = max(1, len(values) // 5)
    return mean(values[:fifth]), mean(values[-fifth:])


def rows(result: Result) -> list[Row]:
    """Return the lines of the table, with means over the first and the last fifth of the tasks."""
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
    """Return moving averages of five values.

    >>> smooth([1.0, 2.0, 3.0, 4.0, 5.0, 11.0])
    [3.0, 5.0]
    """
    return [mean(values[end - _SMOOTH : end]) for end in range(_SMOOTH, len(values) + 1)]


def picture(result: Result) -> Figure:
    """Plot accuracy, dead units and effective rank against the number of the task."""
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
    torch.set_num_threads(1)  # for such small networks, several threads are slower than one
    result = run(short=options.short)
    show("Loss of plasticity (arXiv 2306.13812)", rows(result), picture(result), options.output, "plasticity")


if __name__ == "__main__":
    main()
