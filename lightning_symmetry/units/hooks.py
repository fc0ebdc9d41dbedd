"""Hooks on modules: they never fail, and do nothing in copies of a model and in files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class ModuleHook:
    """A hook of a module, or of a parameter, that only observes.

    ``torch.save(model)`` and ``copy.deepcopy(model)`` include hooks. Copied or loaded, this one does nothing and does
    not need this package. ``torch.compile`` does not trace into it.

    Args:
        observe: called as the hook.
        on_error: called with an exception of ``observe``; None: such exceptions are ignored.

    Example:
        >>> import copy
        >>> hook = ModuleHook(lambda module, args: print("called"))
        >>> layer = torch.nn.Linear(2, 2)
        >>> handle = layer.register_forward_pre_hook(hook)
        >>> shape = layer(torch.ones(1, 2)).shape
        called
        >>> shape = copy.deepcopy(layer)(torch.ones(1, 2)).shape
    """

    def __init__(self, observe: Callable[..., None], on_error: Callable[[Exception], None] | None = None) -> None:
        self._observe, self._on_error = observe, on_error

    @torch.compiler.disable  # type: ignore[untyped-decorator] # PyTorch does not annotate it
    def __call__(self, *args: Any) -> None:
        """Observe, and never fail."""
        try:
            self._observe(*args)
        except Exception as error:
            if self._on_error is not None:
                self._on_error(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # accepts any arguments, does nothing, needs no import of ours


def is_of_user(hook: Any) -> bool:
    """Return whether a hook is neither a :class:`ModuleHook` nor the remains of one in a copy."""
    is_left_over = type(getattr(hook, "__self__", None)) is nullcontext
    return not isinstance(hook, ModuleHook) and not is_left_over
