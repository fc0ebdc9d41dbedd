"""The digits of scikit-learn, for several examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn import datasets
from torch import Generator, Tensor

_TRAINING_IMAGES = 1200


@dataclass(frozen=True)
class Digits:
    """Images of 8 by 8 pixels between 0 and 1 as rows ``(n, 64)`` with labels ``(n,)``, for training and test."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """Load the digits in a fixed random order."""
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    pixels, classes = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    cut = _TRAINING_IMAGES
    return Digits(pixels[:cut], classes[:cut], pixels[cut:], classes[cut:])
