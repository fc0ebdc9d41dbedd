"""A plugin for pytest: the fixture ``symmetry``. It has no hooks, so that it cannot get in the way of other tests.

pytest loads this module at every start, so it imports neither torch nor anything that does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest


@pytest.fixture
def symmetry() -> Callable[..., Any]:
    """Asserts in one line that no units of a model train as one: ``symmetry(model, loss, batches)``.

    The same as :func:`lightning_symmetry.assert_no_symmetry`; a test that fails shows the whole report with its error.
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
