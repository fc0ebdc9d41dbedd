"""Experts that start as copies of one MLP, behind two routers, with and without noise.

Paper: Aran Komatsuzaki et al. (2022), "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
arXiv 2212.05055.

The claim: a trained dense network becomes a mixture of experts if its MLP is copied into every expert and a new router
is put in front. The experts are equal at first, and diverge as the router sends them different inputs. What a router
cannot do by theory: if it is indifferent, its weights zero and every expert used, all experts get the same gradient,
and so does every row of the router; the copies then stay copies forever.

How: a small residual network learns scikit-learn's digits, its MLP becomes four experts, and the training continues;
once behind a random router that uses the best two experts of each image, once behind an indifferent one that uses all
four; each with and without noise.

What `lightning_symmetry` does in it: the tracker finds experts that are copies of one another, and `break_symmetry`
adds the noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.digits import Digits, load_digits
from examples.showing import Row, arguments, show
from lightning_symmetry import SymmetryReport, SymmetryTracker, break_symmetry, diagnose

NUM_EXPERTS = 4
RANDOM, RANDOM_NOISE = "random router, best 2", "random router, best 2, noise"
INDIFFERENT, INDIFFERENT_NOISE = "indifferent router, all 4", "indifferent router, all 4, noise"
_WIDTH = 32


class Mixture(nn.Module):
    """A mixture of experts, whose outputs are added with weights that sum to 1.

    Args:
        expert: the module to copy.
        router: returns a logit per expert.
        num_used: number of experts for each sample, those with the largest logits.
    """

    def __init__(self, expert: nn.Module, router: nn.Linear, num_used: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(router.out_features))
        self.router = router
        self._num_used = num_used

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs ``(n, width)`` of features ``(n, width)``."""
        logits: Tensor = self.router(features)
        best = logits.topk(self._num_used, dim=1).indices
        used = torch.full_like(logits, -torch.inf).scatter(1, best, logits.gather(1, best))
        outputs = torch.stack([expert(features) for expert in self.experts], dim=2)
        mixed: Tensor = (outputs * used.softmax(dim=1)[:, None]).sum(dim=2)
        return mixed


class Network(nn.Module):
    """64 pixels, an MLP in a residual branch, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(64, _WIDTH)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(_WIDTH, 64), nn.ReLU(), nn.Linear(64, _WIDTH))
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, 10)`` of images ``(n, 64)``."""
        features = self.embedding(images)
        logits: Tensor = self.head(features + self.mlp(features))
        return logits


@dataclass(frozen=True)
class Upcycled:
    """The training of a mixture of experts.

    Attributes:
        start_error: the relative distance ``||a - b|| / ||a||`` of its first logits ``b`` from those of the dense
            network, ``a``.
        steps: the observed optimizer steps.
        distinct: the number of distinct experts at each of them.
        distance: the largest relative distance of an expert's parameters from those of the first, at each of them.
        verdicts: the tracker's verdicts on copies at the first step; empty if there were none.
        accuracy: the final test accuracy.
    """

    start_error: float
    steps: tuple[int, ...]
    distinct: tuple[int, ...]
    distance: tuple[float, ...]
    verdicts: tuple[str, ...]
    accuracy: float


@dataclass(frozen=True)
class Result:
    """The test accuracy of the dense network, and the mixtures by name."""

    dense_accuracy: float
    mixtures: dict[str, Upcycled]


def upcycle(dense: Network, *, indifferent: bool, noise: bool) -> Network:
    """Return a copy of a dense network whose MLP is replaced by a mixture of copies.

    Args:
        dense: the network; it is not changed.
        indifferent: whether the router is zero and uses all experts; otherwise it is random and uses the best two.
        noise: whether noise is added to all experts but the first.
    """
    network = copy.deepcopy(dense)
    router = nn.Linear(_WIDTH, NUM_EXPERTS, bias=False)
    if indifferent:
        nn.init.zeros_(router.weight)
    network.mlp = Mixture(dense.mlp, router, NUM_EXPERTS if indifferent else 2)
    if noise:
        break_symmetry(network, diagnose(network, exclude=["mlp.router"]), method="noise")
    return network


def num_distinct(report: SymmetryReport) -> int:
    """Count the experts that are no copies of an earlier one."""
    groups = [[name for name in group.modules if "experts" in name] for group in report.copies]
    return NUM_EXPERTS - sum(len(group) - 1 for group in groups if group)


@torch.no_grad()
def distance(experts: nn.ModuleList) -> float:
    """Return the largest relative L2 distance of the parameters of an expert from those of the first."""
    flat = [torch.cat([parameter.flatten() for parameter in expert.parameters()]) for expert in experts]
    return max(float((row - flat[0]).norm() / flat[0].norm()) for row in flat[1:])


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


def _accuracy(model: nn.Module, digits: Digits) -> float:
    return float((_logits(model, digits.test_images).argmax(dim=1) == digits.test_labels).float().mean())


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, generator: Generator) -> None:
    batch = torch.randint(len(digits.labels), (64,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch]).backward()
    optimizer.step()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def _train(network: Network, said: Tensor, digits: Digits, num_steps: int, every_n_steps: int) -> Upcycled:
    """Continue the training with a mixture, and compare its experts."""
    error = float((_logits(network, digits.test_images) - said).norm() / said.norm())
    mixture = network.mlp
    assert isinstance(mixture, Mixture)
    optimizer = _optimizer(network)
    generator = Generator().manual_seed(2)
    history: list[tuple[int, int, float]] = []
    verdicts: tuple[str, ...] = ()
    with SymmetryTracker(network, optimizer, every_n_steps=every_n_steps, on_symmetry="ignore") as tracker:
        for step in range(num_steps):
            apart = distance(mixture.experts)
            _train_step(network, optimizer, digits, generator)
            report = tracker.report
            if report is None or report.step != step:
                continue
            history.append((step, num_distinct(report), apart))
            if step == 0:
                verdicts = tuple(str(group.verdict) for group in report.copies)
    steps, distinct, distances = zip(*history, strict=True)
    return Upcycled(error, steps, distinct, distances, verdicts, _accuracy(network, digits))


def run(*, short: bool) -> Result:
    """Train the dense network, and the mixtures made of it."""
    num_steps, every_n_steps = (60, 10) if short else (1500, 25)
    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = Network()
        optimizer, generator = _optimizer(dense), Generator().manual_seed(1)
        for _ in range(100):
            _train_step(dense, optimizer, digits, generator)
        said = _logits(dense, digits.test_images)
        mixtures = {
            RANDOM: upcycle(dense, indifferent=False, noise=False),
            RANDOM_NOISE: upcycle(dense, indifferent=False, noise=True),
            INDIFFERENT: upcycle(dense, indifferent=True, noise=False),
            INDIFFERENT_NOISE: upcycle(dense, indifferent=True, noise=True),
        }
        trained = {name: _train(one, said, digits, num_steps, every_n_steps) for name, one in mixtures.items()}
        return Result(_accuracy(dense, digits), trained)


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    said = {
        RANDOM: "copies at first, part as they train",
        RANDOM_NOISE: "distinct from the first step",
        INDIFFERENT: "not in the paper; copies for ever by theory",
        INDIFFERENT_NOISE: "not in the paper; distinct by theory",
    }
    table = []
    for name, mixture in result.mixtures.items():
        verdicts = f" ({', '.join(mixture.verdicts)} at step 0)" if mixture.verdicts else ""
        ours = f"{mixture.distinct[0]} -> {mixture.distinct[-1]} of {NUM_EXPERTS}{verdicts}"
        table.append(Row(f"{name}: distinct experts, start -> end", ours, said[name]))
        table.append(Row(f"{name}: distance from the first, end", f"{mixture.distance[-1]:.1e}", "-"))
    errors = " / ".join(f"{mixture.start_error:.0e}" for mixture in result.mixtures.values())
    table.append(Row("relative change of the logits by upcycling", errors, "0 without noise, weights summing to 1"))
    accuracies = " / ".join(f"{100 * mixture.accuracy:.1f}" for mixture in result.mixtures.values())
    table.append(
        Row(
            "test accuracy in %, dense; mixtures",
            f"{100 * result.dense_accuracy:.1f}; {accuracies}",
            "other data and sizes",
        )
    )
    return table


def picture(result: Result) -> Figure:
    """Plot distinct experts and their distance against the optimizer step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    count, apart = figure.subplots(1, 2)
    styles = ["-", "--", "-.", ":"]
    for style, (name, mixture) in zip(styles, result.mixtures.items(), strict=True):
        steps = [step + 1 for step in mixture.steps]
        count.plot(steps, mixture.distinct, style, label=name, linewidth=2)
        apart.plot(steps, [max(value, 1e-10) for value in mixture.distance], style, linewidth=2)
    count.set(xscale="log", xlabel="optimizer step + 1", ylabel="distinct experts", yticks=range(5), ylim=(0, 4.3))
    count.legend(loc="center right")
    apart.set(xscale="log", yscale="log", xlabel="optimizer step + 1")
    apart.set_ylabel("largest relative distance from expert 0\n(equal is drawn at 1e-10)")
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Sparse upcycling: copies of one MLP behind a router")
    result = run(short=options.short)
    show("Sparse upcycling (arXiv 2212.05055)", rows(result), picture(result), options.output, "upcycled_experts")


if __name__ == "__main__":
    main()
