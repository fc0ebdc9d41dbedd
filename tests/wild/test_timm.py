"""timm, in a loop of one's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_symmetry import SymmetryTracker
from tests.wild.watching import Fault, Library, Plant, library_tests, silenced, train_in_loop


def train(name: str, fault: Fault | None, **options: Any) -> SymmetryTracker:
    import timm

    model = timm.create_model(name, num_classes=4, **options)
    size = options.get("img_size", 64)
    images, labels = torch.randn(8, 3, size, size), torch.arange(8) % 4
    return train_in_loop(model, lambda: nn.functional.cross_entropy(model(images), labels), fault)


LIBRARY = Library(
    "timm",
    "`SymmetryTracker(model, optimizer)`",
    {
        "test_resnet": partial(train, "test_resnet"),
        "test_vit": partial(train, "test_vit", img_size=32),
        "test_efficientnet": partial(train, "test_efficientnet"),
        "test_convnext": partial(train, "test_convnext"),
    },
    Plant("test_vit", silenced("blocks.1.mlp"), "the MLP of a block is multiplied by 0", "blocks.1.mlp.fc2", "SYM306"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
