"""What keeps units equal that train as one: a layer that reads them alike, or the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.units.naming import readable_names
from lightning_symmetry.units.readers import Reader, ReadingGraph
from lightning_symmetry.verdicts.diagnoses import THE_LOSS, Finding
from lightning_symmetry.verdicts.verdict import Verdict

# Of so many findings it is said: nobody reads more of them.
_MAX_FINDINGS = 1000


class Keepers:
    """Finds what keeps the units of findings equal, as far as the model can be traced without data.

    Args:
        model: the model, with the weights of the step at which the findings were made.

    Example:
        >>> from lightning_symmetry.verdicts.diagnoses import Cause, Origin
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> _ = nn.init.constant_(net[2].weight, 0.1)
        >>> finding = Finding("0", (0, 1, 2, 3), Verdict.LOCKED, Cause.CONSTANT, 0.1, 0, 0, None, Origin.START)
        >>> Keepers(net).of([finding])
        ['2']
    """

    def __init__(self, model: nn.Module) -> None:
        every = list(readable_names(model))
        self._paths = {name: path for name, path, _ in every}
        self._modules = {path: module for _, path, module in every}
        self._graphs: dict[str, ReadingGraph] = {}
        self._readers: dict[str, tuple[str, list[Reader] | None]] = {}  # by layer, with what comes before their names

    def of(self, findings: Sequence[Finding]) -> list[str]:
        """Return for each finding the name of the layer that reads its units alike, or the loss; empty if unknown."""
        return [self._of(finding) if i < _MAX_FINDINGS else "" for i, finding in enumerate(findings)]

    def _of(self, finding: Finding) -> str:
        if finding.verdict not in (Verdict.LOCKED, Verdict.LOCKSTEP) or finding.modules:
            return ""
        if finding.layer not in self._readers:
            self._readers[finding.layer] = self._readers_of(finding.layer)
        start, readers = self._readers[finding.layer]
        return _reading_alike(readers, finding, start) if readers else start

    def _readers_of(self, layer: str) -> tuple[str, list[Reader] | None]:
        """Return what reads the units of a layer, and the path of the part of the model that they are named in.

        If the model puts them out, there are no readers, and the name of the loss.
        """
        path = self._paths.get(layer)
        module: Any = None if path is None else self._modules[path]
        if path is None or not isinstance(module, nn.Linear | _ConvNd):
            return "", None
        num_units = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        # The forward pass of a LightningModule may be that of its training step alone: then a part of it may do.
        steps = path.split(".")
        for length in range(len(steps)):
            root = ".".join(steps[:length])
            graph = self._graph(root)
            if not root and graph.is_output(module):
                return THE_LOSS, None
            readers = graph.readers_of(module, num_units)
            if readers:
                return (f"{root}." if root else ""), readers
        return "", None

    def _graph(self, path: str) -> ReadingGraph:
        if path not in self._graphs:
            self._graphs[path] = ReadingGraph(self._modules[path])
        return self._graphs[path]


def _reading_alike(readers: Sequence[Reader], finding: Finding, start: str) -> str:
    """Return the name of the first reader, if all of them read the units alike, up to the sign of mirrored ones."""
    units = torch.tensor(finding.units)
    signs = torch.tensor([-1.0 if unit in finding.mirrored else 1.0 for unit in finding.units])
    for reader in readers:
        weight = reader.weight.detach()
        columns = weight.movedim(reader.dim, 0)[reader.inputs(units).to(weight.device)].flatten(1).double().cpu()
        if not (_agree(columns, weight.dtype) or _agree(columns * signs[:, None], weight.dtype)):
            return ""
    return start + readers[0].name


def _agree(columns: Tensor, dtype: torch.dtype) -> bool:
    distances = (columns - columns[0]).norm(dim=1)
    return bool((distances <= TOLERANCES[dtype] * columns.norm(dim=1).amax()).all())
