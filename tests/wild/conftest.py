from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the libraries warn of what they like: only the warnings of the monitor count, and are collected."""
    item.add_marker(pytest.mark.filterwarnings("ignore"))
