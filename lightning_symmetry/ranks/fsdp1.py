"""Where the numbers of a parameter lie after FSDP1 has flattened parameters and cut them into one interval per rank.

An interval of a flattened parameter can begin and end in the middle of a row. It is made of a few boxes: the end of a
row, whole rows, and the beginning of another one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_symmetry.modules import modules_of, own_parameters


@dataclass(frozen=True)
class FlatPart:
    """What this rank holds of a parameter that FSDP1 manages.

    Attributes:
        source: the tensor with this rank's numbers, which the optimizer updates.
        offset: the index in ``source`` of the first number of the parameter.
        length: how many numbers of the parameter follow there.
        start: the index of the first of them in the flattened parameter.
        shape: the shape of the whole parameter.
        key: equal for parts of the same parameter, and for no others.
    """

    source: Tensor
    offset: int
    length: int
    start: int
    shape: tuple[int, ...]
    key: object

    def boxes(self, tensor: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The boxes that make up this part.

        Args:
            tensor: the source or its gradient.

        Yields:
            The numbers of a box, and the coordinates in the whole parameter at which it begins.
        """
        return _boxes(tensor.detach()[self.offset : self.offset + self.length], self.start, self.shape)


def flattened_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return the modules whose parameters FSDP1 manages, by ``id``."""
    return {id(module): module for wrapper in _wrappers(model) for module in modules_of(wrapper)}


def flat_parts(model: nn.Module) -> dict[int, dict[str, FlatPart]]:
    """Return what this rank holds of the parameters that FSDP1 manages, by the ``id`` of the module and name.

    FSDP1 shows the shapes of parameters only while it has gathered them, so they are gathered, one wrapper at a time.
    All ranks have to call this if any of the modules is wrapped.
    """
    parts: dict[int, dict[str, FlatPart]] = {}
    for wrapper in _wrappers(model):
        with type(wrapper).summon_full_params(wrapper, recurse=False, writeback=False):  # type: ignore[attr-defined]
            shapes = [(module, name, tuple(p.shape)) for module, name, p in _own(wrapper)]
        for module, name, part in _parts_of(wrapper, shapes):
            parts.setdefault(id(module), {})[name] = part
    return parts


def without_numbers(module: nn.Module, parts: Mapping[str, FlatPart]) -> tuple[nn.Module, dict[int, FlatPart]]:
    """A stand-in for a module whose parameters FSDP1 manages, for adapters that look at shapes and make views.

    Args:
        module: the module; it stays as it is.
        parts: what this rank holds of its parameters, by name.

    Returns:
        The stand-in, whose parameters have their whole shapes but no numbers, and the parts by the identity (``id``) of
        its parameters.
    """
    whole = {
        name: nn.Parameter(torch.empty(part.shape, device="meta"), requires_grad=False) for name, part in parts.items()
    }
    stand_in = object.__new__(type(module))
    kept = {key: value for key, value in module.__dict__.items() if key not in parts}
    stand_in.__dict__ = {**kept, "_parameters": {**module._parameters, **whole}}
    return stand_in, {id(whole[name]): part for name, part in parts.items()}


def _parts_of(
    wrapper: nn.Module, shapes: list[tuple[nn.Module, str, tuple[int, ...]]]
) -> Iterator[tuple[nn.Module, str, FlatPart]]:
    """What this rank holds of the parameters of a wrapper, given the module, name and shape of each."""
    group: dist.ProcessGroup = wrapper.process_group  # type: ignore[assignment]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    # Of copies on several groups of ranks, those of the first rank's group are read.
    is_read = 0 in dist.get_process_group_ranks(group)
    own = {(id(module), name): parameter for module, name, parameter in _own(wrapper)}
    if all((id(module), name) in own for module, name, _ in shapes):  # use_orig_params=True
        sources = [own[id(module), name] for module, name, _ in shapes]
        counts: list[list[int]] = [[] for _ in range(size)]
        dist.all_gather_object(counts, [source.numel() for source in sources], group=group)
        for i, ((module, name, shape), source) in enumerate(zip(shapes, sources, strict=True)):
            start = sum(count[i] for count in counts[:rank])
            length = source.numel() if is_read else 0
            yield module, name, FlatPart(source, 0, length, start, shape, id(source))
        return
    [flat] = own.values()
    first = 0  # where a parameter begins in the tensor of all of them
    for module, name, shape in shapes:
        low, high = rank * flat.numel(), (rank + 1) * flat.numel()
        begin, end = max(low, first), min(high, first + math.prod(shape))
        length = max(0, end - begin) if is_read else 0
        yield module, name, FlatPart(flat, begin - low, length, begin - first, shape, (id(flat), first))
        first += math.prod(shape)


def _wrappers(model: nn.Module) -> list[nn.Module]:
    """The modules by which FSDP1 has wrapped others."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [module for module in modules_of(model) if issubclass(type(module), fsdp.FullyShardedDataParallel)]


def _own(wrapper: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The parameters that a wrapper manages itself, in the order in which it lays them end to end."""
    inner = {id(module) for other in _wrappers(wrapper) if other is not wrapper for module in modules_of(other)}
    seen: set[int] = set()
    for module in modules_of(wrapper):
        for name, parameter in own_parameters(module).items() if id(module) not in inner else ():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter


def _boxes(numbers: Tensor, start: int, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The boxes that make up some consecutive numbers of a flattened tensor, which begin at ``start`` in it."""
    if not len(numbers):
        return
    if len(shape) == 1:
        yield numbers, (start,)
        return
    width = math.prod(shape[1:])
    end = start + len(numbers)
    row = start // width
    if start % width or end < (row + 1) * width:  # a part of a row
        count = min(end, (row + 1) * width) - start
        for box, place in _boxes(numbers[:count], start % width, shape[1:]):
            yield box[None], (row, *place)
        yield from _boxes(numbers[count:], start + count, shape)
        return
    count = (end - start) // width
    yield numbers[: count * width].reshape(count, *shape[1:]), (row, *[0] * (len(shape) - 1))
    yield from _boxes(numbers[count * width :], start + count * width, shape)
