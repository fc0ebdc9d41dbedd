"""Ten ReLU layers whose units come and go, checked at every step: ``python -m tests.benchmarks relu``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_symmetry import SymmetryTracker
from tests.benchmarks.timing import Ratio, Times, show

_WIDTH, _BATCH = 64, 64
_STEPS_EACH, _ROUNDS, _WARM_UP = 5, 60, 10


def ten_relu_layers() -> nn.Sequential:
    """Ten hidden layers of 64 units, as PyTorch initialises them."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for inputs in [64] + [_WIDTH] * 9:
        net.extend([nn.Linear(inputs, _WIDTH), nn.ReLU()])
    return net.append(nn.Linear(_WIDTH, 10))


class Training:
    """One training, a few steps of which are made at a time."""

    def __init__(self) -> None:
        digits = load_digits()
        self.inputs, self.labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
        self.net = ten_relu_layers()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)
        self._generator = torch.Generator().manual_seed(0)

    def steps(self) -> None:
        for _ in range(_STEPS_EACH):
            batch = torch.randint(len(self.inputs), (_BATCH,), generator=self._generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(self.inputs[batch]), self.labels[batch]).backward()
            self.optimizer.step()


def seconds(**watch: Callable[[Path], object]) -> dict[str, Times]:
    """Processor time of a step without a tracker, and with a tracker and an output each, in turns of five steps."""
    found: dict[str, list[float]] = {"nothing": [], **{name: [] for name in watch}}
    trainings = {name: Training() for name in found}
    with ExitStack() as stack, TemporaryDirectory() as folder:
        for name, output in watch.items():
            training = trainings[name]
            tracker = SymmetryTracker(
                training.net, training.optimizer, every_n_steps=1, on_symmetry="ignore", output=output(Path(folder))
            )
            stack.enter_context(tracker)
        for turn in range(_ROUNDS + _WARM_UP):
            for name, training in trainings.items():
                began = time.process_time()
                training.steps()
                if turn >= _WARM_UP:
                    found[name].append((time.process_time() - began) / _STEPS_EACH)
    return {name: Times(tuple(each)) for name, each in found.items()}


def run() -> dict[str, dict[str, float]]:
    """Train side by side, and print the table."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = seconds(without=lambda folder: None, folder=lambda folder: folder / "symmetry")
    torch.set_num_threads(num_threads)
    ratios: dict[str, Ratio] = {name: times[name].over(times["nothing"]) for name in ("without", "folder")}
    cells = [str(ratios["without"]), str(ratios["folder"]), f"{1e3 * times['nothing'].median:.3g} ms"]
    head = ("model", "no output", "a folder as output", "step without")
    show("Ten ReLU layers at every step: processor time over that without", head, [("64-64-...-10", *cells)])
    return {name: ratio.to_dict() for name, ratio in ratios.items()}
