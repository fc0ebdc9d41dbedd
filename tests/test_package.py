from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_symmetry
from tests.fresh import outputs_of


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"lightning", "tensorboard", "torchmetrics", "PIL", "matplotlib", "sklearn", "rich"}


def test_import_takes_nothing() -> None:
    assert not {name.split(".")[0] for name in modules_after("import lightning_symmetry")} & (HEAVY | {"torch"})


# Contracts of import-linter in `pyproject.toml` say what each module may import; this test sees what that brings along.
def test_nothing_below_the_callback_loads_more_than_torch() -> None:
    below = "matrices.grouping ranks.sharded units.layers verdicts.history verdicts.advice engine.diagnose"
    statements = {
        "engine.diagnose": "from lightning_symmetry import SymmetryTracker, diagnose, register_layer, Finding",
        "verdicts.advice": "\n".join(f"import lightning_symmetry.{module}" for module in below.split()),
        "outputs.tab": "import lightning_symmetry.outputs.heatmap, lightning_symmetry.outputs.tab",
    }
    code = "import sys, torch.nn.utils.parametrize\nbefore = set(sys.modules)\n{}\nprint(*(set(sys.modules) - before))"
    found = [set(said.split()) for said in outputs_of(*map(code.format, statements.values()))]
    for module, names in zip(statements, found, strict=True):
        assert f"lightning_symmetry.{module}" in names
        assert "lightning.pytorch" not in names
    diagnose, everything, _ = found
    assert not {name.split(".")[0] for name in diagnose | everything} & HEAVY
    # These take as long to import as half of PyTorch; only those who shard or compile a model need them.
    assert "torch.distributed.tensor" not in diagnose
    assert "torch._dynamo" not in diagnose | everything


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


def test_layers_of_pytorch_are_known_from_the_start() -> None:
    statements = [
        "from lightning_symmetry import diagnose",
        "from lightning_symmetry.engine.diagnose import diagnose",
        "import lightning_symmetry.callback; from lightning_symmetry.engine.diagnose import diagnose",
        "from lightning_symmetry import register_layer, diagnose",
    ]
    ask = "import torch\nprint(list(diagnose(torch.nn.Sequential(torch.nn.Linear(2, 3))).layers))"
    found = outputs_of(*(f"{statement}\n{ask}" for statement in statements))
    assert dict(zip(statements, found, strict=True)) == dict.fromkeys(statements, "['0']\n")


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
    assert outputs_of(code) == ["['0.mine']\n"]
