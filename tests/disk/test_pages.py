"""Files whose tensors are so large that they are opened time after time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_symmetry import diagnose, scan
from lightning_symmetry.disk.reading import CheckpointError
from lightning_symmetry.disk.scanning import scan_checkpoint
from lightning_symmetry.units.layers import Layer
from tests.disk.memory import MEBIBYTE, matrices, measure
from tests.disk.networks import copy_half, groups_of, save_safetensors, save_torch


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 600) for _ in range(4)))


@pytest.mark.parametrize("save", [save_safetensors, save_torch])
def test_all_is_seen_of_a_file_that_is_opened_anew(save: Callable[[nn.Module, Path], Path], tmp_path: Path) -> None:
    net = copy_half(wide())
    path = save(net, tmp_path)
    assert groups_of(scan(path)) == groups_of(scan(path, model=wide)) == groups_of(diagnose(net))


@pytest.mark.parametrize("others", [{"other": torch.ones(2, 2)}, {f"{i}.weight": torch.ones(3, 3) for i in range(4)}])
def test_a_file_that_is_written_anew_meanwhile(others: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_safetensors(wide(), tmp_path)

    def replaced_at_the_second(layers: Sequence[Layer]) -> Iterator[Layer]:
        yield layers[0]
        save_file(others, tmp_path / "new")
        (tmp_path / "new").replace(path)
        yield from layers[1:]

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        scan_checkpoint(path, follow=replaced_at_the_second)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_it_takes_no_more_memory_than_the_largest_tensor(name: str) -> None:
    largest = 8 * MEBIBYTE
    tensors = matrices(largest, 8)
    tensors["layers.0.weight"][1] = tensors["layers.0.weight"][0]
    used = measure(tensors, name)
    assert used.redundant_units == 1
    assert used.anonymous < 1.1 * largest
