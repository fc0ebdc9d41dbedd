"""Layers whose weights are computed from other tensors by ``torch.nn.utils.parametrize``.

Parametrizations may be code of users, with state: they may count calls, track a range or draw random numbers. Since
computing a weight once more must not affect the training, weights are computed on copies. Code that uses objects which
cannot be copied is refused.
"""

from __future__ import annotations

import copy
import dis
import inspect
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from lightning_symmetry.modules import held, modules_of, own_parameters, parametrizations_of
from lightning_symmetry.units.registry import NotUnderstoodError

# Python modules whose classes have no side effects in evaluation mode.
_WITHOUT_EFFECTS = {"torch.nn.utils.parametrize", "torch.nn.utils.parametrizations"}
# Packages whose objects change only their own attributes.
_KNOWN_PACKAGES = sys.stdlib_module_names | {"torch"}
# Immutable types.
_CONSTANTS = (ModuleType, int, float, complex, str, bytes, tuple, frozenset, type(None), torch.dtype, torch.device)


def without_parametrizations(
    module: nn.Module, elsewhere: Mapping[int, nn.Module] | None = None
) -> tuple[nn.Module, dict[int, tuple[Tensor, ...]]]:
    """Copy a parametrized module into a plain one, whose weights are computed once.

    The parametrized module is unchanged. The caller has to restore the global random generators.

    Args:
        module: a module with parametrizations.
        elsewhere: the modules of the model, by ``id``. A parametrization that uses a module outside of itself is
            refused, since copying it might copy the whole model.

    Returns:
        A module of the original class with the computed weights as parameters; and the parameters from which each
        weight is computed, keyed by the ``id`` of the weight.

    Raises:
        NotUnderstoodError: if a weight cannot be computed without side effects, or differs from call to call.
    """
    # torch.nn.utils.parametrize has replaced the class of the module by a subclass whose instances cannot be copied.
    stand_in = cast("nn.Module", object.__new__(type(module).__bases__[0]))
    stand_in.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    originals: dict[int, tuple[Tensor, ...]] = {}
    try:
        with torch.no_grad():
            for name, chain in parametrizations_of(module).items():
                weight = nn.Parameter(_computed(chain, elsewhere or {}), requires_grad=False)
                stand_in._parameters[name] = weight
                originals[id(weight)] = tuple(own_parameters(chain).values())
    except Exception as error:
        what = str(error) if isinstance(error, NotUnderstoodError) else f"{type(error).__name__}: {error}"
        raise NotUnderstoodError(f"parametrized, and its weight cannot be computed: {what}") from error
    return stand_in, originals


def _computed(chain: nn.Module, elsewhere: Mapping[int, nn.Module]) -> Tensor:
    parts = list(modules_of(chain))
    if any(held(part, hooks) for part in parts for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        raise NotUnderstoodError("its parametrization has hooks, which would be called")
    if all(type(part).__module__ in _WITHOUT_EFFECTS for part in parts):
        return _evaluated(chain)
    memo = {key: _Elsewhere() for key in elsewhere.keys() - set(map(id, parts))}
    kinds = {kind for part in parts for kind in type(part).__mro__ if not _is_known(kind)}
    if not kinds:
        return _computed_by_copy(chain, memo)
    for part in parts:
        _check_code(part)
    before = [(kind, dict(vars(kind))) for kind in kinds]
    try:
        weight, again = (_computed_by_copy(chain, memo) for _ in range(2))
    finally:
        changed = [name for kind, attributes in before for name in _put_back(kind, attributes)]
    if changed:
        raise NotUnderstoodError(f"its parametrization changes the attribute {changed[0]} of its class")
    if not torch.allclose(weight, again, rtol=0, atol=0, equal_nan=True):
        raise NotUnderstoodError("its parametrization gives another weight at every call")
    return weight


class _Elsewhere:
    """Stands in for a module of the model that is no part of a parametrization; any use of it raises."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotUnderstoodError("its parametrization uses another module of the model")

    __call__ = __getattr__


def _computed_by_copy(chain: nn.Module, memo: Mapping[int, object]) -> Tensor:
    """Compute a weight with copied modules, which get copies of the mutable attributes of their classes too."""
    copied = dict(memo)
    chain = copy.deepcopy(chain, copied)
    for part in modules_of(chain):
        for kind in type(part).__mro__:
            for name, value in vars(kind).items() if not _is_known(kind) else ():
                if _is_state(value) and name != "_abc_impl":
                    part.__dict__.setdefault(name, copy.deepcopy(value, copied))
    return _evaluated(chain)


def _evaluated(chain: nn.Module) -> Tensor:
    parts = list(modules_of(chain))
    was_training = [part.training for part in parts]
    try:
        for part in parts:
            part.__dict__["training"] = False  # in training mode spectral_norm makes a step of its power iteration
        weight: Tensor = chain()
        return weight
    finally:
        for part, training in zip(parts, was_training, strict=True):
            part.__dict__["training"] = training


def _put_back(kind: type, attributes: Mapping[str, Any]) -> list[str]:
    """Restore the attributes of a class. Return the names of those that had changed."""
    changed = [name for name, value in dict(vars(kind)).items() if value is not attributes.get(name, kind)]
    for name in changed:
        if name in attributes:
            setattr(kind, name, attributes[name])
        else:
            delattr(kind, name)
    return changed


def _check_code(part: nn.Module) -> None:
    """Raise :class:`NotUnderstoodError` if a module's code rebinds or uses a mutable global, closure or default."""
    seen: set[int] = set()
    left: list[Any] = [inspect.getattr_static(part, "forward")]
    while left:
        function = left.pop()
        function = getattr(function, "__func__", getattr(function, "fget", function))
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        used, rebound = _names_in(function.__code__)
        space = function.__globals__
        globals_used = {name: space[name] for name in used if name in space}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = {name: cell.cell_contents for name, cell in cells}
        defaults = {f"a default of {function.__name__}": value for value in function.__defaults__ or ()}
        for name, value in (globals_used | closure | defaults).items():
            if name in rebound or _is_state(value):
                raise NotUnderstoodError(f"its parametrization uses {name}, which is no part of it and may change")
        left += (value for value in globals_used.values() if getattr(value, "__globals__", None) is space)
        left += closure.values()
        left += (inspect.getattr_static(part, name, None) for name in function.__code__.co_names)


@lru_cache
def _names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the globals that a function uses, and the outer names that it rebinds."""
    used: set[str] = set()
    rebound: set[str] = set()
    inside = [code]
    for one in inside:
        inside += (constant for constant in one.co_consts if isinstance(constant, CodeType))
        for step in dis.get_instructions(one):
            if step.opname.endswith("_GLOBAL"):
                used.add(step.argval)
            if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars):
                rebound.add(step.argval)
    return frozenset(used), frozenset(rebound)


def _is_state(value: object) -> bool:
    """Return whether a value is mutable."""
    is_code = hasattr(type(value), "__get__") or (callable(value) and not isinstance(value, nn.Module))
    return not is_code and not isinstance(value, _CONSTANTS)


def _is_known(kind: type) -> bool:
    return getattr(kind, "__module__", "").partition(".")[0] in _KNOWN_PACKAGES
