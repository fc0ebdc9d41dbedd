from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_symmetry import diagnose, scan
from lightning_symmetry.disk.checkpoints import CheckpointError, Contents
from lightning_symmetry.disk.models import fill
from tests.disk.networks import copy_half, groups_of, save_safetensors, save_torch
from tests.training import MLP


def test_tensors_that_only_the_model_or_the_checkpoint_has_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state: dict[str, Any] = dict(MLP().state_dict())
    del state["2.weight"]
    torch.save({**state, "ema.weight": torch.ones(2, 2)}, path)
    report = scan(path, model=MLP)
    assert report.skipped["2.weight"] == "the model has it, the checkpoint does not"
    assert report.skipped["ema.weight"] == "the checkpoint has it, the model does not"
    assert list(report.layers) == ["0", "4"]
    assert any(reason.startswith("2 was not looked at") for reason in report.reasons)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = save_torch(MLP(), tmp_path)
    with pytest.raises(CheckpointError, match=r"model.pt' to be a checkpoint of a GRU, with tensors like .*, but got"):
        scan(path, model=lambda: nn.GRU(2, 2))
    with pytest.raises(CheckpointError, match=r"size mismatch for 0.weight"):
        scan(path, model=lambda: nn.Sequential(nn.Linear(3, 3)))
    wide = nn.Sequential(*(nn.Linear(4, 4) for _ in range(200)))
    with pytest.raises(CheckpointError, match=r"size mismatch for 0.weight.* and 397 more") as caught:
        scan(save_torch(wide, tmp_path), model=lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(200))))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.inner."])
def test_a_shared_prefix_is_no_hindrance(prefix: str, tmp_path: Path) -> None:
    net = copy_half(MLP())
    path = tmp_path / "model.pt"
    torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, path)
    report = scan(path, model=MLP)
    assert groups_of(report) == groups_of(diagnose(net))
    assert report.skipped == {}


def test_tied_weights_that_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.tokens.weight

    net = Tied()
    path = save_safetensors(net, tmp_path)
    for model in (Tied, net):
        report = scan(path, model=model)
        assert groups_of(report) == groups_of(diagnose(net))
        assert report.skipped == {}
        assert report.coverage == 1


def test_a_model_that_needs_numbers_to_be_built(tmp_path: Path) -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4))
            self.scale = self[0].weight.abs().max().item()  # type: ignore[operator]

    net = Scaled()
    assert groups_of(scan(save_torch(net, tmp_path), model=Scaled)) == groups_of(diagnose(net))


def test_weights_that_are_computed(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(weight_norm(nn.Linear(4, 6)))

    net = copy_half(build())
    report = scan(save_torch(net, tmp_path), model=build)
    assert groups_of(report) == groups_of(diagnose(net))


def test_nothing_is_copied() -> None:
    tensors = dict(MLP().state_dict())
    filled = fill(MLP, Contents(tensors), Path("model.pt"))
    pointers = {tensor.data_ptr() for tensor in tensors.values()}
    assert {parameter.data_ptr() for parameter in filled.model.parameters()} == pointers
