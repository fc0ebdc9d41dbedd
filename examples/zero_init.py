"""Initialisation with zeros and ones only, and the units that it makes twins forever.

Paper: Jiawei Zhao, Florian Schäfer and Anima Anandkumar (2021), "ZerO Initialization: Initializing Neural Networks with
only Zeros and Ones", arXiv 2110.12661. The setting is that of its authors' notebook, `example_mnist.ipynb` in the
repository jiaweizzhao/ZerO-initialization: layers n-n-w-w-10 without biases, ReLU, cross-entropy, SGD with a learning
rate of 0.1 and batches of 64; n is the number of pixels, and w > n. Algorithm 1 makes a matrix with more rows than
columns from the first rows and columns of a Hadamard matrix, scaled, and every other one from the identity, cropped.

The claim (theorem 1, figure 3): if the matrix that widens is the identity too, padded with zeros (*partial identity*),
the rank of W3 - I, where W3 is the square matrix behind it, never exceeds n; the Hadamard matrix breaks this
constraint, and training works.

Proven here, and not in the paper: with the Hadamard matrix, the rank never exceeds q + 10, where q is the
smallest power of two that is at least n, however wide the layer. Entry (i, j) of it is -1 to the number of binary ones
of i AND j. Columns j < n use the lowest log2(q) bits only, so rows i and i + q are equal. Exchange two such *twins* in
all layers: W2 stays, as its rows are equal; W3 = I stays, as its rows and columns are exchanged alike; and the partial
identity W4 stays if neither is among the first 10 units, as both columns are zero. An exchange that leaves all weights
unchanged leaves the gradients of every batch unchanged, and so all weights after a step of SGD, momentum or Adam:
by induction such twins are twins forever. Only units that W4 reads can diverge from theirs. So at most q + 10 units
differ, their activations span no more dimensions, and every gradient of W3 is a sum of products with them.

The paper also has an algorithm for convolutions and residual networks, which is not run here. The residual form here is
that of the authors' first code (`cifar/augskip_resnet.py` of the first commits) with linear layers: a Hadamard matrix
of the padded input that is not trained, residual branches and head of zeros. By the same argument all twins persist,
as no weight distinguishes them; this covers one width only, without the later steps to more channels.

How: the networks learn scikit-learn's digits, so n = 64, q = 64, and w = 128. What is exact in the argument is rounded
to float32 here. The bound may not matter: with noise, which separates all twins, the rank is hardly
higher here and the accuracy the same. Units 6 and 70 never open on the digits, so they get no gradient and stay equal:
frozen in the plain form, though W4 reads the first; in the residual form their verdict stays "breaking".

What `lightning_symmetry` does in it: the tracker counts distinct units, `duplicate_groups` counts equal rows, and
`break_symmetry` separates twins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.digits import Digits, load_digits
from examples.showing import Row, arguments, show
from lightning_symmetry import SymmetryTracker, break_symmetry, diagnose, duplicate_groups

RANDOM, IDENTITY, ZERO = "random", "partial identity", "ZerO"
ZERO_NOISE, RESIDUAL = "ZerO with noise", "ZerO, residual"
INPUTS, WIDTH, CLASSES = 64, 128, 10
SHAPES = ((64, 128), (3, 64), (784, 1024), (784, 2048))  # inputs, units
WIDER = {RESIDUAL: "stem"}  # the layer that widens; "2" in networks that are not listed
SQUARE = {RESIDUAL: "blocks.0"}  # the first square layer behind it; "4" in networks that are not listed


@dataclass(frozen=True)
class Trained:
    """The training of a network.

    Attributes:
        steps: the observed optimizer steps.
        distinct: the number of distinct units of the widening layer, at each of them.
        rank: the rank of the change W3 - I of the square layer behind it, after each of them.
        groups: the units of the widening layer that are equal at the end.
        verdicts: the tracker's verdicts on these groups.
        accuracy: the final test accuracy.
    """

    steps: tuple[int, ...]
    distinct: tuple[int, ...]
    rank: tuple[int, ...]
    groups: frozenset[tuple[int, ...]]
    verdicts: frozenset[str]
    accuracy: float


@dataclass(frozen=True)
class Result:
    """The trainings by initialisation, and the numbers of distinct rows of Hadamard matrices of some shapes."""

    trained: dict[str, Trained]
    distinct_rows: tuple[int, ...]


def zero_matrix(num_units: int, num_inputs: int) -> Tensor:
    """Return weights ``(num_units, num_inputs)`` of a linear layer, by algorithm 1."""
    if num_units <= num_inputs:
        return torch.eye(num_units, num_inputs)
    matrix = torch.ones(1, 1)
    while len(matrix) < num_units:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[:num_units, :num_inputs] / math.sqrt(len(matrix))


def num_distinct_rows(num_units: int, num_inputs: int) -> int:
    """Return how many rows of :func:`zero_matrix` differ by theory, if there are more units than inputs."""
    return min(num_units, 2 ** math.ceil(math.log2(num_inputs)))


def plain(initialisation: str) -> nn.Sequential:
    """Make the network of the authors' notebook, for digits."""
    network = nn.Sequential()
    for num_inputs, num_units in ((INPUTS, INPUTS), (INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES)):
        layer = nn.Linear(num_inputs, num_units, bias=False)
        if initialisation == RANDOM:
            nn.init.kaiming_normal_(layer.weight)
        elif initialisation == IDENTITY:
            nn.init.eye_(layer.weight)
        else:
            layer.load_state_dict({"weight": zero_matrix(num_units, num_inputs)})
        network.extend([layer, nn.ReLU()])
    return network[:-1]


class Residual(nn.Module):
    """The residual form: a fixed Hadamard matrix, and trained weights that start from zero."""

    hadamard: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hadamard", zero_matrix(WIDTH, INPUTS))
        self.stem = nn.Linear(INPUTS, WIDTH, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, 10)`` of images ``(n, 64)``."""
        features = self.stem(images) + images @ self.hadamard.T
        for block in self.blocks:
            features = features + block(features.relu())
        logits: Tensor = self.head(features.relu())
        return logits


def _networks() -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {name: plain(name) for name in (RANDOM, IDENTITY, ZERO, ZERO_NOISE)}
    break_symmetry(networks[ZERO_NOISE], diagnose(networks[ZERO_NOISE]), method="noise")
    return {**networks, RESIDUAL: Residual()}


@torch.no_grad()
def _rank_added(name: str, network: nn.Module) -> int:
    """Return the rank of the square layer's change by training and noise; the tolerance is the notebook's."""
    weight = network.get_submodule(SQUARE.get(name, "4")).get_parameter("weight")
    start = torch.zeros_like(weight) if name == RESIDUAL else torch.eye(WIDTH)
    return int(torch.linalg.matrix_rank(weight - start, atol=1e-4, rtol=0.0))


@torch.no_grad()
def _accuracy(network: nn.Module, digits: Digits) -> float:
    return float((network(digits.test_images).argmax(dim=1) == digits.test_labels).float().mean())


def _train(name: str, network: nn.Module, digits: Digits, num_steps: int, every_n_steps: int) -> Trained:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    generator = Generator().manual_seed(1)
    layer = WIDER.get(name, "2")
    history: list[tuple[int, int, int]] = []
    with SymmetryTracker(network, optimizer, every_n_steps=every_n_steps, on_symmetry="ignore") as tracker:
        for step in range(num_steps):
            batch = torch.randint(len(digits.labels), (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()
            report = tracker.report
            if report is not None and report.step == step:
                history.append((step, report.layers[layer].effective_width, _rank_added(name, network)))
        assert tracker.report is not None
        found = tracker.report.layers[layer].groups
    steps, distinct, rank = zip(*history, strict=True)
    groups, verdicts = frozenset(group.units for group in found), frozenset(str(group.verdict) for group in found)
    return Trained(steps, distinct, rank, groups, verdicts, _accuracy(network, digits))


def _distinct_rows(num_inputs: int, num_units: int) -> int:
    groups = duplicate_groups(zero_matrix(num_units, num_inputs))
    return num_units - sum(len(group) - 1 for group in groups)


def run(*, short: bool) -> Result:
    """Train the network from every initialisation."""
    num_steps, every_n_steps = (40, 20) if short else (1000, 50)
    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = {
            name: _train(name, network, digits, num_steps, every_n_steps) for name, network in _networks().items()
        }
        return Result(trained, tuple(_distinct_rows(*shape) for shape in SHAPES))


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    cap = num_distinct_rows(WIDTH, INPUTS)
    said = {
        RANDOM: ("not in the paper", "-"),
        IDENTITY: (f"at most {INPUTS} (theorem 1)", "-"),
        ZERO: (
            f"exceeds {INPUTS} (figure 3); by our argument at most {cap + CLASSES}",
            f"not in the paper; by our argument {cap} -> at most {cap + CLASSES} "
            "(at the start the tracker counts 1 more: to it two constant rows are no evidence)",
        ),
        ZERO_NOISE: ("not in the paper", f"not in the paper; {WIDTH} by theory"),
        RESIDUAL: (
            f"not in the paper; by our argument at most {cap}",
            f"not in the paper; by our argument at most {cap}",
        ),
    }
    table = []
    for name, trained in result.trained.items():
        rank, distinct = said[name]
        verdicts = f" ({', '.join(sorted(trained.verdicts))})" if trained.verdicts else ""
        units = f"{trained.distinct[0]} -> {trained.distinct[-1]} of {WIDTH}{verdicts}"
        table.append(Row(f"{name}: distinct units, start -> end", units, distinct))
        table.append(Row(f"{name}: highest rank of what was added to W3", str(max(trained.rank)), rank))
    accuracies = " / ".join(f"{100 * trained.accuracy:.1f}" for trained in result.trained.values())
    table.append(Row("test accuracy in %", accuracies, "trains (other data)"))
    shapes = " / ".join(f"{num_inputs} to {num_units}" for num_inputs, num_units in SHAPES)
    theory = " / ".join(str(num_distinct_rows(num_units, num_inputs)) for num_inputs, num_units in SHAPES)
    found = " / ".join(map(str, result.distinct_rows))
    table.append(Row(f"distinct rows at the start, {shapes}", found, f"not in the paper; {theory} by our argument"))
    return table


def picture(result: Result) -> Figure:
    """Plot distinct units and the rank of the change against the optimizer step."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    units, ranks = figure.subplots(1, 2)
    for style, (name, trained) in zip(["-", "--", "-", ":", "-."], result.trained.items(), strict=True):
        steps = [step + 1 for step in trained.steps]
        units.plot(steps, trained.distinct, style, linewidth=2, label=name)
        ranks.plot(steps, trained.rank, style, linewidth=2)
    units.set(xscale="log", xlabel="optimizer step + 1", ylabel=f"distinct units of {WIDTH}", ylim=(0, 138))
    ranks.set(xscale="log", xlabel="optimizer step + 1", ylabel="rank of what was added to W3", ylim=(0, 138))
    cap = num_distinct_rows(WIDTH, INPUTS) + CLASSES
    for axes in (units, ranks):
        axes.axhline(cap, color="grey", linewidth=0.8)
        axes.text(1, cap + 2, f"{cap}: most for ZerO by our argument", color="grey")
    ranks.axhline(INPUTS, color="grey", linewidth=0.8, linestyle=":")
    ranks.text(1, INPUTS + 2, f"{INPUTS}: most for partial identity (theorem 1)", color="grey")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("ZerO: initialisation with zeros and ones only")
    result = run(short=options.short)
    show("ZerO initialisation (arXiv 2110.12661)", rows(result), picture(result), options.output, "zero_init")


if __name__ == "__main__":
    main()
