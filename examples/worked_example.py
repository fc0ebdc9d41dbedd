"""The smallest network that shows the whole idea, by hand and in numbers.

Source: `docs/idea.md` of this repository, "Worked through". Two inputs, two hidden layers of two units, one output,
identity activations, no bias, and the output as the loss::

    y1 = w1 x1 + w3 x2    y3 = w5 y1 + w7 y2    y = w9 y3 + w10 y4
    y2 = w2 x1 + w4 x2    y4 = w6 y1 + w8 y2

The claims: from a constant start, the two units of either hidden layer train as one forever; "the first layer is fine,
because its inputs differ" is wrong; a random second layer breaks the symmetry of the first at once; weights of zero
never move; and rows that are permuted, `w5 = w8 != w6 = w7`, move in lockstep.

How: the gradients derived on the page train the network in exact fractions, and PyTorch trains it in
float64. All initial numbers are sums of powers of two, so that both start from the same point; the table shows
PyTorch's numbers as fractions.

What `lightning_symmetry` does in it: the tracker checks the units of each layer at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.showing import Row, arguments, show
from lightning_symmetry import SymmetryReport, SymmetryTracker

CONSTANT, RANDOM, ZERO, PERMUTED = "constant 1/2", "other second layer", "zero", "permuted second layer"
INPUTS = (Fraction(3, 4), Fraction(-1, 2))
LEARNING_RATE = Fraction(1, 1024)
NUM_EXACT_STEPS = 8  # each step makes the fractions three times as long
HIDDEN = {"0": "first", "1": "second"}  # names of the hidden layers, here and on the page
_HALF, _QUARTER, _EIGHTH = Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)

Numbers = tuple[Fraction, ...]
"""One number for each of w1, ..., w10."""

STARTS: dict[str, Numbers] = {
    CONSTANT: (_HALF,) * 10,
    RANDOM: (*(_HALF,) * 4, _EIGHTH, 5 * _EIGHTH, 7 * _EIGHTH, -_QUARTER, _HALF, _HALF),
    ZERO: (Fraction(0),) * 10,
    PERMUTED: (*(_HALF,) * 4, _QUARTER, 3 * _QUARTER, 3 * _QUARTER, _QUARTER, _HALF, _HALF),
}


@dataclass(frozen=True)
class Look:
    """The tracker's report at one step.

    Attributes:
        distinct: by layer, the number of distinct units.
        verdicts: by layer, the verdict of its two units; "" if they are in no group.
    """

    distinct: dict[str, int]
    verdicts: dict[str, str]


@dataclass(frozen=True)
class Trained:
    """A training.

    Attributes:
        first_gradients: PyTorch's gradients of w1, ..., w10 at step 0.
        weights: PyTorch's w1, ..., w10 before each step.
        error: the largest distance of any weight from the exact fraction, over the first steps.
        looks: what the tracker said at each step.
    """

    first_gradients: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    error: float
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Result:
    """The trainings by their start."""

    trained: dict[str, Trained]


def gradients(w: Numbers) -> Numbers:
    """Return the gradients of y with respect to w1, ..., w10, as on the page."""
    (x1, x2), (w1, w2, w3, w4, w5, w6, w7, w8, w9, w10) = INPUTS, w
    y1, y2 = w1 * x1 + w3 * x2, w2 * x1 + w4 * x2
    y3, y4 = w5 * y1 + w7 * y2, w6 * y1 + w8 * y2
    to_y1, to_y2 = w9 * w5 + w10 * w6, w9 * w7 + w10 * w8
    return (to_y1 * x1, to_y2 * x1, to_y1 * x2, to_y2 * x2, w9 * y1, w10 * y1, w9 * y2, w10 * y2, y3, y4)


def by_hand(start: Numbers, num_steps: int) -> list[Numbers]:
    """Return the exact weights before each step of gradient descent."""
    weights = [start]
    while len(weights) < num_steps:
        updates = zip(weights[-1], gradients(weights[-1]), strict=True)
        weights.append(tuple(weight - LEARNING_RATE * gradient for weight, gradient in updates))
    return weights


def _network(start: Numbers) -> nn.Sequential:
    """Return the network of the page in float64; each row of a layer holds the weights of a unit."""
    w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 = map(float, start)
    network = nn.Sequential()
    for rows in ([[w1, w3], [w2, w4]], [[w5, w7], [w6, w8]], [[w9, w10]]):
        layer = nn.Linear(2, len(rows), bias=False, dtype=torch.float64)
        layer.load_state_dict({"weight": torch.tensor(rows, dtype=torch.float64)})
        network.append(layer)
    return network


def _in_order(tensors: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the entries for w1, ..., w10 of tensors with the shapes of the layers' weights."""
    return tuple(entry for tensor in tensors for entry in tensor.detach().T.flatten().tolist())


def _look(report: SymmetryReport) -> Look:
    layers = {called: report.layers[name] for name, called in HIDDEN.items()}
    return Look(
        {called: layer.effective_width for called, layer in layers.items()},
        {called: " ".join(str(group.verdict) for group in layer.groups) for called, layer in layers.items()},
    )


def train(start: Numbers, num_steps: int) -> Trained:
    """Train with PyTorch and a tracker."""
    network = _network(start)
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=float(LEARNING_RATE))
    inputs = torch.tensor([list(map(float, INPUTS))], dtype=torch.float64)
    all_gradients, weights, looks = [], [], []
    with SymmetryTracker(network, optimizer, every_n_steps=1, on_symmetry="ignore") as tracker:
        for _ in range(num_steps):
            weights.append(_in_order(parameters))
            optimizer.zero_grad()
            network(inputs).sum().backward()
            all_gradients.append(_in_order([parameter.grad for parameter in parameters if parameter.grad is not None]))
            optimizer.step()
            assert tracker.report is not None
            looks.append(_look(tracker.report))
    exact = by_hand(start, NUM_EXACT_STEPS)
    pairs = [pair for ours, hand in zip(weights, exact, strict=False) for pair in zip(ours, hand, strict=True)]
    error = max(abs(float(Fraction(ours) - hand)) for ours, hand in pairs)
    return Trained(all_gradients[0], tuple(weights), error, tuple(looks))


def run(*, short: bool) -> Result:
    """Train from all starts."""
    num_steps = NUM_EXACT_STEPS if short else 200
    return Result({name: train(start, num_steps) for name, start in STARTS.items()})


def _fractions(values: Sequence[float | Fraction]) -> str:
    return ", ".join(str(Fraction(value)) for value in values)


def _history(trained: Trained, layer: str) -> str:
    """Return the verdicts on a layer, each with its first step."""
    said = [look.verdicts[layer] or "distinct" for look in trained.looks]
    news = [step for step in range(len(said)) if step == 0 or said[step] != said[step - 1]]
    return ", ".join(f"{said[step]} (from step {step})" for step in news)


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    constant, num_steps = result.trained[CONSTANT], len(result.trained[CONSTANT].weights)
    slopes = gradients(STARTS[CONSTANT])
    last = constant.weights[-1][:4]
    table = [
        Row(f"{CONSTANT}: gradients of {names}", _fractions(constant.first_gradients[part]), _fractions(slopes[part]))
        for names, part in (
            ("w1, w2, w3, w4", slice(0, 4)),
            ("w5, w6, w7, w8", slice(4, 8)),
            ("w9, w10", slice(8, 10)),
        )
    ]
    table += [
        Row(f"{CONSTANT}: different numbers in the first layer, end", str(len(set(last))), "2: w1 = w2, w3 = w4"),
        Row(
            f"{CONSTANT}: distinct units of it, end", str(constant.looks[-1].distinct["first"]), "1: its rows are equal"
        ),
    ]
    said = {
        CONSTANT: ("locked for ever", "locked for ever"),
        RANDOM: ("breaking, apart after one step", "distinct"),
        ZERO: ("frozen, said at the third look", "frozen, said at the third look"),
        PERMUTED: ("locked for ever", "lockstep, which takes looks to tell"),
    }
    for name, trained in result.trained.items():
        for layer, hand in zip(HIDDEN.values(), said[name], strict=True):
            table.append(Row(f"{name}: {layer} layer, {num_steps} steps", _history(trained, layer), hand))
    errors = " / ".join(f"{trained.error:.0e}" for trained in result.trained.values())
    table.append(Row(f"distance from the exact weights, {NUM_EXACT_STEPS} steps", errors, "0"))
    return table


def picture(result: Result) -> Figure:
    """Plot the first layer's weights from the constant start, and the first verdicts from all starts."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    weights, verdicts = figure.subplots(1, 2, width_ratios=[1, 1.4])
    styles = [("tab:blue", "-", 5), ("black", "--", 1.5), ("tab:orange", "-", 5), ("black", ":", 1.5)]
    history = zip(*result.trained[CONSTANT].weights, strict=True)
    for i, (values, (color, style, width)) in enumerate(zip(history, styles, strict=False), start=1):
        weights.plot(values, style, color=color, linewidth=width, label=f"w{i}")
    weights.set(xlabel="optimizer step", ylabel="weight", title=f"{CONSTANT}: w1 and w3 part, the rows stay equal")
    weights.legend()
    _draw_verdicts(verdicts, result)
    return figure


def _draw_verdicts(axes: Axes, result: Result) -> None:
    """Plot a row for each start and hidden layer, with a square for each of the first steps."""
    lines = {
        f"{name}: {layer} layer": [look.verdicts[layer] or "distinct" for look in trained.looks[:NUM_EXACT_STEPS]]
        for name, trained in result.trained.items()
        for layer in HIDDEN.values()
    }
    for color, verdict in enumerate(["distinct", "breaking", "duplicate", "locked", "lockstep", "frozen"]):
        squares = [
            (step, y) for y, said in enumerate(lines.values()) for step, one in enumerate(said) if one == verdict
        ]
        steps, heights = zip(*squares, strict=True)
        axes.scatter(steps, heights, s=300, marker="s", color=f"C{color}", label=verdict)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set(xlabel="optimizer step", title="what the tracker says", ylim=(len(lines) - 0.4, -0.6))
    axes.set_xlim(-0.6, NUM_EXACT_STEPS - 0.4)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=0.5)


def main() -> None:
    """Run from the command line."""
    options = arguments("The worked example of docs/idea.md")
    result = run(short=options.short)
    title = "The worked example of docs/idea.md; the last column is by hand"
    show(title, rows(result), picture(result), options.output, "worked_example")


if __name__ == "__main__":
    main()
