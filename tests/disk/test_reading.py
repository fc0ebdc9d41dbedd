"""Large tensors, which stay in the file until they are needed: memory, and files that change during a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_symmetry import diagnose, scan
from lightning_symmetry.disk.checkpoints import CheckpointError
from lightning_symmetry.disk.scanning import scan_checkpoint
from lightning_symmetry.units.layers import Layer
from tests.disk.memory import MEBIBYTE, matrices, measure
from tests.disk.networks import FORMATS, copy_half, groups_of, save_safetensors, save_torch


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 600) for _ in range(4)))


@pytest.mark.parametrize("save", [save_safetensors, save_torch])
def test_large_tensors_are_read_in_full(save: Callable[[nn.Module, Path], Path], tmp_path: Path) -> None:
    net = copy_half(wide())
    path = save(net, tmp_path)
    assert groups_of(scan(path)) == groups_of(scan(path, model=wide)) == groups_of(diagnose(net))


def meanwhile(change: Callable[[], object]) -> Callable[[Sequence[Layer]], Iterator[Layer]]:
    """Call ``change`` after the first layer."""

    def follow(layers: Sequence[Layer]) -> Iterator[Layer]:
        yield layers[0]
        change()
        yield from layers[1:]

    return follow


@pytest.mark.parametrize("save", FORMATS[:2])
def test_a_file_that_is_cut_or_written_anew_meanwhile(save: Callable[[nn.Module, Path], Path], tmp_path: Path) -> None:
    path = save(wide(), tmp_path)
    content = path.read_bytes()
    for other in (b"", content[: len(content) // 2], bytes(len(content))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{path.name}' was changed while it was read"):
            scan_checkpoint(path, follow=meanwhile(partial(path.write_bytes, other)))


@pytest.mark.parametrize("save", FORMATS[:2])
def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(
    save: Callable[[nn.Module, Path], Path], tmp_path: Path
) -> None:
    net = copy_half(wide())
    path = save(net, tmp_path)
    (tmp_path / "new").write_bytes(b"another file")
    seen = scan_checkpoint(path, follow=meanwhile(lambda: (tmp_path / "new").replace(path)))
    assert groups_of(seen.report) == groups_of(diagnose(net))
    assert path.read_bytes() == b"another file"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_it_takes_no_more_memory_than_the_largest_tensor(name: str) -> None:
    largest = 8 * MEBIBYTE
    tensors = matrices(largest, 8)
    tensors["layers.0.weight"][1] = tensors["layers.0.weight"][0]
    used = measure(tensors, name)
    assert used.redundant_units == 1
    assert used.anonymous < 2 * largest  # the tensor itself, and what is computed of it
