"""Contents of modules, read from ``__dict__`` without calling methods that users may override.

Overridden ``parameters()``, ``named_modules()`` and the like may fail, leave parts out or lack arguments.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


def held(module: nn.Module, kind: str) -> dict[str, Any]:
    """Return the registered ``"_parameters"``, ``"_buffers"`` or ``"_modules"`` of a module, by name."""
    holder = module.__dict__.get("_actual_script_module", module)  # `torch.jit.trace` returns a wrapper
    return dict(holder.__dict__.get(kind, {}).items())  # TorchScript modules have objects that only resemble dicts


def is_script(module: nn.Module) -> bool:
    """Return whether TorchScript has compiled or traced a module, which then supports no hooks."""
    return issubclass(type(module), torch.jit.ScriptModule)


def class_of(module: nn.Module) -> type:
    """Return the class of a module; for a TorchScript module, the class it was compiled from, if known.

    Example:
        >>> class_of(nn.ReLU())
        <class 'torch.nn.modules.activation.ReLU'>
    """
    if not is_script(module):
        return type(module)
    try:
        steps = cast("Any", module)._c._type().qualified_name().split(".")
    except Exception:  # in other versions of PyTorch
        return type(module)
    # `__torch__.torch.nn.modules.linear.___torch_mangle_3.Linear`
    *path, name = (step for step in steps if step != "__torch__" and not step.startswith("___torch_mangle_"))
    found = getattr(sys.modules.get(".".join(path) or "__main__"), name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else type(module)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once with its path, in the order of ``nn.Module.named_modules``.

    Example:
        >>> [path for path, _ in walk(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh()))]
        ['', '0', '0.0', '1']
    """
    seen: set[int] = set()
    left = [("", model)]
    while left:
        path, module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        start = f"{path}." if path else ""
        children = reversed(held(module, "_modules").items())
        left += [(start + name, child) for name, child in children if child is not None]


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module once, as :func:`walk` does."""
    return (module for _, module in walk(model))


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by name, without those of its children."""
    return {name: parameter for name, parameter in held(module, "_parameters").items() if parameter is not None}


def named_parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter once with its path, in the order of ``nn.Module.named_parameters``."""
    seen: set[int] = set()
    for path, module in walk(model):
        start = f"{path}." if path else ""
        for name, parameter in own_parameters(module).items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield start + name, parameter


def parameters_of(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield every parameter once, as :func:`named_parameters_of` does."""
    return (parameter for _, parameter in named_parameters_of(model))


def num_holders(model: nn.Module) -> Counter[int]:
    """Count how many attributes of modules hold each parameter, keyed by ``id``."""
    return Counter(id(parameter) for module in modules_of(model) for parameter in own_parameters(module).values())


def parametrizations_of(module: nn.Module) -> dict[str, ParametrizationList]:
    """Return the parametrizations (``torch.nn.utils.parametrize``) of a module by the name of the tensor."""
    chains: Any = held(module, "_modules").get("parametrizations")
    by_name = held(chains, "_modules") if issubclass(type(chains), nn.ModuleDict) else {}
    is_torch = all(issubclass(type(chain), ParametrizationList) for chain in by_name.values())
    return cast("dict[str, ParametrizationList]", by_name) if is_torch else {}
