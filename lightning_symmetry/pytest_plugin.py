"""A plugin for pytest: the fixture ``symmetry``, and the report of a model in the output of a test that fails.

pytest loads this module at every start, so it imports neither torch nor anything that does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest


@pytest.fixture
def symmetry() -> Callable[..., Any]:
    """Asserts in one line that no units of a model train as one: ``symmetry(model, loss, batches)``.

    The same as :func:`lightning_symmetry.assert_no_symmetry`.
    """
    from lightning_symmetry.gate import assert_no_symmetry

    return assert_no_symmetry


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the whole report of the model under a test that failed with a ``SymmetryError``."""
    result = yield
    error: Any = call.excinfo.value if call.excinfo is not None else None
    # By name, since whoever raised it has imported it, and nobody else should.
    if type(error).__name__ == "SymmetryError" and hasattr(error, "report"):
        result.sections.append(("Symmetry report", str(error.report)))
    return result
