from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrizations

from lightning_symmetry import Units, diagnose, register_layer
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis
from lightning_symmetry.verdicts.report import SymmetryReport
from tests.cases import CASES, Case
from tests.distributed import fsdp1, fsdp1_flat, fsdp2, on_ranks
from tests.training import fill


class Unknown(nn.Module):
    """A layer with 12 weights, none of which is read, since its adapter has a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(100))


@register_layer(Unknown)
def unknown(module: Unknown) -> Units:
    raise TypeError


def test_the_share_of_weights_that_were_looked_at() -> None:
    model = nn.ModuleDict({"known": nn.Linear(4, 5), "unknown": Unknown(), "norm": nn.LayerNorm(1000)})
    # Parameters of one dimension are no weights: 20 of 20 + 12 weights are read.
    report = diagnose(model)
    assert report.coverage == 20 / 32
    assert json.loads(json.dumps(report.to_dict()))["coverage"] == 20 / 32
    assert str(report).splitlines()[0] == (
        "Symmetry at step 0: all 5 units of 1 layer are working; 62 % of the weights were looked at."
    )
    fill(model["known"], 0.5)
    assert (
        diagnose(model).totals()
        == "1 of 5 units of 1 layer are working (4 redundant); 62 % of the weights were looked at."
    )


def test_all_weights_of_a_model_without_weights_were_looked_at() -> None:
    for model in (nn.ReLU(), nn.LayerNorm(4)):
        assert diagnose(model).coverage == 1.0
    assert diagnose(Unknown()).coverage == 0.0
    assert diagnose(Unknown()).totals() == "no layer was inspected."


def test_what_include_or_exclude_leaves_out_was_not_looked_at() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 5), "head": nn.Linear(5, 4)})
    assert diagnose(model).coverage == 1.0
    assert diagnose(model, include=["head"]).coverage == 0.5
    assert diagnose(model, exclude=["*"]).coverage == 0.0


def test_a_shared_weight_counts_once() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "unknown": Unknown()})
    model["second"].weight = model["first"].weight
    assert diagnose(model).coverage == 16 / 28
    # One name is enough, and so is one slicing.
    assert diagnose(model, exclude=["second"]).coverage == 16 / 28
    tokens, head = nn.Embedding(4, 3), nn.Linear(3, 4)
    head.weight = tokens.weight
    assert diagnose(nn.Sequential(tokens, head)).coverage == 1.0


def test_of_a_layer_of_several_parts_each_counts_for_itself() -> None:
    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(10, 2)})
    assert diagnose(attention).coverage == 1.0
    assert diagnose(attention, include=["attn.q"]).coverage == 100 / 400

    class ManyExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 4, 5))

    @register_layer(ManyExperts)
    def experts(module: ManyExperts) -> list[Units]:
        def expert(i: int) -> Units:
            return Units((module.weight, lambda weight: weight[i].T), part=f"expert{i}")

        return [expert(i) for i in range(len(module.weight))]

    assert diagnose(ManyExperts()).coverage == 1.0  # ten tenths
    assert diagnose(ManyExperts(), exclude=["*.expert[0-2]"]).coverage == 0.7


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_of_a_parametrized_layer_the_originals_count(parametrize: Callable[..., nn.Module]) -> None:
    module = parametrize(nn.Linear(4, 5))
    assert diagnose(module).coverage == 1.0
    model = nn.Sequential(module, Unknown())
    originals = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    assert diagnose(model).coverage == originals / (originals + 12)


def test_weights_that_are_not_there_yet_are_not_counted() -> None:
    assert diagnose(nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(4))).coverage == 1.0
    assert diagnose(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4, device="meta"))).coverage == 0.5


@pytest.mark.parametrize(
    ("coverage", "text"), [(0.9999, "99"), (0.997, "99"), (0.29, "29"), (0.57, "57"), (0.62, "62"), (0.001, "0")]
)
def test_coverage_in_words_is_rounded_down(coverage: float, text: str) -> None:
    report = SymmetryReport(0, {"fc": LayerDiagnosis("fc", 3, 4)}, coverage=coverage)
    assert report.totals() == f"all 3 units of 1 layer are working; {text} % of the weights were looked at."


def test_full_coverage_goes_without_saying() -> None:
    assert SymmetryReport(0, {"fc": LayerDiagnosis("fc", 3, 4)}).totals() == "all 3 units of 1 layer are working."


def coverages(num_ranks: int, folder: Path) -> dict[str, float | int]:
    """Return the coverage of a model in every layout, and the number of warnings about a pattern without a match."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("data_parallel",))
    found: dict[str, float | int] = {}
    for name, shard in (("FSDP2", fsdp2), ("FSDP1", fsdp1), ("FSDP1 flat", fsdp1_flat)):
        net = nn.Sequential(nn.Linear(4, 5), Unknown(), nn.Linear(4, 3), nn.LayerNorm(50))
        sharded = shard(net, mesh) or net
        found[name] = diagnose(sharded).coverage
        found[f"{name}, first layer"] = diagnose(sharded, include=["0"]).coverage
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnose(sharded, include=["0", "fc"])
    found["warnings"] = sum("pattern 'fc'" in str(warning.message) for warning in caught)
    return found


def test_sharded_weights_count_with_their_whole_shape(tmp_path: Path) -> None:
    first, second = on_ranks(2, partial(coverages, 2), tmp_path)
    kinds = ("FSDP2", "FSDP1", "FSDP1 flat")
    expected = {name: share for kind in kinds for name, share in ((kind, 32 / 44), (f"{kind}, first layer", 20 / 44))}
    assert first == {**expected, "warnings": 1}
    assert second == {**expected, "warnings": 0}  # only the first rank warns


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hardly_a_weight_of_the_zoo_is_left_unseen(case: Case) -> None:
    found = find_layers(case.build())
    assert found.coverage >= 0.99
    assert found.unread == {}
