"""Readable names of modules: paths without the components that wrappers add. Also patterns that choose names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from torch import nn

from lightning_symmetry.modules import own_parameters, walk
from lightning_symmetry.ranks.zero import is_engine

# Components of paths that torch.compile, activation checkpointing, FSDP1 and Fabric add.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_original_module"}
# These, and DeepSpeed's engines, call the wrapped module `module`; elsewhere that is an ordinary name.
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_MAX_SUGGESTIONS = 5


def readable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its readable name, in the order of :func:`lightning_symmetry.modules.walk`.

    The model itself, wrapped or not, is named after its class. Names are unique, except that a wrapper without
    parameters of its own shares its name with the module that it wraps, which comes next.

    Example:
        >>> inner = nn.Sequential(nn.Linear(2, 3))
        >>> [name for name, _ in readable_modules(nn.DataParallel(inner))]
        ['DataParallel', 'Sequential', '0']
    """
    return ((name, module) for name, _, module in readable_names(model))


def readable_names(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield name, readable path and module, ordered as in :func:`readable_modules`; the path of the model is empty."""
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
    holders: dict[str, str] = {}  # by readable path, the path of the innermost module with it
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
        is_wrapped = step in _WRAPPED or (step == "module" and parent in parallel)
        if is_wrapped and parent in wrappers and holders[before] == parent:
            name = before
        elif name in holders:
            name = free_name(path, "module", holders)
        readable[path], holders[name] = name, path
        yield name, module


def free_name(name: str, kind: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: append the kind, in parentheses, until it is free.

    Example:
        >>> free_name("attn.q", "part", {"attn", "attn.q"})
        'attn.q (part)'
    """
    while name in taken:
        name += f" ({kind})"
    return name


def is_chosen(names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Return whether patterns (:mod:`fnmatch`) choose a layer that has these names; ``include=None`` chooses all."""
    if any(_matches(name, pattern) for pattern in exclude for name in names):
        return False
    return include is None or any(_matches(name, pattern) for pattern in include for name in names)


def unmatched_patterns(
    names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the patterns that match no name, by argument; arguments without such patterns are omitted."""
    unmatched = {
        argument: tuple(pattern for pattern in patterns if not any(_matches(name, pattern) for name in names))
        for argument, patterns in (("include", include or ()), ("exclude", exclude))
    }
    return {argument: patterns for argument, patterns in unmatched.items() if patterns}


def unmatched_text(unmatched: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """Return a line of text for each pattern that matches nothing, with the most similar names.

    >>> print(unmatched_text({"exclude": ("fc3",)}, ["fc1", "fc2", "head"]))
    `exclude` has the pattern 'fc3', which matches no layer. Closest names: 'fc1', 'fc2', 'head' (3 in all).
    """
    return "\n".join(
        f"`{argument}` has the pattern {pattern!r}, which matches no layer. {_suggestions(pattern, names)}"
        for argument, patterns in unmatched.items()
        for pattern in patterns
    )


def _matches(name: str, pattern: str) -> bool:
    # In a pattern, the brackets in names of slices would stand for a choice of characters.
    return name == pattern or fnmatchcase(name, pattern)


def _suggestions(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "This model has no layers."
    by_likeness = sorted(names, key=lambda name: SequenceMatcher(None, name, pattern).ratio(), reverse=True)
    closest = ", ".join(map(repr, by_likeness[:_MAX_SUGGESTIONS]))
    text = f"Closest names: {closest} ({len(names)} in all)."
    # Patterns match whole names: the name of a container matches none of the layers inside.
    if any(name.startswith(f"{pattern}.") for name in names):
        text = f"For the layers inside {pattern!r} write {pattern + '.*'!r}. {text}"
    return text
