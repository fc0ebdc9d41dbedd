"""Small members of common families of networks, and functions that make them sick."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.training import fill

INPUTS = 12
OUTPUTS = 4


def perceptron(activation: type[nn.Module] = nn.ReLU, width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(INPUTS, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, OUTPUTS)
    )


def linear(net: nn.Module, name: str) -> Any:
    return net.get_submodule(name)


class Image(nn.Module):
    """Turns 12 numbers into an image (2, 8, 8) by a fixed random map."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(INPUTS, 2 * 64))

    def forward(self, inputs: Tensor) -> Tensor:
        mixed: Tensor = inputs @ self.get_buffer("mix")
        return mixed.reshape(-1, 2, 8, 8)


class Tokens(nn.Module):
    """Turns 12 numbers into 12 tokens out of 20."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.float() * 7919).long().abs() % 20


class Pool(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3))


def conv_bn(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = body, skip or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.skip(inputs) + self.body(inputs)
        return out


def resnet() -> nn.Module:
    """The architecture of ResNet-18: four stages of two basic blocks."""
    layers: list[nn.Module] = [Image(), conv_bn(2, 8)]
    channels = 8
    for outputs, stride in ((8, 1), (16, 2), (16, 2), (24, 1)):
        for i in range(2):
            step = stride if i == 0 else 1
            body = nn.Sequential(conv_bn(channels, outputs, stride=step), conv_bn(outputs, outputs))
            changes = step > 1 or channels != outputs
            layers.append(Residual(body, conv_bn(channels, outputs, 1, stride=step) if changes else None))
            channels = outputs
    return nn.Sequential(*layers, Pool(), nn.Linear(channels, OUTPUTS))


def mobilenet() -> nn.Module:
    """Inverted residuals: expand, depthwise, project."""

    def block(channels: int) -> nn.Module:
        wide = 4 * channels
        project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))
        depthwise = nn.Sequential(conv_bn(wide, wide, groups=wide), nn.Conv2d(wide, wide, 1, groups=wide))
        return Residual(nn.Sequential(conv_bn(channels, wide, 1), depthwise, project))

    return nn.Sequential(Image(), conv_bn(2, 8), block(8), block(8), Pool(), nn.Linear(8, OUTPUTS))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.down1, self.down2 = Image(), conv_bn(2, 8), conv_bn(8, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out, self.head = conv_bn(16, 8), nn.Linear(8, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.down1(self.image(inputs))
        up = self.up(self.down2(first))
        out: Tensor = self.head(self.out(torch.cat([first, up], dim=1)).mean(dim=(2, 3)))
        return out


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.patches = Image(), nn.Conv2d(2, 16, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks, self.head = nn.Sequential(block, copy.deepcopy(block)), nn.Linear(16, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(self.image(inputs)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.position
        out: Tensor = self.head(self.blocks(tokens)[:, 0])
        return out


class Conv1D(nn.Module):
    """The transposed linear layer of GPT-2 in the transformers package, under its name there."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.02 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs @ self.weight + self.bias
        return out


class Decoder(nn.Module):
    """A model like GPT-2: causal attention, embedding tied to the head, linear layers of type Linear or Conv1D."""

    def __init__(self, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.tokenise, self.tokens, self.positions = Tokens(), nn.Embedding(20, 16), nn.Embedding(INPUTS, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.attention = nn.ModuleList(nn.ModuleList([linear(16, 48), linear(16, 16)]) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(linear(16, 64), nn.GELU(), linear(64, 16)) for _ in range(2))
        self.unembed, self.head = nn.Linear(16, 20, bias=False), nn.Linear(20, OUTPUTS)
        self.unembed.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tokens(self.tokenise(inputs)) + self.positions.weight
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            packed = attention[0](self.norms[2 * i](hidden))  # type: ignore[index]
            q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in packed.split(16, dim=2))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + attention[1](mixed.transpose(1, 2).flatten(2))  # type: ignore[index]
            hidden = hidden + mlp(self.norms[2 * i + 1](hidden))
        out: Tensor = self.head(self.unembed(hidden).mean(dim=1))
        return out


class Recurrent(nn.Module):
    """A recurrent network that reads 12 numbers one by one, or tokens."""

    def __init__(self, rnn: nn.RNNBase, tokens: bool = False) -> None:
        super().__init__()
        self.embed = nn.Sequential(Tokens(), nn.Embedding(20, 3)) if tokens else nn.Unflatten(1, (4, 3))
        self.rnn, self.head = rnn, nn.Linear(rnn.proj_size or rnn.hidden_size, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.embed(inputs))[0][:, -1])
        return out


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_var = perceptron()[:2], nn.Linear(24, 6), nn.Linear(24, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, OUTPUTS))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.encoder(inputs)
        noise = torch.randn(len(inputs), 6, dtype=inputs.dtype)
        out: Tensor = self.decoder(self.mean(hidden) + noise * (0.5 * self.log_var(hidden)).exp())
        return out


class Experts(nn.Module):
    """Routes each sample to one of four experts, never to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList(nn.Linear(INPUTS, 16) for _ in range(4)), nn.Linear(16, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        choice = (inputs[:, 0].float() * 7919).long().abs() % 3
        hidden = torch.stack([expert(inputs) for expert in self.experts], dim=1)
        out: Tensor = self.head(torch.relu(hidden[torch.arange(len(inputs)), choice]))
        return out


class Branches(nn.Module):
    """A sum of parallel branches."""

    def __init__(self, are_copies: bool) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, 8))
        second = copy.deepcopy(first) if are_copies else nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, 8))
        self.branches, self.head = nn.ModuleList([first, second]), nn.Linear(8, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(sum(branch(inputs) for branch in self.branches))
        return out


class LoRA(nn.Module):
    """A frozen layer with a trained low-rank correction."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.3) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Linear(inputs, 4, bias=False), nn.Linear(4, outputs, bias=False)
        nn.init.normal_(self.a.weight, std=std)
        nn.init.zeros_(self.b.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.base(inputs) + self.b(self.a(inputs))
        return out


class Gated(nn.Module):
    """A residual branch with a gate that starts at zero (ReZero, AdaLN-zero)."""

    def __init__(self, adaptive: bool) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(INPUTS, 16), nn.Linear(16, 16), nn.Linear(16, OUTPUTS)
        self.gate = fill(nn.Linear(INPUTS, 16), 0.0) if adaptive else nn.Parameter(torch.zeros(16))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(inputs))
        gate = self.gate(inputs) if isinstance(self.gate, nn.Module) else self.gate
        out: Tensor = self.head(hidden + gate * torch.tanh(self.branch(hidden)))
        return out


class ControlNet(nn.Module):
    """A trained copy of a frozen block, connected by zero convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.block = Image(), nn.Conv2d(2, 8, 3, padding=1)
        self.control = copy.deepcopy(self.block)
        self.block.requires_grad_(False)
        self.zero_in, self.zero_out = fill(nn.Conv2d(2, 2, 1), 0.0), fill(nn.Conv2d(8, 8, 1), 0.0)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        image = self.image(inputs)
        hidden = self.block(image) + self.zero_out(self.control(image + self.zero_in(image)))
        out: Tensor = self.head(torch.relu(hidden).mean(dim=(2, 3)))
        return out


# ----------------------------------------------------------------- ways to be sick


def duplicate_units(net: nn.Module, layer: str, following: str, groups: list[tuple[int, ...]]) -> nn.Module:
    """Make the units of each group copies, including their outgoing weights."""
    first, second = linear(net, layer), linear(net, following)
    with torch.no_grad():
        for group in groups:
            for unit in group[1:]:
                for parameter in first.parameters():
                    parameter[unit] = parameter[group[0]]
                second.weight[:, unit] = second.weight[:, group[0]]
    return net


def duplicated_filters() -> nn.Module:
    net = nn.Sequential(Image(), nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), Pool())
    return duplicate_units(nn.Sequential(*net, nn.Linear(8, OUTPUTS)), "1", "4", [(0, 3), (2, 5, 7)])


class Square(nn.Module):
    """An even function."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.square()


class Attention(nn.Module):
    """One head of 8 dimensions over 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(32, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.unflatten(1, (4, 3))
        weights = (self.q(inputs) @ self.k(inputs).transpose(1, 2)).softmax(dim=2)
        out: Tensor = self.head((weights @ self.v(inputs)).flatten(1))
        return out


class Heads(nn.Module):
    """Four heads of 4 dimensions over 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attn = nn.Linear(3, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(64, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.unflatten(1, (4, 3)))
        out: Tensor = self.head(self.attn(hidden, hidden, hidden, need_weights=False)[0].flatten(1))
        return out


def copied_heads(net: nn.Module, pairs: list[tuple[int, int]], roles: str = "qkvo") -> nn.Module:
    """Make the second head of each pair a copy of the first: queries, keys, values, and outgoing weights."""
    for attn in net.modules():
        if isinstance(attn, nn.MultiheadAttention):
            with torch.no_grad():
                for packed in (attn.in_proj_weight, attn.in_proj_bias):
                    parts = packed.unflatten(0, (3, attn.num_heads, -1))
                    for role in set(roles) - {"o"}:
                        for head, copy in pairs:
                            parts["qkv".index(role), copy] = parts["qkv".index(role), head]
                if "o" in roles:
                    columns = attn.out_proj.weight.unflatten(1, (attn.num_heads, -1))
                    for head, copy in pairs:
                        columns[:, copy] = columns[:, head]
    return net


def mirror_rows(net: nn.Module, *layers: str) -> nn.Module:
    """Make the second half of the units of some layers the negatives of the first; keep their outgoing weights."""
    with torch.no_grad():
        for layer in layers:
            for parameter in linear(net, layer).parameters():
                half = len(parameter) // 2
                parameter[half:] = -parameter[:half]
    return net


def mirrored(net: nn.Module, layer: str, following: str, sign: float = -1.0) -> nn.Module:
    """Make the second half of the units mirror images of the first, with their outgoing weights times ``sign``."""
    mirror_rows(net, layer)
    with torch.no_grad():
        weight = linear(net, following).weight
        half = weight.shape[1] // 2
        weight[:, half:] = sign * weight[:, :half]
    return net


def mirrored_filters() -> nn.Module:
    net = nn.Sequential(Image(), nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), Pool())
    return mirrored(nn.Sequential(*net, nn.Linear(8, OUTPUTS)), "1", "3")


def mirrored_recurrent() -> nn.Module:
    net = mirrored(Recurrent(nn.RNN(3, 8, batch_first=True)), "rnn", "head")
    weight = linear(net, "rnn").weight_hh_l0
    with torch.no_grad():
        weight[:4, 4:] = -weight[:4, :4]
        weight[4:] = -weight[:4]
    return net


def with_bias(net: nn.Module, layer: str, value: float, num_units: int | None = None) -> nn.Module:
    """Set the biases of the first units of a layer, or of all."""
    with torch.no_grad():
        linear(net, layer).bias[:num_units] = value
    return net


def negative_weights(net: nn.Module, layer: str) -> nn.Module:
    with torch.no_grad():
        for parameter in linear(net, layer).parameters():
            parameter.copy_(-parameter.abs() - 0.01)
    return net


def cut_off(net: nn.Module) -> nn.Module:
    """Freeze a head of zeros, which blocks all gradients."""
    nn.init.zeros_(linear(net, "4").weight).requires_grad_(False)
    return net


def pruned_units() -> nn.Module:
    net = perceptron(nn.Tanh)
    prune.ln_structured(net[0], "weight", amount=0.75, n=2, dim=0)
    return net


def tiny_tanh() -> nn.Module:
    """Draw weights so small that all units condense onto a few directions."""
    net = nn.Sequential(nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, OUTPUTS))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=1e-4)
    return net


def identity_recurrent() -> nn.Module:
    net = Recurrent(nn.RNN(3, 8, batch_first=True))
    fill(net, 0.1)
    with torch.no_grad():
        linear(net, "rnn").weight_hh_l0.copy_(torch.eye(8))
    return net


def zer_o() -> nn.Module:
    """Return a network with ZerO initialisation (arXiv 2110.12661): identities and Hadamard matrices.

    The first 12 columns of the 32 x 32 Hadamard matrix make rows j and j + 16 equal. Exchanging the two throughout
    leaves the network unchanged except for j < 4, whose outgoing weights differ: the others stay equal forever.
    """
    net = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, OUTPUTS))
    hadamard = torch.ones(1, 1)
    for _ in range(5):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    with torch.no_grad():
        linear(net, "0").weight.copy_(0.18 * hadamard[:, :16] @ torch.eye(16, INPUTS))
        linear(net, "2").weight.copy_(torch.eye(32))
        linear(net, "4").weight.copy_(torch.eye(OUTPUTS, 32))
        for name in ("0", "2", "4"):
            linear(net, name).bias.zero_()
    return net


def filled(net: nn.Module, name: str, value: float) -> nn.Module:
    fill(linear(net, name), value)
    return net


def zero_residual() -> nn.Module:
    body = filled(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)), "2", 0.0)
    return nn.Sequential(nn.Linear(INPUTS, 16), Residual(body), nn.Linear(16, OUTPUTS))


def zero_weights_random_biases() -> nn.Module:
    net = perceptron(nn.Tanh)
    for name in ("0", "2", "4"):
        nn.init.zeros_(linear(net, name).weight)
    return net


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.LayerNorm(16), nn.Linear(16, OUTPUTS))


def dropout_after_constant() -> nn.Module:
    net = perceptron()
    return filled(nn.Sequential(net[0], nn.ReLU(), nn.Dropout(0.3), *list(net)[2:]), "0", 0.2)


def incoming_only() -> nn.Module:
    net = perceptron(nn.Tanh)  # copies of a dead ReLU would stay equal
    with torch.no_grad():
        for parameter in linear(net, "0").parameters():
            parameter[:12] = parameter[12:]
    return net


def both_factors_zero() -> nn.Module:
    net = nn.Sequential(LoRA(INPUTS, 16), nn.Tanh(), nn.Linear(16, OUTPUTS))
    return filled(net, "0.a", 0.0)


def constant_perceptron(activation: type[nn.Module]) -> nn.Module:
    return fill(perceptron(activation), 0.1)


def all_constant(net: nn.Module, value: float = 0.1) -> nn.Module:
    return fill(net, value)


class Levels(nn.Module):
    """Rounds a weight to a number of levels, with a straight-through gradient."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(self, weight: Tensor) -> Tensor:
        scale = 2 * weight.detach().abs().mean()
        steps = (self.num_levels - 1) / 2
        shift = 0.5 if self.num_levels % 2 == 0 else 0.0
        rounded = (
            ((weight / scale * steps - shift).round().clamp(-steps - shift, steps - shift) + shift) * scale / steps
        )
        return weight + (rounded - weight).detach()


def quantised(net: nn.Module, num_levels: int, *layers: str) -> nn.Module:
    """Compute the weights of some layers by rounding."""
    for layer in layers:
        parametrize.register_parametrization(linear(net, layer), "weight", Levels(num_levels))
    return net


def quantised_perceptron(num_levels: int) -> nn.Module:
    return quantised(perceptron(width=64), num_levels, "0", "2")


def quantised_stem(num_levels: int) -> nn.Module:
    net = nn.Sequential(Image(), nn.Conv2d(2, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), Pool())
    return quantised(nn.Sequential(*net, nn.Linear(64, OUTPUTS)), num_levels, "1")


def mirrored_latents() -> nn.Module:
    net = mirrored(perceptron(nn.Tanh), "0", "2")
    parametrizations.weight_norm(linear(net, "0"))
    return net


def mirrored_cells(kind: Callable[..., nn.RNNBase]) -> nn.Module:
    """Make the second half of the units mirror images of the first: negative behind the tanh, equal in the gates."""
    net = Recurrent(kind(3, 8, batch_first=True))
    with torch.no_grad():
        for parameter in linear(net, "rnn").parameters():
            for gate, rows in enumerate(parameter.unflatten(0, (-1, 8))):
                if rows.shape[1:] == (8,):  # the recurrent weights
                    rows[:4, 4:] = -rows[:4, :4]
                rows[4:] = -rows[:4] if gate == 2 else rows[:4]
        head = linear(net, "head").weight
        head[:, 4:] = -head[:, :4]
    return net


def constant_around_noise() -> nn.Module:
    """A VAE whose layers for mean, variance and noisy latents start constant."""
    net = VAE()
    for module in (net.mean, net.log_var, net.decoder[0]):
        fill(module, 0.05)
    return net


class Registers(nn.Module):
    """Four tokens that start from zero, in one or more parameters."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        num_parameters = 4 if math.prod(shape) == 8 else 1
        self.tokens = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for _ in range(num_parameters)])
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, OUTPUTS)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = torch.cat([token.reshape(1, -1, 8) for token in self.tokens], dim=1)
        words = self.embed(inputs.unflatten(1, (4, 3)))
        out: Tensor = self.head(self.block(torch.cat([tokens.expand(len(words), -1, -1), words], dim=1))[:, 4:].mean(1))
        return out


class Critics(nn.Module):
    """Two critics, with frozen copies as targets."""

    def __init__(self, are_copies: bool) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, OUTPUTS)) for _ in "12"
        )
        if are_copies:
            self.critics[1].load_state_dict(self.critics[0].state_dict())
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.critics[0](inputs) + self.critics[1](inputs)
        return out


class Spectral(nn.Module):
    """Mixes the frequencies of two channels with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 6, 4), 0.1 + 0.1j))
        self.head = nn.Linear(6, OUTPUTS)
        nn.init.constant_(self.head.weight, 0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        waves = torch.fft.rfft(inputs.unflatten(1, (2, 6)))
        out: Tensor = self.head(torch.fft.irfft(torch.einsum("bif,iof->bof", waves, self.weight), n=6).square().mean(2))
        return out
