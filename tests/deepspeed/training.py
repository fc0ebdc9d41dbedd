"""Trainings with DeepSpeed on two CPU ranks, in a plain loop."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed looks for one

# isort: split
import deepspeed
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

from lightning_symmetry import SymmetryTracker, break_symmetry, diagnose
from tests.distributed import NETWORKS, Planted, conclusions
from tests.training import fill

STAGES = (1, 2, 3)
PRECISIONS = ("float32", "bfloat16")
OPTIONS: dict[str, Any] = {"every_n_steps": 1, "on_symmetry": "warn"}
QUIET: dict[str, Any] = {"every_n_steps": 1, "on_symmetry": "ignore"}


def start() -> None:
    """Make a process group for DeepSpeed, without compiling its operation for shared memory."""
    deepspeed.ops.__compatible_ops__.clear()
    deepspeed.init_distributed("gloo", verbose=False)


def config(stage: int, precision: str = "float32", **options: Any) -> dict[str, Any]:
    """Return a configuration with buckets smaller than the networks, and no replicated parameters."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1000, "sub_group_size": 100}
    return {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {**zero, **options.pop("zero", {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bfloat16"},
        "gradient_clipping": 0.05,
        **options,
    }


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    """Return two parameter groups."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    biases = [parameter for parameter in trained if parameter.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)


def engine_of(net: nn.Module, stage: int, precision: str = "float32", **options: Any) -> Any:
    start()
    return deepspeed.initialize(model=net, optimizer=optimizer_of(net), config=config(stage, precision, **options))[0]


def dead() -> nn.Module:
    """A network three of whose eight hidden units always output zero."""
    hidden = nn.Linear(12, 8)
    with torch.no_grad():
        hidden.bias[2:5] = -100.0
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(8, 4))


def zeros() -> nn.Module:
    return fill(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)), 0.0)


def partly_frozen() -> nn.Module:
    """Copies in a trained layer, and a frozen layer."""
    net = Planted(18)
    for parameter in net.get_submodule("2").parameters():
        parameter.requires_grad = False
    return net


SICK: dict[str, Callable[[], nn.Module]] = {"dead": dead, "zeros": zeros, "partly frozen": partly_frozen}


def built(network: str) -> nn.Module:
    torch.manual_seed(5)
    return {**NETWORKS, **SICK}[network]()


def batch(step: int) -> Tensor:
    """Return eight samples for each of two ranks."""
    return torch.rand(16, 12, generator=torch.Generator().manual_seed(step))


def loss_of(model: Callable[[Tensor], Tensor], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    outputs = model(inputs.to(dtype)).float()
    return (outputs - inputs[:, : outputs.shape[1]]).square().mean()


def train(engine: Any, steps: int = 8, first: int = 0, broken: int | None = None) -> list[float]:
    """Make some steps, one of which may have gradients that are not finite."""
    rank = torch.distributed.get_rank()
    dtype = next(iter(engine.module.parameters())).dtype
    losses = []
    for step in range(first, first + steps):
        loss = loss_of(engine, batch(step)[rank * 8 : rank * 8 + 8], dtype)
        engine.backward(loss * torch.inf if step == broken else loss)
        engine.step()
        losses.append(float(loss))
    return losses


def left_behind(engine: Any, losses: list[float]) -> list[Tensor]:
    """Return the final state on this rank: master weights, optimizer state, losses, random numbers."""
    tensors = [torch.tensor(losses), torch.get_rng_state()]
    for parameter in engine.module.parameters():
        if hasattr(parameter, "ds_id"):
            # The padding of the last rank's partition is uninitialised memory.
            size = parameter.ds_tensor.ds_numel
            length = max(0, min(size, parameter.ds_numel - torch.distributed.get_rank() * size))
            tensors.append(parameter.ds_tensor[:length])
            if not parameter.requires_grad:
                continue
            tensors.append(safe_get_local_fp32_param(parameter)[:length])
            tensors += [safe_get_local_optimizer_state(parameter, key)[:length] for key in ("exp_avg", "exp_avg_sq")]
            continue
        tensors.append(parameter)
        mapping = getattr(parameter, "_hp_mapping", None)  # frozen parameters have none
        if mapping is not None:
            tensors.append(mapping.get_hp_fragment())
    if not any(hasattr(parameter, "ds_id") for parameter in engine.module.parameters()):
        states = getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in tensors]


def alone(network: str, precision: str = "float32", steps: int = 8) -> dict[str, Any]:
    """Return the findings on one process in a plain PyTorch loop."""
    net = built(network)
    optimizer = optimizer_of(net)
    with warnings.catch_warnings(), SymmetryTracker(net, optimizer, **OPTIONS) as tracker:
        warnings.simplefilter("ignore")
        for step in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = loss_of(net, batch(step), torch.float32)
            loss.backward()
            optimizer.step()
    return conclusions(tracker)


class Ungathered(SymmetryTracker):
    """Fails if a check gathers anything, or makes DeepSpeed communicate."""

    def _before_step(self, optimizer: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for library, kinds in (
                (torch.distributed, ["gather"]),
                (deepspeed.comm, ["gather", "reduce", "broadcast"]),
            ):
                for name in dir(library):
                    if any(kind in name for kind in kinds) and callable(getattr(library, name)):
                        patch.setattr(library, name, None)
            super()._before_step(optimizer)


def watched(
    stage: int,
    network: str,
    precision: str = "float32",
    steps: int = 8,
    broken: int | None = None,
    tracking: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train without a tracker and with one, and return the results."""
    ends = []
    engine: Any = None
    for is_watched in (False, True):
        engine = engine_of(built(network), stage, precision, **(options or {}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen = {**OPTIONS, **(tracking or {})}
            tracker = Ungathered(engine, engine.optimizer, **chosen) if is_watched else None
            losses = train(engine, steps, broken=broken)
            if tracker is not None:
                tracker.close()
        ends.append(left_behind(engine, losses))
    assert tracker is not None
    assert tracker.report is not None
    without, with_it = ends
    told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return {
        "conclusions": conclusions(tracker),
        "is_same": len(without) == len(with_it) and all(map(torch.equal, without, with_it)),
        "warned": [text for text in told if any(word in text for word in ("identical", "zero", "Symmetry"))],
        "state": tracker.state_dict(),
        "step": tracker.report.step,
        "skipped_steps": engine.skipped_steps,
        "is_unhooked": "step" not in vars(engine.optimizer),
        "changes": len(tracker.changes),
    }


def resumed(stage: int, network: str, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of a tracker after ten steps, and of one that was resumed after five."""
    engine = engine_of(built(network), stage)
    tracker = SymmetryTracker(engine, engine.optimizer, **QUIET)
    train(engine, 5)
    engine.save_checkpoint(folder, f"stage{stage}", client_state={"symmetry": tracker.state_dict()})
    train(engine, 5, first=5)
    tracker.close()
    engine = engine_of(built(network), stage)
    second = SymmetryTracker(engine, engine.optimizer, **QUIET)
    _, client_state = engine.load_checkpoint(folder, f"stage{stage}")
    second.load_state_dict(client_state["symmetry"])
    train(engine, 5, first=5)
    second.close()
    return tracker.state_dict(), second.state_dict()


def made_in_parts() -> list[dict[str, Any]]:
    """Return the findings in a model that is partitioned from the start, before and during a training."""
    start()
    with deepspeed.zero.Init(config_dict_or_path=config(3)):
        net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    with deepspeed.zero.GatheredParameters(list(net.parameters()), modifier_rank=0):
        fill(net, 0.1)
    reports = [diagnose(net)]
    engine = engine_of(net, 3)
    tracker = SymmetryTracker(engine, engine.optimizer, **QUIET)
    train(engine)
    tracker.close()
    assert tracker.report is not None
    reports.append(tracker.report)
    return [
        {name: [(group.units, str(group.verdict)) for group in layer.groups] for name, layer in report.layers.items()}
        for report in reports
    ]


def refusals(stage: int) -> list[str]:
    """Return the warnings about an optimizer that is not the engine's, and about a repair."""
    engine = engine_of(built("planted groups"), stage)
    texts = []
    try:
        SymmetryTracker(engine, engine.optimizer.optimizer)
    except ValueError as error:
        texts.append(str(error))
    tracker = SymmetryTracker(engine, engine.optimizer, **QUIET)
    train(engine, 1)
    tracker.close()
    assert tracker.report is not None
    try:
        break_symmetry(engine, tracker.report, optimizer=engine.optimizer)
    except ValueError as error:
        texts.append(str(error))
    return texts


def skipped(kind: str) -> dict[str, str]:
    """Return why layers are skipped if DeepSpeed lacks a function, or offloads them."""
    engine = engine_of(built("planted groups"), 3)
    with pytest.MonkeyPatch.context() as patch:
        if kind == "version":
            patch.delattr(deepspeed.utils, "safe_get_local_grad")
        else:  # DeepSpeed's mark; offloading itself needs a compiled operation
            patch.setattr(engine.optimizer, "swap_optimizer", True)
        return dict(diagnose(engine).skipped)
