"""Copied heads of attention are reported by head, in any attention; everything else is unchanged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lightning_symmetry import SymmetryTracker, UnitGroup, Verdict, diagnose
from lightning_symmetry.outputs.findings import findings_rows
from lightning_symmetry.verdicts.advice import messages
from lightning_symmetry.verdicts.diagnoses import Cause, LayerDiagnosis, Origin
from lightning_symmetry.verdicts.heads import Heads
from lightning_symmetry.verdicts.report import SymmetryReport
from tests import zoo

ROLES = ("query", "key", "value")


def train(model: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int = 13) -> tuple[SymmetryTracker, list[str]]:
    """Train a model with a tracker; return it and its warnings."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SymmetryTracker(model, optimizer, every_n_steps=3) as tracker:
            for _ in range(steps):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
    return tracker, [str(each.message) for each in caught]


def of_vectors(model: nn.Module) -> Tensor:
    inputs = torch.randn(16, 12)
    return nn.functional.mse_loss(model(inputs), inputs[:, : zoo.OUTPUTS].tanh())


def of_tokens(model: nn.Module) -> Tensor:
    tokens = torch.randint(16, (4, 8))
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def copy_head(weights: list[Tensor], head: int, copy: int, size: int) -> None:
    """Copy rows of weights."""
    with torch.no_grad():
        for weight in weights:
            weight[copy * size : (copy + 1) * size] = weight[head * size : (head + 1) * size]


def llama(num_key_value_heads: int, seed: int = 0) -> tuple[LlamaForCausalLM, Any]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    return model, model.model.layers[0].self_attn


def test_a_head_that_is_a_copy_gets_one_message() -> None:
    torch.manual_seed(0)
    tracker, warned = train(zoo.copied_heads(zoo.Heads(), [(1, 3)]), of_vectors)
    assert warned == [
        "attn: head 3 is a copy of head 1. Their queries, keys and values (attn.q, attn.k, attn.v) are identical in "
        "weights and gradients (locked since step 0): they train as 1 head. Their rows are copies of one another: "
        "tiled, copied or padded weights. Add noise to the copies, e.g. "
        "`model.attn.in_proj_weight.data += 0.02 * torch.randn_like(model.attn.in_proj_weight)`, "
        "or keep only one of them. [SYM103]"
    ]
    assert tracker.report is not None
    assert tracker.report.messages() == warned
    assert {finding.units for finding in tracker.findings} == {(4 + i, 12 + i) for i in range(4)}
    assert len(tracker.findings) == 12
    rows = findings_rows(tracker.findings, tracker.report)
    assert [row[:2] for row in rows] == [
        [f"attn.{role}", "8 of 16 units in 4 groups (head 3 matches head 1, unit by unit)"] for role in "qkv"
    ]
    assert "head 3 is a copy of head 1" in tracker.report._repr_html_()
    assert "(units 12-15 match units 4-7, one by one)" in str(tracker.report)


def test_a_single_look_tells_heads_too() -> None:
    torch.manual_seed(0)
    net = zoo.copied_heads(zoo.Heads(), [(0, 2), (1, 3)])
    of_vectors(net).backward()
    (message,) = diagnose(net).messages()
    assert message.startswith("attn: heads 2-3 are copies of heads 0-1, one by one. Their queries, ")
    assert "they train as 2 heads. " in message
    assert message.endswith(" or keep only one of each. [SYM103]")


def test_many_modules_share_a_message() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.TransformerEncoderLayer(16, 4, 16, 0.0, batch_first=True) for _ in range(4)))
    inputs = torch.randn(4, 3, 16)

    def loss(net: nn.Module) -> Tensor:
        return nn.functional.mse_loss(net(inputs + 0.1 * torch.randn(4, 3, 16)), inputs.roll(1, 0))

    _, (message,) = train(zoo.copied_heads(net, [(1, 3)]), loss)
    assert message.startswith(
        "0.self_attn, 1.self_attn, ..., 3.self_attn (4 attention modules): in each, head 3 is a copy of head 1. Their "
        "queries, keys and values (0.self_attn.q, 0.self_attn.k, ..., 3.self_attn.v; 12 layers) are identical "
    )


def test_repeated_key_value_heads_part_by_themselves() -> None:
    """Four heads with two distinct keys and values, each twice, as after a conversion from grouped queries."""
    model, attn = llama(4)
    weights = [attn.k_proj.weight, attn.v_proj.weight]
    copy_head(weights, 0, 1, 8)
    copy_head(weights, 2, 3, 8)
    of_tokens(model).backward()
    report = diagnose(model)
    for name in ("k_proj", "v_proj"):
        groups = report.layers[f"model.layers.0.self_attn.{name}"].groups
        assert len(groups) == 16
        assert {group.verdict for group in groups} == {Verdict.BREAKING}
    tracker, warned = train(model, of_tokens, 30)
    assert warned == []
    assert tracker.findings == []
    assert tracker.report is not None
    assert tracker.report.redundant_units == 0


def test_copies_among_grouped_queries() -> None:
    model, attn = llama(2)
    copy_head([attn.k_proj.weight, attn.v_proj.weight], 0, 1, 8)
    outgoing = attn.o_proj.weight.data.T
    for head in (0, 1):
        copy_head([attn.q_proj.weight, outgoing], head, head + 2, 8)
    _, (message,) = train(model, of_tokens)
    assert message.startswith(
        "model.layers.0.self_attn: heads 2-3 are copies of heads 0-1, one by one. Their queries, "
    )
    for name in ("q_proj", "k_proj", "v_proj"):
        assert f"model.layers.0.self_attn.{name}" in message


def test_copies_that_share_keys_and_values() -> None:
    model, attn = llama(1)
    copy_head([attn.q_proj.weight, attn.o_proj.weight.data.T], 1, 3, 8)
    _, (message,) = train(model, of_tokens)
    assert message.startswith(
        "model.layers.0.self_attn: head 3 is a copy of head 1, and they share keys and values. Their queries "
        "(model.layers.0.self_attn.q_proj) are identical in weights and gradients "
    )


def test_gradients_that_say_nothing_so_far_are_counted() -> None:
    """With small weights the gradients of queries and keys start near rounding errors."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    attention: Any = model.bert.encoder.layer[0].attention
    own = attention.self
    copy_head([own.query.weight, own.key.weight, own.value.weight, attention.output.dense.weight.data.T], 1, 3, 8)

    def loss(model: nn.Module) -> Tensor:
        of_classes: Tensor = model(input_ids=torch.randint(16, (8, 10)), labels=torch.randint(2, (8,))).loss
        return of_classes

    tracker, warned = train(model, loss, 20)
    start = "bert.encoder.layer.0.attention.self: head 3 is a copy of head 1. "
    assert warned
    assert all(message.startswith(start) for message in warned)
    numbers = [int(found[1]) for message in warned if (found := re.search(r"\) (\d+) are identical", message))]
    assert numbers == sorted(set(numbers))
    assert tracker.report is not None
    (message,) = tracker.report.messages()
    assert message.startswith(f"{start}Their queries, keys and values (")


# ---------------------------------------------------------------- what is no whole head


def report_of(groups: dict[str, list[UnitGroup]]) -> SymmetryReport:
    """Return the report of an attention module with three heads of four units."""
    layers = {role: LayerDiagnosis(role, 12, 3, groups=groups.get(role, [])) for role in ROLES}
    return SymmetryReport(9, layers, heads={role: [Heads("attn", role, (0, 4, 8), 4)] for role in ROLES})


def head(one: int, other: int, verdict: Verdict = Verdict.LOCKED, **held: Any) -> list[UnitGroup]:
    """Return the groups of two heads that agree."""
    pairs = [(4 * one + i, 4 * other + i) for i in range(4)]
    return [UnitGroup(pair, verdict, Cause.COPIED, first_step=0, **held) for pair in pairs]


def test_whole_heads() -> None:
    groups = dict.fromkeys(ROLES, head(0, 2))
    (message,) = report_of(groups).messages()
    assert message.startswith(
        "attn: head 2 is a copy of head 0. Their queries, keys and values (query, key, value) are "
    )
    (message,) = report_of(groups | {"value": head(0, 2, Verdict.DUPLICATE)}).messages()
    assert message.startswith(
        "attn: head 2 is a copy of head 0. Of the 12 groups of equal units in their queries, keys and values (query, "
        "key, value) 8 are identical in weights and gradients (locked since step 0): they train as 8 units. The "
        "gradients of the others are inconclusive so far. "
    )


@pytest.mark.parametrize(
    "value",
    [
        [],
        head(0, 1),  # another head
        head(0, 2)[:3],  # a part of the head
        head(0, 2, Verdict.BREAKING),
        head(0, 2, Verdict.LOCKSTEP),
        head(0, 2, mirrored=(8, 9, 10, 11)),
        head(0, 2, origin=Origin.COLLAPSE),  # which is another code
        [UnitGroup((i, 8 + (i + 1) % 4), Verdict.LOCKED, Cause.COPIED, first_step=0) for i in range(4)],  # other units
        [UnitGroup((0, 1, 8, 9), Verdict.LOCKED, Cause.COPIED, first_step=0)],
    ],
)
def test_no_head_is_a_copy_unless_all_of_it_is(value: list[UnitGroup]) -> None:
    texts = report_of({"query": head(0, 2), "key": head(0, 2), "value": value}).messages()
    assert not any("is a copy of" in text for text in texts)
    assert texts[0].startswith("query: 8 of 12 units in 4 groups (head 2 matches head 0, unit by unit) are identical ")
    assert texts[1].startswith("key: 8 of 12 units in 4 groups (head 2 matches head 0, unit by unit) are identical ")
    assert any(text.startswith("value: ") for text in texts) == any(group.verdict.is_warning for group in value)


def test_what_is_left_beside_a_head_is_told_by_unit() -> None:
    groups = {role: head(0, 2) for role in ROLES}
    groups["key"] = [*groups["key"], UnitGroup((5, 6), Verdict.LOCKED, Cause.COPIED, first_step=0)]
    texts = report_of(groups).messages()
    assert [text[: text.index(" ")] for text in texts] == ["attn:", "key:"]
    assert "2 of 12 units, {5, 6}," in texts[1]


def test_only_news_are_told_and_all_that_makes_them_up() -> None:
    groups = {role: [*head(0, 2), UnitGroup((5, 6), Verdict.LOCKED, Cause.COPIED, first_step=0)] for role in ROLES}
    report = report_of(groups)
    news = [finding for finding in report.findings if finding.layer == "key" and 0 in finding.units]
    (message,) = messages(news, report)
    assert message.startswith(
        "attn: head 2 is a copy of head 0. Their queries, keys and values (query, key, value) are "
    )
    (message,) = messages([replace(finding, broken_step=9) for finding in news], replace(report, layers={}))
    assert message.startswith("key: ")
