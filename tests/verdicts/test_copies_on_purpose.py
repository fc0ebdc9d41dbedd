"""Copies that libraries make on purpose are not reported; copies by mistake beside them are.

Each program follows one recipe of a public library with networks of a few units.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests import zoo
from tests.training import Classifier, make_trainer, quiet
from tests.training import batches as loader
from tests.verdicts.programs import (
    Holder,
    Program,
    Recipe,
    follow,
    listening,
    minimise,
    mlp,
    supervised,
    train,
)

NO_GRADIENT = "no gradient has reached it"
WIDTH = 8


def adam(module: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=lr)


# ------------------------------------------------------------------------------------------- averages of the model


def timm_ema(is_in_optimizer: bool) -> Program:
    """``ModelEmaV2``: a deep copy in evaluation mode that still requires gradients, held by the module it averages."""
    net = mlp()
    holder = Holder({"model": net, "ema": copy.deepcopy(net).eval()})
    return supervised(holder, adam(holder if is_in_optimizer else net), net, lambda _: follow(holder["ema"], net))


def averaged_model() -> Program:
    net = mlp()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return supervised(Holder({"model": net, "ema": average}), adam(net), net, lambda _: average.update_parameters(net))


def diffusers_ema() -> Program:
    """``EMAModel``: clones of the parameters, swapped into the model for each evaluation."""
    net = mlp()
    shadow = [parameter.detach().clone() for parameter in net.parameters()]

    @torch.no_grad()
    def after(step: int) -> None:
        for mean, new in zip(shadow, net.parameters(), strict=True):
            mean.sub_(0.1 * (mean - new))
        if step % 10 == 9:
            stored = [parameter.clone() for parameter in net.parameters()]
            for mean, old, parameter in zip(shadow, stored, net.parameters(), strict=True):
                parameter.copy_(mean)
                parameter.copy_(old)

    return supervised(net, after=after)


def swa_restart() -> Program:
    """Weights are averaged over a cycle of the learning rate; each cycle starts from the average."""
    net = mlp()
    average = AveragedModel(net)
    holder = Holder({"model": net, "average": average})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10)

    def after(step: int) -> None:
        schedule.step()
        average.update_parameters(net)
        if step % 10 == 9:
            net.load_state_dict(average.module.state_dict())
            average.n_averaged.zero_()

    return supervised(holder, optimizer, net, after)


# ------------------------------------------------------------------------------------------- teachers and views


def two_views(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs + 0.1 * torch.randn_like(inputs), inputs * (torch.rand_like(inputs) > 0.1)


def mean_teacher(is_frozen: bool, is_in_optimizer: bool) -> Program:
    student = mlp()
    holder = Holder({"student": student, "teacher": copy.deepcopy(student).requires_grad_(not is_frozen)})
    optimizer = adam(holder if is_in_optimizer else student)

    def step(inputs: Tensor, labels: Tensor) -> None:
        first, second = two_views(inputs)
        with torch.no_grad():
            target = holder["teacher"](second)
        outputs = student(first)
        minimise(optimizer, functional.cross_entropy(outputs, labels) + functional.mse_loss(outputs, target))
        follow(holder["teacher"], student)

    return Program(holder, [optimizer], step)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return -functional.cosine_similarity(a, b.detach(), dim=1).mean()


def byol(is_frozen: bool) -> Program:
    """Copies of backbone and projection head follow them; only the trained ones have a prediction head."""
    holder = Holder({"backbone": mlp(WIDTH), "projection": mlp(WIDTH, WIDTH), "prediction": mlp(WIDTH, WIDTH)})
    trained = ("backbone", "projection", "prediction")
    optimizer = torch.optim.Adam(itertools.chain(*(holder[name].parameters() for name in trained)), lr=1e-2)
    for name in ("backbone", "projection"):
        holder[f"{name}_momentum"] = copy.deepcopy(holder[name]).requires_grad_(not is_frozen)

    def step(inputs: Tensor, _: Tensor) -> None:
        views = two_views(inputs)
        online = [holder["prediction"](holder["projection"](holder["backbone"](view))) for view in views]
        with torch.no_grad():
            slow = [holder["projection_momentum"](holder["backbone_momentum"](view)) for view in views]
        for name in ("backbone", "projection"):
            follow(holder[f"{name}_momentum"], holder[name])
        minimise(optimizer, cosine(online[0], slow[1]) + cosine(online[1], slow[0]))

    return Program(holder, [optimizer], step)


def solo_byol() -> Program:
    """``initialize_momentum_params``: momentum networks are built anew, and get the weights of the trained ones."""
    online, momentum = (nn.Sequential(mlp(WIDTH), mlp(WIDTH, WIDTH)) for _ in range(2))
    for slow, fast in zip(momentum.parameters(), online.parameters(), strict=True):
        slow.data.copy_(fast.data)
        slow.requires_grad = False
    holder = Holder({"online": online, "momentum": momentum, "predictor": mlp(WIDTH, WIDTH)})
    optimizer = torch.optim.SGD([p for p in holder.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

    def step(inputs: Tensor, _: Tensor) -> None:
        first, second = two_views(inputs)
        minimise(optimizer, cosine(holder["predictor"](online(first)), momentum(second)))
        follow(momentum, online)

    return Program(holder, [optimizer], step)


def moco() -> Program:
    query = mlp(WIDTH)
    holder = Holder({"query": query, "key": copy.deepcopy(query).requires_grad_(False)})
    queue = functional.normalize(torch.randn(64, WIDTH), dim=1)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.1, momentum=0.9)

    def step(inputs: Tensor, _: Tensor) -> None:
        first, second = two_views(inputs)
        follow(holder["key"], query)
        with torch.no_grad():
            keys = functional.normalize(holder["key"](second), dim=1)
        queries = functional.normalize(query(first), dim=1)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / 0.2
        minimise(optimizer, functional.cross_entropy(logits, torch.zeros(len(inputs), dtype=torch.long)))
        queue.copy_(torch.cat([keys, queue[: -len(keys)]]))

    return Program(holder, [optimizer], step)


class DinoHead(nn.Module):
    """An MLP, a norm, and a last layer with weight norm whose gain is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(6, WIDTH)
        self.last = parametrizations.weight_norm(nn.Linear(6, 16, bias=False))
        gain = self.last.parametrizations.weight.original0
        gain.data.fill_(1.0)
        gain.requires_grad = False

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.last(functional.normalize(self.body(inputs), dim=-1))
        return out


def dino() -> Program:
    """The teacher is a copy; the gradients of the last layer are dropped in the first epoch."""
    student = nn.Sequential(mlp(WIDTH), DinoHead())
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    holder = Holder({"student": student, "teacher": teacher})
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    center = torch.zeros(16)
    count = itertools.count()

    def step(inputs: Tensor, _: Tensor) -> None:
        first, second = two_views(inputs)
        with torch.no_grad():
            targets = teacher(second)
            center.lerp_(targets.mean(0), 0.1)
        loss = -(((targets - center) / 0.04).softmax(-1) * (student(first) / 0.1).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        if next(count) < 8:
            for name, parameter in student.named_parameters():
                if "last" in name:
                    parameter.grad = None
        optimizer.step()
        follow(teacher, student)

    return Program(holder, [optimizer], step)


def simsiam() -> Program:
    holder = Holder({"encoder": mlp(WIDTH), "predictor": mlp(WIDTH, WIDTH, 4)})
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1, momentum=0.9)

    def step(inputs: Tensor, _: Tensor) -> None:
        first, second = (holder["encoder"](view) for view in two_views(inputs))
        minimise(optimizer, cosine(holder["predictor"](first), second) + cosine(holder["predictor"](second), first))

    return Program(holder, [optimizer], step)


def siamese() -> Program:
    """One encoder under two names, for both inputs of a pair."""
    encoder = mlp(WIDTH)
    holder = Holder({"left": encoder, "right": encoder})
    optimizer = adam(holder)

    def step(inputs: Tensor, labels: Tensor) -> None:
        left, right = holder["left"](inputs[:16]), holder["right"](inputs[16:])
        left, right = functional.normalize(left), functional.normalize(right)
        apart = (left - right).norm(dim=1)
        same = (labels[:16] == labels[16:]).float()
        minimise(optimizer, (same * apart.square() + (1 - same) * (1 - apart).clamp(min=0).square()).mean())

    return Program(holder, [optimizer], step)


def distillation() -> Program:
    """The student starts as a copy of its frozen teacher."""
    teacher = mlp()
    student = copy.deepcopy(teacher)
    holder = Holder({"teacher": teacher.requires_grad_(False).eval(), "student": student})
    optimizer = adam(student)

    def step(inputs: Tensor, labels: Tensor) -> None:
        outputs, targets = student(inputs), (teacher(inputs) / 2).softmax(-1)
        soft = functional.kl_div((outputs / 2).log_softmax(-1), targets, reduction="batchmean")
        minimise(optimizer, soft + functional.cross_entropy(outputs, labels))

    return Program(holder, [optimizer], step)


# ------------------------------------------------------------------------------------------- reinforcement learning


def dqn(is_frozen: bool) -> Program:
    """SB3 and CleanRL: the target network loads the weights of the other, at first and now and then."""
    holder = Holder({"q_net": mlp(), "q_net_target": mlp().requires_grad_(not is_frozen)})
    holder["q_net_target"].load_state_dict(holder["q_net"].state_dict())
    optimizer = adam(holder["q_net"])
    count = itertools.count(1)

    def step(states: Tensor, actions: Tensor) -> None:
        with torch.no_grad():
            best = holder["q_net_target"](states.flip(0)).gather(1, holder["q_net"](states.flip(0)).argmax(1)[:, None])
            target = states.sum(1, keepdim=True) + 0.5 * best
        minimise(optimizer, functional.smooth_l1_loss(holder["q_net"](states).gather(1, actions[:, None]), target))
        if next(count) % 10 == 0:
            holder["q_net_target"].load_state_dict(holder["q_net"].state_dict())

    return Program(holder, [optimizer], step)


CRITICS = ("qf0", "qf1")
TARGETS = ("frozen", "trainable", "in the optimizer")


def twin_critics(targets: str, are_copies: bool = False, is_sac: bool = False) -> Program:
    """SB3's TD3 and CleanRL's SAC: an actor, two critics of state and action, and slow copies of them."""
    first = mlp(1, 13)
    holder = Holder({"actor": mlp(2 if is_sac else 1), "qf0": first})
    holder["qf1"] = copy.deepcopy(first) if are_copies else mlp(1, 13)
    for name in CRITICS:
        holder[f"{name}_target"] = copy.deepcopy(holder[name]).requires_grad_(targets != "frozen")
    trained = [*CRITICS, *(f"{name}_target" for name in CRITICS)] if targets == "in the optimizer" else CRITICS
    of_critics = torch.optim.Adam(itertools.chain(*(holder[name].parameters() for name in trained)), lr=1e-2)
    of_actor = adam(holder["actor"])
    if not is_sac:
        holder["actor_target"] = copy.deepcopy(holder["actor"]).requires_grad_(False)
    count = itertools.count()

    def act(name: str, states: Tensor) -> Tensor:
        out: Tensor = holder[name](states)
        if not is_sac:
            return out.tanh()
        mean, log_std = out.chunk(2, dim=1)
        return (mean + torch.randn_like(mean) * log_std.clamp(-3, 1).exp()).tanh()

    def value(name: str, states: Tensor, actions: Tensor) -> Tensor:
        out: Tensor = holder[name](torch.cat([states, actions], 1))
        return out

    def step(states: Tensor, labels: Tensor) -> None:
        actions, following = labels[:, None] / 2 - 1, states.flip(0)
        with torch.no_grad():
            planned = act("actor" if is_sac else "actor_target", following)
            values = [value(f"{name}_target", following, planned) for name in CRITICS]
            target = states.sum(1, keepdim=True) + 0.5 * torch.minimum(*values)
        loss = torch.stack([functional.mse_loss(value(name, states, actions), target) for name in CRITICS]).sum()
        minimise(of_critics, loss)
        if next(count) % 2 == 0:
            minimise(of_actor, -value("qf0", states, act("actor", states)).mean())
            for name in CRITICS if is_sac else (*CRITICS, "actor"):
                follow(holder[f"{name}_target"], holder[name])

    return Program(holder, [of_critics, of_actor], step)


def ppo() -> Program:
    """PPO-PyTorch: the old policy acts, and loads the weights of the new one after some epochs."""
    holder = Holder({"policy": mlp(), "policy_old": mlp()})
    policy, old = holder["policy"], holder["policy_old"]
    old.load_state_dict(policy.state_dict())
    optimizer = adam(policy)
    count = itertools.count(1)

    def step(states: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            before = old(states).log_softmax(-1)
            actions = torch.distributions.Categorical(logits=before).sample()[:, None]
        ratio = (policy(states).log_softmax(-1).gather(1, actions) - before.gather(1, actions)).exp()
        gain = (actions == labels[:, None]).float() - 0.25
        minimise(optimizer, -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean())
        if next(count) % 4 == 0:
            old.load_state_dict(policy.state_dict())

    return Program(holder, [optimizer], step)


class Dueling(nn.Module):
    """Streams for value and advantages with copied hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(zoo.INPUTS, WIDTH)
        hidden = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Sequential(hidden, nn.SiLU(), nn.Linear(WIDTH, 1))
        self.advantage = nn.Sequential(copy.deepcopy(hidden), nn.SiLU(), nn.Linear(WIDTH, zoo.OUTPUTS))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.trunk(inputs).relu()
        advantage = self.advantage(hidden)
        out: Tensor = self.value(hidden) + advantage - advantage.mean(1, keepdim=True)
        return out


# ------------------------------------------------------------------------------------------- shared weights


class Language(nn.Module):
    """A language model around any body."""

    def __init__(self, body: nn.Module, num_tokens: int = 20, is_sparse: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, WIDTH, sparse=is_sparse)
        self.positions = nn.Parameter(0.1 * torch.randn(zoo.INPUTS, WIDTH))
        self.body = body
        self.head = nn.Linear(WIDTH, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.tokens(tokens) + self.positions))
        return out


def tokens_of(inputs: Tensor) -> Tensor:
    return (inputs * 18).long()


def language(model: nn.Module, optimizers: list[torch.optim.Optimizer] | None = None) -> Program:
    """Train to reproduce each token."""
    several = optimizers or [adam(model)]

    def step(inputs: Tensor, _: Tensor) -> None:
        tokens = tokens_of(inputs)
        for optimizer in several:
            optimizer.zero_grad()
        functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        for optimizer in several:
            optimizer.step()

    return Program(model, several, step)


def block() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)


def gpt2() -> Program:
    model = Language(nn.Sequential(block(), block()))
    model.head.weight = model.tokens.weight
    return language(model)


class T5(nn.Module):
    """One embedding for encoder, decoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(20, WIDTH)
        self.encoder = nn.ModuleDict({"embed_tokens": self.shared, "layer": block()})
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.decoder = nn.ModuleDict({"embed_tokens": self.shared, "layer": layer})
        self.lm_head = nn.Linear(WIDTH, 20, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, tokens: Tensor) -> Tensor:
        memory = self.encoder["layer"](self.encoder["embed_tokens"](tokens))
        hidden = self.decoder["layer"](self.decoder["embed_tokens"](tokens), memory)
        out: Tensor = self.lm_head(hidden)
        return out


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(zoo.INPUTS, WIDTH)
        self.bias = nn.Parameter(torch.zeros(zoo.INPUTS))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(self.encoder(inputs).relu(), self.encoder.weight.T, self.bias)


def autoencoder() -> Program:
    model = TiedAutoencoder()
    optimizer = adam(model)

    def step(inputs: Tensor, _: Tensor) -> None:
        minimise(optimizer, functional.mse_loss(model(inputs), inputs))

    return Program(model, [optimizer], step)


class Attention(nn.Module):
    """Heads of two numbers; keys and values of two heads are repeated for four."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.num_key_value_heads = 4
        with torch.no_grad():
            for layer in (self.k_proj, self.v_proj):
                for parameter in layer.parameters():
                    two = parameter.unflatten(0, (4, 2))[:2]
                    parameter.copy_(two.repeat_interleave(2, dim=0).flatten(0, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = (
            layer(inputs).unflatten(-1, (4, 2)).transpose(-2, -3) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = inputs + self.o_proj(mixed.transpose(-2, -3).flatten(-2))
        return out


# ------------------------------------------------------------------------------------------- experts


class UpcycledExperts(nn.Module):
    """Copies of one MLP behind a router that sends each input to the best two (Mixtral) or to all, weighted."""

    def __init__(self, top_k: int | None, router_std: float, noise: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(zoo.INPUTS, WIDTH)
        dense = mlp(WIDTH, WIDTH)
        self.experts = nn.ModuleList(copy.deepcopy(dense) for _ in range(4))
        self.router = nn.Linear(WIDTH, 4, bias=False)
        nn.init.normal_(self.router.weight, std=router_std)
        self.head = nn.Linear(WIDTH, zoo.OUTPUTS)
        self.top_k, self.noise = top_k, noise

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs).relu()
        logits = self.router(hidden)
        logits = logits + self.noise * torch.randn_like(logits)
        if self.top_k is not None:
            best, places = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, places, best)
        weights = logits.softmax(-1)
        mixed = torch.zeros_like(hidden)
        for i, expert in enumerate(self.experts):
            chosen = (weights[:, i] > 0).nonzero()[:, 0]
            mixed = mixed.index_add(0, chosen, weights[chosen, i : i + 1] * expert(hidden[chosen]))
        out: Tensor = self.head(hidden + mixed)
        return out


# ------------------------------------------------------------------------------------------- adapters and prompts


class LoRA(nn.Module):
    """PEFT: several adapters by name, each with a random A and a B of zeros; only the active one trains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        names = ("default", "other")
        self.lora_A = nn.ModuleDict({name: nn.Linear(inputs, 2, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, outputs, bias=False) for name in names})
        for name in names:
            nn.init.zeros_(zoo.linear(self.lora_B, name).weight)
        self.active = "default"

    def set_adapter(self, active: str) -> None:
        self.active = active
        for layers in (self.lora_A, self.lora_B):
            for name, layer in layers.items():
                layer.requires_grad_(name == active)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.base_layer(inputs) + self.lora_B[self.active](self.lora_A[self.active](inputs))
        return out


def lora(does_switch: bool) -> Program:
    model = nn.Sequential(LoRA(zoo.INPUTS, WIDTH), nn.ReLU(), LoRA(WIDTH, zoo.OUTPUTS))
    layers = [layer for layer in model if isinstance(layer, LoRA)]
    optimizer = torch.optim.AdamW(
        [p for layer in layers for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())], lr=1e-2
    )
    for layer in layers:
        layer.set_adapter("default")

    def after(step: int) -> None:
        if does_switch and step == 14:
            for layer in layers:
                layer.set_adapter("other")

    return supervised(model, optimizer, after=after)


class Prompted(nn.Module):
    """A frozen encoder with trained prompts in front of its twelve tokens; the first token is read."""

    def __init__(self, prompts: Callable[[], Tensor], *, in_list: bool = False, has_positions: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.encoder = nn.Sequential(block(), block())
        self.positions = nn.Parameter(0.5 * torch.randn(zoo.INPUTS + 4, WIDTH))
        self.requires_grad_(False)
        self.head = nn.Linear(WIDTH, zoo.OUTPUTS)
        start = prompts()
        self.prompts: Any = nn.ParameterList(list(start)) if in_list else nn.Parameter(start)
        self.has_positions = has_positions

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs[..., None]) + self.positions[4:]
        prompts = torch.stack(list(self.prompts))
        if self.has_positions:
            prompts = prompts + self.positions[:4]
        together = torch.cat([prompts.expand(len(inputs), -1, -1), tokens], dim=1)
        out: Tensor = self.head(self.encoder(together)[:, len(prompts) :].mean(dim=1))
        return out


def one_token() -> Tensor:
    return torch.randn(1, WIDTH).repeat(4, 1)


class DeepPrompted(Prompted):
    """VPT: the prompts of each layer replace the outputs of those before."""

    def __init__(self, std: float) -> None:
        super().__init__(lambda: std * torch.randn(4, WIDTH))
        self.encoder.append(block().requires_grad_(False))
        self.deep_prompts = nn.Parameter(std * torch.randn(2, 4, WIDTH))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs[..., None]) + self.positions[4:]
        for layer, prompts in zip(self.encoder, (self.prompts, *self.deep_prompts), strict=True):
            together = torch.cat([prompts.expand(len(inputs), -1, -1), tokens], dim=1)
            tokens = layer(together)[:, 4:]
        out: Tensor = self.head(tokens.mean(dim=1))
        return out


class PrefixTuning(nn.Module):
    """Trained keys and values beside those of a frozen attention, behind a gate of zero in LLaMA-Adapter."""

    def __init__(self, start: Callable[[], Tensor], is_gated: bool) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.positions = nn.Parameter(torch.randn(zoo.INPUTS, WIDTH))
        self.requires_grad_(False)
        self.head = nn.Linear(WIDTH, zoo.OUTPUTS)
        self.prefix = nn.Embedding.from_pretrained(start(), freeze=False)
        self.gate = nn.Parameter(torch.zeros(1)) if is_gated else None

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(inputs[..., None]) + self.positions).chunk(3, dim=-1)
        keys, values = self.prefix(torch.arange(4)).chunk(2, dim=-1)
        extra = [each.expand(len(inputs), -1, -1) for each in (keys, values)]
        if self.gate is None:
            mixed = functional.scaled_dot_product_attention(q, torch.cat([extra[0], k], 1), torch.cat([extra[1], v], 1))
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v)
            mixed = mixed + self.gate.tanh() * functional.scaled_dot_product_attention(q, *extra)
        out: Tensor = self.head(mixed.mean(dim=1))
        return out


class Registers(nn.Module):
    """DINOv2: a class token and registers, drawn at random, in front of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.register_tokens = nn.Parameter(1e-2 * torch.randn(1, 4, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, zoo.INPUTS, WIDTH))
        self.encoder, self.head = nn.Sequential(block(), block()), nn.Linear(WIDTH, zoo.OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.embed(inputs[..., None]) + self.positions
        extra = torch.cat([self.cls_token, self.register_tokens], dim=1).expand(len(inputs), -1, -1)
        out: Tensor = self.head(self.encoder(torch.cat([extra, patches], dim=1))[:, 0])
        return out


class Scaled(nn.Module):
    """A residual branch times one constant per channel (LayerScale), or one number of zero (ReZero)."""

    def __init__(self, body: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.body, self.gamma = body, nn.Parameter(gain)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs + self.gamma * self.body(inputs)
        return out


def residual(make_branch: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(zoo.INPUTS, WIDTH), make_branch(), make_branch(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, zoo.OUTPUTS)
    )


def houlsby() -> nn.Module:
    """A bottleneck whose second layer starts at zero."""
    down, up = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return zoo.Residual(nn.Sequential(down, nn.GELU(), up))


class ControlNet(nn.Module):
    """A trained copy of a frozen encoder, joined to it by layers of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12)]), nn.Linear(12, zoo.OUTPUTS)
        self.control = copy.deepcopy(self.encoder)
        self.encoder.requires_grad_(False)
        self.head.requires_grad_(False)
        self.zeros = nn.ModuleList(zoo.all_constant(nn.Linear(12, 12), 0.0) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, guided = inputs, inputs + self.zeros[0](inputs.flip(1))
        for own, copied, zero in zip(self.encoder, self.control, list(self.zeros)[1:], strict=True):
            hidden, guided = own(hidden).relu(), copied(guided).relu()
            hidden = hidden + zero(guided)
        out: Tensor = self.head(hidden)
        return out


# ------------------------------------------------------------------------------------------- ensembles and heads


def deep_ensemble(has_own_seeds: bool, has_own_data: bool) -> Program:
    def member(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return mlp()

    members = nn.ModuleList(member(i if has_own_seeds else 0) for i in range(3))
    optimizer = adam(members)
    generator = torch.Generator().manual_seed(0)

    def step(inputs: Tensor, labels: Tensor) -> None:
        losses = []
        for each in members:
            size = len(inputs)
            places = torch.randint(size, (size,), generator=generator) if has_own_data else torch.arange(size)
            losses.append(functional.cross_entropy(each(inputs[places]), labels[places]))
        minimise(optimizer, torch.stack(losses).sum())

    return Program(members, [optimizer], step)


class BatchEnsembleLinear(nn.Module):
    """One weight for all members, and a vector per member for inputs and outputs."""

    def __init__(self, inputs: int, outputs: int, has_signs: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(inputs, outputs).weight.detach())
        self.r, self.s, self.bias = (nn.Parameter(torch.ones(4, size)) for size in (inputs, outputs, outputs))
        with torch.no_grad():
            self.bias.zero_()
            if has_signs:
                self.r.copy_(torch.randint(2, self.r.shape) * 2 - 1)
                self.s.copy_(torch.randint(2, self.s.shape) * 2 - 1)

    def forward(self, inputs: Tensor) -> Tensor:
        members = inputs.unflatten(0, (4, -1))
        out = functional.linear(members * self.r[:, None], self.weight) * self.s[:, None] + self.bias[:, None]
        return out.flatten(0, 1)


def batch_ensemble(has_signs: bool, is_tiled: bool) -> Program:
    model = nn.Sequential(
        BatchEnsembleLinear(zoo.INPUTS, WIDTH, has_signs), nn.ReLU(), BatchEnsembleLinear(WIDTH, 4, has_signs)
    )
    optimizer = adam(model)

    def step(inputs: Tensor, labels: Tensor) -> None:
        if is_tiled:
            inputs, labels = inputs.repeat(4, 1), labels.repeat(4)
        minimise(optimizer, functional.cross_entropy(model(inputs), labels))

    return Program(model, [optimizer], step)


def copied_heads() -> Program:
    """Multi-task: copied heads with different targets."""
    head = nn.Linear(WIDTH, zoo.OUTPUTS)
    holder = Holder({"trunk": nn.Linear(zoo.INPUTS, WIDTH), "first": head, "second": copy.deepcopy(head)})
    optimizer = adam(holder)

    def step(inputs: Tensor, labels: Tensor) -> None:
        hidden = holder["trunk"](inputs).relu()
        loss = functional.cross_entropy(holder["first"](hidden), labels)
        minimise(optimizer, loss + functional.cross_entropy(holder["second"](hidden), 3 - labels))

    return Program(holder, [optimizer], step)


# ------------------------------------------------------------------------------------------- adversarial


def cycle_gan() -> Program:
    """The second generator starts as a copy of the first and maps in the opposite direction."""
    generator = mlp(zoo.INPUTS)
    holder = Holder({"a_to_b": generator, "b_to_a": copy.deepcopy(generator), "critic_a": mlp(1), "critic_b": mlp(1)})
    of_generators = torch.optim.Adam([*holder["a_to_b"].parameters(), *holder["b_to_a"].parameters()], lr=1e-2)
    of_critics = torch.optim.Adam([*holder["critic_a"].parameters(), *holder["critic_b"].parameters()], lr=1e-2)

    def cost(critic: str, real: Tensor, fake: Tensor) -> Tensor:
        right, wrong = holder[critic](real), holder[critic](fake.detach())
        return functional.softplus(-right).mean() + functional.softplus(wrong).mean()

    def step(inputs: Tensor, _: Tensor) -> None:
        a, b = inputs[:16], 1 - inputs[16:].square()
        fake_b, fake_a = holder["a_to_b"](a), holder["b_to_a"](b)
        judged = torch.cat([holder["critic_a"](fake_a), holder["critic_b"](fake_b)])
        cycle = functional.l1_loss(holder["b_to_a"](fake_b), a) + functional.l1_loss(holder["a_to_b"](fake_a), b)
        minimise(of_generators, functional.softplus(-judged).mean() + cycle)
        minimise(of_critics, cost("critic_a", a, fake_a) + cost("critic_b", b, fake_b))

    return Program(holder, [of_generators, of_critics], step)


def gan(norm: Callable[[nn.Linear], nn.Module]) -> Program:
    critic = nn.Sequential(norm(nn.Linear(zoo.INPUTS, WIDTH)), nn.LeakyReLU(0.2), norm(nn.Linear(WIDTH, 1)))
    holder = Holder({"generator": mlp(zoo.INPUTS, 4), "critic": critic})
    of_generator, of_critic = adam(holder["generator"]), adam(critic)

    def step(inputs: Tensor, _: Tensor) -> None:
        fake = holder["generator"](torch.randn(len(inputs), 4))
        right, wrong = critic(inputs), critic(fake.detach())
        minimise(of_critic, functional.relu(1 - right).mean() + functional.relu(1 + wrong).mean())
        minimise(of_generator, -critic(fake).mean())

    return Program(holder, [of_critic, of_generator], step)


# ------------------------------------------------------------------------------------------- quantisation


def fake_quantised() -> Program:
    """torch.ao: weights and outputs are rounded on the way, with observers of their ranges."""
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    class QuantisedLinear(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.weight_fake_quant: Any = FakeQuantize(
                MovingAverageMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.qint8
            )
            self.activation_post_process: Any = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)

        def forward(self, inputs: Tensor) -> Tensor:
            weight = self.weight_fake_quant(self.weight)
            out: Tensor = self.activation_post_process(functional.linear(inputs, weight, self.bias))
            return out

    return supervised(nn.Sequential(QuantisedLinear(zoo.INPUTS, WIDTH), nn.ReLU(), QuantisedLinear(WIDTH, 4)))


class BinaryLinear(nn.Linear):
    """Signs of the weights forward, the gradient straight through where the weights are small (BinaryConnect)."""

    def forward(self, inputs: Tensor) -> Tensor:
        clipped = self.weight.clamp(-1, 1)
        return functional.linear(inputs, clipped + (self.weight.sign() - clipped).detach(), self.bias)


class Signs(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.sign() * weight.abs().mean() - weight).detach()


def binary_parametrization() -> Program:
    """Two units whose weights agree in all signs are one unit until a sign flips."""
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, zoo.OUTPUTS))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Signs())
    model = nn.Sequential(nn.Linear(zoo.INPUTS, 3), net)
    return supervised(model)


# ------------------------------------------------------------------------------------------- optimizers


def sparse_adam() -> Program:
    model = Language(mlp(WIDTH, WIDTH), is_sparse=True)
    rest = [parameter for name, parameter in model.named_parameters() if name != "tokens.weight"]
    return language(model, [torch.optim.SparseAdam([model.tokens.weight], lr=1e-2), torch.optim.Adam(rest, lr=1e-2)])


class Bags(nn.Module):
    """DLRM: an embedding bag per field, joined with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.EmbeddingBag(30, 4, mode="sum", sparse=True) for _ in range(3))
        self.top = mlp(zoo.OUTPUTS, 12)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = tokens_of(inputs)
        out: Tensor = self.top(
            torch.cat([bag(part) for bag, part in zip(self.fields, tokens.chunk(3, 1), strict=True)], 1)
        )
        return out


def dlrm() -> Program:
    model = Bags()
    return supervised(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Towers(nn.Module):
    """Two copies of a block whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        tower = mlp()
        self.towers = nn.ModuleList([tower, copy.deepcopy(tower)])

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.towers[0](inputs) + self.towers[1](inputs)
        return out


def layer_wise(make: Callable[[], nn.Module], blocks: str, decay: float) -> Program:
    """BEiT: the learning rate of each block decreases towards the inputs."""
    model = make()
    groups, seen = [], set[int]()
    every = list(model.get_submodule(blocks).children())
    for i, each in enumerate(every):
        groups.append({"params": list(each.parameters()), "lr": 1e-2 * decay ** (len(every) - i)})
        seen |= set(map(id, each.parameters()))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    if rest:
        groups.append({"params": rest, "lr": 1e-2})
    return supervised(model, torch.optim.AdamW(groups))


class CopiedBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = zoo.Residual(mlp(WIDTH, WIDTH))
        self.stem, self.head = nn.Linear(zoo.INPUTS, WIDTH), nn.Linear(WIDTH, zoo.OUTPUTS)
        self.blocks = nn.Sequential(*(copy.deepcopy(first) for _ in range(3)))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(inputs)))
        return out


def resumed() -> Program:
    """A network that has trained, with the state of its optimizer; its average is restored beside it."""
    torch.manual_seed(0)
    net = mlp()
    optimizer = adam(net)
    for _ in range(20):
        inputs = torch.rand(32, zoo.INPUTS)
        minimise(optimizer, functional.cross_entropy(net(inputs), inputs[:, :4].argmax(1)))
    again, average = mlp(), mlp().requires_grad_(False)
    again.load_state_dict(net.state_dict())
    average.load_state_dict(net.state_dict())
    restored = adam(again)
    restored.load_state_dict(optimizer.state_dict())
    holder = Holder({"model": again, "average": average})
    return supervised(holder, restored, again, lambda _: follow(average, again))


def decoder_layers() -> Program:
    """``nn.TransformerDecoder`` copies its layer."""
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, zoo.OUTPUTS)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.embed(inputs[..., None]) + torch.linspace(-1, 1, zoo.INPUTS)[:, None]
            out: Tensor = self.head(self.decoder(hidden, hidden.flip(1)).mean(dim=1))
            return out

    return supervised(Decoder())


EXPERTS = "experts.0, experts.1, ..., experts.3"
ALL_EXPERTS = {"experts.0, experts.1, experts.2, experts.3": "locked"}
# Of equal scores the best two are the last two; the others are never chosen.
UNUSED_EXPERTS = dict.fromkeys(("experts.0.0", "experts.0.2", "experts.1.0", "experts.1.2", "router"), NO_GRADIENT)
DEEP = ("prompts[dim 0]", "deep_prompts[dim 1]", "deep_prompts[dims 0, 1]")
MEMBERS = tuple(f"{layer}.{name}[dim 0]" for layer in (0, 2) for name in ("r", "s", "bias"))

RECIPES = [
    # averages of the model
    Recipe("timm ModelEmaV2", partial(timm_ema, False)),
    Recipe("timm ModelEmaV2 in the optimizer", partial(timm_ema, True)),
    Recipe("torch AveragedModel", averaged_model),
    Recipe("diffusers EMAModel", diffusers_ema),
    Recipe("torch SWA with restarts", swa_restart),
    # teachers and views
    Recipe("Mean Teacher, frozen", partial(mean_teacher, True, False)),
    Recipe("Mean Teacher, not frozen", partial(mean_teacher, False, False)),
    Recipe("Mean Teacher, in the optimizer", partial(mean_teacher, False, True)),
    Recipe("lightly BYOL", partial(byol, True)),
    Recipe("lightly BYOL, not frozen", partial(byol, False)),
    Recipe("solo-learn BYOL", solo_byol),
    Recipe("lightly MoCo", moco),
    Recipe("DINO", dino),
    Recipe("lightly SimSiam", simsiam),
    Recipe("Siamese network by reference", siamese),
    Recipe("Distillation from a copy", distillation),
    # reinforcement learning
    Recipe("SB3 DQN", partial(dqn, True)),
    Recipe("CleanRL DQN", partial(dqn, False)),
    *(Recipe(f"SB3 TD3 targets, {targets}", partial(twin_critics, targets)) for targets in TARGETS),
    *(Recipe(f"CleanRL SAC targets, {targets}", partial(twin_critics, targets, is_sac=True)) for targets in TARGETS),
    *(
        Recipe(f"SB3 TD3 with twins by mistake, targets {targets}", partial(twin_critics, targets, True),
               {"qf0, qf1": "locked"})
        for targets in TARGETS
    ),
    Recipe("PPO-PyTorch old policy", ppo),
    Recipe("Dueling DQN with copied streams", lambda: supervised(Dueling()), mentioned=["value.0, advantage.0"]),
    # shared and repeated weights
    Recipe("GPT-2 tied head", gpt2),
    Recipe("T5 shared embedding", lambda: language(T5())),
    Recipe("ALBERT layers by reference", lambda: language(Language(nn.Sequential(*[block()] * 3)))),
    Recipe("torch TransformerDecoder", decoder_layers, mentioned=["decoder.layers.0, decoder.layers.1"]),
    Recipe("Tied autoencoder", autoencoder),
    Recipe("Llama GQA, keys and values repeated", lambda: language(Language(Attention()))),
    # experts
    Recipe("Mixtral upcycled, random router", lambda: supervised(UpcycledExperts(2, 0.5)), mentioned=[EXPERTS],
           is_open=True),
    Recipe("Upcycled, soft random router", lambda: supervised(UpcycledExperts(None, 0.5)), mentioned=[EXPERTS]),
    Recipe("Upcycled, noisy router of zeros", lambda: supervised(UpcycledExperts(2, 0.0, 1.0)), mentioned=[EXPERTS]),
    Recipe("Upcycled, soft router of zeros", lambda: supervised(UpcycledExperts(None, 0.0)),
           {**ALL_EXPERTS, "router": "frozen"}, untrained={"router": NO_GRADIENT}),
    Recipe("Upcycled, top-2 router of zeros", lambda: supervised(UpcycledExperts(2, 0.0)),
           {"experts.2, experts.3": "locked", "router": "frozen"}, [EXPERTS], UNUSED_EXPERTS),
    # adapters and prompts
    Recipe("PEFT LoRA, two adapters", partial(lora, False), is_open=True),
    Recipe("PEFT LoRA, adapters in turn", partial(lora, True), steps=40),
    Recipe("CoOp prompts from one token", lambda: supervised(Prompted(one_token)), {"prompts[dim 0]": "locked"}),
    Recipe("CoOp prompts from one token, in a list", lambda: supervised(Prompted(one_token, in_list=True)),
           {"prompts.0, prompts.1, prompts.2, prompts.3": "locked"}),
    Recipe("Prompts from one token, with positions", lambda: supervised(Prompted(one_token, has_positions=True))),
    Recipe("Prompts from one token in a list, with positions",
           lambda: supervised(Prompted(one_token, in_list=True, has_positions=True))),
    Recipe("VPT deep, random", lambda: supervised(DeepPrompted(0.1))),
    Recipe("VPT deep, zeros", lambda: supervised(DeepPrompted(0.0)), dict.fromkeys(DEEP, "locked")),
    Recipe("LLaMA-Adapter", lambda: supervised(PrefixTuning(lambda: torch.randn(4, 16), True))),
    Recipe("DINOv2 registers", lambda: supervised(Registers())),
    Recipe("CaiT LayerScale",
           lambda: supervised(residual(lambda: Scaled(mlp(WIDTH, WIDTH), torch.full((WIDTH,), 1e-5))))),
    Recipe("ReZero", lambda: supervised(residual(lambda: Scaled(mlp(WIDTH, WIDTH), torch.zeros(1))))),
    Recipe("Houlsby adapters", lambda: supervised(residual(houlsby))),
    Recipe("ControlNet", lambda: supervised(ControlNet())),
    # ensembles and heads
    Recipe("Deep ensemble", partial(deep_ensemble, True, False)),
    Recipe("Bagging from one seed", partial(deep_ensemble, False, True), mentioned=["0, 1, 2"]),
    Recipe("Deep ensemble from one seed", partial(deep_ensemble, False, False), {"0, 1, 2": "locked"}),
    Recipe("BatchEnsemble, signs", partial(batch_ensemble, True, True)),
    Recipe("BatchEnsemble, ones, parts of a batch", partial(batch_ensemble, False, False)),
    Recipe("BatchEnsemble, ones, the whole batch", partial(batch_ensemble, False, True),
           dict.fromkeys(MEMBERS, "locked")),
    Recipe("Multi-task heads copied", copied_heads, mentioned=["first, second"]),
    # adversarial
    Recipe("CycleGAN with a copied generator", cycle_gan, mentioned=["a_to_b, b_to_a"]),
    Recipe("SNGAN spectral norm", partial(gan, parametrizations.spectral_norm)),
    Recipe("GAN with weight norm", partial(gan, parametrizations.weight_norm)),
    # quantisation
    Recipe("torch.ao FakeQuantize", fake_quantised),
    Recipe("BinaryConnect",
           lambda: supervised(nn.Sequential(BinaryLinear(zoo.INPUTS, WIDTH), nn.ReLU(), BinaryLinear(WIDTH, 4)))),
    Recipe("XNOR-Net parametrization", binary_parametrization),
    # optimizers
    Recipe("SparseAdam", sparse_adam),
    Recipe("DLRM EmbeddingBag", dlrm),
    Recipe("BEiT layer-wise rates, blocks in a row", partial(layer_wise, CopiedBlocks, "blocks", 0.5),
           mentioned=["blocks.0, blocks.1, blocks.2"]),
    Recipe("Layer-wise rates, blocks side by side", partial(layer_wise, Towers, "towers", 0.5),
           mentioned=["towers.0, towers.1"]),
    Recipe("One rate, blocks side by side", partial(layer_wise, Towers, "towers", 1.0),
           {"towers.0, towers.1": "locked"}, mentioned=["towers.0, towers.1"]),
    Recipe("Resumed training", resumed),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_copies_of_a_recipe(recipe: Recipe) -> None:
    outcome = train(recipe)
    assert outcome.found == recipe.found, outcome.warned
    assert outcome.mentioned == list(recipe.mentioned)
    assert outcome.untrained == recipe.untrained
    assert not outcome.reasons or recipe.found or recipe.is_open
    assert bool(outcome.warned) == bool(recipe.found or recipe.untrained), outcome.warned
    assert not any("Every weight is -0" in text or "saturated" in text for text in outcome.warned)


@pytest.mark.xfail(strict=True, reason="the units of an embedding are its columns; equal rows are not seen")
def test_equal_prompts_in_an_embedding_are_found() -> None:
    prefix = Recipe(
        "PEFT prefix tuning from one token",
        lambda: supervised(PrefixTuning(lambda: torch.randn(1, 16).repeat(4, 1), is_gated=False)),
    )
    assert train(prefix).found


# ------------------------------------------------------------------------------------------- Lightning's Trainer


class Teaching(LightningModule):
    """A student, a copy that follows it, and one optimizer for both."""

    def __init__(self, is_frozen: bool) -> None:
        super().__init__()
        self.student = mlp()
        self.teacher = copy.deepcopy(self.student).requires_grad_(not is_frozen)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        with torch.no_grad():
            target = self.teacher(two_views(inputs)[1])
        outputs = self.student(two_views(inputs)[0])
        return functional.cross_entropy(outputs, labels) + functional.mse_loss(outputs, target)

    def on_train_batch_end(self, *_: object) -> None:
        follow(self.teacher, self.student)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Adversarial(LightningModule):
    """Manual optimization of a GAN with an average of the generator (StyleGAN's ``g_ema``)."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(zoo.INPUTS, 4), mlp(1)
        self.g_ema = copy.deepcopy(self.generator).eval()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        of_generator, of_critic = self.optimizers()  # type: ignore[attr-defined] # Lightning's union of all kinds
        fake = self.generator(torch.randn(len(batch[0]), 4))
        both = torch.cat([fake.detach(), batch[0]])
        signs = torch.ones(len(both), 1)
        signs[len(fake) :] = -1
        for optimizer, loss in (
            (of_critic, lambda: functional.softplus(signs * self.critic(both)).mean()),
            (of_generator, lambda: -self.critic(fake).mean()),
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        follow(self.g_ema, self.generator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [adam(self.generator), adam(self.critic)]


class PlainClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__(mlp())


FITS: dict[str, tuple[Callable[[], LightningModule], Callable[[], list[Callback]]]] = {
    "Mean Teacher, frozen": (lambda: Teaching(True), list),
    "Mean Teacher, in the optimizer": (lambda: Teaching(False), list),
    "StyleGAN g_ema": (Adversarial, list),
    "Lightning WeightAveraging": (PlainClassifier, lambda: [EMAWeightAveraging(decay=0.9)]),
    "Lightning StochasticWeightAveraging": (
        PlainClassifier,
        lambda: [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)],
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_copies_under_a_trainer(name: str) -> None:
    make_model, make_callbacks = FITS[name]
    torch.manual_seed(4)
    model, monitor = make_model(), quiet(every_n_steps=3)
    trainer = make_trainer([*make_callbacks(), monitor], max_steps=-1, max_epochs=4)
    with listening() as (logged, warned):
        trainer.fit(model, loader(64, 8))
    assert monitor.findings == []
    assert monitor.report is not None
    assert monitor.report.status == "healthy", monitor.report.reasons
    assert not any("start as exact copies" in text for text in logged)
    assert not any("do not train" in text for text in warned)
