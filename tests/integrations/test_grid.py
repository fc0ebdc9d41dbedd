"""The table of loops and loggers in the docs matches the contents of the loggers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.grid import END, LOGGERS, LOOPS, NONE, START, cell, without

DOCS = Path(__file__).parents[2] / "docs" / "loops.md"

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # six libraries warn about themselves
    pytest.mark.usefixtures("_elsewhere"),
]


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_SILENT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what a training sets


def documented() -> dict[tuple[str, str], str]:
    """The cells of the table, by loop and logger."""
    lines = DOCS.read_text().partition(START)[2].partition(END)[0].strip().splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {(row[0], logger): text for row in rows[2:] for logger, text in zip(rows[0][1:], row[1:], strict=True)}


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_each_logger_shows_in_each_loop_what_the_docs_say(loop: str, logger: str, tmp_path: Path) -> None:
    expected = documented()[loop, logger]
    if without(loop, logger):
        assert expected == NONE
    else:
        assert ", ".join(cell(loop, logger, tmp_path)) == expected
