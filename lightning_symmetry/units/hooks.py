"""Hooks on modules that never fail and do nothing in copies of a model or in files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch


class ModuleHook:
    """A hook of a module, or of a parameter, that only observes.

    ``torch.save(model)`` and ``copy.deepcopy(model)`` include hooks. A copied or loaded one does nothing and does not
    need this package. ``torch.compile`` does not trace into it.

    Args:
        observe: called with the arguments of the hook.
        on_error: called with any exception of ``observe``; None: exceptions are ignored.

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
        _keep_out_of_graphs()

    def __call__(self, *args: Any) -> None:
        """Observe, and never fail."""
        try:
            self._observe(*args)
        except Exception as error:
            if self._on_error is not None:
                self._on_error(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments and does nothing, without this package


@cache
def _keep_out_of_graphs() -> None:
    """Make ``torch.compile`` skip hooks; not at import, since PyTorch loads its compiler for that, in a second."""
    ModuleHook.__call__ = torch.compiler.disable(ModuleHook.__call__)  # type: ignore[method-assign] # once and for all


def is_of_user(hook: Any) -> bool:
    """Return whether a hook is neither a :class:`ModuleHook` nor the no-op that replaces one in a copy."""
    return not isinstance(hook, ModuleHook) and type(getattr(hook, "__self__", None)) is not nullcontext
