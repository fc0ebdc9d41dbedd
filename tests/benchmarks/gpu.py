"""The same on a GPU, if one is at hand: kernel, callback on GPT-2 small in bfloat16, times that the host waits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor, duplicate_groups
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.evidence import look
from tests.benchmarks.callback import train
from tests.benchmarks.kernel import contents
from tests.benchmarks.models import Classifier, Decoder
from tests.benchmarks.timing import Ratio, Times, show

SHAPES = [(4096, 4096), (11008, 4096), (50257, 768)]


def run() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        print("\nGPU: none at hand, skipped")
        return None
    device = torch.cuda.get_device_name()
    ratios = {f"{n} x {d}": {c: _over_a_pass(rows) for c, rows in contents(n, d, "cuda")} for n, d in SHAPES}
    show(
        f"Kernel over one read pass on {device}",
        ("rows", *next(iter(ratios.values()))),
        [(name, *map(str, by_content.values())) for name, by_content in ratios.items()],
    )
    model = _gpt2_small()
    waits = count_waits(partial(look, find_layers(model).layers))
    every = _training(model)
    show(
        f"GPT-2 small, bfloat16, on {device}",
        ("step with a check over one without", "times the host waits per check"),
        [(str(every), str(waits))],
    )
    return {
        "device": device,
        "over_one_pass": {name: {c: r.to_dict() for c, r in by.items()} for name, by in ratios.items()},
        "every_step": every.to_dict(),
        "host_waits_per_check": waits,
    }


def _over_a_pass(rows: Tensor, rounds: int = 11) -> Ratio:
    def timed(candidate: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        candidate()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    pairs = [(timed(partial(duplicate_groups, rows)), timed(rows.sum)) for _ in range(rounds + 2)][2:]
    ours, read = (Times(seconds) for seconds in zip(*pairs, strict=True))
    return ours.over(read)


def count_waits(check: Callable[[], Any]) -> int:
    """How often the host waits for the device, as PyTorch itself reports it."""
    check()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _gpt2_small() -> nn.Module:
    torch.manual_seed(0)
    net = Decoder(vocabulary=50257, width=768, layers=12, heads=12, length=1024).to("cuda", torch.bfloat16)
    tokens = torch.randint(0, 50257, (2, 129), device="cuda")
    logits = net(tokens[:, :-1]).flatten(0, 1)
    torch.autograd.backward(nn.functional.cross_entropy(logits.float(), tokens[:, 1:].flatten()))
    return net


def _training(net: nn.Module) -> Ratio:
    tokens = torch.randint(0, 50257, (64, 1025))
    data = torch.utils.data.TensorDataset(tokens[:, :-1], tokens[:, 1:])
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    contestants = {"nothing": [], "monitor": [SymmetryMonitor(every_n_steps=1, on_symmetry="ignore")]}
    times = train(
        Classifier(net), loader, contestants, steps_each=1, cycles=30, accelerator="gpu", precision="bf16-true"
    )
    return times["monitor"].over(times["nothing"])
