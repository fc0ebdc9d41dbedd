"""Hidden units that condense onto a few directions, as many as the activation function allows.

Paper: Hanxu Zhou, Qixuan Zhou, Tao Luo, Yaoyu Zhang and Zhi-Qin John Xu (2021), "Towards Understanding the Condensation
of Neural Networks at Initial Training", arXiv 2105.11686.

The claim: after a small initialisation the rows of a hidden layer, weights and bias, first turn onto isolated
orientations, while the network still computes next to nothing. There are at most twice as many of them as the
multiplicity ``p`` of the activation function, the order of its first derivative at 0 that is not zero. They come in
opposite pairs: ``p`` lines, which the paper proves for one input, and for any number of inputs if ``p`` is 1.

How: the network and the function of the paper's figures 5 and 6, with one input, 100 hidden units, and the activations
``tanh x``, ``x tanh x`` and ``x^2 tanh x`` of multiplicity 1, 2 and 3. The theory is about gradient flow. Along it,
units with large weights grow faster, and would fit the data before the others have turned. So the gradient of each unit
is rescaled to 2 % of the unit's norm: it takes the same path, and all turn in time. The network and the function of
figure 2, with five inputs, are trained in the same way; both also with Adam and the paper's settings.

Settings and the numbers of figures are those of the version of the paper that was under review.

What comes out: the flow condenses onto exactly ``p`` lines and ``2 p`` orientations with one input. With five, it does
so for ``p`` up to 2, but onto more than 3 lines for ``p = 3``, which the paper does not prove. With Adam the units turn
to few lines as well, but not closely enough to count as one within a cosine of 0.999; in the paper's pictures, which
show cosines as colours, such differences cannot be seen.

What `lightning_symmetry` does in it: `report.layers[...].orientations` counts the lines, which are directions up to
sign, at a cosine similarity of 0.999; `effective_width` of rows of length 1, at the same cosine, counts orientations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.showing import Row, arguments, show
from lightning_symmetry import diagnose
from lightning_symmetry.functional import effective_width

MULTIPLICITIES = (1, 2, 3)
FLOW, FLOW_5, ADAM, ADAM_5 = "flow, 1 input", "flow, 5 inputs", "Adam, 1 input", "Adam, 5 inputs"
NAMES = {1: "tanh x", 2: "x tanh x", 3: "x² tanh x"}
_HIDDEN = "0"  # the name of the hidden layer
_TOLERANCE = math.sqrt(2 - 2 * 0.999)  # the distance of two rows of length 1 with this cosine
_SPEED = 0.02


class Activation(nn.Module):
    """``x ** (p - 1) * tanh(x)``, whose multiplicity is ``p``."""

    def __init__(self, multiplicity: int) -> None:
        super().__init__()
        self._power = multiplicity - 1

    def forward(self, features: Tensor) -> Tensor:
        """Apply the activation to each element."""
        return features**self._power * features.tanh()


@dataclass(frozen=True)
class Problem:
    """A function to be fitted.

    Attributes:
        inputs: ``(samples, inputs)``.
        targets: ``(samples, 1)``.
        num_hidden: number of hidden units.
    """

    inputs: Tensor
    targets: Tensor
    num_hidden: int


@dataclass(frozen=True)
class Training:
    """The settings of a training.

    Attributes:
        problem: the function to be fitted.
        scale: standard deviation of the initial weights.
        adam_rate: the learning rate of Adam; None: gradient flow with units of equal speed.
        num_steps: number of steps.
        every_n_steps: steps between observations.
    """

    problem: Problem
    scale: float
    adam_rate: float | None
    num_steps: int
    every_n_steps: int


@dataclass(frozen=True)
class Condensed:
    """The development of the hidden units of one network.

    Attributes:
        steps: the observed steps.
        lines: the number of directions up to sign at each of them.
        orientations: the number of directions at each of them.
        num_initial: how many of these steps belong to the initial stage, with a loss within 1 % of the first.
        first_rows: the initial rows, weights and bias, ``(units, inputs + 1)``.
        rows: the rows at the end of the initial stage.
    """

    steps: tuple[int, ...]
    lines: tuple[int, ...]
    orientations: tuple[int, ...]
    num_initial: int
    first_rows: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Result:
    """The networks by training and multiplicity, one per seed."""

    networks: dict[tuple[str, int], list[Condensed]]


def one_input() -> Problem:
    """Return ``sin 3x + sin(6x) / 2`` at 40 points between -1 and 1.5, as in the paper's figures 5 and 6."""
    inputs = torch.linspace(-1, 1.5, 40, dtype=torch.float64)[:, None]
    return Problem(inputs, (3 * inputs).sin() + (6 * inputs).sin() / 2, num_hidden=100)


def five_inputs() -> Problem:
    """Return the sum of ``3.5 sin(5x + 1)`` over five inputs, at 80 random points, as in the paper's figure 2."""
    inputs = 6 * torch.rand(80, 5, dtype=torch.float64, generator=Generator().manual_seed(0)) - 4
    return Problem(inputs, (3.5 * (5 * inputs + 1).sin()).sum(dim=1, keepdim=True), num_hidden=50)


def trainings() -> dict[str, Training]:
    """Return all trainings by name; those with Adam have the paper's settings."""
    return {
        FLOW: Training(one_input(), scale=1e-5, adam_rate=None, num_steps=500, every_n_steps=20),
        FLOW_5: Training(five_inputs(), scale=1e-11, adam_rate=None, num_steps=1000, every_n_steps=500),
        ADAM: Training(one_input(), scale=0.005, adam_rate=5e-4, num_steps=200, every_n_steps=200),
        ADAM_5: Training(five_inputs(), scale=0.005, adam_rate=1e-3, num_steps=100, every_n_steps=100),
    }


def _network(training: Training, multiplicity: int, seed: int) -> nn.Sequential:
    """The network ``sum(a_j f(w_j x + b_j))`` with small random weights and biases."""
    num_inputs, num_hidden = training.problem.inputs.shape[1], training.problem.num_hidden
    network = nn.Sequential(
        nn.Linear(num_inputs, num_hidden, dtype=torch.float64),
        Activation(multiplicity),
        nn.Linear(num_hidden, 1, bias=False, dtype=torch.float64),
    )
    generator = Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=training.scale, generator=generator)
    return network


def _by_unit(weight: Tensor, bias: Tensor, outgoing: Tensor) -> Tensor:
    """Return incoming weights, bias and outgoing weight of each hidden unit, ``(units, inputs + 2)``."""
    return torch.cat([weight, bias[:, None], outgoing.T], dim=1)


@torch.no_grad()
def equalize_speed(network: nn.Sequential) -> None:
    """Rescale the gradient of each hidden unit, including its outgoing weight, to 2 % of the unit's norm."""
    parameters = list(network.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    lengths, speeds = _by_unit(*parameters).norm(dim=1), _by_unit(*gradients).norm(dim=1)
    factors = _SPEED * lengths / speeds
    for gradient, factor in zip(gradients, (factors[:, None], factors, factors), strict=True):
        gradient *= factor


def num_lines(network: nn.Sequential) -> int:
    """Count the directions, up to sign, of the rows of the hidden layer."""
    found = diagnose(network).layers[_HIDDEN].orientations
    assert found is not None  # of a layer as small as this
    return found


def num_orientations(rows: Tensor) -> int:
    """Count the directions of rows ``(units, inputs + 1)``."""
    return int(effective_width(nn.functional.normalize(rows), _TOLERANCE))


def train(training: Training, multiplicity: int, seed: int) -> Condensed:
    """Train a network, and count the directions of its hidden units."""
    network, rate = _network(training, multiplicity, seed), training.adam_rate
    optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    if rate is not None:
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    looks: list[tuple[int, int, int, float, Tensor]] = []
    for step in range(training.num_steps + 1):
        optimizer.zero_grad()
        loss = (network(training.problem.inputs) - training.problem.targets).square().mean() / 2
        if step % training.every_n_steps == 0:
            weight, bias, _ = network.parameters()
            rows = torch.cat([weight, bias[:, None]], dim=1).detach()
            looks.append((step, num_lines(network), num_orientations(rows), loss.item(), rows))
        loss.backward()
        if rate is None:
            equalize_speed(network)
        optimizer.step()
    steps, lines, orientations, losses, all_rows = zip(*looks, strict=True)
    num_initial = sum(value >= 0.99 * losses[0] for value in losses)
    return Condensed(steps, lines, orientations, num_initial, all_rows[0], all_rows[num_initial - 1])


def run(*, short: bool) -> Result:
    """Train all networks; the short form only one of each multiplicity, with one input."""
    num_seeds = {FLOW: 1} if short else {FLOW: 5, FLOW_5: 3, ADAM: 3, ADAM_5: 3}
    chosen = {name: training for name, training in trainings().items() if name in num_seeds}
    return Result(
        {
            (name, multiplicity): [train(training, multiplicity, seed) for seed in range(num_seeds[name])]
            for name, training in chosen.items()
            for multiplicity in MULTIPLICITIES
        }
    )


def _range(counts: Sequence[int]) -> str:
    """Return the smallest and the largest count as text.

    >>> _range([3, 2, 2]), _range([2, 2])
    ('2 to 3', '2')
    """
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    table = []
    for (name, multiplicity), networks in result.networks.items():
        # The paper shows the networks trained with Adam after a fixed number of steps.
        last = [len(one.steps) - 1 if name in (ADAM, ADAM_5) else one.num_initial - 1 for one in networks]
        lines = _range([one.lines[at] for one, at in zip(networks, last, strict=True)])
        orientations = _range([one.orientations[at] for one, at in zip(networks, last, strict=True)])
        said = {
            FLOW: f"at most {multiplicity}; {2 * multiplicity}: by theory",
            FLOW_5: f"at most {multiplicity}; {2 * multiplicity}: "
            + ("by theory" if multiplicity == 1 else "conjectured"),
            ADAM: f"{multiplicity}; {2 * multiplicity}, to the eye (figure 6)",
            ADAM_5: f"{multiplicity}; {2 * multiplicity}, to the eye (figure 2)",
        }
        seeds = f"seeds: {len(networks)}"
        quantity = f"{name}, {NAMES[multiplicity]}: lines; orientations"
        table.append(Row(quantity, f"{lines}; {orientations} ({seeds})", said[name]))
    return table


def _draw_directions(axes: Axes, network: Condensed) -> None:
    """Plot all rows in the plane of weight and bias, at the start and at the end of the initial stage."""
    start, end = nn.functional.normalize(network.first_rows), nn.functional.normalize(network.rows)
    for weight, bias in end.tolist():
        axes.plot([0, weight], [0, bias], color="C0", linewidth=0.8)
    axes.scatter(*(1.25 * start).T.tolist(), s=10, color="grey", label="at the start")
    axes.scatter(*end.T.tolist(), s=40, color="C0", label="end of the initial stage")
    axes.set(xlim=(-1.7, 1.7), ylim=(-1.9, 1.5), aspect="equal", xlabel="weight", xticks=[], yticks=[])


def _draw_counts(axes: Axes, multiplicity: int, networks: Sequence[Condensed]) -> None:
    for network in networks:
        axes.plot(network.steps, network.orientations, color="C1", label="orientations")
        axes.plot(network.steps, network.lines, color="C0", label="lines")
    for count, color in ((2 * multiplicity, "C1"), (multiplicity, "C0")):
        axes.axhline(count, color=color, linestyle=":", linewidth=1)
    axes.axvspan(0, networks[0].steps[networks[0].num_initial - 1], color="grey", alpha=0.15)
    axes.set(yscale="log", xlabel="step", ylim=(0.8, 110))
    axes.set_yticks([1, 2, 3, 4, 6, 10, 30, 100], labels=["1", "2", "3", "4", "6", "10", "30", "100"])
    axes.minorticks_off()


def picture(result: Result) -> Figure:
    """Plot the directions of the rows, and their number against the step, for the flow with one input."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.subplots(2, len(MULTIPLICITIES), height_ratios=(1.1, 1))
    for (above, below), multiplicity in zip(grid.T, MULTIPLICITIES, strict=True):
        networks = result.networks[FLOW, multiplicity]
        _draw_directions(above, networks[0])
        above.set_title(f"{NAMES[multiplicity]}: multiplicity {multiplicity}")
        _draw_counts(below, multiplicity, networks)
    grid[0, 0].set_ylabel("bias")
    grid[1, 0].set_ylabel("number of directions of 100 units")
    grid[0, 0].legend(loc="lower center", ncols=2, fontsize=8, handletextpad=0.2, columnspacing=1)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    grid[1, 0].legend(handles[:2], labels[:2])
    grid[1, 2].text(15, 60, "initial stage: the loss is\nwithin 1 % of the first", color="dimgrey", fontsize=9)
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Condensation of hidden units onto few directions")
    torch.set_num_threads(1)  # for such small networks, several threads are slower than one
    result = run(short=options.short)
    show("Condensation (arXiv 2105.11686)", rows(result), picture(result), options.output, "condensation")


if __name__ == "__main__":
    main()
