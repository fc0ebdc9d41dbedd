"""Heatmaps that a report draws when it is displayed."""

from __future__ import annotations

import gc
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_symmetry import SymmetryMonitor, SymmetryReport, diagnose
from lightning_symmetry.engine.attachments import MAX_HEATMAPS
from lightning_symmetry.outputs.heatmap import ON_ANY_PAGE, draw_layer
from lightning_symmetry.units.discovery import find_layers
from tests.training import Classifier, fill, fit, mlp


def heatmaps(report: SymmetryReport) -> dict[str, bytes]:
    assert report.draw_heatmaps is not None
    return dict(report.draw_heatmaps())


def backward(net: nn.Module) -> None:
    net(torch.rand(8, 12)).square().sum().backward()


def test_the_sick_layers_are_drawn_as_they_are_now() -> None:
    net = mlp()
    fill(net.linear(2), 0.5)
    backward(net)
    report = diagnose(net)
    with torch.no_grad():
        net.linear(2).weight[3] += 1
    ((name, png),) = heatmaps(report).items()
    assert name == "2"
    layer = find_layers(net).layers[1]
    expected = draw_layer(report.layers["2"], layer.weights(), layer.gradients(), ON_ANY_PAGE)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)
    net.zero_grad()
    (without_gradients,) = heatmaps(report).values()
    assert without_gradients != png


def test_nothing_is_drawn_of_a_healthy_model() -> None:
    assert heatmaps(diagnose(mlp())) == {}


def test_warnings_first_and_not_too_many() -> None:
    layers = [nn.Linear(4, 4) for _ in range(9)]
    with torch.no_grad():
        for layer in layers:
            layer.weight[1], layer.bias[1] = layer.weight[0], layer.bias[0]
    layers[7](torch.rand(3, 4)).sum().backward()  # the others have no gradient, and so no findings
    net = nn.Sequential(*layers)
    drawn = list(heatmaps(diagnose(net)))
    assert drawn == ["7", "0", "1", "2", "3", "4"]
    assert len(drawn) == MAX_HEATMAPS


def test_layers_that_were_left_out_are_not_drawn() -> None:
    net = fill(mlp(), 0.5)
    assert list(heatmaps(diagnose(net, include=["0", "2"], exclude=["2"]))) == ["0"]


def test_a_monitor_draws_what_it_has_trained() -> None:
    monitor = SymmetryMonitor(every_n_steps=1)
    model = Classifier(fill(mlp(), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, monitor, max_steps=4)
    report = monitor.report
    assert report is not None
    assert list(heatmaps(report)) == ["net.0", "net.2"]
    assert report._repr_html_().count("<img ") == 2
    twin = pickle.loads(pickle.dumps(report))
    assert twin == report
    assert "<img " not in twin._repr_html_()


def test_a_report_does_not_keep_the_model_alive() -> None:
    net = fill(mlp(), 0.5)
    report = diagnose(net)
    assert heatmaps(report)
    del net
    gc.collect()
    assert heatmaps(report) == {}
    assert "locked" in report._repr_html_() or "duplicate" in report._repr_html_()


def test_a_model_that_has_changed_draws_what_still_fits() -> None:
    net = fill(mlp(), 0.5)
    report = diagnose(net)
    assert list(heatmaps(report)) == ["0", "2", "4"]
    net[0] = nn.Linear(12, 17)
    net[4] = nn.Identity()
    assert list(heatmaps(report)) == ["2"]
    with torch.no_grad():
        net.linear(2).weight.fill_(torch.nan)
    assert list(heatmaps(report)) == ["2"]
    net.to("meta")
    assert heatmaps(report) == {}


def test_showing_a_report_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fill(mlp(), 0.5)
    report = diagnose(net)
    assert heatmaps(report)

    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError("not now")

    monkeypatch.setattr("lightning_symmetry.engine.attachments.find_layers", fail)
    assert heatmaps(report) == {}
    assert "duplicate: all 16 units" in report._repr_html_()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_model_on_several_ranks_is_not_drawn() -> None:
    net = fill(mlp(), 0.5)
    assert list(heatmaps(diagnose(net))) == ["0", "2", "4"]
    layer = net.linear(2)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]))
    report = diagnose(net)
    assert report.layers["2"].redundant_units
    assert heatmaps(report) == {}


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore")  # FSDP1 is old, and there is only one process
def test_a_model_that_is_flattened_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    net = FullyShardedDataParallel(fill(mlp(), 0.5), device_id=torch.device("cpu"))
    report = diagnose(net)
    assert report.redundant_units

    def fail(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("it asks the other ranks, which are not there")

    monkeypatch.setattr(FullyShardedDataParallel, "summon_full_params", fail)
    assert heatmaps(report) == {}
