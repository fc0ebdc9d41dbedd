"""What a merge does to one tensor, to its gradient, and to the optimizer's state for it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_symmetry.merging.verification import MergeError

# States that PyTorch's optimizers keep for each parameter, by their names.
_LINEAR = frozenset({"momentum_buffer", "exp_avg", "grad_avg", "ax", "prev"})
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})


class Equal(NamedTuple):
    """Slices of a tensor that are equal, or mirror images, if the merged units are."""

    name: str  # name of the parameter or buffer in the model
    dim: int  # dimension along which the slices lie
    pairs: tuple[tuple[int, int, int], ...]  # index of a slice, index of the slice that it equals, sign

    def apply(self, tensor: Tensor) -> None:
        """Make the slices of a tensor equal, in place.

        >>> tensor = torch.tensor([1.0, 2.0, 3.0])
        >>> Equal("bias", 0, ((2, 0, -1),)).apply(tensor)
        >>> tensor
        tensor([ 1.,  2., -1.])
        """
        indices, others, signs = zip(*self.pairs, strict=True)
        slices = tensor.detach().index_select(self.dim, _index(others, tensor))
        tensor.detach().index_copy_(self.dim, _index(indices, tensor), slices * _along(signs, self.dim, slices))


class Edit(NamedTuple):
    """Removal of slices of a tensor, some of which are added to others first."""

    name: str  # name of the parameter or buffer in the model
    dim: int  # dimension along which the slices lie
    kept: tuple[int, ...]  # sorted indices of the slices that are kept
    added: tuple[tuple[int, int, int], ...]  # index of a removed slice, index of the slice to which it is added, sign
    factors: tuple[float, ...]  # for the gradient of each kept slice, with which it moves as in the original network

    @staticmethod
    def of(name: str, dim: int, size: int, sets: Iterable[Iterable[tuple[int, int]]], *, is_reader: bool) -> Edit:
        """Make the edit that keeps the first slice of each set; a set has the indices and signs of slices.

        Slices of a reader are added up. A sum of ``m`` slices gets the gradient of a single one: the factor is ``m``.
        In other tensors, a slice that replaces ``m`` slices gets ``m`` times the gradient: the factor is ``1 / m``.
        Only readers use the signs. ``size`` is that of the dimension ``dim``.

        >>> edit = Edit.of("fc2.weight", 1, 3, [[(0, 1), (2, -1)]], is_reader=True)
        >>> edit.apply(torch.tensor([[1.0, 2.0, 3.0]])), edit.factors
        (tensor([[-2.,  2.]]), (2.0, 1.0))
        """
        added: list[tuple[int, int, int]] = []
        multiplicity: dict[int, int] = {}
        for members in sets:
            (first, sign), *others = members
            multiplicity[first] = 1 + len(others)
            added += [(index, first, sign * other) for index, other in others]
        gone = {index for index, _, _ in added}
        kept = tuple(index for index in range(size) if index not in gone)
        factors = tuple(float(multiplicity.get(index, 1)) ** (1 if is_reader else -1) for index in kept)
        return Edit(name, dim, kept, tuple(added) if is_reader else (), factors)

    def fold(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in which slices are added to others; none is removed yet."""
        if not self.added:
            return tensor.clone()
        # A sum of thousands of equal numbers would have a visible error; some devices have no float64.
        exact = tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64, copy=True)
        gone, into, signs = zip(*self.added, strict=True)
        slices = exact.index_select(self.dim, _index(gone, exact))
        return exact.index_add_(self.dim, _index(into, exact), slices * _along(signs, self.dim, exact)).to(tensor)

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the weights after the merge, or a state that is linear in the gradient, such as momentum."""
        return self._keep(self.fold(tensor))

    def apply_to_squares(self, tensor: Tensor) -> Tensor:
        """Return an average of squared gradients after the merge, as if gradients had been scaled by their factors.

        The scaled gradient of a sum of ``m`` slices is ``m`` times that of each; all other gradients are unchanged.
        """
        kept = self._keep(tensor)
        return kept * _along(self.factors, self.dim, tensor).square() if self.added else kept

    def apply_to_scale(self, scale: Tensor) -> Tensor:
        """Multiply factors of earlier edits, of size 1 along dimensions without factors, by those of this edit."""
        kept = scale if scale.shape[self.dim] == 1 else self._keep(scale)
        return kept * _along(self.factors, self.dim, scale)

    def _keep(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(self.dim, _index(self.kept, tensor))


def gradient_scales(edits: Iterable[Edit], model: nn.Module) -> dict[str, Tensor]:
    """Return the factors for the gradients of the trained parameters, by name, unless all of them are 1."""
    parameters, scales = dict(model.named_parameters()), dict[str, Tensor]()
    for edit in edits:
        parameter = parameters.get(edit.name)  # None for a buffer
        if parameter is not None and parameter.requires_grad:  # frozen ones accept no hook
            ones = torch.ones([1] * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
            scales[edit.name] = edit.apply_to_scale(scales.get(edit.name, ones))
    return {name: scale for name, scale in scales.items() if not bool((scale == 1).all())}


def rebuilt_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, merged: nn.Module, edits: Iterable[Edit]
) -> torch.optim.Optimizer:
    """Return an optimizer for the merged network, with the class, options and progress of the original network's.

    Its state is what it would be if gradients had been scaled by ``Merged.gradient_scale`` from the start: momentum is
    edited as the weights are, averages of squared gradients are scaled by the squared factors, step counts are kept.
    Raises a MergeError if the optimizer has a state whose edit is unknown.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MergeError("the state of LBFGS belongs to no single parameter; merge without `optimizer`, make a new one")
    edits_of: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        edits_of[edit.name].append(edit)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(merged.named_parameters())
    state: dict[Tensor, Any] = defaultdict(dict)
    groups = [
        {**group, "params": [parameters[names[id(parameter)]] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    every = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for parameter in filter(optimizer.state.__contains__, every):
        name, kept = names[id(parameter)], optimizer.state[parameter]
        state[parameters[name]] = {key: _edited(key, kept[key], parameter, edits_of[name]) for key in kept}
    # Rebuilt as by unpickling, because not every class accepts its own `defaults` as arguments.
    twin: Any = type(optimizer).__new__(type(optimizer))
    twin.__setstate__({"defaults": dict(optimizer.defaults), "state": state, "param_groups": groups})
    rebuilt: torch.optim.Optimizer = twin
    return rebuilt


def _edited(key: str, value: Any, parameter: Tensor, edits: list[Edit]) -> Any:
    if not edits or not isinstance(value, Tensor | list | dict) or (isinstance(value, Tensor) and not value.ndim):
        return copy.deepcopy(value)
    if isinstance(value, Tensor) and value.shape == parameter.shape and key in _LINEAR | _SQUARES:
        for edit in edits:
            value = edit.apply(value) if key in _LINEAR else edit.apply_to_squares(value)
        return value
    raise MergeError(
        f"it is unknown how the optimizer's state `{key}` changes with the weights; merge without `optimizer` and make "
        "a new one"
    )


def _along(numbers: Iterable[float], dim: int, like: Tensor) -> Tensor:
    vector = torch.tensor(list(numbers), dtype=like.dtype, device=like.device)
    return vector.reshape([-1 if each == dim % like.ndim else 1 for each in range(like.ndim)])


def _index(indices: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(indices), dtype=torch.long, device=like.device)
