from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_symmetry


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_takes_no_more_than_torch() -> None:
    extra = modules_after("import lightning_symmetry") - modules_after("import torch, torch.nn.utils.parametrize")
    foreign = {name.split(".")[0] for name in extra} - {"lightning_symmetry"}
    assert not foreign & {"lightning", "tensorboard", "torchmetrics", "PIL", "matplotlib", "sklearn", "rich"}


def test_public_names() -> None:
    for name in lightning_symmetry.__all__:
        assert getattr(lightning_symmetry, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Monitor'"):
        lightning_symmetry.Monitor  # noqa: B018


@pytest.mark.parametrize("room", ["layers", "grouping", "evidence", "diagnosis", "history", "advice", "heatmap"])
def test_nothing_below_the_callback_imports_lightning(room: str) -> None:
    assert "lightning.pytorch" not in modules_after(f"import lightning_symmetry.{room}")
