"""Whether each parameter trains: gradients reach it, its numbers are finite, and they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.ranks.flattening import flattened_modules
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.units.layers import Layer, is_trained
from lightning_symmetry.units.naming import is_chosen, readable_parameters

# Movement is detected by this many numbers of a parameter, and by those with the largest gradients.
_NUM_SAMPLED = 1024
_RUN = 1 << 12  # numbers of which the extremes are taken at once
# In most layers, the gradients of this many units show that every input has a gradient.
_FEW_UNITS = 8
# Inputs without a gradient are searched for at this many checks.
_NUM_CHECKS_OF_INPUTS = 16


@dataclass
class Progress:
    """The observations of one parameter."""

    name: str  # its readable path
    parameter: Tensor
    num_checks: int = 0  # number of checks at a step of the optimizer that updates it
    num_checks_since: int = 0  # number of these checks at or after its first gradient
    is_wanted: bool = False  # whether it ever required a gradient
    had_gradient: bool = False  # whether its gradient was ever finite and not zero
    has_grad: bool = False  # whether its `grad` was ever present, perhaps zero
    has_moved: bool = False  # whether its numbers have changed between two checks
    # the step of the check since which it has held numbers that are not finite; None: all are finite
    not_finite_since: int | None = None
    _dims: tuple[int, ...] = ()  # the order in which the dimensions were flattened
    _places: Tensor | slice | None = None
    _before: Tensor | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the parameter is known to train; then only the finiteness of its numbers is still checked."""
        return self.had_gradient and self.has_moved

    @property
    def is_moved_by_others(self) -> bool:
        """Whether it moves without any gradient, as the average or the target of another module does."""
        return self.has_moved and not self.has_grad

    def see_gradient(self) -> None:
        """Record whether the parameter has a gradient at this step."""
        gradient = self.parameter.grad
        self.has_grad |= gradient is not None
        if gradient is None or self.had_gradient:
            return
        if is_sharded(self.parameter):  # not judged, since the shards of other ranks are not read
            self.had_gradient = True
            return
        numbers = _numbers_of(gradient.detach())
        if len(numbers):
            extremes = torch.stack(torch.aminmax(numbers)).tolist()
            self.had_gradient = any(extremes) and all(map(isfinite, extremes))

    def see_numbers(self) -> None:
        """Record whether the numbers have changed since the previous check."""
        gradient = self.parameter.grad
        is_here = not is_sharded(self.parameter)
        parameter: Any = self.parameter.detach()
        local: Tensor = parameter if is_here else parameter.to_local()
        if not local.numel():
            self.has_moved = True
        if self._places is not None and self._before is not None:
            self.has_moved |= not torch.equal(real_numbers(local.permute(self._dims))[self._places], self._before)
        if self.has_moved:
            self._places = self._before = None
            return
        self._dims = dims = _dims_in_memory(local)
        flat = real_numbers(local.permute(dims))
        spacing = max(1, len(flat) // _NUM_SAMPLED)
        self._places = slice(0, None, spacing)
        if self.num_checks > 1 and is_here and gradient is not None:
            # Of a table with few used rows, the sample may not move; the numbers with the largest gradients do.
            sampled = torch.arange(0, len(flat), spacing, device=flat.device)
            self._places = torch.cat([sampled, _places_of_extremes(gradient.detach(), dims).to(flat.device)])
        self._before = flat[self._places].clone()


def real_numbers(tensor: Tensor) -> Tensor:
    """Return the flattened numbers, ``(n,)``, complex ones as real and imaginary parts."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).flatten()


def _dims_in_memory(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions in the order in which flattening them takes no copy, where there is one."""
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def _numbers_of(gradient: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Return the flattened numbers of a gradient; of a sparse one its values. ``dims``: by default, as in memory."""
    if gradient.layout != torch.strided:
        return real_numbers(gradient.coalesce().values())
    return real_numbers(gradient.permute(_dims_in_memory(gradient) if dims is None else dims))


def _places_of_extremes(gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the places of the largest and the smallest number of a gradient in the flattened parameter.

    ``dims`` is the order in which the dimensions were flattened. The result is ``(2,)``; ``(0,)`` if there is none.
    """
    is_strided = gradient.layout == torch.strided
    numbers = _numbers_of(gradient, dims)
    if not len(numbers) or not (is_strided or list(dims) == sorted(dims)):
        return torch.zeros(0, dtype=torch.int64)
    largest, smallest = _place_of(numbers, Tensor.amax, Tensor.argmax), _place_of(numbers, Tensor.amin, Tensor.argmin)
    places = torch.stack([largest, smallest])
    if is_strided:
        return places
    row = gradient.coalesce().indices()[0]  # the index of each row of the gradient
    width = len(numbers) // len(row)
    return row[places // width] * width + places % width


def _place_of(numbers: Tensor, extreme: Callable[..., Tensor], place: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the place of an extreme of some numbers, ``()``.

    The extremes of runs of numbers are taken first, since ``argmax`` takes six times as long as ``amax``.
    """
    if len(numbers) < 2 * _RUN:
        return place(numbers)
    runs, last = numbers.unfold(0, _RUN, _RUN), numbers[-_RUN:]
    extremes = torch.cat([extreme(runs, dim=1), extreme(last)[None]])
    start = (place(extremes) * _RUN).clamp(max=len(numbers) - _RUN)
    return start + place(numbers.index_select(0, start + torch.arange(_RUN, device=numbers.device)))


@dataclass
class Inputs:
    """The observations of a layer's inputs: whether their weights have had a gradient in any unit."""

    layer: Layer
    num_checks: int = 0  # number of checks with gradients
    are_fed: Tensor | None = None  # mask of inputs with a gradient, `(fan_in,)`; None before the first check
    num_idle: int = 0  # number of inputs without a gradient so far

    @property
    def is_open(self) -> bool:
        """Whether further checks may still find inputs with a gradient."""
        is_known = self.are_fed is not None and not self.num_idle
        return self.num_checks < _NUM_CHECKS_OF_INPUTS and not is_known

    def update(self) -> None:
        """Record the gradients of one check, if there are any."""
        weight = self.layer.tensors[0]
        gradient = weight.weights.grad
        if gradient is None or gradient.layout != torch.strided:
            return
        rows = weight.view(gradient.detach())
        fed = _are_not_zero(rows[:_FEW_UNITS])
        if not fed.all():
            fed = _are_not_zero(rows)
        if fed.any():
            self.are_fed = fed if self.are_fed is None else self.are_fed | fed
            self.num_idle = len(fed) - int(self.are_fed.count_nonzero())
            self.num_checks += 1


def _are_not_zero(rows: Tensor) -> Tensor:
    """Return which columns of rows ``(n, ...)``, flattened, hold a number other than zero, ``(d,)``."""
    rows = rows.flatten(1)
    return (rows.amax(dim=0) != 0) | (rows.amin(dim=0) != 0)  # `any` takes ten times as long


def _has_common_inputs(layer: Layer) -> bool:
    """Return whether all units of a layer have the same inputs, and its weight is a plain parameter."""
    return layer.tensors[0].is_plain and layer.can_freeze and not layer.slices_of and layer.blocks == 1


@dataclass
class Ledger:
    """The observations of all parameters of a model."""

    entries: dict[int, Progress] = field(default_factory=dict)  # by `id` of the parameter
    _layers: Sequence[Layer] = ()
    _loose: list[Progress] = field(default_factory=list)  # parameters that belong to no layer
    _open: list[Progress] = field(default_factory=list)  # parameters that are not known to train
    _not_finite: set[int] = field(default_factory=set)  # parameters, by `id`, with numbers that are not finite
    _inputs: list[Inputs] = field(default_factory=list)
    _open_inputs: list[Inputs] = field(default_factory=list)  # those that are still open

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Sequence[Layer],
        include: Sequence[str] | None,
        exclude: Sequence[str],
        before: Ledger,
    ) -> Ledger:
        """Return a ledger of a model.

        Args:
            model: the model.
            layers: the layers that are checked.
            include: patterns of the layers to report; None: all.
            exclude: patterns of names not to report.
            before: the ledger before the model changed; its entries of unchanged parameters are kept.
        """
        if flattened_modules(model):  # FSDP1 gives each rank other parts of parameters
            return cls()
        of_layers = {id(original) for layer in layers for original in layer.originals}
        entries: dict[int, Progress] = {}
        for name, module_name, parameter in readable_parameters(model):
            chosen = include is None and is_chosen([module_name, name], None, exclude)
            if (id(parameter) in of_layers or chosen) and _can_be_judged(parameter):
                entry = before.entries.get(id(parameter))
                is_same = entry is not None and entry.parameter is parameter
                entries[id(parameter)] = entry if entry is not None and is_same else Progress(name, parameter)
        loose = [entry for identity, entry in entries.items() if identity not in of_layers]
        not_finite = {identity for identity, entry in entries.items() if entry.not_finite_since is not None}
        inputs = [Inputs(layer) for layer in layers if _has_common_inputs(layer)]
        return cls(entries, layers, loose, list(entries.values()), not_finite, inputs, list(inputs))

    def take_in(self, trained: Set[int], trained_by_any: Set[int], not_finite: Iterable[Layer], step: int) -> bool:
        """Record a check; return whether any parameter or input was undecided, or any parameter may not be finite.

        Args:
            trained: identities (``id``) of the parameters that the current optimizer updates.
            trained_by_any: identities (``id``) of the parameters that any optimizer updates.
            not_finite: the layers with numbers that are not finite.
            step: completed optimizer steps.
        """
        was_open = bool(self._open or self._open_inputs)
        for entry in self._open:
            with self._dropping_unreadable(entry):
                entry.is_wanted |= entry.parameter.requires_grad
                if not entry.is_settled and is_trained(entry.parameter, trained):
                    entry.num_checks += 1
                    entry.see_gradient()
                    entry.see_numbers()
                    entry.num_checks_since += entry.had_gradient
                elif not entry.is_settled and id(entry.parameter) not in trained_by_any:
                    entry.see_gradient()
                    entry.see_numbers()
        for inputs in self._open_inputs:
            if is_trained(inputs.layer.tensors[0].weights, trained):
                inputs.update()
        self._open_inputs = [inputs for inputs in self._open_inputs if inputs.is_open]
        self._open = [entry for entry in self._open if not entry.is_settled or not entry.is_wanted]
        suspects = {id(original) for layer in not_finite for original in layer.originals}
        suspects |= self._not_finite
        suspects |= _not_finite([entry.parameter for entry in self._loose])
        for identity in suspects & self.entries.keys():
            entry = self.entries[identity]
            with self._dropping_unreadable(entry):
                if bool(entry.parameter.detach().isfinite().all()):
                    entry.not_finite_since = None
                    self._not_finite.discard(identity)
                elif entry.not_finite_since is None:
                    entry.not_finite_since = step
                    self._not_finite.add(identity)
        return was_open or bool(suspects)

    def watch(self, trained: Set[int]) -> None:
        """Record the first gradients of trained parameters (by ``id``) at a step between two checks."""
        for entry in self._open:
            if not entry.had_gradient and is_trained(entry.parameter, trained):
                with self._dropping_unreadable(entry):
                    entry.see_gradient()

    @contextmanager
    def _dropping_unreadable(self, entry: Progress) -> Iterator[None]:
        """Drop the entry if reading its parameter raises, as for some tensor subclasses."""
        try:
            yield
        except Exception:
            self.entries.pop(id(entry.parameter), None)
            self._open = [other for other in self._open if other is not entry]
            self._loose = [other for other in self._loose if other is not entry]

    @property
    def lacks_gradients(self) -> bool:
        """Whether some parameter has had no gradient so far."""
        return bool(self._open) and not all(entry.had_gradient for entry in self._open)

    def with_gradients(self, parameters: Set[int]) -> Set[int]:
        """Return those of some parameters (by ``id``) that have had a gradient, perhaps zero, or have no entry."""
        without = {
            identity
            for identity, entry in self.entries.items()
            if not entry.had_gradient and entry.parameter.grad is None
        }
        return parameters - without

    def idle_inputs(self, patience: int) -> dict[str, int]:
        """Return by layer the number of inputs without a gradient, if there are any after ``patience`` checks."""
        return {
            each.layer.name: each.num_idle for each in self._inputs if each.num_idle and each.num_checks >= patience
        }

    def largest_loose_gradient(self, trained: Set[int]) -> float:
        """Return the largest gradient norm of the parameters that belong to no layer; 0 without any."""
        loose = [entry.parameter for entry in self._loose if is_trained(entry.parameter, trained)]
        gradients = [
            parameter.grad.detach()
            for parameter in loose
            if parameter.grad is not None and parameter.grad.layout == torch.strided and not is_sharded(parameter)
        ]
        norms = [float(norm) for norm in torch._foreach_norm(gradients)] if gradients else []
        return max((norm for norm in norms if isfinite(norm)), default=0.0)

    def by_layer(self) -> Iterator[tuple[str, list[Progress]]]:
        """Yield the name and the parameters of each layer, then every other parameter by itself.

        Slices appear as their parameter.
        """
        left = dict(self.entries)
        for layer in self._layers:
            entries = [self.entries[key] for key in dict.fromkeys(layer.identity) if key in self.entries]
            if entries and not layer.slices_of:
                yield layer.name, entries
                for entry in entries:
                    left.pop(id(entry.parameter), None)
        for entry in left.values():
            yield entry.name, [entry]


def _can_be_judged(parameter: Any) -> bool:
    """Return whether the numbers of a parameter and of its gradient can be read."""
    is_there = not is_lazy(parameter) and not parameter.is_meta and not hasattr(parameter, "ds_id")
    return is_there and (parameter.is_floating_point() or parameter.is_complex()) and parameter.layout == torch.strided


def _not_finite(parameters: Sequence[Tensor]) -> set[int]:
    """Return the identities (``id``) of parameters that may hold numbers which are not finite."""
    here = [parameter for parameter in parameters if not is_sharded(parameter) and parameter.numel()]
    if not here:
        return set()
    try:
        norms = torch._foreach_norm([parameter.detach() for parameter in here])
    except Exception:  # the caller then checks each of them
        return set(map(id, here))
    by_device: dict[torch.device, list[int]] = {}
    for i, norm in enumerate(norms):
        by_device.setdefault(norm.device, []).append(i)
    return {
        id(here[i])
        for places in by_device.values()
        for i, is_finite in zip(
            places, torch.stack([norms[i].float() for i in places]).isfinite().tolist(), strict=True
        )
        if not is_finite
    }
