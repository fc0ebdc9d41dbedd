"""Files that claim more numbers than they hold, or hold no weights: they are refused or left out, with a reason."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, scan
from lightning_symmetry.disk.checkpoints import CheckpointError

WEIGHT = {"fc.weight": torch.arange(32.0).reshape(8, 4)}


def scanned(content: object, folder: Path, **options: Any) -> SymmetryReport:
    torch.save(content, folder / "model.pt", **options)
    return scan(folder / "model.pt")


def safetensors(folder: Path, header: object, numbers: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_that_claim_more_numbers_than_the_file_holds(is_zip: bool, tmp_path: Path) -> None:
    one = torch.ones(1)
    overlapping = torch.as_strided(torch.randn(300), (200, 100), (1, 1))
    content = {
        **WEIGHT,
        "a.weight": one.expand(200_000, 200_000),
        "b.weight": overlapping,
        "c.weight": torch.ones(0, 9),
    }
    report = scanned(content, tmp_path, _use_new_zipfile_serialization=is_zip)
    assert list(report.layers) == ["fc"]
    assert report.skipped == {
        "a.weight": "it claims 40,000,000,000 numbers, for which the file holds 1 number",
        "b.weight": "it claims 20,000 numbers, for which the file holds 299 numbers",
        "c.weight": "it holds no numbers",
    }
    assert 0 < report.coverage < 1


def test_one_storage_under_many_names_is_refused(tmp_path: Path) -> None:
    numbers = torch.randn(1000)
    shifted = {f"{i}.weight": numbers[i : i + 900].view(30, 30) for i in range(100)}
    with pytest.raises(CheckpointError, match=r"claim 360,000 bytes of a file of [\d,]+, so many of them share"):
        scanned(shifted, tmp_path)
    tied = {f"{i}.weight": numbers.view(10, 100) for i in range(100)}
    assert len(scanned(tied, tmp_path).distinct_layers) == 1
    halves = {"a.weight": numbers[:500].view(20, 25), "b.weight": numbers[500:].view(20, 25)}
    assert scanned(halves, tmp_path).num_units == 40


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_views_of_a_storage_are_read_as_they_are(is_zip: bool, tmp_path: Path) -> None:
    matrix = torch.randn(6, 8)
    matrix[:, 5] = matrix[:, 2]
    views = {
        "fc.weight": matrix.T,
        "half.weight": matrix[2:, ::2],
        "odd.weight": torch.randn(4, 4, dtype=torch.cfloat).conj(),
    }
    report = scanned(views, tmp_path, _use_new_zipfile_serialization=is_zip)
    assert [group.units for group in report.layers["fc"].groups] == [(2, 5)]
    assert (report.layers["half"].num_units, report.layers["half"].fan_in) == (4, 4)
    assert not report.skipped


ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
        "it is a nested tensor, which this package does not read",
    ),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 0, torch.qint8),
        "it is quantised, which this package does not read",
    ),
    "sparse": (lambda: torch.eye(4).to_sparse(), "its layout torch.sparse_coo is not strided"),
    "compressed": (lambda: torch.eye(4).to_sparse_csr(), "its layout torch.sparse_csr is not strided"),
    "meta": (lambda: torch.ones(3, 4, device="meta"), "it was saved without numbers, as on the meta device"),
}


@pytest.mark.filterwarnings("ignore")  # prototypes of PyTorch
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_another_form(kind: str, is_zip: bool, tmp_path: Path) -> None:
    if kind == "nested" and not is_zip:
        pytest.skip("PyTorch builds it from uninitialised sizes")
    make, reason = ODD[kind]
    report = scanned({**WEIGHT, "odd.weight": make()}, tmp_path, _use_new_zipfile_serialization=is_zip)
    assert report.skipped == {"odd.weight": reason}
    assert report.coverage < 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_weights_that_are_no_floating_point_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    others = {"a.weight": torch.ones(16, 8).to(dtype), "embeddings.position_ids": torch.arange(9)[None]}
    report = scanned({**WEIGHT, **others}, tmp_path)
    assert report.skipped == {"a": f"its dtype {dtype} is not a floating point type this package reads"}
    assert report.coverage == 32 / (32 + 128)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    weight = torch.randn(8, 4)
    weight[1] = weight[2] = float("nan")
    weight[5] = weight[6]
    layer = scanned({"fc.weight": weight}, tmp_path).layers["fc"]
    assert [group.units for group in layer.groups] == [(5, 6)]


def test_names_that_are_long_or_deep(tmp_path: Path) -> None:
    long, deep = "x" * 10_000, ".".join(["a"] * 3000)
    report = scanned({f"{long}.weight": torch.randn(8, 4), f"{deep}.weight": torch.randn(8, 4)}, tmp_path)
    assert list(report.layers) == [long]
    assert report.skipped == {f"{deep}.weight": "its name has 3,001 parts, more than 100"}
    assert report.coverage == 0.5


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"weight_map": {}}', '{"weight_map": {"a": "x\\u0000"}}'],
    ids=["deep", "empty", "zero byte"],
)
def test_an_index_that_names_nothing(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match="to be the index of a checkpoint in shards"):
        scan(index)


def test_what_an_index_names_and_its_file_has_not(tmp_path: Path) -> None:
    torch.save(WEIGHT, tmp_path / "a.bin")
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": "a.bin", "other.weight": "a.bin"}}))
    report = scan(index)
    assert report.skipped == {"other.weight": "the index has it, its file does not"}
    assert report.coverage < 1


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            {"a": {"dtype": "F32", "shape": [200_000, 200_000], "data_offsets": [0, 4]}},
            "its shape takes 160,000,000,000",
        ),
        ({"a": {"dtype": "F32", "shape": [10**30, 0], "data_offsets": [0, 4]}}, "its shape takes 0"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4 * 10**11]}}, "would end at byte 400,000,000,000"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "entry of 'a' is not understood"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "entry of 'a' is not understood"),
        ({"a": 3}, "TypeError"),
        ([3], "AttributeError"),
        (b"[" * 200_000, "RecursionError"),
        (b"\xff", "UnicodeDecodeError"),
    ],
)
def test_headers_of_safetensors_that_are_wrong(header: object, reason: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path, header, bytes(4))
    with pytest.raises(CheckpointError, match=reason):
        scan(path)


def test_a_header_that_is_longer_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"header would have 9,223,372,036,854,775,808 bytes; the file has 10"):
        scan(path)


def test_a_dtype_of_safetensors_that_is_not_known(tmp_path: Path) -> None:
    entries = {
        "a.weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]},
        "b.weight": {"dtype": "U8", "shape": [3, 1], "data_offsets": [1, 4]},
        "c.weight": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [4, 4]},
    }
    report = scan(safetensors(tmp_path, {"__metadata__": {"format": "pt"}, **entries}, bytes(4)))
    assert report.skipped == {
        "a.weight": "its dtype F4 is not one that this package reads",
        "b": "its dtype torch.uint8 is not a floating point type this package reads",
        "c.weight": "it holds no numbers",
    }
    assert (report.coverage, report.status) == (0, "inconclusive")


def test_an_archive_whose_records_are_compressed(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 1000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match="its records are compressed"):
        scan(tmp_path / "model.pt")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (make_pipe, CheckpointError, "to be a file, but it is a folder, a pipe or a device"),
        (make_loop, OSError, "model.pt"),
        (Path.touch, CheckpointError, "to be a file of torch.save, but it is empty"),
    ],
    ids=["pipe", "loop", "empty"],
)
def test_what_is_no_file(make: Callable[[Path], None], error: type[Exception], text: str, tmp_path: Path) -> None:
    make(tmp_path / "model.pt")
    with pytest.raises(error, match=text):
        scan(tmp_path / "model.pt")


def test_modules_that_are_copies_but_for_a_number_or_a_sign_of_zero(tmp_path: Path) -> None:
    first = torch.randn(6, 5)
    first[5, 4] = 0.0
    negative, other = first.clone(), first.clone()
    negative[5, 4], other[5, 4] = -0.0, 1.0
    nans = {f"{name}.fc.weight": torch.full((6, 5), float("nan")) for name in "uv"}
    tensors = {"a.fc.weight": first, "b.fc.weight": negative, "c.fc.weight": other, **nans}
    (group,) = scanned({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path).copies
    assert group.modules == ("a", "b")


def test_numbers_in_the_arguments_of_a_module(tmp_path: Path) -> None:
    class Net(nn.Linear):
        def __init__(self, start: Tensor) -> None:
            super().__init__(4, int(start[0]))

    content = {"state_dict": nn.Linear(4, 8).state_dict(), "hyper_parameters": {"start": torch.tensor([8.0])}}
    torch.save(content, tmp_path / "model.ckpt")
    assert scan(tmp_path / "model.ckpt", model=Net).num_units == 8
