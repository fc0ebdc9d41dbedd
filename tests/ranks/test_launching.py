"""The monitor in processes that each strategy and ``torchrun`` start."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import alone

LAUNCHED = """
import sys
from pathlib import Path
from lightning.pytorch import Callback
from lightning_symmetry import SymmetryMonitor
from tests.distributed import NETWORKS, Task, data, conclusions
from tests.training import make_trainer

class Write(Callback):
    def on_train_end(self, trainer, pl_module):
        path = Path(sys.argv[2]) / str(trainer.global_rank)
        path.write_text(repr(conclusions(trainer.callbacks[0])))

if __name__ == "__main__":
    options = {"strategy": sys.argv[1], "devices": 2, "max_steps": 8, "use_distributed_sampler": False}
    trainer = make_trainer([SymmetryMonitor(every_n_steps=2), Write()], **options)
    trainer.fit(Task(NETWORKS["planted groups"], None), data(16, trainer.global_rank, 2))
"""


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn", "ddp"])
def test_every_way_to_launch(strategy: str, tmp_path: Path) -> None:
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), strategy, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    expected = alone("planted groups", "32-true")
    for rank in range(2):
        assert ast.literal_eval((tmp_path / str(rank)).read_text()) == expected


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    script = tmp_path / "train.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = page.split("```text\n")[1].split("```")[0].strip()
    assert " ".join(expected.split()) in " ".join(done.stderr.split())
