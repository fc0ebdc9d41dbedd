"""The probe of activations in real trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_symmetry import ActivationProbe, functional
from tests.outputs.test_tensorboard import read
from tests.test_tracker import sgd, train
from tests.training import Classifier, assert_same, batches, make_trainer, mlp


def moments(probe: ActivationProbe, name: str) -> Tensor:
    found = probe.metrics[name]["effective_rank"].moments
    assert isinstance(found, Tensor)
    return found


def test_it_measures_what_the_modules_put_out() -> None:
    net = mlp()
    inputs = torch.randn(64, 12)
    with torch.no_grad():
        net.linear(0).bias[:4] = -100
    with ActivationProbe(net, every_n_steps=1) as probe:
        for part in inputs.split(16):
            net(part)
    hidden = torch.relu(net[0](inputs))
    values = probe.compute()
    assert set(probe.metrics) == {"1", "3"}
    assert float(values["symmetry/dead_activations/1"]) == float(functional.dead_activations(hidden)) == 4 / 16
    rank = float(functional.effective_rank(hidden))
    assert float(values["symmetry/effective_rank/1"]) == pytest.approx(rank, rel=1e-5)
    net(inputs)  # no longer watched
    assert_same(values, probe.compute())
    probe.reset()
    assert float(moments(probe, "1").abs().sum()) == 0


@pytest.mark.parametrize("every_n_steps", [1, 3])
def test_the_training_is_the_same_to_the_last_bit(every_n_steps: int) -> None:
    results = []
    for is_watched in (False, True):
        net = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.2), *list(mlp())[1:])
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        optimizer = sgd(net)
        torch.manual_seed(3)
        if is_watched:
            with ActivationProbe(net, every_n_steps=every_n_steps):
                train(net, optimizer)
        else:
            train(net, optimizer)
        results.append((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    assert_same(results[0], results[1])


def test_it_looks_in_training_mode_and_now_and_then_only() -> None:
    net = mlp()
    with ActivationProbe(net, every_n_steps=4) as probe:
        for _ in range(9):
            net(torch.randn(5, 12))
        net.eval()
        for _ in range(4):  # one of which would be looked at
            net(torch.randn(100, 12))
    assert float(moments(probe, "1")[0, 0]) == 3 * 5


def test_units_of_pictures_and_sequences() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 10), nn.GELU())
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(torch.randn(2, 3, 8, 8))
    sizes = {name: moments(probe, name) for name in probe.metrics}
    assert {name: (int(m[0, 0]), len(m) - 1) for name, m in sizes.items()} == {"1": (2 * 36, 8), "4": (2 * 8, 10)}


def test_classes_that_were_made_without_a_module_are_passed_over() -> None:
    names: dict[str, Any] = {"nn": nn}
    exec("Nameless = type('Nameless', (nn.Sequential,), {})", names)
    assert set(ActivationProbe(names["Nameless"](nn.Linear(3, 4), nn.ReLU())).metrics) == {"1"}


def test_patterns_choose_modules() -> None:
    net = mlp()
    assert set(ActivationProbe(net, include=["0", "4"]).metrics) == {"0", "4"}
    assert set(ActivationProbe(net, exclude=["1"]).metrics) == {"3"}
    with pytest.raises(ValueError, match=r"`include` to match a module but got \['fc'\].*The modules are: MLP, 0, 1"):
        ActivationProbe(net, include=["fc"])
    with pytest.raises(TypeError, match=r"`model` to be a torch\.nn\.Module but got 3"):
        ActivationProbe(3)  # type: ignore[arg-type]


class Probed(Classifier):
    """Logs what the probe says at the end of every epoch."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.probe: ActivationProbe | None = None

    def on_fit_start(self) -> None:
        self.probe = ActivationProbe(self, every_n_steps=2)

    def on_train_epoch_end(self) -> None:
        assert self.probe is not None
        self.log_dict(self.probe.compute())
        self.probe.reset()

    def on_fit_end(self) -> None:
        assert self.probe is not None
        self.probe.close()


def test_it_can_be_logged_by_lightning(tmp_path: Path) -> None:
    module: LightningModule = Probed()
    trainer = make_trainer(logger=TensorBoardLogger(tmp_path, name="", version=""), max_steps=24)
    trainer.fit(module, batches())
    events = read(tmp_path)
    assert len(events.Scalars("symmetry/effective_rank/net.1")) == 3
    assert 0 < float(trainer.callback_metrics["symmetry/effective_rank/net.3"]) <= 8


def test_other_metrics_can_be_asked_for() -> None:
    class Largest(nn.Module):
        pass

    from torchmetrics import MaxMetric

    def largest() -> dict[str, Any]:
        return {"largest": MaxMetric()}

    with ActivationProbe(mlp(), every_n_steps=1, make_metrics=largest) as probe:
        pass
    assert {type(metric) for metric in probe.metrics["1"].values()} == {MaxMetric}


def test_what_is_no_matrix_is_passed_over() -> None:
    class Pair(nn.ReLU):
        def forward(self, inputs: Tensor) -> Any:
            return inputs, inputs

    net = nn.Sequential(Pair())
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(torch.randn(3, 4))
        nn.Sequential(nn.ReLU())(torch.randn(3))
    assert float(moments(probe, "0").sum()) == 0
