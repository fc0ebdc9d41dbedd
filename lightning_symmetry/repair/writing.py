"""Writing new rows into parameters, and resetting gradients and optimizer states of the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry.units.layers import Incoming, Layer, complex_rows

# States per number of a parameter that PyTorch's optimizers initialise with zeros. Adafactor has `row_var` and
# `col_var` per row and per column.
_ZERO_AT_START = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product", "row_var", "col_var"),
    *("square_avg", "grad_avg", "acc_delta", "prev", "variance"),
}


class CannotChangeError(ValueError):
    """A layer whose weights cannot be written; the message says which and why. Nothing has been changed."""


def check_writable(layer: Layer, module: nn.Module) -> None:
    """Check that a layer is not sharded, and that all of its parametrizations have a ``right_inverse``."""
    for tensor in layer.all_tensors():
        if tensor.part is not None or not isinstance(tensor.rows(), Tensor):
            raise CannotChangeError(
                f"Expected layer {layer.name!r} to be here in full but it is sharded. Break the symmetry before the "
                "model is sharded, or of a checkpoint."
            )
        if is_computed(tensor):
            chain = module.parametrizations[name_of_computed(module, tensor)]  # type: ignore[index]
            lacking = [type(step).__name__ for step in chain if not hasattr(step, "right_inverse")]
            if lacking:
                raise CannotChangeError(
                    f"Expected the parametrizations of layer {layer.name!r} to have a `right_inverse`, through which a "
                    f"weight can be assigned, but {', '.join(lacking)} has none."
                )


def write_rows(
    tensor: Incoming, units: Tensor, values: Tensor, owner: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    """Replace the rows of ``units`` ``(n,)`` by ``values`` ``(n, ...)``, in the shape of the tensor's view."""
    if tensor.weights.is_complex():
        values = complex_rows(values)
    places = tensor.view(torch.arange(tensor.weights.numel()).reshape(tensor.weights.shape))[units].flatten()
    if not is_computed(tensor):
        write_numbers(tensor.weights, places, values.flatten(), optimizers)
        return
    weight = tensor.weights.detach().clone()
    _fill(weight, places, values.flatten())
    before = [original.detach().clone() for original in tensor.originals]
    with torch.no_grad():
        setattr(owner, name_of_computed(owner, tensor), weight)
        for original, old in zip(tensor.originals, before, strict=True):
            changed = places
            if original.shape != weight.shape:
                changed = torch.arange(original.numel())
                if len(original) == len(tensor.rows()):  # a row per unit, such as the norms of weight_norm
                    changed = changed.reshape(len(original), -1)[units].flatten()
            new = original.detach().flatten()[changed.to(original.device)]
            original.copy_(old)
            write_numbers(original, changed, new, optimizers)


def write_numbers(parameter: Tensor, places: Tensor, values: Tensor | float, optimizers: Sequence[Optimizer]) -> None:
    """Replace some numbers of a parameter, and reset their optimizer states to those before the first step.

    Their gradients become zero, so that an optimizer step that follows does not change the new numbers. Step counts are
    kept. ``places`` are flat indices ``(n,)``, ``values`` the new numbers ``(n,)`` or one for all.
    """
    _fill(parameter, places, values)
    if parameter.grad is not None and parameter.grad.layout == torch.strided:
        _fill(parameter.grad, places, 0.0)
    for optimizer in optimizers:
        group = next((g for g in optimizer.param_groups if any(each is parameter for each in g["params"])), None)
        if group is None:
            continue
        if isinstance(optimizer, torch.optim.LBFGS):  # its state spans all parameters, and is kept under the first
            optimizer.state[group["params"][0]].clear()
            continue
        for name, kept in optimizer.state.get(cast("nn.Parameter", parameter), {}).items():
            start = _at_start(name, group, parameter, places)
            if start is not None and isinstance(kept, Tensor) and kept.ndim:
                _fill(kept, _covered(kept.shape, parameter.shape, places), start)


def _at_start(name: str, group: dict[str, Any], parameter: Tensor, places: Tensor) -> Tensor | float | None:
    """Return the value of a state before the first step; None if the state is unknown."""
    if name in _ZERO_AT_START:
        return 0.0
    if name == "sum":  # of Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    if name == "step_size":  # of Rprop
        return float(group["lr"])
    if name == "ax":  # the average of the weights in ASGD starts from the weights
        return parameter.detach().reshape(-1)[places.to(parameter.device)]
    return None


def _covered(shape: torch.Size, full: torch.Size, places: Tensor) -> Tensor:
    """Return the flat indices in ``shape`` whose numbers, broadcast to ``full``, all lie at flat indices ``places``.

    >>> _covered(torch.Size([3, 1]), torch.Size([3, 2]), torch.tensor([0, 4, 5]))
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


def _fill(tensor: Tensor, places: Tensor, values: Tensor | float) -> None:
    """Write values at flat indices of a tensor with any strides."""
    with torch.no_grad():
        flat = tensor.detach().reshape(-1)  # a copy, if the tensor is not contiguous
        # `put_` would need no copy, but is refused by `torch.use_deterministic_algorithms`.
        flat[places.to(tensor.device)] = torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.reshape(tensor.shape))


def is_computed(tensor: Incoming) -> bool:
    """Return whether parametrizations compute a tensor from other tensors."""
    return not (len(tensor.originals) == 1 and tensor.originals[0] is tensor.weights)


def name_of_computed(module: nn.Module, tensor: Incoming) -> str:
    """Return the name of a tensor that parametrizations compute."""
    for name, chain in getattr(module, "parametrizations", {}).items():
        if any(original is tensor.originals[0] for original in chain.parameters(recurse=False)):
            return str(name)
    raise CannotChangeError(f"Expected a parametrized weight of {type(module).__name__} but it has no such parameter.")
