"""Which modules take part in a step: an expert without a token, or a branch not taken, says nothing of its units."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.modules import held
from lightning_symmetry.units.choices import LISTS
from lightning_symmetry.units.hooks import ModuleHook
from lightning_symmetry.units.naming import readable_modules


class Usage:
    """Notes which modules are called in a training's forward passes, and whether they are handed any rows.

    A module that is never called may be used all the same, by the module that holds it, as ``nn.MultiheadAttention``
    uses its output projection; the members of a list or dict of modules are not.
    """

    def __init__(self) -> None:
        self._handles: dict[str, RemovableHandle] = {}
        self._modules: dict[str, nn.Module] = {}
        self._calls: dict[str, bool] = {}  # by name of a module that was called, whether it was handed rows
        self._ever: set[str] = set()  # the names of modules that were called at least once
        self._chains: dict[str, list[str]] = {}  # by layer that is watched

    def watch(self, model: nn.Module, layers: Iterable[str]) -> None:
        """Watch the modules of some layers from now on, and no others.

        Args:
            model: the model.
            layers: names of layers.
        """
        wanted = dict.fromkeys(layers)
        if not wanted:
            self.end()
            return
        if not self._modules:
            self._modules = dict(readable_modules(model))
        if self._chains.keys() == wanted.keys():
            return
        self._chains = {layer: self._chain(layer) for layer in wanted}
        chains = {name for chain in self._chains.values() for name in chain}
        for name in self._handles.keys() - chains:
            self._handles.pop(name).remove()
        if any(is_compiled(module) for module in self._modules.values()):
            return  # a new hook would have it compiled anew
        for name in chains - self._handles.keys():
            note = ModuleHook(partial(self._note, name), on_error=_pass_over)
            with suppress(Exception):  # modules of TorchScript take no hooks
                self._handles[name] = self._modules[name].register_forward_pre_hook(note, with_kwargs=True)

    def end(self) -> None:
        """Watch nothing any more."""
        for handle in self._handles.values():
            handle.remove()
        self.__init__()  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return vars(Usage())  # the modules stay in their process

    @property
    def is_watching(self) -> bool:
        """Whether any module is watched."""
        return bool(self._chains)

    def is_used(self, layer: str) -> bool | None:
        """Return whether the module of a layer took part in the step; None if it has not been watched since the last.

        Of a module that cannot be watched it is assumed.
        """
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
        """Forget what was called, once the step of some layers has been looked at."""
        for layer in layers:
            for name in self._chains.get(layer, ()):
                self._calls.pop(name, None)

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            handed = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            has_rows = not handed or handed[0].numel() > 0
            self._calls[name] = self._calls.get(name, False) or has_rows
            self._ever.add(name)

    def _chain(self, layer: str) -> list[str]:
        """Return the names of the module of a layer and of those that hold it, up to the first member of a list."""
        name = layer
        while name and name not in self._modules:
            name = name.rpartition(".")[0]
        chain: list[str] = []
        while name in self._modules:
            chain.append(name)
            if self._is_member(name):
                break
            name = name.rpartition(".")[0]
        return chain

    def _is_member(self, name: str) -> bool:
        return issubclass(type(self._modules.get(name.rpartition(".")[0])), LISTS)


def _pass_over(error: Exception) -> None:
    """Take a module whose call could not be noted for one that was not called."""


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is compiled, or is what ``torch.compile`` puts around one."""
    return "_orig_mod" in held(module, "_modules") or module.__dict__.get("_compiled_call_impl") is not None
