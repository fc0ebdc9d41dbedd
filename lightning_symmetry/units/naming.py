"""What the modules of a model are called in reports: their paths, without what wrappers add to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from lightning_symmetry.modules import own_parameters, walk
from lightning_symmetry.ranks.zero import is_engine

# What torch.compile, activation checkpointing, FSDP1 and Fabric put into the path of a module that they wrap.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_original_module"}
# These and engines of DeepSpeed call the module that they wrap `module`, as other modules may call a part of theirs.
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def readable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its readable name, in the order of :func:`lightning_symmetry.modules.walk`.

    The model itself, wrapped or not, is called by its class. No two modules have one name, except that a wrapper
    without parameters of its own is called as the module that it wraps, which comes next.

    Example:
        >>> inner = nn.Sequential(nn.Linear(2, 3))
        >>> [name for name, _ in readable_modules(nn.DataParallel(inner))]
        ['DataParallel', 'Sequential', '0']
    """
    return ((name, module) for name, _, module in readable_names(model))


def readable_names(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Do as :func:`readable_modules`, with the readable path after the name: it is empty for the model itself."""
    every = list(_readable_paths(model))
    paths = {path for path, _ in every}
    for path, module in every:
        yield path or free_name(type(module).__name__, "model", paths), path, module


def readable_parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield every parameter once: its readable path, the name of the module that holds it, and the parameter.

    Example:
        >>> [(path, name) for path, name, _ in readable_parameters(nn.Sequential(nn.Linear(2, 3)))]
        [('0.weight', '0'), ('0.bias', '0')]
    """
    seen: set[int] = set()
    for module_name, path, module in readable_names(model):
        for name, parameter in own_parameters(module).items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}" if path else name, module_name, parameter


def _readable_paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    readable: dict[str, str] = {}  # by path
    holders: dict[str, str] = {}  # by readable path, the path of the innermost module that has it
    wrappers: set[str] = set()  # the paths of modules without parameters of their own
    parallel: set[str] = set()
    for path, module in walk(model):
        parent, _, step = path.rpartition(".")
        if issubclass(type(module), _PARALLEL) or is_engine(module):
            parallel.add(path)
        if not own_parameters(module):
            wrappers.add(path)
        before = readable.get(parent, "")
        name = ".".join(filter(None, (before, step)))
        is_wrapped = path and (step in _WRAPPED or (step == "module" and parent in parallel))
        if is_wrapped and parent in wrappers and holders[before] == parent:
            name = before
        elif name in holders:
            name = free_name(path, "module", holders)
        readable[path], holders[name] = name, path
        yield name, module


def free_name(name: str, kind: str, taken: Collection[str]) -> str:
    """Return a name, marked with what it names as often as it takes to differ from others.

    Example:
        >>> free_name("attn.q", "part", {"attn", "attn.q"})
        'attn.q (part)'
    """
    while name in taken:
        name += f" ({kind})"
    return name
