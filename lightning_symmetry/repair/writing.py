"""New numbers for units: written into parameters, with what optimizers remember of the old ones cleared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry.units.layers import Incoming, Layer, complex_rows

# What optimizers of PyTorch keep per number of a parameter, and what is zero before their first step. Others, such as
# the step sizes of Rprop, mean something else at zero.
_MOMENTS = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product"),
    *("square_avg", "grad_avg", "acc_delta", "sum", "prev"),
}


class CannotChangeError(ValueError):
    """A layer whose weights cannot be written; the message says which and why. Nothing has been changed."""


def check_writable(layer: Layer, module: nn.Module) -> None:
    """Refuse a layer whose weights cannot be written here.

    Raises:
        CannotChangeError: says why.
    """
    for tensor in layer.all_tensors():
        if tensor.part is not None or not isinstance(tensor.rows(), Tensor):
            raise CannotChangeError(
                f"Expected layer {layer.name!r} to be here in full but it is sharded. Break the symmetry before the "
                "model is sharded, or of a checkpoint."
            )
        if is_computed(tensor):
            name_of_computed(module, tensor)  # raises if it cannot be found
            chain = module.parametrizations[name_of_computed(module, tensor)]  # type: ignore[index]
            lacking = [type(step).__name__ for step in chain if not hasattr(step, "right_inverse")]
            if lacking:
                raise CannotChangeError(
                    f"Expected the parametrizations of layer {layer.name!r} to have a `right_inverse`, through which a "
                    f"weight can be assigned, but {', '.join(lacking)} has none."
                )


def write(tensor: Incoming, units: Tensor, values: Tensor, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Replace the numbers that feed some units.

    Args:
        tensor: what feeds the units of a layer.
        units: indices, ``(n,)``.
        values: the new numbers, ``(n, ...)`` in the shape that the view of the tensor has.
        module: the module that the tensor belongs to.
        optimizers: those that update its parameters.
    """
    if tensor.weights.is_complex():
        values = complex_rows(values)
    places = tensor.view(torch.arange(tensor.weights.numel()).reshape(tensor.weights.shape))[units].flatten()
    if not is_computed(tensor):
        put(tensor.weights, places, values.flatten(), optimizers)
        return
    weight = tensor.weights.detach().clone()
    _fill(weight, places, values.flatten())
    before = [original.detach().clone() for original in tensor.originals]
    with torch.no_grad():
        setattr(module, name_of_computed(module, tensor), weight)
        for original, old in zip(tensor.originals, before, strict=True):
            moved = places
            if original.shape != weight.shape:
                moved = torch.arange(original.numel())
                if len(original) == len(tensor.rows()):  # a row for each unit, as the norms in weight_norm
                    moved = moved.reshape(len(original), -1)[units].flatten()
            new = original.detach().flatten()[moved.to(original.device)]
            original.copy_(old)
            put(original, moved, new, optimizers)


def put(parameter: Tensor, places: Tensor, values: Tensor | float, optimizers: Sequence[Optimizer]) -> None:
    """Replace some numbers of a parameter; their gradients and what optimizers remember of them become zero.

    The gradients belong to the numbers that are gone: a step that is about to be taken leaves the new ones as they are.
    How many steps an optimizer has taken is kept.

    Args:
        parameter: the parameter.
        places: flat indices, ``(n,)``.
        values: the new numbers, ``(n,)``, or one for all.
        optimizers: those that may update the parameter.
    """
    _fill(parameter, places, values)
    if parameter.grad is not None and parameter.grad.layout == torch.strided:
        _fill(parameter.grad, places, 0.0)
    for optimizer in optimizers:
        for name, moments in optimizer.state.get(cast("nn.Parameter", parameter), {}).items():
            if name in _MOMENTS and isinstance(moments, Tensor) and moments.shape == parameter.shape:
                _fill(moments, places, 0.0)


def _fill(tensor: Tensor, places: Tensor, values: Tensor | float) -> None:
    """Write at flat indices of a tensor of any strides."""
    with torch.no_grad():
        flat = tensor.detach().reshape(-1)  # a copy, if the tensor is not contiguous
        flat[places.to(tensor.device)] = (
            values.to(tensor.device, tensor.dtype) if isinstance(values, Tensor) else values
        )
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.reshape(tensor.shape))


def is_computed(tensor: Incoming) -> bool:
    """Whether parametrizations compute a tensor from other ones."""
    return not (len(tensor.originals) == 1 and tensor.originals[0] is tensor.weights)


def name_of_computed(module: nn.Module, tensor: Incoming) -> str:
    """The name of a tensor that is computed by parametrizations."""
    for name, chain in getattr(module, "parametrizations", {}).items():
        if any(original is tensor.originals[0] for original in chain.parameters(recurse=False)):
            return str(name)
    raise CannotChangeError(f"Expected a parametrized weight of {type(module).__name__} but it has no such parameter.")
