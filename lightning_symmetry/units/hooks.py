"""Hooks on the modules of a model that is trained, which must not fail, and do nothing in copies and files of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class ModuleHook:
    """A hook of a module that looks and changes nothing.

    A copy of it, or what is read from a file, does nothing and needs nothing of this package: ``torch.save(model)`` and
    ``copy.deepcopy(model)`` take hooks along. Compiled code calls it without looking inside.

    Args:
        look: called as the hook.
        on_error: called with what ``look`` raises.

    Example:
        >>> import copy
        >>> hook = ModuleHook(lambda module, args: print("called"), on_error=print)
        >>> layer = torch.nn.Linear(2, 2)
        >>> handle = layer.register_forward_pre_hook(hook)
        >>> shape = layer(torch.ones(1, 2)).shape
        called
        >>> shape = copy.deepcopy(layer)(torch.ones(1, 2)).shape
    """

    def __init__(self, look: Callable[..., None], on_error: Callable[[Exception], None]) -> None:
        self._look, self._on_error = look, on_error

    @torch.compiler.disable  # type: ignore[untyped-decorator] # PyTorch does not say
    def __call__(self, *args: Any) -> None:
        """Look, and never fail."""
        try:
            self._look(*args)
        except Exception as error:
            self._on_error(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # which takes anything, does nothing, and is there without us


def is_of_user(hook: Any) -> bool:
    """Return whether a hook of a module is neither one of ours nor what is left of one in a copy."""
    is_left_over = type(getattr(hook, "__self__", None)) is nullcontext
    return not isinstance(hook, ModuleHook) and not is_left_over
