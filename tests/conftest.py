from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests.browsing import Page, open_browser
from tests.serving import Server, tensorboard

# The same examples at every run, however long one takes; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

collect_ignore = ["benchmarks"]  # they need packages of their own


@pytest.fixture(autouse=True)
def _start_alike() -> None:
    """Whatever ran before, a test draws the same random numbers, and pytest hears what Lightning logs."""
    torch.manual_seed(0)
    # Lightning keeps its messages from the root logger if it is imported before pytest listens there, which versions
    # of pytest before 9 do in order to find the class that the filters of warnings name.
    logging.getLogger("lightning.pytorch").propagate = True


@pytest.fixture(autouse=True)
def _no_warning_is_missed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose monitor warned of something unexpected: where warnings are errors, it goes to the log."""
    said: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    note = Note()
    logger = logging.getLogger("lightning_symmetry.engine.messages")
    logger.addHandler(note)
    yield
    logger.removeHandler(note)
    assert request.node.get_closest_marker("warnings_go_to_the_log") or said == []


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log directory with the runs of the demo, just written, and some more for the Symmetry tab to cope with.

    The workers of pytest-xdist share it: the first that needs it writes it, and the others wait.
    """
    from lightning_symmetry.demo import gallery
    from tests import tab_runs

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    logdir, written = base / "gallery", base / "gallery.written"
    with FileLock(base / "gallery.lock"):
        if not written.exists():
            logdir.mkdir(exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gallery.run(logdir)
                tab_runs.write_all(logdir)
            written.touch()
    return logdir


@pytest.fixture(scope="session")
def fast_server(gallery: Path) -> Iterator[Server]:
    """TensorBoard with its default data server."""
    with tensorboard(gallery) as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(gallery: Path) -> Iterator[Server]:
    """TensorBoard that reads the files itself."""
    with tensorboard(gallery, "--load_fast=false") as server:
        yield server


@pytest.fixture(params=["fast", "slow"])
def server(request: pytest.FixtureRequest) -> Server:
    """TensorBoard, once with each data server."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture(scope="session")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser_page: Page) -> Iterator[Page]:
    """A page in Chromium; afterwards its console must be free of errors."""
    browser_page.rest()
    yield browser_page
    assert browser_page.errors() == []
