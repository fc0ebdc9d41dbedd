"""Where the numbers of a parameter lie under DeepSpeed's ZeRO, which lays parameters end to end and shares them out.

In stages 1 and 2 every rank has the weights, but only a part of what the optimizer updates (numbers in float32, also
where the weights are of lower precision) and of the averaged gradients. In stage 3 it has no more of the weights
either. What is read is what the optimizer updates: in stage 3 by functions of `deepspeed.utils`; in stages 1 and 2,
where these gather, by the mapping behind them. Nothing here imports DeepSpeed: it marks the parameters that it manages.
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

# What an optimizer of DeepSpeed calls the lists of the model's parameters that it updates; each kind has one of these.
_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")


@dataclass(frozen=True)
class ZeroPart(FlatPart):
    """What this rank holds of a parameter that ZeRO manages; ``source`` is the parameter of the model.

    The numbers are asked for when they are read, since DeepSpeed moves them.

    Attributes:
        master_dtype: the dtype of what the optimizer updates.
    """

    master_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what the optimizer updates."""
        return self.master_dtype

    @property
    def gradient_dtype(self) -> torch.dtype:
        """The dtype of the parameter, in which the backward pass computes."""
        return self.source.dtype

    def numbers(self) -> Tensor:
        """What the optimizer updates, ``(length,)``."""
        if not self.length:
            return self._nothing()
        parameter: Any = self.source
        if _is_partitioned(parameter):
            local = _read("safe_get_local_fp32_param", parameter) if _is_updated(parameter) else parameter.ds_tensor
        else:
            local = parameter._hp_mapping.get_hp_fragment()
        return self._here(local)[: self.length]

    def gradient(self) -> Tensor | None:
        """The averaged gradient, times the scale of the loss, before it is clipped; None if there is none."""
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
        except (ValueError, IndexError, KeyError):  # there is none before the backward pass
            return None
        if local is None:
            return None
        flat = self._here(local)
        # DeepSpeed's BF16_Optimizer keeps all of it on each rank.
        return flat if len(flat) == self.length else flat[self.start : self.start + self.length]

    def _here(self, numbers: Tensor) -> Tensor:
        """Flatten numbers, and bring them to the device of the parameter if the optimizer keeps them elsewhere."""
        return numbers.detach().flatten().to(self.source.device)

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.source.device)


def zero_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return all modules of a model of which ZeRO manages any parameter, by ``id``."""
    is_managed = any(map(_is_managed, parameters_of(model)))
    return {id(module): module for module in modules_of(model)} if is_managed else {}


def zero_parts(model: nn.Module) -> dict[int, dict[str, FlatPart]]:
    """Return what this rank holds of the parameters that ZeRO manages, by the ``id`` of the module and name.

    Those that cannot be read are left out; :func:`why_not_read` says why. No rank asks another one.
    """
    parts: dict[int, dict[str, FlatPart]] = {}
    for module in modules_of(model):
        for name, parameter in own_parameters(module).items():
            if _is_managed(parameter) and not why_not_read(parameter):
                parts.setdefault(id(module), {})[name] = _part_of(parameter)
    return parts


def why_not_read(parameter: Any) -> str:
    """Return why a parameter cannot be read that ZeRO manages; empty if it can, or if ZeRO does not manage it."""
    if not _is_managed(parameter):
        return ""
    if not dist.is_available() or not dist.is_initialized():
        return "partitioned by DeepSpeed ZeRO, and this process has no process group: look at the model in its training"
    if _is_partitioned(parameter):
        return _why_partition_is_not_read(parameter)
    mapping = parameter._hp_mapping
    if mapping is None:
        return ""
    is_known = all(
        hasattr(mapping, name) for name in ("get_hp_fragment", "get_lp_grad_fragment", "lp_fragment_address")
    )
    return "" if is_known else _of_another_version("the mapping of parameters to what the optimizer updates")


def is_zero_optimizer(optimizer: object) -> bool:
    """Return whether an optimizer is what a DeepSpeed engine has put around another one."""
    of_deepspeed = any(kind.__module__.partition(".")[0] == "deepspeed" for kind in type(optimizer).__mro__)
    return of_deepspeed and any(hasattr(optimizer, name) for name in _GROUPS)


def groups_of(optimizer: Any) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield the options of each group of an optimizer with the parameters of the model that it updates.

    The groups of DeepSpeed's optimizers hold other tensors, in which those of the model are laid end to end.
    """
    if not is_zero_optimizer(optimizer):
        yield from ((group, list(group["params"])) for group in optimizer.param_groups)
        return
    groups = next(getattr(optimizer, name) for name in _GROUPS if hasattr(optimizer, name))
    places = getattr(optimizer, "sub_group_to_group_id", None) or {i: i for i in range(len(groups))}
    for i, parameters in enumerate(groups):
        yield optimizer.param_groups[places[i]], list(parameters)


def is_engine(module: nn.Module) -> bool:
    """Return whether a module is an engine of DeepSpeed."""
    return any(
        kind.__name__ == "DeepSpeedEngine" and kind.__module__.partition(".")[0] == "deepspeed"
        for kind in type(module).__mro__
    )


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter, which stage 3 hides while the parameter is not gathered."""
    return tuple(parameter.ds_shape if _has(parameter, "ds_shape") else parameter.shape)


def _is_managed(parameter: object) -> bool:
    return _is_partitioned(parameter) or _has(parameter, "_hp_mapping")


def _is_partitioned(parameter: object) -> bool:
    """Return whether stage 3 manages a parameter."""
    return _has(parameter, "ds_id")


def _has(parameter: object, name: str) -> bool:
    """Return whether DeepSpeed has set an attribute of a parameter; those of other classes may not like to be asked."""
    return name in getattr(parameter, "__dict__", {})


def _is_updated(parameter: Any) -> bool:
    return bool(parameter.requires_grad) and (not _is_partitioned(parameter) or _has(parameter, "_z3_optimizer"))


def _has_gradients(optimizer: Any) -> bool:
    """Return whether the gradients that stage 3 keeps are those of a step to come, as far as that is known."""
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
        is_of_model = not _is_updated(parameter)
        master = parameter.ds_tensor.dtype if is_of_model else _master_dtype(parameter._z3_optimizer, parameter)
    else:
        group, mapping = parameter._dp_group, parameter._hp_mapping
        start, length = (0, 0) if mapping is None else _interval(mapping.lp_fragment_address)
        master = torch.float32 if mapping is None else mapping.get_hp_fragment().dtype
    if 0 not in dist.get_process_group_ranks(_plain(group)):
        length = 0  # of copies on several groups of ranks, those of the first rank's group are read
    return ZeroPart(parameter, 0, length, start, shape, id(parameter), master)


def _interval(address: Any) -> tuple[int, int]:
    return int(address.start), int(address.numel)


def _master_dtype(optimizer: Any, parameter: Any) -> torch.dtype:
    found = getattr(optimizer, "master_weights_and_grads_dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _plain(group: Any) -> dist.ProcessGroup | None:
    """Return a group of :mod:`torch.distributed`; DeepSpeed may write None for that of all ranks."""
    return group if isinstance(group, dist.ProcessGroup) else None


def _why_partition_is_not_read(parameter: Any) -> str:
    if not hasattr(parameter, "ds_tensor"):
        return _of_another_version("the partition of a parameter")
    optimizer = getattr(parameter, "_z3_optimizer", None)
    is_swapped = getattr(optimizer, "swap_optimizer", False) or getattr(parameter, "nvme_swapper", None) is not None
    if is_swapped:
        return (
            "partitioned by DeepSpeed ZeRO-3 and offloaded to NVMe, from where nothing is read: try a short training "
            'with "device": "cpu" in offload_optimizer and offload_param'
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
