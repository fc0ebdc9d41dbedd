"""The models whose training is timed."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]


class Classifier(LightningModule):
    """Any network under cross-entropy and AdamW."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, doi:10.1109/CVPR.2016.90, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet18() -> nn.Sequential:
    """ResNet-18 as published, 11.2 million parameters with ten classes."""
    blocks: list[nn.Module] = []
    inputs = 64
    for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        blocks += [ResidualBlock(inputs, outputs, stride), ResidualBlock(outputs, outputs, 1)]
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class DecoderBlock(nn.Module):
    """Causal attention and an MLP, each behind a LayerNorm, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + cast("Tensor", self.mlp(self.norm2(hidden)))


class Decoder(nn.Module):
    """GPT-2 in small, with its head tied to the embedding."""

    def __init__(self, vocabulary: int = 256, width: int = 384, layers: int = 6, heads: int = 6, length: int = 128):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))
        return logits


def mlp_on_digits() -> tuple[LightningModule, Loader]:
    """64-256-128-10 on scikit-learn's digits, batch 64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    return Classifier(net), DataLoader(data, batch_size=64, shuffle=True, drop_last=True)


def resnet_on_images() -> tuple[LightningModule, Loader]:
    """ResNet-18 on random 32 x 32 images, batch 32."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(640, 3, 32, 32), torch.randint(0, 10, (640,)))
    return Classifier(resnet18()), DataLoader(data, batch_size=32)


def decoder_on_tokens() -> tuple[LightningModule, Loader]:
    """GPT-2-like decoder, 6 layers of width 384, on 8 sequences of 128 random bytes a batch."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (64, 129))
    return Classifier(Decoder()), DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=8)


MODELS = {
    "MLP on digits, batch 64": mlp_on_digits,
    "ResNet-18, 32 images of 32 x 32": resnet_on_images,
    "decoder, 8 x 128 tokens": decoder_on_tokens,
}
