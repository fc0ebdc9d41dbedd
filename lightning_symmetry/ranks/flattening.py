"""Parameters that FSDP1 or DeepSpeed's ZeRO lays end to end: which they are, and the part of each on this rank."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn

from lightning_symmetry.modules import modules_of, own_parameters
from lightning_symmetry.ranks.flat import FlatPart
from lightning_symmetry.ranks.zero import zero_modules, zero_parts


def flattened_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return the modules whose parameters FSDP1 or ZeRO manages, by ``id``."""
    of_fsdp1 = {id(module): module for wrapper in _fsdp1_wrappers(model) for module in modules_of(wrapper)}
    return of_fsdp1 | zero_modules(model)


def flat_parts(model: nn.Module) -> dict[int, dict[str, FlatPart]]:
    """Return this rank's parts of the parameters that FSDP1 or ZeRO manages, by ``id`` of the module and name.

    All ranks must call this if FSDP1 manages any of the parameters: FSDP1 shows shapes only while parameters are
    gathered, so this function gathers them, one wrapper at a time.
    """
    parts: dict[int, dict[str, FlatPart]] = {}
    for wrapper in _fsdp1_wrappers(model):
        with type(wrapper).summon_full_params(wrapper, recurse=False, writeback=False):  # type: ignore[attr-defined]
            shapes = [(module, name, tuple(p.shape)) for module, name, p in _parameters_of_wrapper(wrapper)]
        for module, name, part in _fsdp1_parts(wrapper, shapes):
            parts.setdefault(id(module), {})[name] = part
    return parts | zero_parts(model)


def _fsdp1_parts(
    wrapper: nn.Module, shapes: list[tuple[nn.Module, str, tuple[int, ...]]]
) -> Iterator[tuple[nn.Module, str, FlatPart]]:
    """Yield this rank's parts of a wrapper's parameters, given the module, name and shape of each."""
    group: dist.ProcessGroup = wrapper.process_group  # type: ignore[assignment]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    # If several groups of ranks hold copies, the group of the first rank is read.
    is_read = 0 in dist.get_process_group_ranks(group)
    own = {(id(module), name): parameter for module, name, parameter in _parameters_of_wrapper(wrapper)}
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
    first = 0  # index of the parameter's first number in all parameters laid end to end
    for module, name, shape in shapes:
        low, high = rank * flat.numel(), (rank + 1) * flat.numel()
        begin, end = max(low, first), min(high, first + math.prod(shape))
        length = max(0, end - begin) if is_read else 0
        yield module, name, FlatPart(flat, begin - low, length, begin - first, shape, (id(flat), first))
        first += math.prod(shape)


def _fsdp1_wrappers(model: nn.Module) -> list[nn.Module]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [module for module in modules_of(model) if issubclass(type(module), fsdp.FullyShardedDataParallel)]


def _parameters_of_wrapper(wrapper: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the parameters that a wrapper itself manages, in the order in which it lays them end to end."""
    inner = {id(module) for other in _fsdp1_wrappers(wrapper) if other is not wrapper for module in modules_of(other)}
    seen: set[int] = set()
    for module in modules_of(wrapper):
        for name, parameter in own_parameters(module).items() if id(module) not in inner else ():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
