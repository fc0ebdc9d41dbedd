"""Training is identical with and without the monitor, for many models and Trainers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor
from lightning_symmetry.callback import SymmetryWarning
from tests.test_callback import GAN, TwoOptimizers
from tests.training import Classifier, Regression, assert_same, batches, fill, make_trainer, mlp


def train(model: LightningModule, monitor: SymmetryMonitor | None, **options: Any) -> Any:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer([monitor] if monitor else [], **{"max_steps": 24, **options})
    with warnings.catch_warnings(), kernels_for(model, trainer.precision):
        warnings.simplefilter("ignore")
        trainer.fit(model, batches(), ckpt_path=ckpt_path)
    return trainer


def kernels_for(model: LightningModule, precision: str) -> AbstractContextManager[None]:
    """Disable oneDNN for an LSTM under bfloat16 autocast where the CPU does not support it."""
    is_asked = precision == "bf16-mixed" and any(isinstance(module, nn.LSTM) for module in model.modules())
    if is_asked and not onednn_runs_lstm_in_bf16():
        return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    return nullcontext()


def onednn_runs_lstm_in_bf16() -> bool:
    """Whether oneDNN runs an LSTM under bfloat16 autocast on this CPU; it fails on those without AVX-512."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


def dropout_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


def lbfgs() -> LightningModule:
    return Regression(mlp(), lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4))


def compiled() -> LightningModule:
    net: Any = torch.compile(dropout_net(), backend="eager")
    return Classifier(nn.Sequential(net))


def spectral() -> LightningModule:
    torch.manual_seed(0)
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 16))
    return Classifier(nn.Sequential(first, nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))))


def recurrent() -> LightningModule:
    class Last(nn.Module):
        def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
            return outputs[0][:, -1]

    torch.manual_seed(0)
    lstm = fill(nn.LSTM(3, 8, batch_first=True, num_layers=2, dropout=0.1), 0.1)
    return Classifier(nn.Sequential(nn.Unflatten(1, (4, 3)), lstm, Last(), nn.Linear(8, 4)))


def seeded(model_type: Callable[[], LightningModule]) -> Callable[[], LightningModule]:
    def build() -> LightningModule:
        torch.manual_seed(0)
        return model_type()

    return build


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lbfgs, {}),
        (seeded(GAN), {}),
        (seeded(TwoOptimizers), {}),
        (compiled, {}),
        (spectral, {}),
        (recurrent, {}),
        (recurrent, {"precision": "bf16-mixed"}),
        (lambda: Classifier(dropout_net()), {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (lambda: Classifier(dropout_net()), {"precision": "bf16-true"}),
    ],
    ids=["lbfgs", "gan", "manual", "compiled", "parametrized", "lstm", "lstm-bf16", "clip-value", "bf16-true"],
)
def test_same_to_the_last_bit(build: Callable[[], LightningModule], options: dict[str, Any]) -> None:
    ends = []
    for monitor in (None, SymmetryMonitor(every_n_steps=1)):
        model = build()
        torch.manual_seed(3)
        trainer = train(model, monitor, **options)
        ends.append((model.state_dict(), [o.state_dict() for o in trainer.optimizers], torch.get_rng_state()))
    assert_same(*ends)


def test_same_to_the_last_bit_after_a_resume(tmp_path: Path) -> None:
    ends = []
    for name, make in (("without", lambda: None), ("with", lambda: SymmetryMonitor(every_n_steps=1))):
        torch.manual_seed(3)
        path = tmp_path / f"{name}.ckpt"
        train(Classifier(dropout_net()), make(), max_steps=8).save_checkpoint(path)
        model = Classifier(dropout_net())
        torch.manual_seed(4)
        trainer = train(model, make(), ckpt_path=path)
        assert trainer.global_step == 24
        ends.append((model.state_dict(), torch.get_rng_state()))
    assert_same(*ends)


class Shifting(Classifier):
    """Replaces a parameter, and adds a layer, in the middle of the training."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert isinstance(self.net, nn.Sequential)
        if self.global_step == 4:
            first = self.net[0]
            assert isinstance(first, nn.Linear)
            first.weight = nn.Parameter(torch.full_like(first.weight, 0.25)[:7])
            first.bias = nn.Parameter(torch.zeros(7))
            self.net[2] = nn.Linear(7, 8)
        if self.global_step == 6:
            self.net.append(nn.Linear(4, 4))


def test_parameters_replaced_and_layers_added_during_training() -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    trainer = train(Shifting(mlp()), monitor)
    assert trainer.global_step == 24
    assert monitor.report is not None
    assert monitor.report.layers["net.0"].num_units == 7
    assert monitor.report.layers["net.0"].effective_width == 1
    assert "net.5" in monitor.report.layers
    assert monitor.report.skipped == {}


@pytest.mark.parametrize("name", ["a/b", "with space", "**bold** | pipe", "<b>", "ünï", "#1"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, fill(nn.Linear(12, 4), 0.5))

        def forward(self, inputs: Tensor) -> Tensor:
            return self._modules[name](inputs)  # type: ignore[misc, no-any-return]

    monitor = SymmetryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer([monitor], logger=True, default_root_dir=tmp_path, max_steps=4).fit(Regression(Named()), batches())
    said = [str(warning.message) for warning in caught]
    assert any(message.startswith(f"net.{name}: all 4 units are identical") for message in said)
    assert not any("switches off" in message for message in said)


class Strange(nn.Module):
    """A module with tensors of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Linear(12, 4)
        self.one_unit = nn.Linear(12, 1)
        self.complex = nn.Linear(2, 2, dtype=torch.complex64)
        self.integers = nn.Linear(2, 2)
        self.integers.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        self.quantised = nn.Linear(2, 2, bias=False)
        quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
        self.quantised.weight = nn.Parameter(quantised, requires_grad=False)
        self.expanded = nn.Linear(3, 5, bias=False)
        self.expanded.weight = nn.Parameter(torch.randn(1, 3).expand(5, 3), requires_grad=False)
        self.turned = nn.Linear(12, 4)
        self.turned.weight = nn.Parameter(torch.randn(12, 4).T)
        self.sparse = nn.Embedding(9, 4, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = (inputs[:, 0] * 8).long()
        out: Tensor = self.main(inputs) + self.one_unit(inputs) + self.turned(inputs) + self.sparse(tokens)
        return out


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:Symmetry.*parts of the model do not train")
def test_strange_tensors() -> None:
    torch.manual_seed(0)
    monitor = SymmetryMonitor(every_n_steps=1)
    net = Strange()
    used = [*net.main.parameters(), *net.one_unit.parameters(), *net.turned.parameters(), *net.sparse.parameters()]
    model = Classifier(net, lambda _: torch.optim.SGD(used, lr=0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymmetryWarning)
        make_trainer([monitor]).fit(model, batches())
    assert monitor.report is not None
    assert set(monitor.report.layers) == {
        f"net.{name}" for name in ("main", "one_unit", "complex", "expanded", "turned", "sparse")
    }
    assert set(monitor.report.skipped) == {f"net.{name}" for name in ("integers", "quantised")}
    assert monitor.report.layers["net.expanded"].effective_width == 1
