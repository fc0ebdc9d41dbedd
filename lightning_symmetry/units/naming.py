"""What the modules of a model are called in reports: their paths, without what wrappers add to them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# What torch.compile, activation checkpointing, FSDP1 and Fabric put into the path of a module that they wrap.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_original_module"}
# These call the module that they wrap `module`, as other modules may call a part of theirs.
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def readable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its readable name, in the order of ``model.named_modules()``.

    The model itself, wrapped or not, is called by its class.

    Example:
        >>> inner = nn.Sequential(nn.Linear(2, 3))
        >>> [name for name, _ in readable_modules(nn.DataParallel(inner))]
        ['DataParallel', 'Sequential', '0']
    """
    for path, module in readable_paths(model):
        yield path or type(module).__name__, module


def readable_paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As :func:`readable_modules`, but the path of the model itself, wrapped or not, is empty."""
    dropped: dict[str, str] = {}  # the readable path of every module
    parallel: set[str] = set()
    for path, module in model.named_modules():
        parent, _, step = path.rpartition(".")
        if isinstance(module, _PARALLEL):
            parallel.add(path)
        is_wrapped = step in _WRAPPED or (step == "module" and parent in parallel)
        steps = [dropped.get(parent, parent), "" if is_wrapped else step]
        dropped[path] = ".".join(filter(None, steps))
        yield dropped[path], module
