from __future__ import annotations

import re
import warnings

import pytest
from torch import nn

from lightning_symmetry import diagnose
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.naming import unmatched_text


def model() -> nn.ModuleDict:
    layers = [nn.Linear(2, 2) for _ in range(3)]
    return nn.ModuleDict(
        {"encoder": nn.Sequential(*layers), "norm": nn.LayerNorm(2), "attn": nn.MultiheadAttention(4, 2)}
    )


def test_patterns_that_match_nothing_are_returned_by_argument() -> None:
    assert find_layers(model()).unmatched == {}
    assert find_layers(model(), include=[], exclude=[]).unmatched == {}
    assert find_layers(model(), include=["encoder.*"], exclude=["*.1", "attn.k"]).unmatched == {}
    found = find_layers(model(), include=["enc*", "decoder.*"], exclude=["attn", "head", "*.q"])
    assert found.unmatched == {"include": ("decoder.*",), "exclude": ("attn", "head")}
    # A pattern counts as matched even if another pattern decides about all of its matches.
    assert find_layers(model(), include=["encoder.0"], exclude=["encoder.*", "encoder.0"]).unmatched == {}


def test_names_of_modules_that_cannot_be_inspected_are_names_too() -> None:
    assert find_layers(model(), exclude=["norm"]).unmatched == {}


def test_diagnose_warns_of_patterns_that_match_nothing() -> None:
    with pytest.warns(
        UserWarning, match=re.escape("`include` has the pattern 'encodr.0', which matches no layer")
    ) as warned:
        diagnose(model(), include=["encodr.0", "encoder.1"])
    assert warned[0].filename == __file__
    text = str(warned[0].message)
    assert "Closest names: 'encoder.0', 'encoder.1', 'encoder.2', " in text
    assert text.endswith(" (8 in all).")
    assert text.count("'") == 2 * (1 + 5)
    with pytest.warns(UserWarning, match=re.escape("`exclude` has the pattern 'head'")):
        diagnose(model(), exclude=["head"])


def test_diagnose_is_silent_if_every_pattern_matches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnose(model(), include=["encoder.*"], exclude=["*.1"])


def test_a_pattern_that_matches_only_a_container_is_told_of_what_is_inside() -> None:
    names = ["encoder.0", "encoder.1", "head"]
    assert unmatched_text({"include": ("encoder",)}, names) == (
        "`include` has the pattern 'encoder', which matches no layer. For the layers inside 'encoder' write "
        "'encoder.*'. Closest names: 'encoder.0', 'encoder.1', 'head' (3 in all)."
    )


def test_several_patterns_and_models_without_layers_in_words() -> None:
    assert unmatched_text({"include": ("fc*", "fd"), "exclude": ("x",)}, ["fe", "fc"]) == (
        "`include` has the pattern 'fc*', which matches no layer. Closest names: 'fc', 'fe' (2 in all).\n"
        "`include` has the pattern 'fd', which matches no layer. Closest names: 'fe', 'fc' (2 in all).\n"
        "`exclude` has the pattern 'x', which matches no layer. Closest names: 'fe', 'fc' (2 in all)."
    )
    assert unmatched_text({"include": ("fc",)}, []) == (
        "`include` has the pattern 'fc', which matches no layer. This model has no layers."
    )
