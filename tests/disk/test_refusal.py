"""Files that would execute code, are damaged, or are no checkpoints."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_symmetry import scan
from lightning_symmetry.cli import main
from lightning_symmetry.disk import reading
from lightning_symmetry.disk.checkpoints import CheckpointError
from tests.disk.networks import FORMATS, save_safetensors, save_torch
from tests.training import MLP


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "pytorch_model.bin"])
def test_code_is_refused_and_never_runs(
    name: str, is_zip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    content: dict[str, Any] = {"state_dict": MLP().state_dict(), "hyper_parameters": {"x": Malicious(trace)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=rf"{name}' is refused: to load it, posix.mkdir would have to be called"):
        scan(path)
    assert main(["scan", str(path)]) == 2
    assert main(["scan", str(tmp_path), "--model", "tests.training:MLP"]) == 2
    assert f"{name}' is refused" in capsys.readouterr().err
    assert not trace.exists()
    torch.load(path, weights_only=False)  # executes the code
    assert trace.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(MLP(), path)
    with pytest.raises(CheckpointError, match=r"tests.training.MLP would have to be called.*a `state_dict\(\)`"):
        scan(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("save", FORMATS)
def test_truncated_files(
    save: Callable[[MLP, Path], Path], share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(MLP(), tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"Expected '.*{path.name}' to be"):
        scan(path)
    assert main(["scan", str(path)]) == 2
    assert path.name in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.pt", "model.bin"])
@pytest.mark.parametrize("content", [b"<html>not found</html>", b"PK\x03\x04nothing", b"\x80\x02]q\x00.", b"\x00" * 64])
def test_foreign_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        scan(tmp_path / name)


def test_a_format_under_the_name_of_another(tmp_path: Path) -> None:
    path = save_safetensors(MLP(), tmp_path).rename(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"to be a file of torch.save, but it begins with"):
        scan(path)
    path = save_torch(MLP(), tmp_path).rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="to be a whole safetensors file"):
        scan(path)


def test_the_error_is_also_where_version_0_2_had_it() -> None:
    assert reading.CheckpointError is CheckpointError


def test_errors_are_short(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02\xff")
    with pytest.raises(CheckpointError, match="reading it failed with UnpicklingError: ") as caught:
        scan(path)
    assert "weights_only" not in str(caught.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CheckpointError, match=r"ValueError: it has no record 'data.pkl'"):
        scan(path)


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # by newer versions of PyTorch
        torch.jit.script(MLP()).save(str(path))
    with pytest.raises(CheckpointError, match=r"model.pt' to be a whole file of torch.save with a state dict"):
        scan(path)
