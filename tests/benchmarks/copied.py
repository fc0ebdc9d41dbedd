"""A check of a model half of whose units are copies, over a healthy one: ``python -m tests.benchmarks copied``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_symmetry import diagnose
from tests.benchmarks.models import DecoderBlock
from tests.benchmarks.quick import check_of
from tests.benchmarks.timing import alternate, show

_WIDTH, _DEPTH, _HEADS, _CLASSES, _PATCH = 192, 12, 3, 1000, 16  # of ViT-tiny


def vit_tiny() -> nn.Sequential:
    """The layers of ViT-tiny, with random numbers for gradients; it is looked at, and never called."""
    torch.manual_seed(0)
    blocks = [DecoderBlock(_WIDTH, _HEADS) for _ in range(_DEPTH)]
    patches, head = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH), nn.Linear(_WIDTH, _CLASSES)
    model = nn.Sequential(patches, *blocks, nn.LayerNorm(_WIDTH), head)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@torch.no_grad()
def copy_half(model: nn.Module) -> int:
    """Make the second half of the units of every layer copies of the first half; how many pairs that makes."""
    num_pairs = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            num_pairs += len(layer.weight) // 2
            for parameter in layer.parameters():
                assert parameter.grad is not None
                _copy_first_half(parameter)
                _copy_first_half(parameter.grad)
    return num_pairs


def _copy_first_half(rows: Tensor) -> None:
    half = len(rows) // 2
    rows[half : 2 * half] = rows[:half].clone()


def _num_groups(model: nn.Module) -> int:
    return sum(len(layer.groups) for layer in diagnose(model).layers.values())


def run() -> dict[str, float]:
    """Time the checks of both models side by side, and print the table."""
    healthy, copied = vit_tiny(), vit_tiny()
    num_pairs = copy_half(copied)
    assert (_num_groups(healthy), _num_groups(copied)) == (0, num_pairs)
    times = alternate({"healthy": check_of(healthy, "findings"), "copied": check_of(copied, "findings")}, rounds=20)
    ratio = times["copied"].over(times["healthy"])
    cells = [f"{1e3 * times[name].median:.1f} ms" for name in ("healthy", "copied")]
    show(
        f"ViT-tiny with half of all units copied, {num_pairs} groups of two",
        ("healthy", "copied", "copied / healthy"),
        [(*cells, str(ratio))],
    )
    return {"groups": num_pairs, **{name: each.median for name, each in times.items()}, **ratio.to_dict()}
