"""A plugin for pytest: the fixture ``symmetry``, and the report of a model in the output of a test that fails.

pytest loads this module at every start, so it imports neither torch nor anything that does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import pytest


@pytest.fixture
def symmetry() -> Callable[..., Any]:
    """Asserts in one line that no units of a model train as one: ``symmetry(model, loss, batches)``.

    The same as :func:`lightning_symmetry.assert_no_symmetry`.
    """
    from lightning_symmetry.gate import assert_no_symmetry

    return assert_no_symmetry


@pytest.hookimpl(hookwrapper=True)  # `wrapper=True` needs pluggy 1.2
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Show the whole report of the model under a test that failed with a ``SymmetryError``."""
    outcome = yield
    # Whoever raised a SymmetryError has imported this, and nobody else should.
    raising = sys.modules.get("lightning_symmetry.engine.saying")
    if raising is not None and call.excinfo is not None:
        with suppress(Exception):  # whatever an exception of somebody else does when it is looked at
            if isinstance(call.excinfo.value, raising.SymmetryError):
                outcome.get_result().sections.append(("Symmetry report", str(call.excinfo.value.report)))
