"""Units that are mirror images of one another, in trainings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import SymmetryReport, SymmetryTracker, Verdict, diagnose
from lightning_symmetry.verdicts.diagnoses import Cause
from tests import zoo
from tests.test_tracker import loss_of, sgd, tracked
from tests.training import fill


def weight_of(net: nn.Sequential, place: int) -> Tensor:
    weight = net[place].weight
    assert isinstance(weight, Tensor)
    return weight


def mirrored_mlp(activation: Callable[[], nn.Module] = nn.Tanh, outgoing: float = -1.0) -> nn.Sequential:
    """A hidden layer whose second half mirrors the first, outgoing weights included."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), activation(), nn.Linear(16, 4))
    zoo.mirrored(net, "0", "2", outgoing)
    return net


def groups_of(report: SymmetryReport, layer: str) -> dict[tuple[int, ...], tuple[str, tuple[int, ...]]]:
    return {group.units: (str(group.verdict), group.mirrored) for group in report.layers[layer].groups}


PAIRS = {(i, i + 8): ("locked", (i + 8,)) for i in range(8)}


@pytest.mark.parametrize(
    ("activation", "outgoing", "is_found"),
    [
        (nn.Tanh, -1.0, True),
        (nn.Identity, -1.0, True),
        (nn.Softsign, -1.0, True),
        (zoo.Square, 1.0, True),
        (nn.ReLU, -1.0, False),  # looks-linear initialisation
        (nn.ReLU, 1.0, False),
        (zoo.Square, -1.0, False),
        (nn.Tanh, 0.5, False),
        (nn.GELU, -1.0, False),
    ],
)
def test_mirror_images_are_found_where_they_stay_so(
    activation: Callable[[], nn.Module], outgoing: float, is_found: bool
) -> None:
    tracker = tracked(mirrored_mlp(activation, outgoing), every_n_steps=2)
    assert groups_of(tracker.report, "0") == (PAIRS if is_found else {})
    assert tracker.report.layers["0"].effective_width == (8 if is_found else 16)
    assert len(tracker.findings) == (8 if is_found else 0)
    if is_found:
        assert {finding.first_step for finding in tracker.findings} == {0}
        (message,) = tracker.report.messages()
        assert "are equal up to sign in weights and gradients (locked since step 0): they train as 8 units." in message
        assert "mirror images, the negatives, of others: behind an odd or even activation, such as tanh" in message


def test_they_are_what_stays_equal_in_float64_by_brute_force() -> None:
    net = mirrored_mlp().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    with SymmetryTracker(net, optimizer, every_n_steps=10, on_symmetry="ignore") as tracker:
        for _ in range(200):
            inputs = torch.randn(32, 12, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            (net(inputs) - inputs[:, :4]).square().mean().backward()
            optimizer.step()
    weight = weight_of(net, 0).detach()
    assert isinstance(weight, Tensor)
    assert float((weight[8:] + weight[:8]).norm()) <= 1e-9 * float(weight.norm())
    assert groups_of(tracker.report, "0") == PAIRS  # type: ignore[arg-type]


def test_copies_and_mirror_images_are_one_group() -> None:
    net = mirrored_mlp()
    with torch.no_grad():
        for i in (2, 3):
            for parameter in net[0].parameters():
                parameter[i] = parameter[1]
                parameter[i + 8] = -parameter[1]
            weight_of(net, 2)[:, i] = weight_of(net, 2)[:, 1]
            weight_of(net, 2)[:, i + 8] = -weight_of(net, 2)[:, 1]
    tracker = tracked(net)
    assert groups_of(tracker.report, "0")[(1, 2, 3, 9, 10, 11)] == ("locked", (9, 10, 11))
    assert tracker.report.layers["0"].effective_width == 6
    (group,) = [group for group in tracker.report.layers["0"].groups if len(group.units) == 6]
    assert (group.cause, group.verdict) == (Cause.MIRRORED, Verdict.LOCKED)
    assert json.loads(json.dumps(group.to_dict()))["mirrored"] == [9, 10, 11]


def test_copies_are_found_though_their_mirror_images_part() -> None:
    # Behind a ReLU the negatives do different work; the copies are still copies.
    net = mirrored_mlp(nn.ReLU)
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter[0] += 1  # it never shuts
            parameter[1] = parameter[0]
        weight_of(net, 2)[:, 1] = weight_of(net, 2)[:, 0]
    assert groups_of(tracked(net).report, "0") == {(0, 1): ("locked", ())}


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_units(kind: Any) -> None:
    """Mirror images in a tanh network, or with gates, which are not odd: there the symmetry breaks by itself."""
    torch.manual_seed(0)
    net = zoo.Recurrent(kind(3, 8, batch_first=True))
    rnn: Any = net.rnn
    hidden = rnn.hidden_size
    signs = torch.tensor([1.0] * (hidden // 2) + [-1.0] * (hidden // 2))
    with torch.no_grad():
        for gate in range(rnn.weight_hh_l0.shape[0] // hidden):
            rows = slice(gate * hidden, (gate + 1) * hidden)
            for parameter in (rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.bias_hh_l0):
                first = parameter[rows][: hidden // 2].clone()
                parameter[rows] = torch.cat([first, -first])
            block = rnn.weight_hh_l0[rows][: hidden // 2, : hidden // 2].clone()
            rnn.weight_hh_l0[rows] = torch.cat([block, block]).repeat(1, 2) * signs[:, None] * signs / 2
        net.head.weight[:, hidden // 2 :] = -net.head.weight[:, : hidden // 2]
    optimizer = sgd(net)
    inputs, targets = torch.randn(32, zoo.INPUTS), torch.randn(32, zoo.OUTPUTS)
    with SymmetryTracker(net, optimizer, on_symmetry="ignore", every_n_steps=2) as tracker:
        for _ in range(10):
            optimizer.zero_grad()
            (net(inputs) - targets).square().mean().backward()
            optimizer.step()
    assert tracker.report is not None
    pairs = {(i, i + 4): ("locked", (i + 4,)) for i in range(4)}
    assert groups_of(tracker.report, "rnn.l0") == (pairs if kind is nn.RNN else {})


def test_filters() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4))
    zoo.mirrored(net, "1", "4")
    assert groups_of(tracked(net).report, "1") == {(i, i + 4): ("locked", (i + 4,)) for i in range(4)}


def test_queries_and_keys_that_are_mirrored_together() -> None:
    torch.manual_seed(0)
    net = zoo.mirror_rows(zoo.Attention(), "q", "k")
    report = tracked(net).report
    pairs = {(i, i + 4): ("locked", (i + 4,)) for i in range(4)}
    assert (groups_of(report, "q"), groups_of(report, "k"), groups_of(report, "v")) == (pairs, pairs, {})


@pytest.mark.parametrize("has_norm", [False, True])
def test_two_units_of_which_only_the_difference_counts_are_passed_over(has_norm: bool) -> None:
    # From zero, the two rows of a softmax of two classes stay mirror images, and so do their gradients.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), fill(nn.Linear(8, 2), 0.0), *([nn.LayerNorm(2)] * has_norm))
    optimizer = sgd(net)
    with SymmetryTracker(net, optimizer, every_n_steps=1) as tracker:
        for step in range(80):
            inputs = torch.rand(32, 12, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), (inputs[:, 0] > 0.5).long()).backward()
            optimizer.step()
    assert tracker.report is not None
    assert tracker.report.layers["2"].groups == []
    assert tracker.findings == []


def test_one_look_needs_gradients_and_proves_nothing() -> None:
    net = mirrored_mlp()
    assert diagnose(net).layers["0"].groups == []
    loss_of(net, [torch.randn(8, 12), torch.randint(0, 4, (8,))]).backward()
    assert groups_of(diagnose(net), "0") == {pair: ("duplicate", negative) for pair, (_, negative) in PAIRS.items()}


def test_what_parts_is_noted() -> None:
    net = mirrored_mlp()
    optimizer = sgd(net)
    batches = itertools.cycle([[torch.randn(16, 12), torch.randint(0, 4, (16,))]])
    with SymmetryTracker(net, optimizer, on_symmetry="ignore", every_n_steps=1) as tracker:
        for step, batch in zip(range(12), batches, strict=False):
            if step == 6:
                with torch.no_grad():
                    weight_of(net, 0)[8:] += 0.3 * torch.randn(8, 12)
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
        again = json.loads(json.dumps(tracker.state_dict()))
    assert {finding.broken_step for finding in tracker.findings} == {6}
    assert {finding.mirrored for finding in tracker.findings} == {(i + 8,) for i in range(8)}
    with SymmetryTracker(net, optimizer) as resumed:
        resumed.load_state_dict(again)
        assert resumed.findings == tracker.findings


@pytest.mark.parametrize("gates_are_equal", [True, False])
def test_a_mirror_image_has_equal_gates_whatever_the_gradients_say(gates_are_equal: bool) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 8)
    for parameter in lstm.parameters():
        parameter.grad = torch.randn_like(parameter)
        for numbers, are_mirrored in ((parameter.data, gates_are_equal), (parameter.grad, True)):
            for gate, rows in enumerate(numbers.unflatten(0, (4, 8))):
                if rows.shape[1:] == (8,):  # the recurrent weights
                    rows[:4, 4:] = -rows[:4, :4]
                if gate == 2 or are_mirrored:
                    rows[4:] = -rows[:4] if gate == 2 else rows[:4]
    found = {group.units for group in diagnose(nn.Sequential(lstm)).layers["0.l0"].groups}
    assert found == ({(i, i + 4) for i in range(4)} if gates_are_equal else set())
