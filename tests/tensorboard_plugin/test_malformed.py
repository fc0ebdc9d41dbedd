"""Events with malformed tensors are lost, but do not affect their run, other runs or the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.outputs.tab import _METADATA, add_event
from lightning_symmetry.outputs.tensorboard import add_summary
from lightning_symmetry.tensorboard_plugin.events import MATRIX_TAG, SUMMARY_TAG, pack_matrix, pack_summary
from lightning_symmetry.tensorboard_plugin.report import build_report
from tests.serving import tensorboard


def shape(*sizes: int) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])


BAD = {
    "negative": TensorProto(dtype=DT_STRING, string_val=[b"{}"], tensor_shape=shape(3, -4)),
    "of no type": TensorProto(dtype=99, string_val=[b"{}"]),
    "broken": TensorProto(dtype=DT_FLOAT, tensor_content=b"abc"),
    "huge": TensorProto(dtype=DT_FLOAT, float_val=[1.0], tensor_shape=shape(10**9)),
    "empty": TensorProto(dtype=DT_STRING),
}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, and runs with a malformed second event of three, and a malformed matrix."""
    folder = tmp_path_factory.mktemp("malformed")
    layer = {"units": 4, "fan_in": 3, "width": 4, "dead": 0, "counts": {}, "groups": [], "num_groups": 0}
    for name, tensor in {"good": None, **BAD}.items():
        with SummaryWriter(str(folder / name)) as writer:
            add_event(writer, SUMMARY_TAG, pack_summary({"version": 1, "full": True, "layers": {"fc": layer}}), 0)
            add_event(writer, MATRIX_TAG + "fc", pack_matrix([0, 1], bytes(4)), 0)
            for tag in (SUMMARY_TAG, MATRIX_TAG + "fc") if tensor is not None else ():
                add_summary(writer, [Summary.Value(tag=tag, metadata=_METADATA, tensor=tensor)], 1)
            add_event(writer, SUMMARY_TAG, pack_summary({"version": 1, "layers": {"fc": {"width": 3}}}), 2)
    return folder


def test_the_report_tells_the_rest(logdir: Path) -> None:
    page = build_report(logdir)
    for name in ("good", *BAD):
        assert f'"name":"{name}"' in page
    assert page.count('"unreadable":1') == len(BAD)


@pytest.mark.parametrize("flags", [(), ("--load_fast=false",)], ids=["fast", "slow"])
def test_tensorboard_tells_the_rest(logdir: Path, flags: tuple[str, ...]) -> None:
    with tensorboard(logdir, *flags) as server:
        assert set(server.runs()) == {"good", *BAD}
        for name in ("good", *BAD):
            history = server.json("run", run=name)
            assert (history["steps"], history["unreadable"]) == ([0, 2], int(name != "good")), name
            assert [state["width"] for state in history["layers"][0]["states"]] == [4, 3]
            assert [matrix["step"] for matrix in server.json("layer", run=name, layer="fc")["matrices"]] == [0]
