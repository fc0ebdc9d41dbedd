"""A hash of what a rank holds and computes: ranks with the same one are updated alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.matrices.numerics import exact_arithmetic, is_capturing, to_host
from lightning_symmetry.modules import held, modules_of, parameters_of
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.units.hooks import ModuleHook, is_of_user
from lightning_symmetry.units.progress import real_numbers

# At least so many numbers of a tensor are compared one by one, if it has them; of all others the norm.
_NUM_SAMPLED = 64


class Imprint:
    """Notes the gradients that this process computes, to be compared with those of other ranks.

    Equal weights alone mean nothing, since data parallelism keeps them equal. So each gradient is noted as the backward
    pass brings it, before it is averaged over the ranks. Such gradients differ where ranks have data of their own,
    different parts of one batch, or shards that were drawn apart.

    Args:
        model: the model, all of which is in this process.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # A hook that is there before ours may average the gradient.
        self._parameters = [
            parameter
            for parameter in parameters_of(model)
            if parameter.requires_grad and not is_lazy(parameter) and not _has_hook_of_user(parameter)
        ]
        self._norms: list[Tensor | None] = [None] * len(self._parameters)  # of gradients, added up over the passes
        self._handles = [
            parameter.register_hook(ModuleHook(partial(self._note, place), on_error=_pass_over))
            for place, parameter in enumerate(self._parameters)
        ]

    def end(self) -> None:
        """Note nothing any more."""
        for handle in self._handles:
            handle.remove()

    def digest(self) -> str | None:
        """Return a hash of weights, buffers and gradients; None if no parameter with distinct numbers had a gradient.

        A model of constants has the same hash on all ranks whatever the seeds are.
        """
        tensors = [tensor for tensor in _tensors_of(self._model) if _can_be_read(tensor)]
        norms = {
            id(parameter): norm
            for parameter, norm in zip(self._parameters, self._norms, strict=True)
            if norm is not None
        }
        readings = []
        for tensor in tensors:
            with exact_arithmetic(tensor.device):
                readings.append(_reading(tensor, norms.get(id(tensor))))
        if not readings:
            return None
        numbers = to_host(torch.cat([reading.to(readings[0].device) for reading in readings]))
        can_tell, start = False, 0
        for reading in readings:
            gradient, _, *sample = numbers[start : start + len(reading)].tolist()
            can_tell |= isfinite(gradient) and gradient > 0 and min(sample) < max(sample)
            start += len(reading)
        shapes = repr([(tuple(tensor.shape), tensor.dtype) for tensor in tensors]).encode()
        return hashlib.blake2b(shapes + numbers.tobytes(), digest_size=16).hexdigest() if can_tell else None

    def _note(self, place: int, gradient: Tensor) -> None:
        if not gradient.is_floating_point() or gradient.layout != torch.strided or is_capturing():
            return
        with exact_arithmetic(gradient.device):
            norm, before = _norm(gradient.detach()), self._norms[place]
            # A pass that overflowed, as the first ones with a gradient scaler may, counts for nothing.
            self._norms[place] = norm if before is None else norm + before.nan_to_num(0.0, 0.0)


def _reading(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the norm of the gradient, the norm of a tensor, and a sample of its numbers; zero is what is not known."""
    flat = real_numbers(tensor.detach())
    norm = _norm(flat) if flat.is_floating_point() else None
    sample = flat[:: max(1, len(flat) // _NUM_SAMPLED)].float()
    zero = sample.new_zeros(1)
    known = [zero if each is None else each.view(1).to(sample.device) for each in (gradient, norm)]
    return torch.cat([*known, sample])


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norm.float()


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    yield from parameters_of(model)
    for module in modules_of(model):
        yield from (buffer for buffer in held(module, "_buffers").values() if buffer is not None)


def _can_be_read(tensor: Tensor) -> bool:
    is_here = not is_lazy(tensor) and not tensor.is_meta and not is_sharded(tensor)
    return is_here and tensor.layout == torch.strided and tensor.numel() > 0


def _has_hook_of_user(parameter: Tensor) -> bool:
    return any(map(is_of_user, (parameter._backward_hooks or {}).values()))


def _pass_over(error: Exception) -> None:
    """Take a gradient that could not be noted for one that was not computed."""
