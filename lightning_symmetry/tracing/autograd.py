"""Properties of forward and backward passes for which autograd has no public function."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

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


def upstream(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield nodes and all nodes upstream of them once, the nearest first."""
    return reachable(nodes, lambda node: [child for child, _ in node.next_functions if child is not None])


def reachable(nodes: Iterable[Any], next_of: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield nodes, and all that are reached from them through ``next_of``, once, the nearest first."""
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
    """Return the tensors at which a backward pass starts that runs in a thread; none if they are unknown.

    They are read from a frame of PyTorch's own function, because a plain loop passes its loss to nobody else.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            outputs = frame.f_locals.get("t_outputs", ())
            return [each for each in outputs if isinstance(each, Tensor) and each.grad_fn is not None]
        frame = frame.f_back
    return []
