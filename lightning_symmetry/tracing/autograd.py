"""Properties of autograd's nodes and passes that have no public function."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

NO_PASS = -1


def running_pass() -> int:
    """Return the number of the backward pass that is running in this thread; :data:`NO_PASS` if none is."""
    return int(torch._C._current_graph_task_id())


def next_operation() -> int:
    """Return the number that autograd gives to the next operation that it records in this thread."""
    return int(torch._C._autograd._get_sequence_nr())


def number_of(node: Any) -> int:
    """Return the number of a node's operation; very large for nodes that accumulate the gradient of a parameter."""
    return int(node._sequence_nr())


def operation_of(node: Any) -> str:
    """Return the name of a node's operation.

    >>> operation_of(torch.ones(2, requires_grad=True).relu().grad_fn)
    'Relu'
    """
    name: str = node.name().rpartition("::")[2]
    if isinstance(node, BackwardCFunction):
        return name  # a custom function, perhaps named like one of PyTorch's
    return name.partition("Backward")[0] or name


def shapes_of(node: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs of a node's operation."""
    return [tuple(each.shape) for each in node._input_metadata]


def may_read_saved(node: Any) -> bool:
    """Return whether the tensors that autograd has saved for a node can be read without recomputing them.

    A checkpointed segment recomputes its tensors only once; reading them here would take them from the backward pass.
    """
    for name in names_of_saved(node):
        try:
            saved = getattr(node, name)
        except RuntimeError:  # autograd has freed it
            return False
        several = saved if isinstance(saved, tuple | list) else [saved]
        if any(each is not None and getattr(each, "unpack_hook", each) is not None for each in several):
            return False
    return True


def names_of_saved(node: Any) -> list[str]:
    """Return the names of a node's attributes that hold tensors saved by autograd."""
    return [name for name in dir(type(node)) if name.startswith("_raw_saved_")]


def signed(number: int) -> int:
    """Restore the sign of a number that autograd has stored as unsigned: 2^64 - 1 becomes -1."""
    return number - 2**64 if number >= 2**63 else number


def is_single(shape: Sequence[int], dims: Sequence[int]) -> bool:
    """Return whether a shape has size 1 along all of ``dims``, where autograd may have stored -1 as 2^64 - 1.

    >>> is_single((8, 1), (2**64 - 1,))
    True
    """
    return all(shape[signed(dim)] == 1 for dim in dims)


def upstream(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield nodes and all nodes upstream of them, each once, the nearest first."""
    return reachable(nodes, lambda node: [child for child, _ in node.next_functions if child is not None])


def reachable(nodes: Iterable[Any], next_of: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield nodes, and all nodes reached from them through ``next_of``, each once, the nearest first."""
    left, known = deque(nodes), set()
    while left:
        node = left.popleft()
        if node not in known:
            known.add(node)
            yield node
            left += next_of(node)


def may_recompute() -> bool:
    """Return whether tensors that are saved now may be recomputed when they are read, as in checkpointed segments."""
    is_hooked = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return is_hooked is None or is_hooked(False) is not None


def outputs_of_running_pass(thread: int) -> list[Tensor]:
    """Return the tensors at which the backward pass of a thread starts; none if they are unknown.

    They are read from the stack frame of PyTorch's own function, because a plain loop passes its loss to no other code.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            outputs = frame.f_locals.get("t_outputs", ())
            return [each for each in outputs if isinstance(each, Tensor) and each.grad_fn is not None]
        frame = frame.f_back
    return []
