"""New numbers for units: written into parameters, with what optimizers remember of the old ones cleared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry.units.layers import Incoming, Layer, complex_rows

# What optimizers of PyTorch keep per number of a parameter, and what is zero before their first step. Adafactor keeps
# `row_var` and `col_var` per row and per column.
_ZERO_AT_START = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product", "row_var", "col_var"),
    *("square_avg", "grad_avg", "acc_delta", "prev", "variance"),
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
    """Replace some numbers of a parameter; what optimizers remember of them becomes what it is before the first step.

    Their gradients become zero: they belong to the numbers that are gone, and a step that is about to be taken leaves
    the new ones as they are. How many steps an optimizer has taken is kept.

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
        if isinstance(optimizer, torch.optim.LBFGS):
            _forget_directions(optimizer, parameter)
            continue
        group = next((g for g in optimizer.param_groups if any(each is parameter for each in g["params"])), None)
        if group is None:
            continue
        for name, kept in optimizer.state.get(cast("nn.Parameter", parameter), {}).items():
            start = _at_start(name, group, parameter, places)
            if start is not None and isinstance(kept, Tensor) and kept.ndim:
                _fill(kept, _shared(kept.shape, parameter.shape, places), start)


def _at_start(name: str, group: dict[str, Any], parameter: Tensor, places: Tensor) -> Tensor | float | None:
    """Return what an optimizer keeps under a name before its first step; None if that is not known."""
    if name in _ZERO_AT_START:
        return 0.0
    if name == "sum":  # of Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    if name == "step_size":  # of Rprop
        return float(group["lr"])
    if name == "ax":  # the average of the weights in ASGD starts from the weights
        return parameter.detach().reshape(-1)[places.to(parameter.device)]
    return None


def _shared(shape: torch.Size, full: torch.Size, places: Tensor) -> Tensor:
    """Return the flat indices of a tensor that is broadcast to ``full`` at which only numbers of ``places`` lie.

    Example:
        >>> _shared(torch.Size([3, 1]), torch.Size([3, 2]), torch.tensor([0, 4, 5]))
        tensor([2])
    """
    if shape == full:
        return places
    if len(shape) != len(full) or any(a not in (1, b) for a, b in zip(shape, full, strict=True)):
        return places[:0]
    is_new = torch.zeros(full.numel(), dtype=torch.bool)
    is_new[places.cpu()] = True
    dims = [dim for dim, size in enumerate(shape) if size != full[dim]]
    return is_new.reshape(full).all(dim=dims, keepdim=True).flatten().nonzero().flatten()


def _forget_directions(optimizer: Optimizer, parameter: Tensor) -> None:
    """Drop what LBFGS remembers: its directions are of all parameters together."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    if any(each is parameter for each in parameters):
        optimizer.state[parameters[0]].clear()


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
