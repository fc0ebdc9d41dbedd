"""The metrics in functional and in class form, against brute force in float64."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_symmetry import functional
from lightning_symmetry.metrics import (
    DeadActivations,
    DuplicateActivations,
    EffectiveRank,
    EffectiveWidth,
    RedundantUnits,
)
from tests.oracle import brute_force_groups

OF_ACTIVATIONS: dict[type[Metric], Callable[[Tensor], Tensor]] = {
    DeadActivations: functional.dead_activations,
    DuplicateActivations: functional.duplicate_activations,
    EffectiveRank: functional.effective_rank,
}


def brute_force(activations: Tensor) -> dict[type[Metric], float]:
    """Compute the three measures with numpy, by their definitions."""
    samples = activations.double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(samples, rowvar=False).reshape(samples.shape[1], -1)
    np.fill_diagonal(correlations, -1)
    correlations[:, samples.std(axis=0) == 0] = -1
    correlations[samples.std(axis=0) == 0] = -1
    values = np.linalg.svd(samples, compute_uv=False)
    shares = values[values > 0] / max(values.sum(), 1e-300)
    return {
        DeadActivations: float((samples == 0).all(axis=0).mean()),
        DuplicateActivations: float((correlations > 0.95).any(axis=1).mean()),
        EffectiveRank: float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
    }


@st.composite
def batches(draw: st.DrawFn) -> list[Tensor]:
    """Return batches of activations with units that are dead, constant, copies, or nearly so."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_samples, num_units = draw(st.integers(2, 60)), draw(st.integers(1, 12))
    samples = torch.randn(num_samples, num_units, generator=generator)
    samples = samples * draw(st.sampled_from([1.0, 1e-3, 1e3])) + draw(st.sampled_from([0.0, 10.0, -3.0]))
    for unit in range(num_units):
        kind = draw(st.sampled_from(["free", "dead", "constant", "copy", "noisy copy", "shut at times"]))
        if kind == "dead":
            samples[:, unit] = 0
        elif kind == "constant":
            samples[:, unit] = 1.5
        elif kind == "copy":
            samples[:, unit] = samples[:, 0]
        elif kind == "noisy copy":
            samples[:, unit] = samples[:, 0] + 0.1 * torch.randn(num_samples, generator=generator) * samples[:, 0].std()
        elif kind == "shut at times":
            samples[::2, unit] = 0
    cuts = sorted(draw(st.lists(st.integers(1, num_samples - 1), max_size=4, unique=True)))
    return [part for part in torch.tensor_split(samples, cuts) if len(part)]


@given(batches())
@settings(max_examples=100, deadline=None)
def test_streams_equal_one_shot_and_brute_force(parts: list[Tensor]) -> None:
    whole = torch.cat(parts)
    expected = brute_force(whole)
    for kind, function in OF_ACTIVATIONS.items():
        metric = kind()
        for part in parts:
            metric.update(part)
        # Roots of eigenvalues have half of the precision of singular values.
        assert float(metric.compute()) == pytest.approx(expected[kind], rel=1e-5, abs=1e-9), kind
        assert float(function(whole)) == pytest.approx(expected[kind], rel=1e-7, abs=1e-9), kind


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_samples_that_are_not_finite_do_not_count(kind: type[Metric]) -> None:
    samples = torch.relu(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    spoiled = samples.repeat_interleave(2, dim=0)
    spoiled[1::4, 2], spoiled[3::4, 0] = torch.nan, -torch.inf
    metric, expected = kind(), kind()
    for batch in (spoiled[1::2], *spoiled.split(8)):
        metric.update(batch)
    expected.update(samples)
    assert float(metric.compute()) == pytest.approx(float(expected.compute()))
    assert float(OF_ACTIVATIONS[kind](spoiled)) == pytest.approx(float(expected.compute()))


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_without_a_finite_sample_there_is_no_measure(kind: type[Metric]) -> None:
    for samples in (torch.full((5, 3), torch.nan), torch.full((5, 3), torch.inf)):
        metric = kind()
        metric.update(samples)
        assert torch.isnan(metric.compute())
        assert torch.isnan(OF_ACTIVATIONS[kind](samples))
    metric = kind()
    metric.update(1e200 * torch.randn(5, 3, dtype=torch.float64))  # whose products are infinite
    assert torch.isnan(metric.compute())


def test_large_means_cost_no_digits() -> None:
    torch.manual_seed(0)
    samples = torch.randn(4000, 6, dtype=torch.float64)
    samples[:, 1] = samples[:, 0] + 0.2 * samples[:, 2]
    samples = samples + 1e7
    metric = DuplicateActivations()
    for part in samples.split(100):
        metric.update(part)
    products = metric.moments[1:, 1:]
    centred = samples - samples.mean(dim=0)
    torch.testing.assert_close(products, centred.T @ centred, rtol=1e-6, atol=1e-3)
    assert float(metric.compute()) == pytest.approx(2 / 6)


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    metric = EffectiveRank()
    for _ in range(50):
        metric.update(torch.randn(200, 7))
    assert metric.moments.shape == (8, 8)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_widths_equal_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(20, 5, generator=generator)[torch.randint(20, (30,), generator=generator)]
    redundant = sum(len(group) - 1 for group in brute_force_groups(weight, 1e-5))
    assert int(functional.redundant_units(weight)) == int(RedundantUnits()(weight)) == redundant
    assert int(functional.effective_width(weight)) == int(EffectiveWidth()(weight)) == 30 - redundant


def test_filters_count_as_flattened() -> None:
    assert int(functional.effective_width(torch.ones(4, 3, 2, 2))) == 1


def test_widths_are_means_over_updates() -> None:
    metric = EffectiveWidth()
    metric.update(torch.ones(4, 3))
    metric.update(torch.randn(4, 3))
    assert float(metric.compute()) == 2.5


def test_they_work_as_one_collection() -> None:
    torch.manual_seed(0)
    collection = MetricCollection([kind() for kind in OF_ACTIVATIONS])
    parts = [torch.relu(torch.randn(30, 8)) for _ in range(3)]
    for part in parts:
        of_batch = collection(part)
        assert float(of_batch["EffectiveRank"]) == pytest.approx(float(functional.effective_rank(part)), rel=1e-5)
    values = collection.compute()
    expected = brute_force(torch.cat(parts))
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {kind.__name__: value for kind, value in expected.items()}, rel=1e-5
    )


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_they_reset_pickle_and_plot(kind: type[Metric]) -> None:
    matplotlib.use("Agg")
    metric = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.isnan(metric.compute())
    metric.reset()
    metric.update(torch.randn(9, 3))
    again = pickle.loads(pickle.dumps(metric))
    assert torch.equal(again.compute(), metric.compute())
    figure, _ = metric.plot()
    assert figure is not None
    metric.reset()
    metric.update(torch.randn(9, 5))  # another layer may follow
    assert metric.compute() >= 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: functional.effective_rank(torch.zeros(3)), ValueError, r"shape \(N, units\) .* but got \(3,\)"),
        (lambda: functional.dead_activations(torch.zeros(0, 3)), ValueError, r"at least one sample but got \(0, 3\)"),
        (lambda: functional.effective_rank(torch.zeros(3, 3) * 1j), TypeError, "real numbers but got torch.complex64"),
        (lambda: functional.effective_width(torch.zeros(3)), ValueError, "`weight` to have two dimensions or more"),
        (lambda: functional.duplicate_activations(torch.ones(3, 3), 1.0), ValueError, "-1 <= threshold < 1 but got 1"),
        (lambda: DuplicateActivations("high"), TypeError, "`threshold` to be a number but got 'high'"),  # type: ignore[arg-type]
        (lambda: EffectiveRank(num_units=0), ValueError, "`num_units` to be at least 1 but got 0"),
        (lambda: EffectiveRank(num_units=3).update(torch.ones(2, 4)), ValueError, "to have 3 units but got"),
        (lambda: EffectiveWidth(tolerance=2.0), ValueError, "`tolerance`"),
    ],
)
def test_bad_input_is_told(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
