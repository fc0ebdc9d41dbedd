"""Values in messages, above all whole models passed by mistake."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lightning_symmetry as public
from lightning_symmetry import functional, metrics
from lightning_symmetry.brief import brief
from lightning_symmetry.units.registry import register_layer_by_name
from tests.test_tracker import loss_of, sgd
from tests.training import batches, mlp


class Broken:
    """Raises at every access."""

    def __repr__(self) -> str:
        raise ValueError("no text")

    def __getattr__(self, name: str) -> Any:
        raise ValueError("no attribute")

    def __len__(self) -> int:
        raise ValueError("no length")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((value, repr(value)) for value in (None, True, 3, 2.5, "fc*", [["fc"]], {"fc": 1}, (), nn.Linear, print)),
        (nn.Linear(2, 3), "Linear(in_features=2, out_features=3, bias=True)"),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), "<Sequential of length 2>"),
        (nn.Bilinear(2, 3, 4).state_dict(), "<OrderedDict of length 2>"),
        (OrderedDict(), "<OrderedDict of length 0>"),
        (sgd(mlp()), "<SGD>"),
        (torch.ones(2, 3), "<Tensor of shape (2, 3)>"),
        (np.ones(4), "<ndarray of shape (4,)>"),
        ({"weight": torch.ones(5)}, "{'weight': <Tensor of shape (5,)>}"),
    ],
)
def test_a_value_in_a_few_words(value: object, text: str) -> None:
    assert brief(value) == text


def test_a_value_whose_methods_raise() -> None:
    assert brief([Broken()]) == "[<Broken>]"


@pytest.mark.parametrize("value", ["f" * 10_000, list(range(10_000)), {str(i): [[[[i]]]] for i in range(99)}, 10**4000])
def test_no_value_takes_many_words(value: object) -> None:
    assert len(brief(value)) < 250


BIG = nn.Sequential(*[nn.Linear(16, 16) for _ in range(200)])
STATE = BIG.state_dict()
AnyPublic: Any = public
OPTIONS = ["every_n_steps", "tolerance", "patience", "include", "exclude", "heatmaps", "on_symmetry", "scalars"]


@pytest.mark.parametrize("wrong", [BIG, STATE, list(STATE.values())], ids=["model", "state dict", "tensors"])
@pytest.mark.parametrize(
    "call",
    [
        *(lambda wrong, name=name: AnyPublic.SymmetryMonitor(**{name: wrong}) for name in OPTIONS),
        lambda wrong: AnyPublic.SymmetryMonitor(require_conclusion=wrong),
        lambda wrong: AnyPublic.SymmetryMonitor(dead_share=wrong),
        lambda wrong: AnyPublic.SymmetryMonitor(on_finding=[wrong]),
        lambda wrong: AnyPublic.diagnose([wrong]),
        lambda wrong: AnyPublic.diagnose(mlp(), tolerance=wrong),
        lambda wrong: AnyPublic.duplicate_groups([wrong]),
        lambda wrong: AnyPublic.SymmetryTracker([wrong], sgd(mlp())),
        lambda wrong: AnyPublic.SymmetryTracker(mlp(), wrong),
        lambda wrong: AnyPublic.SymmetryTracker(mlp(), sgd(BIG)),
        lambda wrong: AnyPublic.SymmetryTracker(mlp(), sgd(mlp()), output={"to": wrong}),
        lambda wrong: AnyPublic.assert_no_symmetry([wrong], loss_of, batches()),
        lambda wrong: AnyPublic.assert_no_symmetry(mlp(), [wrong], batches()),
        lambda wrong: AnyPublic.assert_no_symmetry(mlp(), loss_of, batches(), [wrong]),
        lambda wrong: AnyPublic.assert_no_symmetry(mlp(), lambda *_: [wrong], batches()),
        lambda wrong: AnyPublic.assert_no_symmetry(mlp(), lambda *_: torch.ones(5000), batches()),
        lambda wrong: AnyPublic.assert_no_symmetry(copy.deepcopy(BIG).requires_grad_(False), loss_of, batches()),
        lambda wrong: AnyPublic.break_symmetry([wrong], AnyPublic.SymmetryReport()),
        lambda wrong: AnyPublic.break_symmetry(mlp(), wrong),
        lambda wrong: AnyPublic.break_symmetry(mlp(), AnyPublic.SymmetryReport(), optimizer=wrong),
        lambda wrong: AnyPublic.break_symmetry(mlp(), AnyPublic.SymmetryReport(), method=wrong),
        lambda wrong: AnyPublic.break_symmetry(mlp(), AnyPublic.SymmetryReport(), generator=wrong),
        lambda wrong: AnyPublic.merge_duplicates([wrong], torch.ones(2, 12)),
        lambda wrong: AnyPublic.merge_duplicates(mlp(), [wrong]),
        lambda wrong: AnyPublic.merge_duplicates(mlp(), torch.ones(2, 12), report=wrong),
        lambda wrong: AnyPublic.merge_duplicates(mlp(), torch.ones(2, 12), optimizer=wrong),
        lambda wrong: AnyPublic.register_layer(BIG)(loss_of),
        lambda wrong: AnyPublic.register_layer(nn.Linear)([wrong]),
        lambda wrong: register_layer_by_name(wrong),
        lambda wrong: AnyPublic.ActivationProbe([wrong]),
        lambda wrong: AnyPublic.ActivationProbe(BIG),
        lambda wrong: AnyPublic.ActivationProbe(mlp(), include=wrong),
        lambda wrong: metrics.DuplicateActivations(wrong),
        lambda wrong: metrics.EffectiveRank(num_units=wrong),
        lambda wrong: metrics.EffectiveWidth(tolerance=wrong),
        lambda wrong: functional.duplicate_activations(torch.ones(2, 3), wrong),
        lambda wrong: AnyPublic.scan([wrong]),
    ],
)
def test_no_error_shows_a_whole_model(call: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as told:
        call(wrong)
    assert len(str(told.value)) < 700
