"""Where the numbers of a parameter lie after FSDP1 has flattened parameters and cut them into one interval per rank."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn

from lightning_symmetry.modules import modules_of, own_parameters
from lightning_symmetry.ranks.flat import FlatPart


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
