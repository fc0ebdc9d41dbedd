"""What autograd knows of a forward or backward pass and offers no public function for."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

NO_PASS = -1


def running_pass() -> int:
    """Return the number of the backward pass that is running in this thread; :data:`NO_PASS` if none is."""
    number: int = torch._C._current_graph_task_id()
    return number


def next_operation() -> int:
    """Return the number that autograd gives to the next operation that it records in this thread."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def number_of(node: Any) -> int:
    """Return the number of the operation of a node; very large for those that store the gradients of parameters."""
    number: int = node._sequence_nr()
    return number


def may_recompute() -> bool:
    """Return whether what is saved now may be computed anew when it is read, as in checkpointed segments."""
    is_hooked = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return is_hooked is None or is_hooked(False) is not None


def outputs_of_running_pass(thread: int) -> list[Tensor]:
    """Return the tensors from which the backward pass starts that is running; none if that cannot be found out.

    Where nobody hands over the loss, there is no other way: they are arguments of PyTorch's function.

    Args:
        thread: the identity of the thread that has called it.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            outputs = frame.f_locals.get("t_outputs", ())
            return [each for each in outputs if isinstance(each, Tensor) and each.grad_fn is not None]
        frame = frame.f_back
    return []
