"""Trainings that must cause warnings, and trainings that must not: ``python -m tests.cases`` prints the table.

Every case is a real training, by Lightning's Trainer and in a plain loop. A case is added by one line in :data:`CASES`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from tests import zoo
from tests.training import Classifier, make_trainer

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
}


class Task(Classifier):
    """Fit four targets that depend on the inputs."""

    def __init__(self, net: nn.Module, optimizer: str, case: Case) -> None:
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        groups: Any = case.groups(net) if case.groups else trained
        super().__init__(net, lambda _: OPTIMIZERS[optimizer](groups))
        self._loss, self._warm_up = case.loss, case.warm_up

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        if self._loss == "classes":
            return nn.functional.cross_entropy(outputs.float(), batch[1].argmax(dim=1))
        if self._loss == "two classes":
            return nn.functional.cross_entropy(outputs.float(), (batch[1][:, 0] > 0).long())
        if self._loss == "sum":
            loss: Tensor = outputs.sum() / len(outputs)
            return loss
        return nn.functional.mse_loss(outputs, batch[1].to(outputs))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if not self._warm_up:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, step - 2) / self._warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Case:
    """A training and the expected warnings.

    Attributes:
        name: name of the case.
        build: makes the network, after the global random generator has been seeded.
        expected: by layer, the verdicts that must cause a warning; no other may.
        loss: "targets", "classes", "two classes" or "sum".
        warm_up: steps of a linear warm-up, which starts with three steps of learning rate 0.
        bf16: whether the expectations also hold in bfloat16.
        steps: length of the training.
        groups: makes the parameter groups; None: there is one.
    """

    name: str
    build: Callable[[], nn.Module]
    expected: dict[str, set[str]]
    loss: str = "targets"
    warm_up: int = 0
    bf16: bool = True
    steps: int = 30
    groups: Callable[[Any], list[dict[str, Any]]] | None = None


def locked(*layers: str) -> dict[str, set[str]]:
    return {layer: {"locked"} for layer in layers}


def frozen(*layers: str) -> dict[str, set[str]]:
    return {layer: {"frozen"} for layer in layers}


def dead(*layers: str) -> dict[str, set[str]]:
    return {layer: {"dead"} for layer in layers}


def rnn(kind: Callable[..., nn.RNNBase], **options: Any) -> Callable[[], zoo.Recurrent]:
    return lambda: zoo.Recurrent(kind(3, 8, batch_first=True, **options))


def one_hidden(activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), activation(), nn.Linear(16, 4))


def constant_rnn(kind: Callable[..., nn.RNNBase]) -> nn.Module:
    return zoo.all_constant(rnn(kind)())


SILENT: dict[str, set[str]] = {}
CASES = [
    # locked
    *(
        Case(f"constant, {act.__name__}", partial(zoo.constant_perceptron, act), locked("0", "2"))
        for act in (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid)
    ),
    Case("constant under softmax", lambda: zoo.all_constant(zoo.perceptron(nn.Tanh)), locked("0", "2"), "classes"),
    Case(
        "groups of 2, 3 and 5 units",
        lambda: zoo.duplicate_units(
            zoo.perceptron(nn.Tanh), "0", "2", [(0, 7), (1, 8, 20), (2, 3, 4, 15, 23)]
        ),
        locked("0"),
    ),
    Case("filters with BatchNorm", zoo.duplicated_filters, locked("1")),
    *(
        Case(f"constant {kind.__name__}", partial(constant_rnn, kind), locked("rnn.l0"))
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    ),
    Case("identity-recurrent RNN", zoo.identity_recurrent, locked("rnn.l0")),
    Case("ZerO", zoo.zer_o, {"0": {"locked", "frozen"}}, "classes"),
    Case("identical branches", lambda: zoo.Branches(True), locked("branches.0, branches.1")),
    Case("copied head", lambda: zoo.copied_heads(zoo.Heads(), [(1, 3)]), locked("attn.q", "attn.k", "attn.v"),
         bf16=False),
    # frozen
    Case("all zeros", lambda: zoo.all_constant(zoo.perceptron(), 0.0), frozen("0", "2")),
    Case("negative constant, ReLU", lambda: zoo.all_constant(zoo.perceptron(), -0.1), frozen("0", "2")),
    Case("constant around LayerNorm", lambda: zoo.all_constant(zoo.layer_norm()), locked("0"), bf16=False),
    Case("LoRA, both factors zero", zoo.both_factors_zero, frozen("0.a", "0.b")),
    # lockstep
    Case("loss that sums the outputs", zoo.perceptron, {"4": {"lockstep"}}, "sum"),
    # lasting mirror images
    Case("mirrored, tanh", lambda: zoo.mirrored(zoo.perceptron(nn.Tanh), "0", "2"), locked("0")),
    Case("mirrored, square", lambda: zoo.mirrored(one_hidden(zoo.Square), "0", "2", 1.0), locked("0")),
    Case("mirrored filters", zoo.mirrored_filters, locked("1")),
    Case("mirrored RNN", zoo.mirrored_recurrent, locked("rnn.l0")),
    Case("mirrored queries and keys", lambda: zoo.mirror_rows(zoo.Attention(), "q", "k"), locked("q", "k"),
         bf16=False),
    Case("mirrored, tanh, weight_norm", zoo.mirrored_latents, locked("0")),
    *(
        Case(f"mirrored {kind.__name__}, negative behind the tanh", partial(zoo.mirrored_cells, kind), locked("rnn.l0"))
        for kind in (nn.LSTM, nn.GRU)
    ),
    # copies
    Case("equal critics beside targets", lambda: zoo.Critics(True), locked("critics.0, critics.1")),
    Case("registers of zeros, in a list", lambda: zoo.Registers(1, 1, 8),
         locked("tokens.0, tokens.1, tokens.2, tokens.3"), bf16=False),
    Case("complex constant", zoo.Spectral, locked("weight[dim 1]", "weight[dims 0, 1]"), bf16=False),
    Case("equal branches in groups of equal options", lambda: zoo.Branches(True), locked("branches.0, branches.1"),
         groups=lambda net: [{"params": part.parameters()} for part in (*net.branches, net.head)]),
    # dead
    Case("bias far below zero", lambda: zoo.with_bias(one_hidden(nn.ReLU), "0", -100.0), dead("0"), steps=70),
    Case("negative weights, positive inputs", lambda: zoo.negative_weights(one_hidden(nn.ReLU), "0"),
         dead("0"), steps=70),
    Case("saturated tanh", lambda: zoo.with_bias(zoo.perceptron(nn.Tanh), "0", 40.0), dead("0"), steps=70),
    Case("saturated sigmoid", lambda: zoo.with_bias(zoo.perceptron(nn.Sigmoid), "0", 200.0), dead("0"), steps=70),
    Case("cut off by zeros that stay", lambda: zoo.cut_off(zoo.perceptron(nn.Tanh)), dead("0", "2"), steps=70),
    # breaking
    Case("looks-linear", lambda: zoo.mirrored(zoo.perceptron(), "0", "2"), SILENT),
    Case("mirrored incoming weights only", lambda: zoo.mirror_rows(zoo.perceptron(nn.Tanh), "0"), SILENT),
    Case("mirrored LSTM", lambda: zoo.mirror_rows(rnn(nn.LSTM)(), "rnn"), SILENT),
    Case("constant into LayerNorm", lambda: zoo.filled(zoo.layer_norm(), "0", 0.1), SILENT),
    Case("incoming weights only", zoo.incoming_only, SILENT),
    Case("copied head, outgoing weights of its own", lambda: zoo.copied_heads(zoo.Heads(), [(1, 3)], "qkv"), SILENT),
    Case("repeated key-value heads", lambda: zoo.copied_heads(zoo.Heads(), [(0, 1), (2, 3)], "kv"), SILENT),
    Case("zero head", lambda: zoo.filled(zoo.perceptron(), "4", 0.0), SILENT),
    Case("zero head under softmax", lambda: zoo.filled(zoo.perceptron(), "4", 0.0), SILENT, "classes"),
    Case("LoRA", lambda: nn.Sequential(zoo.LoRA(12, 16), nn.Tanh(), zoo.LoRA(16, 4)), SILENT),
    Case("LoRA behind dead units", lambda: nn.Sequential(zoo.LoRA(12, 24), nn.ReLU(), zoo.LoRA(24, 4)), SILENT),
    Case("zero residual branch", zoo.zero_residual, SILENT),
    Case("gate that starts at zero", lambda: zoo.Gated(False), SILENT),
    Case("AdaLN-zero", lambda: zoo.Gated(True), SILENT),
    Case("ControlNet", zoo.ControlNet, SILENT),
    Case("zero weights, random biases", zoo.zero_weights_random_biases, SILENT, bf16=False),
    Case("constant layer, then dropout", zoo.dropout_after_constant, SILENT),
    Case("linear model from zero", lambda: zoo.all_constant(nn.Sequential(nn.Linear(12, 4)), 0.0), SILENT),
    Case("zero head, warm-up from 0", lambda: zoo.filled(zoo.perceptron(), "4", 0.0), SILENT, warm_up=10),
    Case("zero residual, warm-up from 0", lambda: zoo.Gated(True), SILENT, "classes", warm_up=10),
    *(
        Case(f"mirrored, {act.__name__}", partial(lambda act: zoo.mirrored(one_hidden(act), "0", "2"), act), SILENT)
        for act in (nn.Sigmoid, nn.GELU, nn.SiLU)
    ),
    Case("constant around noise", zoo.constant_around_noise, SILENT),
    Case("equal branches, other learning rates", lambda: zoo.Branches(True), SILENT,
         groups=lambda net: [{"params": part.parameters(), "lr": 0.01 * (i + 1)}
                             for i, part in enumerate((*net.branches, net.head))]),
    # healthy
    Case("critics beside targets", lambda: zoo.Critics(False), SILENT),
    *(
        Case(f"rounded to {levels} levels", partial(zoo.quantised_perceptron, levels), SILENT, bf16=False, steps=70)
        for levels in (2, 3)
    ),
    *(
        Case(f"filters of {levels} levels", partial(zoo.quantised_stem, levels), SILENT, bf16=False)
        for levels in (2, 3, 16)
    ),
    Case("two classes from zero", lambda: nn.Sequential(
        nn.Linear(12, 16), nn.Tanh(), zoo.all_constant(nn.Linear(16, 2), 0.0)), SILENT, "two classes"),
    Case("a few dead units", lambda: zoo.with_bias(zoo.perceptron(nn.Tanh), "0", 100.0, 6), SILENT, steps=70),
    Case("pruned units", zoo.pruned_units, SILENT, steps=70),
    Case("condensing, tanh", zoo.tiny_tanh, SILENT, steps=70),
    Case("perceptron", zoo.perceptron, SILENT, "classes"),
    Case("ResNet-18", zoo.resnet, SILENT, "classes"),
    Case("MobileNetV2", zoo.mobilenet, SILENT, "classes"),
    Case("U-Net", zoo.UNet, SILENT),
    Case("ViT", zoo.ViT, SILENT, "classes"),
    Case("GPT-2, Linear", lambda: zoo.Decoder(nn.Linear), SILENT, "classes"),
    Case("GPT-2, Conv1D", lambda: zoo.Decoder(lambda a, b: zoo.Conv1D(b, a)), SILENT, "classes"),
    *(Case(f"{kind.__name__}", rnn(kind, num_layers=2), SILENT, "classes") for kind in (nn.RNN, nn.LSTM, nn.GRU)),
    Case("LSTM on tokens, projected", lambda: zoo.Recurrent(rnn(nn.LSTM, proj_size=4)().rnn, True), SILENT),
    Case("VAE", zoo.VAE, SILENT),
    Case("different branches", lambda: zoo.Branches(False), SILENT),
    Case("unused expert", zoo.Experts, SILENT, "classes"),
    Case("frozen constant layer", lambda: nn.Sequential(
        zoo.all_constant(nn.Linear(12, 16)).requires_grad_(False), nn.Linear(16, 4)), SILENT),
    Case("one input, 4096 units", lambda: nn.Sequential(
        nn.Linear(12, 1), nn.Linear(1, 4096), nn.ReLU(), nn.Linear(4096, 4)), SILENT, steps=12),
]  # fmt: skip


Found = dict[str, set[str]]
"""By layer, the verdicts that were warned of."""


def run(case: Case, optimizer: str, precision: str, every_n_steps: int = 3) -> tuple[Found, SymmetryMonitor, nn.Module]:
    """Train a case with Lightning's Trainer; return the findings, the monitor, and the trained network."""
    data, net = _setting(case)
    monitor = SymmetryMonitor(every_n_steps=every_n_steps, heatmaps="none", scalars="none")
    trainer = make_trainer([monitor], max_steps=case.steps, precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Task(net, optimizer, case), data)
    return _found(monitor), monitor, net


def run_in_plain_loop(case: Case, optimizer: str, precision: str) -> tuple[Found, SymmetryTracker, nn.Module]:
    """Train a case in a plain loop; return the findings, the tracker and the trained network."""
    data, net = _setting(case)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    task = Task(net.to(dtype) if dtype is not torch.float32 else net, optimizer, case)
    configured = task.configure_optimizers()
    optimizers = configured if isinstance(configured, dict) else {"optimizer": configured}
    batches = itertools.cycle(data)
    with warnings.catch_warnings(), SymmetryTracker(net, optimizers["optimizer"], every_n_steps=3) as tracker:
        warnings.simplefilter("ignore")
        for step, batch in zip(range(case.steps), batches, strict=False):
            optimizers["optimizer"].zero_grad()
            inputs, targets = (part.to(dtype) for part in batch)
            task.training_step((inputs, targets), step).backward()
            optimizers["optimizer"].step()
            if case.warm_up:
                optimizers["lr_scheduler"]["scheduler"].step()
    return _found(tracker), tracker, net


def _setting(case: Case) -> tuple[DataLoader[tuple[Tensor, ...]], nn.Module]:
    torch.manual_seed(11)
    inputs = torch.rand(192, zoo.INPUTS) + 0.1
    targets = torch.tanh((inputs - 0.6) @ torch.randn(zoo.INPUTS, zoo.OUTPUTS))
    return DataLoader(TensorDataset(inputs, targets), 32), case.build()


def _found(monitor: SymmetryMonitor | SymmetryTracker) -> Found:
    found: Found = {}
    for finding in monitor.findings:
        found.setdefault(finding.layer.replace("net.", ""), set()).add(str(finding.verdict))
    return found


def settings(case: Case) -> list[tuple[str, str]]:
    """Return every optimizer in float32, and in bfloat16 one without and one with a state."""
    plain = [(optimizer, "32-true") for optimizer in OPTIMIZERS]
    return plain + [(optimizer, "bf16-true") for optimizer in ("sgd", "adamw") if case.bf16]


def tell(found: dict[str, set[str]]) -> str:
    """Return the findings in a few words."""
    return "; ".join(f"{layer}: {', '.join(sorted(verdicts))}" for layer, verdicts in sorted(found.items())) or "silent"


def main() -> int:
    """Print the table; return the number of failed settings as the exit status."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    wrong = 0
    for case in CASES:
        for optimizer, precision in settings(case):
            with contextlib.redirect_stdout(io.StringIO()):
                found, _, _ = run(case, optimizer, precision)
                found_in_loop, _, _ = run_in_plain_loop(case, optimizer, precision)
            is_right = found == found_in_loop == case.expected
            wrong += not is_right
            mark = "ok   " if is_right else "WRONG"
            line = f"{mark} {case.name:32} {optimizer:8} {precision:9} expected {tell(case.expected):28}"
            in_loop = "" if found_in_loop == found else f", in a plain loop {tell(found_in_loop)}"
            print(f"{line} found {tell(found)}{in_loop}", flush=True)
    print(f"{wrong} of {sum(len(settings(case)) for case in CASES)} settings are wrong, by Trainer or in a plain loop")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
