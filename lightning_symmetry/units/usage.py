"""Which modules take part in a step: zero gradients of an expert without tokens are no evidence about its units."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.modules import held
from lightning_symmetry.units.hooks import ModuleHook
from lightning_symmetry.units.naming import readable_modules

# Modules whose members a forward pass may leave out, such as experts.
_LISTS = (nn.ModuleList, nn.ModuleDict)


def members_of_lists(model: nn.Module, layers: Iterable[str]) -> dict[str, list[str]]:
    """Map the name of each member of a list or dict of modules to those of the given layers that it contains.

    Example:
        >>> experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 2)])
        >>> members_of_lists(nn.Sequential(experts), ["0.0.0", "0.0.1", "0.1"])
        {'0.0': ['0.0.0', '0.0.1'], '0.1': ['0.1']}
    """
    lists = {name for name, module in readable_modules(model) if issubclass(type(module), _LISTS)}
    members: dict[str, list[str]] = {}
    for layer in layers:
        for parent, path in pairwise(accumulate(layer.split("."), "{}.{}".format)):
            if parent in lists:
                members.setdefault(path, []).append(layer)
    return members


class Usage:
    """Records which modules are called in forward passes, and whether their inputs have any rows.

    A module that is never called may still be used by its parent, like the output projection of
    ``nn.MultiheadAttention``. A member of a list or dict of modules is used only if it is called.

    Hooks make each call some microseconds longer, so a module is watched only while there are questions about it.
    """

    def __init__(self) -> None:
        self._handles: dict[str, RemovableHandle] = {}
        self._modules: dict[str, nn.Module] = {}
        self._calls: dict[str, bool] = {}  # whether the inputs had rows, by name of a module called in this step
        self._ever: set[str] = set()  # the names of modules that were called at least once
        # The layers that took part in a step while they were watched: `_ever` says whether their modules are called.
        self._known: set[str] = set()
        self._chains: dict[str, list[str]] = {}  # the module and its ancestors, by name of a watched layer

    def watch(self, model: nn.Module, layers: Iterable[str]) -> None:
        """Watch the modules of these layers from now on, and no others."""
        wanted = dict.fromkeys(layers)
        if not self._modules:
            self._modules = dict(readable_modules(model))
        if self._chains.keys() == wanted.keys():
            return
        self._chains = {layer: self._chain(layer) for layer in wanted}
        chains = {name for chain in self._chains.values() for name in chain}
        for name in self._handles.keys() - chains:
            self._handles.pop(name).remove()
            self._calls.pop(name, None)
        if any(is_compiled(module) for module in self._modules.values()):
            return  # a new hook would trigger a recompilation
        for name in chains - self._handles.keys():
            hook = ModuleHook(partial(self._record, name))  # if the hook fails, the call does not count
            with suppress(Exception):  # modules of TorchScript accept no hooks
                self._handles[name] = self._modules[name].register_forward_pre_hook(hook, with_kwargs=True)

    def end(self) -> None:
        """Stop watching, and forget everything."""
        for handle in self._handles.values():
            handle.remove()
        self.__init__()  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return vars(Usage())  # modules stay in their process

    def learn(self, layers: Iterable[str]) -> None:
        """Record that these layers took part in the step. Those that were watched meanwhile are known from then on."""
        self._known.update(layer for layer in layers if layer in self._chains)

    def is_known(self, layer: str) -> bool:
        """Return whether a layer took part in a step while it was watched, which shows if its module is called."""
        return layer in self._known

    @property
    def is_watching(self) -> bool:
        """Whether any module is watched."""
        return bool(self._chains)

    def is_used(self, layer: str) -> bool | None:
        """Return whether the module of a layer took part in the step: True without hooks, None if not watched."""
        chain = self._chains.get(layer)
        if chain is None:
            return None
        for name in chain if chain and chain[0] in self._handles else ():
            if name in self._calls:
                return self._calls[name]
            if name in self._ever or self._is_member(name):
                return False
        return True

    def end_step(self, layers: Iterable[str]) -> None:
        """Forget the calls of these layers' modules after their step has been checked."""
        for layer in layers:
            for name in self._chains.get(layer, ()):
                self._calls.pop(name, None)

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            has_rows = not inputs or inputs[0].numel() > 0
            self._calls[name] = self._calls.get(name, False) or has_rows
            self._ever.add(name)

    def _chain(self, layer: str) -> list[str]:
        """Return the names of the layer's module and its ancestors, up to the first member of a list."""
        name = layer
        while name and name not in self._modules:  # the layer is a part of a module
            name = name.rpartition(".")[0]
        chain: list[str] = []
        while name in self._modules:
            chain.append(name)
            if self._is_member(name):
                break
            name = name.rpartition(".")[0]
        return chain

    def _is_member(self, name: str) -> bool:
        return issubclass(type(self._modules.get(name.rpartition(".")[0])), _LISTS)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is compiled, or is the wrapper of ``torch.compile``."""
    return "_orig_mod" in held(module, "_modules") or module.__dict__.get("_compiled_call_impl") is not None
