"""What a check with nothing new spends on TensorBoard: ``python -m tests.benchmarks events``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import Options
from lightning_symmetry.outputs.loggers import outputs_of
from lightning_symmetry.outputs.output import Output
from tests.benchmarks.quick import with_gradients
from tests.benchmarks.redundancy import MODELS
from tests.benchmarks.timing import alternate, show

_SETTLED = 520  # checks after which no directions and no matrices are due for a while, and not every check is written
_CHECKS = 5  # that are timed together: a single one takes a millisecond
_ROUNDS = 20


def checks_of(model: nn.Module, outputs: Sequence[Output]) -> Callable[[], None]:
    """Several checks that have settled, written to some outputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = SymmetryEngine(Options(on_symmetry="ignore"), "the monitor", print)
    engine.start([optimizer])
    steps = itertools.count()

    def check(times: int = _CHECKS) -> None:
        for _ in range(times):
            assert engine.before_step(model, optimizer, next(steps), 1, lambda: outputs) is not None

    check(_SETTLED)
    return check


def run() -> list[dict[str, float | str]]:
    """Time checks with the writer and without side by side, and print the table."""
    rows: list[tuple[str, ...]] = []
    results: list[dict[str, float | str]] = []
    for name in ("MLP 64-256-128-10", "60 layers of 32 units"):
        with TemporaryDirectory() as folder:
            logger = TensorBoardLogger(Path(folder))
            outputs = outputs_of(logger, "findings", "summary")
            model = with_gradients(*MODELS[name])
            candidates = {"with": checks_of(model, outputs), "without": checks_of(model, [])}
            times = alternate(candidates, rounds=_ROUNDS)
            logger.experiment.close()
        ratio = times["with"].over(times["without"])
        share = 1 - 1 / ratio.value
        cells = [f"{1e3 * times[kind].median / _CHECKS:.2f} ms" for kind in ("with", "without")]
        rows.append((name, *cells, str(ratio), f"{share:.1%}"))
        results.append({"model": name, "share": share, **ratio.to_dict()})
    head = ("model", "check, written", "not written", "ratio", "share of writing")
    show("TensorBoard events of a check with nothing new", head, rows)
    return results
