"""The part of each parameter on this rank under DeepSpeed's ZeRO, which lays parameters end to end and partitions them.

In stages 1 and 2, every rank has all weights, but only a part of the master weights (the optimizer's copy, in float32
even for weights of lower precision) and of the averaged gradients. In stage 3, it has only a part of the weights, too.
This module reads the master weights: in stage 3 with functions of `deepspeed.utils`; in stages 1 and 2, where those
would gather, from the mapping that they use. It does not import DeepSpeed, whose attributes mark managed parameters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_symmetry.modules import modules_of, own_parameters, parameters_of
from lightning_symmetry.ranks.flat import FlatPart

# Attributes with the lists of the model's parameters that a DeepSpeed optimizer updates; each class has one of these.
_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")


@dataclass(frozen=True)
class ZeroPart(FlatPart):
    """This rank's part of a parameter that ZeRO manages; ``source`` is the parameter of the model.

    The numbers are looked up at each read, because DeepSpeed moves them.
    """

    master_dtype: torch.dtype  # dtype of the master weights

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the master weights."""
        return self.master_dtype

    def numbers(self) -> Tensor:
        """Return the master weights, ``(length,)``."""
        if not self.length:
            return self._nothing()
        parameter: Any = self.source
        if _is_partitioned(parameter):
            local = _read("safe_get_local_fp32_param", parameter) if _is_updated(parameter) else parameter.ds_tensor
        else:
            local = parameter._hp_mapping.get_hp_fragment()
        return self._here(local)[: self.length]

    def gradient(self) -> Tensor | None:
        """Return the averaged gradient, times the loss scale, before clipping; None if there is none."""
        if not self.length:
            return self._nothing()
        parameter: Any = self.source
        if not _is_updated(parameter):
            return None
        if _is_partitioned(parameter):
            local = _read("safe_get_local_grad", parameter) if _has_gradients(parameter._z3_optimizer) else None
            return None if local is None else self._here(local)[: self.length]
        try:
            local = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
        except (ValueError, IndexError, KeyError):  # before the backward pass
            return None
        if local is None:
            return None
        flat = self._here(local)
        # DeepSpeed's BF16_Optimizer keeps the whole gradient on each rank.
        return flat if len(flat) == self.length else flat[self.start : self.start + self.length]

    def _here(self, numbers: Tensor) -> Tensor:
        """Flatten numbers, and move them to the parameter's device if the optimizer is offloaded."""
        return numbers.detach().flatten().to(self.source.device)

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.source.device)


def zero_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return all modules of a model, by ``id``, if ZeRO manages any of its parameters."""
    is_managed = any(map(_is_managed, parameters_of(model)))
    return {id(module): module for module in modules_of(model)} if is_managed else {}


def zero_parts(model: nn.Module) -> dict[int, dict[str, FlatPart]]:
    """Return this rank's parts of the parameters that ZeRO manages, by the ``id`` of the module and name.

    Parameters that cannot be read are left out; :func:`why_not_read` returns the reason. Needs no communication.
    """
    parts: dict[int, dict[str, FlatPart]] = {}
    for module in modules_of(model):
        for name, parameter in own_parameters(module).items():
            if _is_managed(parameter) and not why_not_read(parameter):
                parts.setdefault(id(module), {})[name] = _part_of(parameter)
    return parts


def why_not_read(parameter: Any) -> str:
    """Return why a parameter managed by ZeRO cannot be read; empty for any other parameter."""
    if not _is_managed(parameter):
        return ""
    if not dist.is_available() or not dist.is_initialized():
        return "partitioned by DeepSpeed ZeRO, and this process has no process group: check the model in its training"
    if _is_partitioned(parameter):
        return _why_partition_is_not_read(parameter)
    mapping, names = parameter._hp_mapping, ("get_hp_fragment", "get_lp_grad_fragment", "lp_fragment_address")
    is_known = mapping is None or all(hasattr(mapping, name) for name in names)
    return "" if is_known else _of_another_version("the mapping of parameters to master weights")


def is_zero_optimizer(optimizer: object) -> bool:
    """Return whether an optimizer is the wrapper that a DeepSpeed engine puts around another optimizer."""
    of_deepspeed = any(kind.__module__.partition(".")[0] == "deepspeed" for kind in type(optimizer).__mro__)
    return of_deepspeed and any(hasattr(optimizer, name) for name in _GROUPS)


def groups_of(optimizer: Any) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield the options of each parameter group of an optimizer, and the model's parameters in it.

    The ``param_groups`` of DeepSpeed's optimizers hold flat tensors instead of the model's parameters.
    """
    if not is_zero_optimizer(optimizer):
        yield from ((group, list(group["params"])) for group in optimizer.param_groups)
        return
    groups = next(getattr(optimizer, name) for name in _GROUPS if hasattr(optimizer, name))
    places = getattr(optimizer, "sub_group_to_group_id", None) or {i: i for i in range(len(groups))}
    for i, parameters in enumerate(groups):
        yield optimizer.param_groups[places[i]], list(parameters)


def is_engine(module: nn.Module) -> bool:
    """Return whether a module is a DeepSpeed engine."""
    kinds = [kind for kind in type(module).__mro__ if kind.__name__ == "DeepSpeedEngine"]
    return any(kind.__module__.partition(".")[0] == "deepspeed" for kind in kinds)


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the whole shape of a parameter; stage 3 hides it while the parameter is not gathered."""
    return tuple(parameter.ds_shape if _has(parameter, "ds_shape") else parameter.shape)


def _is_managed(parameter: object) -> bool:
    return _is_partitioned(parameter) or _has(parameter, "_hp_mapping")


def _is_partitioned(parameter: object) -> bool:
    """Return whether stage 3 manages a parameter."""
    return _has(parameter, "ds_id")


def _has(parameter: object, name: str) -> bool:
    """Return whether DeepSpeed has set an attribute of a parameter, without calling code of a parameter's class."""
    return name in getattr(parameter, "__dict__", {})


def _is_updated(parameter: Any) -> bool:
    return bool(parameter.requires_grad) and (not _is_partitioned(parameter) or _has(parameter, "_z3_optimizer"))


def _has_gradients(optimizer: Any) -> bool:
    """Return whether stage 3 holds gradients for the next step; True if that is unknown."""
    gradients = getattr(optimizer, "averaged_gradients", None)
    if getattr(optimizer, "offload_optimizer", False) or not isinstance(gradients, dict):
        return True
    return any(each is not None for each in gradients.values())


def _part_of(parameter: Any) -> ZeroPart:
    shape = whole_shape(parameter)
    count = math.prod(shape)
    if _is_partitioned(parameter):
        group, size = parameter.ds_process_group, parameter.ds_tensor.ds_numel
        start = min(count, dist.get_rank(_plain(group)) * size)
        length = min(size, count - start)
        master = parameter.ds_tensor.dtype
        if _is_updated(parameter):
            found = getattr(parameter._z3_optimizer, "master_weights_and_grads_dtype", None)
            master = found if isinstance(found, torch.dtype) else torch.float32
    else:
        group, mapping = parameter._dp_group, parameter._hp_mapping
        start, length, master = 0, 0, torch.float32
        if mapping is not None:
            start, length = int(mapping.lp_fragment_address.start), int(mapping.lp_fragment_address.numel)
            master = mapping.get_hp_fragment().dtype
    if 0 not in dist.get_process_group_ranks(_plain(group)):
        length = 0  # if several groups of ranks hold copies, the group of the first rank is read
    return ZeroPart(parameter, 0, length, start, shape, id(parameter), master)


def _plain(group: Any) -> dist.ProcessGroup | None:
    """Return a process group, or None for the group of all ranks, which DeepSpeed may not represent by one."""
    return group if isinstance(group, dist.ProcessGroup) else None


def _why_partition_is_not_read(parameter: Any) -> str:
    if not hasattr(parameter, "ds_tensor"):
        return _of_another_version("the partition of a parameter")
    optimizer = getattr(parameter, "_z3_optimizer", None)
    is_swapped = getattr(optimizer, "swap_optimizer", False) or getattr(parameter, "nvme_swapper", None) is not None
    if is_swapped:
        return (
            "partitioned by DeepSpeed ZeRO-3 and offloaded to NVMe, which this package does not read: try a short "
            'training with "device": "cpu" in offload_optimizer and offload_param'
        )
    lacking = [name for name in ("safe_get_local_fp32_param", "safe_get_local_grad") if _function(name) is None]
    return _of_another_version(f"deepspeed.utils.{lacking[0]}") if lacking and _is_updated(parameter) else ""


def _of_another_version(what: str) -> str:
    version = getattr(sys.modules.get("deepspeed"), "__version__", "unknown")
    return f"partitioned by DeepSpeed ZeRO, whose version {version} lacks {what}: update deepspeed"


def _function(name: str) -> Callable[[Tensor], Tensor | None] | None:
    return getattr(sys.modules.get("deepspeed.utils"), name, None)


def _read(name: str, parameter: Tensor) -> Any:
    function = _function(name)
    assert function is not None
    return function(parameter)
