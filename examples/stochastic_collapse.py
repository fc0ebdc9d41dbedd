"""Gradient noise that drives hidden units together.

Paper: Feng Chen, Daniel Kunin, Atsushi Yamamura and Surya Ganguli (2023), "Stochastic Collapse: How Gradient Noise
Attracts SGD Dynamics Towards Simpler Subnetworks", arXiv 2306.04251.

The claim: if two hidden units have equal incoming and outgoing weights, they stay equal under SGD, whatever the
data: an invariant set. Gradient noise attracts SGD towards it, the more the stronger the noise is, from labels or
from a large learning rate; so networks collapse to fewer independent units.

How: the toy network that the authors publish with the paper, one input, GELU units and one output, trained on 8 random
points with a momentum of 0.9, once with and once without new noise on the labels at each step, at several sizes of the
noise and of the learning rate; here with 8 hidden units instead of 2. All networks of a seed have the same initial
weights and the same noise. All networks are trained at once, as the groups of a grouped convolution: no group depends
on another one, and only units of the same group are compared.

Results: without noise no two units ever become equal. With noise they do, mostly the sooner the larger noise and
learning rate are. How many are left depends on the seed, and under the strongest noise some equal units diverge again.
The paper's other invariant set, units that vanish, is not examined.

What `lightning_symmetry` does in it: the tracker finds the units of each network that train as one, and when.
It uses its own tolerance, a relative distance of 0.00001, which is stricter than similarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.showing import Row, arguments, show
from lightning_symmetry import Finding, LayerDiagnosis, SymmetryTracker, Verdict

NUM_HIDDEN = 8
NUM_SEEDS = 3
_HIDDEN = "0"  # the name of the hidden layer
_NUM_POINTS = 8


@dataclass(frozen=True, order=True)
class Setting:
    """The settings of a training: the learning rate, and the standard deviation of the noise on the labels."""

    rate: float
    noise: float

    def __str__(self) -> str:
        return f"rate {self.rate}, noise {self.noise}"


BY_NOISE = (Setting(0.1, 0.0), Setting(0.1, 0.1), Setting(0.1, 0.4), Setting(0.1, 0.8))
BY_RATE = (Setting(0.3, 0.0), Setting(0.1, 0.1), Setting(0.2, 0.1), Setting(0.3, 0.1))
SETTINGS = tuple(sorted({*BY_NOISE, *BY_RATE}))


@dataclass(frozen=True)
class Collapse:
    """The networks of one setting.

    Attributes:
        distinct: for every check, the number of independent units of each network.
        first_steps: for each network, the first step at which units train as one; None if they never do.
    """

    distinct: tuple[tuple[int, ...], ...]
    first_steps: tuple[int | None, ...]


@dataclass(frozen=True)
class Result:
    """The steps of the checks, and the result of each setting."""

    steps: tuple[int, ...]
    collapses: dict[Setting, Collapse]


def _data() -> tuple[Tensor, Tensor]:
    """Draw the authors' points and labels, both ``(8,)``: standard normal, from seed 0."""
    generator = Generator().manual_seed(0)
    points, _, labels = (torch.randn(_NUM_POINTS, generator=generator) for _ in ("points", "test points", "labels"))
    return points, labels


def _networks() -> nn.Sequential:
    """Make the networks for all settings and seeds, in this order, as groups; initial weights depend on the seed."""
    num_groups = len(SETTINGS) * NUM_SEEDS
    networks = nn.Sequential(
        nn.Conv1d(num_groups, num_groups * NUM_HIDDEN, 1, groups=num_groups, bias=False),
        nn.GELU(),
        nn.Conv1d(num_groups * NUM_HIDDEN, num_groups, 1, groups=num_groups, bias=False),
    )
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for weight, scale in zip(networks.parameters(), (1.0, NUM_HIDDEN**-0.5), strict=True):
            of_one_setting = weight[: len(weight) // len(SETTINGS)].normal_(std=scale, generator=generator).clone()
            weight.copy_(of_one_setting.repeat(len(SETTINGS), 1, 1))
    return networks


def _each_group(values: Sequence[float]) -> Tensor:
    """Return a column with a number per network, given one per setting."""
    return torch.tensor(values).repeat_interleave(NUM_SEEDS)[:, None]


def distinct_units(layer: LayerDiagnosis) -> list[int]:
    """Count the hidden units of each network that do not train as one with an earlier unit."""
    distinct = [NUM_HIDDEN] * (layer.num_units // NUM_HIDDEN)
    for group in layer.groups:
        if group.verdict is Verdict.LOCKED:
            distinct[group.units[0] // NUM_HIDDEN] -= len(group.units) - 1
    return distinct


def first_steps(findings: Sequence[Finding], num_networks: int) -> list[int | None]:
    """Return the first step at which units of each network train as one."""
    steps: dict[int, int] = {}
    for finding in findings:
        if finding.layer == _HIDDEN and finding.verdict is Verdict.LOCKED:
            network = finding.units[0] // NUM_HIDDEN
            steps[network] = min(finding.first_step, steps.get(network, finding.first_step))
    return [steps.get(network) for network in range(num_networks)]


def run(*, short: bool) -> Result:
    """Train all networks; in the short form, for a quarter of the steps."""
    num_steps, every_n_steps = (1500, 100) if short else (6000, 100)
    points, labels = _data()
    networks = _networks()
    num_networks = len(SETTINGS) * NUM_SEEDS
    rates = _each_group([setting.rate for setting in SETTINGS])
    sizes = _each_group([setting.noise for setting in SETTINGS])
    generator = Generator().manual_seed(1)
    optimizer = torch.optim.SGD(networks.parameters(), lr=1.0, momentum=0.9)
    history: list[tuple[int, list[int]]] = []
    with SymmetryTracker(networks, optimizer, every_n_steps=every_n_steps, on_symmetry="ignore") as tracker:
        for step in range(num_steps):
            noise = torch.randn(NUM_SEEDS, _NUM_POINTS, generator=generator).repeat(len(SETTINGS), 1)
            errors = networks(points.expand(1, num_networks, -1))[0] - labels - sizes * noise
            optimizer.zero_grad()
            # Scaling the loss of a network scales its learning rate.
            (rates * errors.square() / 2).mean(dim=1).sum().backward()
            optimizer.step()
            report = tracker.report
            if report is not None and report.step == step:
                history.append((step, distinct_units(report.layers[_HIDDEN])))
    since = first_steps(tracker.findings, num_networks)
    collapses = {}
    for index, setting in enumerate(SETTINGS):
        own = slice(index * NUM_SEEDS, (index + 1) * NUM_SEEDS)
        collapses[setting] = Collapse(tuple(tuple(distinct[own]) for _, distinct in history), tuple(since[own]))
    return Result(tuple(step for step, _ in history), collapses)


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    table = []
    for setting, collapse in result.collapses.items():
        distinct = ", ".join(str(number) for number in collapse.distinct[-1])
        since = ", ".join("never" if step is None else str(step) for step in collapse.first_steps)
        said = "noise attracts to fewer" if setting.noise else "nothing attracts them"
        table.append(Row(f"{setting}: units left of {NUM_HIDDEN}, by seed", distinct, said))
        table.append(Row(f"{setting}: first units as one since step", since, "sooner with more noise, larger rates"))
    return table


def _draw(axes: Axes, result: Result, labels: Mapping[Setting, str]) -> None:
    """Plot the mean number of independent units over the seeds against the step."""
    for index, (setting, label) in enumerate(labels.items()):
        color = f"C{index}" if setting.noise else "black"
        collapse = result.collapses[setting]
        curve = [mean(distinct) for distinct in collapse.distinct]
        axes.plot(result.steps, curve, color=color, linestyle="-" if setting.noise else "--", label=label, linewidth=2)
        dates = [step for step in collapse.first_steps if step is not None]
        axes.scatter(dates, [0.4 + 0.3 * index] * len(dates), color=color, marker="|", s=60)
    axes.set(xlabel="step", ylim=(0, NUM_HIDDEN + 2.4), yticks=range(NUM_HIDDEN + 1))
    axes.legend(loc="upper center", ncols=2)


def picture(result: Result) -> Figure:
    """Plot independent units against the step, by the size of the noise and by the learning rate."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_noise, by_rate = figure.subplots(1, 2, sharey=True)
    _draw(by_noise, result, {setting: f"label noise {setting.noise}" for setting in BY_NOISE})
    _draw(
        by_rate,
        result,
        {setting: f"rate {setting.rate}" + ("" if setting.noise else ", no noise") for setting in BY_RATE},
    )
    by_noise.set(title="learning rate 0.1", ylabel=f"independent units of {NUM_HIDDEN}, mean of {NUM_SEEDS} seeds")
    by_rate.set_title("label noise 0.1")
    by_rate.text(0.99, 0.15, "bars: first units as one, each seed", ha="right", transform=by_rate.transAxes, fontsize=9)
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Stochastic collapse: gradient noise drives units together")
    torch.set_num_threads(1)  # for such small networks, several threads are slower than one
    result = run(short=options.short)
    show("Stochastic collapse (arXiv 2306.04251)", rows(result), picture(result), options.output, "stochastic_collapse")


if __name__ == "__main__":
    main()
