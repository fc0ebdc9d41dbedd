"""A hash of the weights and gradients of a rank: ranks with equal hashes train as one."""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import chain
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.matrices.numerics import exact_arithmetic, is_capturing, to_host
from lightning_symmetry.modules import held, modules_of, parameters_of
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.units.hooks import ModuleHook, is_of_user
from lightning_symmetry.units.progress import real_numbers

# Of a larger tensor, the norm and at least this many of the numbers are hashed.
_NUM_SAMPLED = 64


class Imprint:
    """Records the gradients that this process computes, for comparison with other ranks.

    Equal weights prove nothing, since data parallelism keeps them equal. So each gradient is recorded before it is
    averaged over the ranks. Such gradients differ if the ranks have different data, different parts of one batch, or
    shards that were initialised independently. This process must hold the whole model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # Parameters with a hook of the user are omitted: that hook may average the gradient first.
        self._parameters = [
            parameter
            for parameter in parameters_of(model)
            if parameter.requires_grad
            and not is_lazy(parameter)
            and not any(map(is_of_user, (parameter._backward_hooks or {}).values()))
        ]
        self._norms: list[Tensor | None] = [None] * len(self._parameters)  # of gradients, summed over backward passes
        self._handles = [  # if a hook fails, its gradient counts as missing
            parameter.register_hook(ModuleHook(partial(self._record, place)))
            for place, parameter in enumerate(self._parameters)
        ]

    def end(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()

    def digest(self) -> str | None:
        """Return a hash of weights, buffers and gradients; None if only constant parameters had gradients.

        Constants prove nothing: they have the same hash on all ranks, whatever the seeds are.
        """
        buffers = (held(module, "_buffers").values() for module in modules_of(self._model))
        tensors = [each for each in chain(parameters_of(self._model), *buffers) if _can_be_read(each)]
        norms = dict(zip(map(id, self._parameters), self._norms, strict=True))
        readings = []
        for tensor in tensors:
            with exact_arithmetic(tensor.device):
                readings.append(_reading(tensor, norms.get(id(tensor))))
        if not readings:
            return None
        numbers = to_host(torch.cat([reading.to(readings[0].device) for reading in readings]))
        is_proof, start = False, 0
        for reading in readings:
            gradient, _, *sample = numbers[start : start + len(reading)].tolist()
            is_proof |= isfinite(gradient) and gradient > 0 and min(sample) < max(sample)
            start += len(reading)
        shapes = repr([(tuple(tensor.shape), tensor.dtype) for tensor in tensors]).encode()
        return hashlib.blake2b(shapes + numbers.tobytes(), digest_size=16).hexdigest() if is_proof else None

    def _record(self, place: int, gradient: Tensor) -> None:
        if not gradient.is_floating_point() or gradient.layout != torch.strided or is_capturing():
            return
        with exact_arithmetic(gradient.device):
            norm, before = _norm(gradient.detach()), self._norms[place]
            # A backward pass that overflowed does not count. Under a gradient scaler the first ones may overflow.
            self._norms[place] = norm if before is None else norm + before.nan_to_num(0.0, 0.0)


def _reading(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    """Return one vector: the norms of gradient and tensor, then a sample of the tensor; an unknown norm is 0."""
    flat = real_numbers(tensor.detach())
    norm = _norm(flat) if flat.is_floating_point() else None
    sample = flat[:: max(1, len(flat) // _NUM_SAMPLED)].float()
    zero = sample.new_zeros(1)
    known = [zero if each is None else each.view(1).to(sample.device) for each in (gradient, norm)]
    return torch.cat([*known, sample])


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norm.float()


def _can_be_read(tensor: Tensor | None) -> bool:
    if tensor is None or is_lazy(tensor) or tensor.is_meta or is_sharded(tensor):
        return False
    return tensor.layout == torch.strided and tensor.numel() > 0
