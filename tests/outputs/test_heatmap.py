from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry import LayerDiagnosis, SymmetryReport, UnitGroup, Verdict
from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.outputs.heatmap import ON_ANY_PAGE, colours, draw_layer, draw_overview, order_units, similarity
from lightning_symmetry.verdicts.diagnoses import Cause


def layer_of(num_units: int, groups: list[tuple[int, ...]]) -> LayerDiagnosis:
    return LayerDiagnosis(
        "fc", num_units, 3, groups=[UnitGroup(units, Verdict.LOCKED, Cause.COPIED) for units in groups]
    )


@given(
    sizes=st.lists(st.integers(2, 400), max_size=120),
    others=st.integers(0, 3000),
    limit=st.integers(8, 200),
)
def test_thinned_layers_show_every_group(sizes: list[int], others: int, limit: int) -> None:
    bounds = np.cumsum([0, *sizes]).tolist()
    groups = [tuple(range(a, b)) for a, b in pairwise(bounds)]
    num_units = bounds[-1] + others
    if num_units == 0:
        return
    parts = order_units(layer_of(num_units, groups), limit)
    shown = [unit for part in parts for unit in part]
    assert len(shown) == len(set(shown))
    assert len(shown) <= limit
    if num_units <= limit:
        assert len(shown) == num_units
    for group, part in zip(groups[: limit // 2], parts[:-1], strict=True):
        assert len(part) >= 2
        assert set(part) <= set(group)
    assert set(parts[-1]).isdisjoint(unit for group in groups for unit in group)


def test_similarity_has_weights_below_and_gradients_above() -> None:
    weights, gradients = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = [[1.0, -1.0, 0.5**0.5], [1.0, 1.0, -(0.5**0.5)], [0.0, 0.0, 1.0]]
    assert similarity(weights, gradients) == pytest.approx(np.array(expected))


def test_rows_without_direction_are_grey() -> None:
    matrix = similarity(np.array([[0.0, 0.0], [1.0, 1e-30]], dtype=np.float32), None)
    assert np.isnan(matrix).tolist() == [[True, True], [True, False]]
    grey = colours(np.array(np.nan))
    assert len(set(grey.tolist())) <= 3
    assert not (colours(np.linspace(-1, 1, 101)) == grey).all(axis=-1).any()


def test_colours_run_from_dark_to_bright() -> None:
    luminance = colours(np.linspace(0, 1, 20)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()
    below = colours(np.linspace(0, -1, 20)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(below) > 0).all()


def test_pictures_of_extreme_layers_have_a_sensible_size() -> None:
    cases: list[tuple[int, list[tuple[int, ...]]]] = [(1, []), (2, [(0, 1)]), (5000, [tuple(range(0, 5000, 2))])]
    for num_units, groups in cases:
        rows = DenseRows([torch.randn(num_units, 3, generator=torch.Generator().manual_seed(0))])
        height, width, channels = draw_layer(layer_of(num_units, groups), rows, None).shape
        assert channels == 3
        assert 380 <= height <= 520
        assert 400 <= width <= 520


def test_overview_of_hundreds_of_layers_shows_the_sick_ones() -> None:
    layers = {f"block{i}": LayerDiagnosis(f"block{i}", 8, 3) for i in range(300)}
    layers["block250"] = replace(layer_of(8, [(0, 1)]), name="block250")
    image = draw_overview(SymmetryReport(0, layers))
    assert image.shape[0] < 1100
    locked = np.array([0xD1, 0x49, 0x5B])
    assert (image[60 : image.shape[0] - 40] == locked).all(axis=-1).any()
    assert draw_overview(SymmetryReport()).shape[0] > 50


def test_the_heading_of_an_overview_is_not_cut_off() -> None:
    layers = {f"block{i}": layer_of(123_456_789, [(0, 1)]) for i in range(2)}
    report = SymmetryReport(1_234_567_890, {name: replace(layer, name=name) for name, layer in layers.items()})
    image = draw_overview(replace(report, coverage=0.5))
    assert (image[:30, -6:] == 255).all()
    assert (image[:30, :-6] != 255).any()


def test_the_legend_of_an_overview_is_whole() -> None:
    image = draw_overview(SymmetryReport(0, {"fc": layer_of(8, [])}))
    for verdict in Verdict:
        colour = [int(verdict.traits.colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (image == colour).all(axis=-1).sum() == 12 * 12, verdict
    assert (image[-4:] == 255).all()


def test_pictures_for_notebooks_can_be_read_on_light_and_on_dark_pages() -> None:
    layer = layer_of(8, [(0, 1, 2)])
    rows = DenseRows([torch.randn(8, 5)])
    pixels = draw_layer(layer, rows, None, ON_ANY_PAGE)
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0  # whatever the page has shows through
    opaque = draw_layer(layer, rows, None)
    assert opaque.shape == (*pixels.shape[:2], 3)
    square = (slice(60, 200), slice(70, 200))
    assert (pixels[square][..., :3] == opaque[square]).all()
    letters = pixels[4:24, 50:200]
    for page in (255, 30):
        shown = letters[..., 3:] / 255 * letters[..., :3] + (1 - letters[..., 3:] / 255) * page
        assert abs(shown - page).max() > 90
