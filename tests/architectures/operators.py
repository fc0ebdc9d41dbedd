"""Lets torchvision run beside a torch without CUDA: it expects two operators that only its builds for CUDA bring along.

Whatever imports torchvision, as transformers, torchmetrics and timm do where it is installed, must come after this
module: ``pytest -p tests.architectures.operators``.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
