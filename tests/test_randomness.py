"""Random numbers drawn inside do not affect those that follow."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_symmetry.randomness import preserved_random_numbers

DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(3).tolist(),
    # The second number of a pair is kept for the next call.
    "torch, normal": lambda: torch.empty(1).normal_().item(),
    "numpy": lambda: np.random.rand(),
    "numpy, normal": lambda: np.random.randn(),
    "Python": lambda: random.random(),
    "Python, normal": lambda: random.gauss(),
}
if torch.cuda.is_available():
    DRAWS["CUDA"] = lambda: torch.rand(3, device="cuda").tolist()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_next_numbers_are_the_same(draw: Callable[[], object]) -> None:
    draw()
    with preserved_random_numbers():
        inside = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] == inside


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_next_numbers_are_the_same_after_an_error_and_another_seed(draw: Callable[[], object]) -> None:
    draw()
    with preserved_random_numbers():
        expected = draw()
    with pytest.raises(KeyError), preserved_random_numbers():  # noqa: PT012
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        raise KeyError
    assert draw() == expected
