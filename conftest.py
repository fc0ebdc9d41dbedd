"""Lets pytest run the blocks of the documents, which lie outside the folders of tests."""

from __future__ import annotations

import pytest

from tests.documents.pages import documents, in_order

collect_ignore = ["docs/hooks"]  # they need what makes the site
pytest_collect_file = documents.pytest()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Undo, within each page, what shuffles tests: its blocks build on one another."""
    items[:] = in_order(items)
