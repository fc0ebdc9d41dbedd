"""Time series, made on the spot, as the libraries of forecasting take them."""

from __future__ import annotations

import numpy as np
import pandas as pd

LENGTH, SERIES = 120, 3


def values() -> np.ndarray:
    """Return seasonal series with noise, a row each."""
    draws = np.random.default_rng(0)
    time = np.arange(LENGTH)
    phases, slopes = draws.uniform(0, 6, (SERIES, 1)), draws.uniform(-0.01, 0.01, (SERIES, 1))
    waves = np.sin(2 * np.pi * time / 12 + phases) + slopes * time + 0.1 * draws.normal(size=(SERIES, LENGTH))
    return waves.astype(np.float32)


def long_frame() -> pd.DataFrame:
    """Return a row per series and time: `unique_id`, `ds`, `y`, and `x`, which is known in advance."""
    series = values()
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"s{i}" for i in range(SERIES)], LENGTH),
            "ds": np.tile(np.arange(LENGTH), SERIES),
            "y": series.ravel(),
            "x": np.cos(series.ravel()),
        }
    )
