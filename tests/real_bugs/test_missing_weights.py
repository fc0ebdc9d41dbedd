"""Weights that nothing has initialised: keys that a checkpoint lacks, rows that a vocabulary was padded by."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryMonitor, SymmetryWarning, Units, register_layer
from tests import zoo
from tests.real_bugs.cases import Case, Found, assert_found, assert_silent, train_buggy, train_fixed
from tests.training import Classifier, batches, make_trainer

TOKENS = 20


class Tagger(nn.Module):
    """An encoder of tokens, and on top of it a convolution that the checkpoint knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.embed = zoo.Tokens(), nn.Embedding(TOKENS, 8)
        self.conv, self.head = nn.Conv1d(8, 16, 3), nn.Linear(16, zoo.OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(self.embed(self.tokens(inputs)).transpose(1, 2)))
        out: Tensor = self.head(hidden.mean(dim=2))
        return out

    def init_weights(self, *types: type[nn.Module]) -> None:
        """Draw the weights of modules of these types, as an ``_init_weights`` does of those that its author knew."""
        for module in self.modules():
            if isinstance(module, types):
                nn.init.normal_(module.get_parameter("weight"), std=0.1)


def loaded(*known: type[nn.Module]) -> nn.Module:
    """A model made without initialisation, filled from a checkpoint that has the embedding only."""
    checkpoint = {"embed.weight": torch.randn(TOKENS, 8)}
    with torch.device("meta"):
        model = Tagger()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # what fresh memory holds as a rule; elsewhere it may hold anything
    model.init_weights(*known)
    assert "conv.weight" in model.load_state_dict(checkpoint, strict=False).missing_keys
    return model


class LanguageModel(nn.Module):
    """Embeds twelve tokens and puts out logits of a vocabulary that was enlarged by some tokens."""

    def __init__(self, num_new: int, spread: float) -> None:
        super().__init__()
        self.tokens = zoo.Tokens()
        self.embed, self.hidden = nn.Embedding(TOKENS, 8), nn.Linear(8, 16)
        known = nn.Linear(16, zoo.OUTPUTS)
        self.head = nn.Linear(16, zoo.OUTPUTS + num_new)
        with torch.no_grad():
            for enlarged, old in ((self.head.weight, known.weight), (self.head.bias, known.bias)):
                enlarged[: zoo.OUTPUTS] = old
                enlarged[zoo.OUTPUTS :] = old.mean(dim=0)
            self.head.weight[zoo.OUTPUTS :] += spread * torch.randn(num_new, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.hidden(self.embed(self.tokens(inputs)).mean(dim=1))))
        return out


class ConvTBC(nn.Module):
    """A convolution over ``(time, batch, channels)``, whose weight ``(kernel, inputs, outputs)`` nothing draws."""

    def __init__(self, inputs: int, outputs: int, *, is_drawn: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if is_drawn:
            nn.init.xavier_normal_(self.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.conv_tbc(inputs, self.weight, self.bias, pad=1)


class TaughtConvTBC(ConvTBC):
    """The same, with an adapter."""


@register_layer(TaughtConvTBC)
def conv_tbc(module: TaughtConvTBC) -> list[Units]:
    """The units of a convolution over time are the output channels, which lie in the last dimension."""
    return [Units((module.weight, lambda weight: weight.movedim(-1, 0)), module.bias)]


def convolutions(layer: type[ConvTBC], *, is_drawn: bool) -> nn.Module:
    return Sequences(layer(1, 8, is_drawn=is_drawn), layer(8, 8, is_drawn=is_drawn))


class Sequences(nn.Module):
    """Convolutions over twelve numbers, one after the other, and a head on their mean."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(8, zoo.OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.T[..., None].contiguous()
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        out: Tensor = self.head(hidden.mean(dim=0))
        return out


MISSING = Case(
    "A key that the checkpoint lacks and _init_weights does not know",
    (
        "https://github.com/huggingface/transformers/issues/28298",
        "https://github.com/huggingface/transformers/issues/35437",
        "https://github.com/huggingface/transformers/issues/30953",
    ),
    partial(loaded, nn.Linear),
    partial(loaded, nn.Linear, nn.Conv1d),
    (Found("conv", "frozen", "zero"), Found("embed", "dead", "cut off", way_out="[SYM3")),
)
UNTAUGHT = Case(
    "Layers with parameters that are never initialised",
    ("https://github.com/facebookresearch/fairseq/issues/3131", "https://github.com/openai/CLIP/issues/15"),
    partial(convolutions, ConvTBC, is_drawn=False),
    partial(convolutions, ConvTBC, is_drawn=True),
)
CASES = [
    MISSING,
    Case(
        "New tokens that all start as the mean of the old ones",
        ("https://github.com/huggingface/transformers/pull/27464", "https://github.com/huggingface/transformers/pull/33325"),
        partial(LanguageModel, 6, 0.0),
        partial(LanguageModel, 6, 0.1),
        (Found("head", "locked", "copied", (tuple(range(4, 10)),), "Add noise to the copies"),),
    ),
    Case(
        "Layers with parameters that are never initialised, with an adapter",
        UNTAUGHT.sources,
        partial(convolutions, TaughtConvTBC, is_drawn=False),
        partial(convolutions, TaughtConvTBC, is_drawn=True),
        (Found("layers.0", "frozen", "zero"), Found("layers.1", "frozen", "zero")),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bug_is_found(case: Case) -> None:
    assert_found(case, train_buggy(case))


@pytest.mark.parametrize("case", [*CASES, UNTAUGHT], ids=str)
def test_the_fix_is_silent(case: Case) -> None:
    assert_silent(train_fixed(case))


def test_zeros_in_layers_that_no_adapter_knows_are_listed() -> None:
    outcome = train_buggy(UNTAUGHT)
    report = outcome.tracker.report
    assert report is not None
    assert report.findings == []
    assert report.status == "inconclusive"
    assert set(report.untrained.values()) == {"no gradient has reached it"}
    assert {"layers.0.weight", "layers.1.weight"} <= report.untrained.keys()
    assert [text.partition(":")[2][:53] for text in outcome.said] == [
        " parts of the model do not train. no gradient has rea"
    ]
    for name in ("layers.0.weight[dim 2]", "layers.1.weight[dim 2]"):
        assert [(group.verdict, group.cause) for group in report.layers[name].groups] == [("duplicate", "zero")]


@pytest.mark.parametrize("is_fixed", [False, True])
def test_the_monitor_finds_the_missing_key_under_a_trainer(is_fixed: bool) -> None:
    monitor = SymmetryMonitor(every_n_steps=5, heatmaps="none", scalars="none")
    net = MISSING.fixed() if is_fixed else MISSING.buggy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SymmetryWarning)
        make_trainer([monitor], max_steps=MISSING.steps).fit(Classifier(net), batches())
    said = [str(warning.message) for warning in caught if issubclass(warning.category, SymmetryWarning)]
    if is_fixed:
        assert (monitor.findings, said) == ([], [])
    else:
        assert {finding.layer for finding in monitor.findings} == {"net.conv", "net.embed"}
        starts = [text.partition(":")[0] for text in train_buggy(MISSING).said]
        assert [text.partition(":")[0] for text in said] == [f"net.{start}" for start in starts]
