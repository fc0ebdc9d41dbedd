"""A plugin for pytest: the fixture ``symmetry``. It has no hooks, so that it cannot affect other tests.

pytest loads this module at every start, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest


@pytest.fixture
def symmetry() -> Callable[..., Any]:
    """Assert in one line that no units of a model train as one: ``symmetry(model, loss, batches)``.

    It is :func:`lightning_symmetry.assert_no_symmetry`, with the whole report in the error of a failing test.
    """
    from lightning_symmetry.engine.messages import SymmetryError
    from lightning_symmetry.gate import assert_no_symmetry

    @wraps(assert_no_symmetry)
    def asserted(*arguments: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        try:
            return assert_no_symmetry(*arguments, **options)
        except SymmetryError as error:
            error.add_note(f"\nSymmetry report\n\n{error.report}")
            raise

    return asserted
