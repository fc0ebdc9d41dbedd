"""The probe of activations in real trainings."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import Metric

from lightning_symmetry import ActivationProbe, SymmetryWarning, functional
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


class Bottleneck(nn.Module):
    """One ReLU at three places, of two widths."""

    def __init__(self, num_dims: int = 2) -> None:
        super().__init__()
        conv = nn.Conv1d if num_dims == 1 else nn.Conv2d
        self.a, self.b, self.c = conv(12, 4, 1), conv(4, 4, 1), conv(4, 12, 1)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.b(self.relu(self.a(inputs))))
        result: Tensor = self.relu(self.c(hidden) + inputs)
        return result


class Checkpointed(nn.Module):
    def __init__(self, net: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.net = net
        self.use_reentrant = use_reentrant

    def forward(self, inputs: Tensor) -> Any:
        return checkpoint(self.net, inputs, use_reentrant=self.use_reentrant)


def descend(net: nn.Module, autocast: bool) -> torch.optim.Optimizer:
    """Train on pictures with L-BFGS, which runs several forward passes in a step."""
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        inputs = torch.randn(5, 12, 3, 3, generator=generator).requires_grad_()

        def closure(inputs: Tensor = inputs) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss: Tensor = net(inputs).float().square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: nn.Sequential(net, nn.BatchNorm2d(12), nn.Dropout(0.3), net),
        lambda net: Checkpointed(net, use_reentrant=True),
        lambda net: Checkpointed(net, use_reentrant=False),
        lambda net: torch.compile(net, backend="aot_eager", fullgraph=True),
    ],
    ids=["twice", "reentrant checkpoint", "checkpoint", "compiled"],
)
def test_no_training_is_changed(wrap: Any, autocast: bool) -> None:
    torch._dynamo.reset()
    results = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        net = wrap(Bottleneck())
        random.seed(0)
        np.random.seed(0)
        probe = ActivationProbe(net, every_n_steps=1) if is_watched else None
        optimizer = descend(net, autocast)
        drawn = random.random(), np.random.rand(), torch.get_rng_state()
        results.append((net.state_dict(), optimizer.state_dict(), drawn))
        if probe is not None:
            probe.close()
    assert_same(results[0], results[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_each_place_of_a_module_is_measured_by_itself() -> None:
    net, inputs = Bottleneck(), torch.randn(6, 12, 2, 2)
    first = torch.relu(net.a(inputs))
    second = torch.relu(net.b(first))
    expected = {"relu": first, "relu after b": second, "relu after c": torch.relu(net.c(second) + inputs)}
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(inputs)
    values = probe.compute()
    assert probe.metrics.keys() == expected.keys()
    for place, output in expected.items():
        rank = functional.effective_rank(output.movedim(1, -1).flatten(0, -2))
        assert float(values[f"symmetry/effective_rank/{place}"]) == pytest.approx(float(rank), rel=1e-5)


def test_places_of_one_width_are_measured_by_themselves_too() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 8), relu, nn.Linear(8, 8), relu)
    with torch.no_grad():
        net.get_parameter("0.bias")[:6] = -100
        net.get_parameter("2.bias")[:2] = -100
    with ActivationProbe(net, every_n_steps=2) as probe:
        for _ in range(3):
            net(torch.randn(90, 3))
    shares = {place: float(probe.compute()[f"symmetry/dead_activations/{place}"]) for place in probe.metrics}
    assert shares.keys() == {"1", "1 after 2"}
    assert shares["1"] == 6 / 8
    assert shares["1 after 2"] < 6 / 8
    assert {float(moments(probe, place)[0, 0]) for place in probe.metrics} == {180.0}


def test_a_place_goes_by_the_layer_and_not_by_its_parametrization() -> None:
    relu, norm = nn.ReLU(), nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Linear(3, 8, bias=False)), relu, norm(nn.Linear(8, 8, bias=False)), relu)
    with ActivationProbe(net) as probe:
        net(torch.randn(4, 3))
    assert probe.metrics.keys() == {"1", "1 after 2"}


def test_no_layer_runs_before_the_first_one() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Linear(5, 3))
    with ActivationProbe(net, every_n_steps=1) as probe:
        for _ in range(2):
            net(torch.randn(4, 5))
    assert float(moments(probe, "0")[0, 0]) == 8


class Own(nn.Module):
    """A convolution that is not a module of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 1))
        self.act = nn.ReLU()

    def forward(self, inputs: Tensor) -> Any:
        return self.act(nn.functional.conv1d(inputs, self.weight))


class ChannelsLast(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear, self.act = nn.Conv2d(3, 3, 1), nn.LayerNorm(3), nn.Linear(3, 6), nn.GELU()

    def forward(self, inputs: Tensor) -> Any:
        return self.act(self.linear(self.norm(self.conv(inputs).permute(0, 2, 3, 1))))


class Recurrent(nn.Module):
    """Run a loop with one place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(9, 6), nn.Tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        state = torch.zeros(len(inputs), 6)
        for step in inputs.unbind(dim=2):
            state = self.act(self.linear(torch.cat([step, state], dim=1)))
        return state


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.MaxPool1d(2), nn.Dropout(), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv1d(3, 12, 1), nn.GLU(1)),
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 6, 2), nn.GroupNorm(2, 6), nn.ReLU()),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 6, 1)), nn.ReLU()),
        lambda: nn.Sequential(nn.LazyConv1d(6, 1), nn.PReLU()),
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv2d(3, 6, 1), nn.Flatten(2), nn.ReLU()),
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), ChannelsLast()),
        lambda: nn.Sequential(Own(), nn.Conv1d(6, 5, 1)),
        lambda: Recurrent(),
    ],
)
@pytest.mark.parametrize("has_graph", [True, False])
@pytest.mark.parametrize("lengths", [(8, 8), (8, 10, 20)])
def test_units_are_told_from_positions(net: Any, has_graph: bool, lengths: Sequence[int]) -> None:
    model = net()
    with ActivationProbe(model, every_n_steps=1) as probe, torch.set_grad_enabled(has_graph):
        for length in lengths:
            model(torch.randn(4, 3, length))
    assert [len(moments(probe, place)) - 1 for place in probe.metrics] == [6]
    assert not any(map(torch.isnan, probe.compute().values()))


class Affine(nn.Module):
    """A linear layer as in GPT-2, with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 9)), nn.Parameter(torch.randn(9))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def test_a_bias_tells_the_number_of_units() -> None:
    net = nn.Sequential(Affine(), nn.GELU())
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(torch.randn(2, 5, 5))
    assert len(moments(probe, "1")) - 1 == 9


def test_a_pass_in_inference_mode_counts() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    with ActivationProbe(net, every_n_steps=1) as probe:
        with torch.inference_mode():
            net(torch.randn(4, 3))
        net(torch.randn(4, 3))
    assert float(moments(probe, "1")[0, 0]) == 8
    assert not any(map(torch.isnan, probe.compute().values()))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv1d(3, 6, 1), nn.ReLU()

    def forward(self, inputs: Tensor) -> Any:
        return self.act(self.conv(inputs).transpose(1, 2))


class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv1d(3, 6, 1), nn.Conv1d(3, 5, 1), nn.ReLU()

    def forward(self, inputs: Tensor) -> Any:
        return [self.relu(hidden) for hidden in (self.a(inputs), self.b(inputs))]


@pytest.mark.filterwarnings("error::lightning_symmetry.SymmetryWarning")
@pytest.mark.parametrize(
    ("net", "shape", "reason"),
    [
        (nn.Sequential(nn.ReLU(), nn.Conv1d(3, 6, 1)), (4, 3, 9), r"which dimension of an output of shape \(4, 3, 9\)"),
        (nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU()), (3, 9), r"which dimension of an output of shape \(6, 9\)"),
        (Transposed(), (4, 3, 9), r"which dimension of an output of shape \(4, 9, 6\)"),
        (SideBySide(), (4, 3, 9), r"to have 5 units but got a tensor of shape \(36, 6\)|6 units but got .* \(36, 5\)"),
    ],
)
def test_what_is_uncertain_is_left_out_and_said_once(net: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with ActivationProbe(net, every_n_steps=1) as probe:
        with pytest.warns(SymmetryWarning, match=f"ActivationProbe switches off its measurement of .*{reason}"):
            net(torch.randn(shape))
        net(torch.randn(shape))  # a second warning would be an error
    assert all(map(torch.isnan, probe.compute().values()))


def test_samples_that_are_not_finite_do_not_count() -> None:
    net, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(16, 4)
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(inputs)
        values = probe.compute()
        for value in (torch.nan, torch.inf):
            net(torch.full((2, 4), value))
        net(inputs[:0])
        net(torch.cat([torch.full((1, 4), torch.nan), inputs]))
    assert float(moments(probe, "1")[0, 0]) == 32
    again = probe.compute()
    assert {name: float(value) for name, value in again.items()} == pytest.approx(
        {name: float(value) for name, value in values.items()}
    )


@pytest.mark.filterwarnings("error::lightning_symmetry.SymmetryWarning")
@pytest.mark.parametrize("order", ["compiled", "compiled in place", "probed"])
def test_a_compiled_model_is_said_not_to_be_measured(order: str) -> None:
    torch._dynamo.reset()
    net: Any = mlp()
    if order == "compiled":
        net = torch.compile(net, backend="eager")
    elif order == "compiled in place":
        net.compile(backend="eager")
    net(torch.randn(5, 12))
    with ActivationProbe(net, every_n_steps=1) as probe:
        if order == "probed":
            net = torch.compile(net, backend="eager", fullgraph=True)
        else:
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
        for _ in range(12):
            net(torch.randn(5, 12))
    with pytest.warns(SymmetryWarning, match="has measured nothing at 1, 3, where .* Compiled"):
        probe.compute()
    probe.compute()  # a second warning would be an error


def test_copies_are_not_measured() -> None:
    net = mlp()
    with ActivationProbe(net, every_n_steps=1) as probe:
        net(torch.randn(5, 12))
        assert b"torchmetrics" not in pickle.dumps(net)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            other(torch.randn(7, 12))
    assert float(moments(probe, "1")[0, 0]) == 5


@pytest.mark.filterwarnings("error::lightning_symmetry.SymmetryWarning")
def test_modules_of_torchscript_are_refused_or_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        with pytest.raises(ValueError, match="`include` to match a module"):
            ActivationProbe(scripted)
        net = mlp()
        with ActivationProbe(net, every_n_steps=1) as probe:
            with pytest.raises(AttributeError, match="close the ActivationProbe before"):
                torch.jit.script(net)
            torch.jit.trace(net, torch.randn(5, 12), check_trace=False)
            assert float(moments(probe, "1").sum()) == 0
            net(torch.randn(5, 12))
    assert float(moments(probe, "1")[0, 0]) == 5


class Fails(Metric):
    """Fails at one of its methods."""

    total: Tensor

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, samples: Tensor) -> None:
        if self.method == "update":
            raise OverflowError("too much")
        samples.fill_(torch.nan)  # it may change its input
        self.total += 1

    def compute(self) -> Tensor:
        if self.method == "compute":
            raise OverflowError("too much")
        return self.total


@pytest.mark.parametrize(
    ("method", "texts", "values"),
    [
        ("update", ["switches off its measurement of 1, which failed with OverflowError: too much."], {"1": 0.0}),
        ("compute", ["leaves out 1, whose metrics failed with OverflowError: too much"], {}),
        ("", [], {"1": 3.0}),
    ],
)
def test_a_metric_that_fails_ends_nothing(method: str, texts: list[str], values: dict[str, float]) -> None:
    net, inputs = mlp(), torch.randn(5, 12)
    expected = net(inputs)
    probe = ActivationProbe(net, ["1"], every_n_steps=1, make_metrics=lambda: {"fails": Fails(method)})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert torch.equal(net(inputs), expected)
            found = probe.compute()
    assert len(told) == len(texts)
    assert all(f"ActivationProbe {text}" in str(each.message) for each, text in zip(told, texts, strict=True))
    assert {name.removeprefix("symmetry/fails/"): float(value) for name, value in found.items()} == values


def test_encoders_keep_their_fast_path() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with ActivationProbe(nn.Sequential(encoder, nn.Linear(8, 6), nn.ReLU()), every_n_steps=1) as probe:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
    assert set(probe.metrics) == {"2"}


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
    """Logs the metrics of the probe at the end of every epoch."""

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
