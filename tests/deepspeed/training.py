"""Trainings with DeepSpeed on two CPU ranks, in a plain loop."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed looks for one

# isort: split
import deepspeed
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

from lightning_symmetry import SymmetryTracker
from tests.distributed import NETWORKS, said

STAGES = (1, 2, 3)
PRECISIONS = ("float32", "bfloat16")
OPTIONS: dict[str, Any] = {"every_n_steps": 1, "on_symmetry": "warn"}


def start() -> None:
    """Make a process group for DeepSpeed, without compiling its operation that shares memory between ranks."""
    deepspeed.ops.__compatible_ops__.clear()
    deepspeed.init_distributed("gloo", verbose=False)


def config(stage: int, precision: str = "float32", **options: Any) -> dict[str, Any]:
    zero = {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": 1000,
        **options.pop("zero", {}),
    }
    return {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bfloat16"},
        "gradient_clipping": 0.05,
        **options,
    }


def engine_of(net: nn.Module, stage: int, precision: str = "float32", **options: Any) -> Any:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    start()
    return deepspeed.initialize(model=net, optimizer=optimizer, config=config(stage, precision, **options))[0]


def built(network: str) -> nn.Module:
    torch.manual_seed(5)
    return NETWORKS[network]()


def batch(step: int) -> Tensor:
    """Eight samples for each of two ranks."""
    return torch.rand(16, 12, generator=torch.Generator().manual_seed(step))


def loss_of(model: Callable[[Tensor], Tensor], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    outputs = model(inputs.to(dtype)).float()
    return (outputs - inputs[:, : outputs.shape[1]]).square().mean()


def train(engine: Any, steps: int = 8, start_at: int = 0) -> list[float]:
    rank = torch.distributed.get_rank()
    dtype = next(iter(engine.module.parameters())).dtype
    losses = []
    for step in range(start_at, start_at + steps):
        loss = loss_of(engine, batch(step)[rank * 8 : rank * 8 + 8], dtype)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses


def left_behind(engine: Any, losses: list[float]) -> list[Tensor]:
    """All that a training leaves behind on this rank: what the optimizer updates, its state, losses, random numbers."""
    tensors = [torch.tensor(losses), torch.get_rng_state()]
    for parameter in engine.module.parameters():
        if hasattr(parameter, "ds_id"):
            # What fills the partition of the last rank up is whatever was in memory.
            size = parameter.ds_tensor.ds_numel
            length = max(0, min(size, parameter.ds_numel - torch.distributed.get_rank() * size))
            tensors.append(parameter.ds_tensor[:length])
            tensors.append(safe_get_local_fp32_param(parameter)[:length])
            tensors += [safe_get_local_optimizer_state(parameter, key)[:length] for key in ("exp_avg", "exp_avg_sq")]
            continue
        tensors.append(parameter)
        mapping = parameter._hp_mapping
        if mapping is not None:
            tensors += [mapping.get_hp_fragment(key) for key in (None, "exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in tensors]


def alone(network: str, precision: str) -> dict[str, Any]:
    """What is found on one process in a loop of PyTorch, of which this is one rank's worth."""
    net = built(network)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    with SymmetryTracker(net, optimizer, **OPTIONS) as tracker:
        for step in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = loss_of(net, batch(step), torch.float32)
            loss.backward()
            optimizer.step()
    return said(tracker)


def watched(stage: int, network: str, precision: str, **options: Any) -> dict[str, Any]:
    """Train with a tracker and without, and return what it says."""
    engine = engine_of(built(network), stage, precision, **options)
    without = left_behind(engine, train(engine))
    engine = engine_of(built(network), stage, precision, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracker = SymmetryTracker(engine, engine.optimizer, **OPTIONS)
        losses = train(engine)
        tracker.close()
    with_it = left_behind(engine, losses)
    is_same = len(without) == len(with_it) and all(map(torch.equal, without, with_it))
    texts = [text for warning in caught if "identical" in (text := str(warning.message))]
    return {**said(tracker), "is_same": is_same, "warned": texts, "state": tracker.state_dict()}
