from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_symmetry


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"lightning", "tensorboard", "torchmetrics", "PIL", "matplotlib", "sklearn", "rich"}


def test_import_takes_nothing() -> None:
    assert not {name.split(".")[0] for name in modules_after("import lightning_symmetry")} & (HEAVY | {"torch"})


def test_diagnose_takes_no_more_than_torch() -> None:
    ours = modules_after("from lightning_symmetry import diagnose, register_layer, Finding")
    extra = ours - modules_after("import torch, torch.nn.utils.parametrize")
    assert not {name.split(".")[0] for name in extra} & HEAVY
    # It takes as long to import as half of PyTorch, and only those who shard a model need it.
    assert "torch.distributed.tensor" not in ours


def test_public_names() -> None:
    for name in lightning_symmetry.__all__:
        assert getattr(lightning_symmetry, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Monitor'"):
        lightning_symmetry.Monitor  # noqa: B018
    assert set(lightning_symmetry.__all__) <= set(dir(lightning_symmetry))


def test_star_imports_all() -> None:
    names: dict[str, object] = {}
    exec("from lightning_symmetry import *", names)
    assert names.keys() >= set(lightning_symmetry.__all__)


@pytest.mark.parametrize(
    "statement",
    [
        "from lightning_symmetry import diagnose",
        "from lightning_symmetry.engine.diagnose import diagnose",
        "import lightning_symmetry.callback; from lightning_symmetry.engine.diagnose import diagnose",
        "from lightning_symmetry import register_layer, diagnose",
    ],
)
def test_layers_of_pytorch_are_known_from_the_start(statement: str) -> None:
    code = f"{statement}\nimport torch\nprint(list(diagnose(torch.nn.Sequential(torch.nn.Linear(2, 3))).layers))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "['0']\n"


def test_a_layer_of_yours_stands_for_one_of_pytorch() -> None:
    code = """
import torch
from lightning_symmetry import Units, register_layer
@register_layer(torch.nn.Linear)
def linear(module):
    return Units(module.weight, part="mine")
from lightning_symmetry import diagnose
print(list(diagnose(torch.nn.Sequential(torch.nn.Linear(2, 3))).layers))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "['0.mine']\n"


@pytest.mark.parametrize(
    "room",
    [
        *("matrices.grouping", "ranks.sharded", "units.layers", "verdicts.evidence", "engine.diagnose"),
        *("verdicts.history", "verdicts.advice", "outputs.heatmap", "outputs.tab"),
    ],
)
def test_nothing_below_the_callback_imports_lightning(room: str) -> None:
    assert "lightning.pytorch" not in modules_after(f"import lightning_symmetry.{room}")
