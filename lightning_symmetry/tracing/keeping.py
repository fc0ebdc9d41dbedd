"""The reason why units that train as one stay equal: a layer that reads them with equal weights, or the loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_symmetry.matrices.numerics import Floats
from lightning_symmetry.matrices.question import TOLERANCES
from lightning_symmetry.tracing.autograd import number_of, operation_of
from lightning_symmetry.tracing.graph import BackwardPass
from lightning_symmetry.tracing.labels import along
from lightning_symmetry.units.layers import real_rows
from lightning_symmetry.verdicts.diagnoses import THE_LOSS


class Reader(NamedTuple):
    """A layer that reads units, or the loss."""

    name: str
    columns: Tensor | None = None  # weights of the layer, ``(num_inputs, k)``; None for the loss
    labels: Tensor | None = None  # label of each input's unit, 0 for other inputs, ``(num_inputs,)``


@torch.no_grad()
def readers_of(backward: BackwardPass, i: int) -> list[Reader] | None:
    """Return the readers of a target's units, in the order of computation; None if they are unknown.

    Units are followed through operations that do not mix them, up to the first that does.
    """
    path = backward.paths[i]
    readers: list[tuple[int, Reader]] = []  # each with the number of its operation
    left, known = deque([path.start]), {path.start}
    while left:
        place = left.popleft()
        for use in backward.uses(place):
            outputs = path.outputs[use.node]
            behind = [each for each in outputs if path.labels[each] is not None]
            if place is not path.start and use.node not in backward.in_model:
                readers.append((number_of(use.node), Reader(THE_LOSS)))
            elif behind:
                left += [each for each in behind if each not in known]
                known.update(behind)
            else:
                dim = 1 if operation_of(use.node) == "Convolution" else -1
                reader = _reader(backward, use.node, along(path.labels[place], dim))
                if reader is None:
                    return None
                readers.append((number_of(use.node), reader))
    return [reader for _, reader in sorted(readers, key=lambda pair: pair[0])]


def _reader(backward: BackwardPass, node: Any, labels: Tensor | None) -> Reader | None:
    """Return the linear layer or convolution that an operation belongs to; None for other operations."""
    call = backward.calls.get(node)
    if call is None or labels is None or not isinstance(call.module, nn.Linear | _ConvNd):
        return None
    module: Any = call.module
    weight = module._parameters.get("weight")
    if weight is None or type(weight.data) is not Tensor:
        return None
    is_convolution = isinstance(module, _ConvNd)
    if is_convolution and module.groups > 1:
        return None
    columns = real_rows(weight.detach().movedim(0 if is_convolution and module.transposed else 1, 0)).flatten(1)
    return Reader(call.name, columns, labels) if len(columns) == len(labels) else None


@torch.no_grad()
def kept_by(readers: Iterable[Reader] | None, labels: Sequence[int], signs: Floats) -> str:
    """Return the name of the first reader, if all of them read these units with equal weights; else an empty string.

    Args:
        readers: the readers of the units; None if unknown.
        labels: the labels of the units.
        signs: 1 for each unit, or -1 for a mirror image of the first, which may be read with equal or negated weights.

    Example:
        >>> import numpy as np
        >>> reader = Reader("fc2", torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 2, 3]))
        >>> kept_by([reader], [1, 2], np.ones(2)), kept_by([reader], [1, 3], np.ones(2))
        ('fc2', '')
    """
    every = list(readers or ())
    for reader in every:
        if reader.columns is not None and reader.labels is not None:
            columns = [reader.columns[reader.labels == label].flatten().double().cpu() for label in labels]
            if len({len(each) for each in columns}) != 1:
                return ""
            rows, tolerance = torch.stack(columns), TOLERANCES[reader.columns.dtype]
            signed = rows * torch.from_numpy(signs)[:, None]
            if not (_agree(rows, tolerance) or _agree(signed, tolerance)):
                return ""
    return every[0].name if every else ""


def _agree(rows: Tensor, tolerance: float) -> bool:
    return bool(((rows - rows[0]).norm(dim=1) <= tolerance * rows.norm(dim=1).amax()).all())
