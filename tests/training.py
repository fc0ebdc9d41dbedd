"""Small real trainings."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryReport, SymmetryTracker

_FOLDER = tempfile.TemporaryDirectory()  # folder of the findings of trainings without a logger
Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


class Classifier(LightningModule):
    """A network trained with cross-entropy."""

    def __init__(self, net: nn.Module, optimizer: Optimizers = sgd) -> None:
        super().__init__()
        self.net = net
        self._optimizer = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer(self.parameters())


class Regression(Classifier):
    """A network trained to output zeros."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss


class MLP(nn.Sequential):
    """12 inputs, hidden ReLU layers of 16 and 8 units, 4 classes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

    def linear(self, place: int) -> nn.Linear:
        layer = self[place]
        assert isinstance(layer, nn.Linear)
        return layer


def mlp(seed: int = 0) -> MLP:
    """Return the network with PyTorch's default initialisation."""
    torch.manual_seed(seed)
    return MLP()


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fill(net: ModuleT, value: float) -> ModuleT:
    """Set every weight to one number and every bias to zero."""
    for name, parameter in net.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else value)
    return net


def batches(num_samples: int = 256, batch_size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    """Return positive inputs with labels that depend on them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(num_samples, 12, generator=generator)
    labels = (inputs @ torch.randn(12, 4, generator=generator)).argmax(dim=1)
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch_size)


def make_trainer(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 10,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tempfile.mkdtemp(dir=_FOLDER.name),
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def quiet(**options: Any) -> SymmetryMonitor:
    """Return a monitor that draws and writes nothing."""
    return SymmetryMonitor(heatmaps="none", scalars="none", **options)


def fit(model: LightningModule, monitor: SymmetryMonitor | None = None, **options: Any) -> Trainer:
    data = options.pop("data", None) or batches()
    trainer = make_trainer([monitor] if monitor else [], **options)
    trainer.fit(model, data)
    return trainer


def train_in_loop(
    net: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    *,
    every_n_steps: int = 5,
    is_watched: bool = True,
    set_to_none: bool = True,
) -> SymmetryReport | None:
    """Train with Adam in a plain loop, without warnings; return the report of a tracker, if there is one."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    tracker = SymmetryTracker(net, optimizer, every_n_steps=every_n_steps) if is_watched else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss().backward()
            optimizer.step()
        if tracker is not None:
            tracker.close()
    return None if tracker is None else tracker.report


def assert_same(a: Any, b: Any) -> None:
    """Return whether two nested structures are bitwise equal."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def failing_at_first(function: Callable[..., Any], failures: int, error: Exception) -> Callable[..., Any]:
    """Return a function that raises an error at its first calls, and then calls ``function``.

    Args:
        function: the function to call afterwards.
        failures: number of failing calls.
        error: the error that they raise.
    """
    calls = itertools.count()

    def failing(*args: Any) -> Any:
        if next(calls) < failures:
            raise error
        return function(*args)

    return failing
