"""The line that a warning points at."""

from __future__ import annotations

import sysconfig
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_symmetry.engine.messages import warn

LIGHTNING = ("/src/lightning/pytorch/trainer/trainer.py", "lightning.pytorch.trainer.trainer")
LIBRARY = ("/usr/lib/python3/dist-packages/forecasts/model.py", "forecasts.model")
WRAPPER = (str(Path(sysconfig.get_path("stdlib")) / "contextlib.py"), "contextlib")
OWN = ("/home/me/train.py", "__main__")
INSTALLED = ("/venv/lib/python3.11/site-packages/my_project/train.py", "my_project.train")
COMMAND = (str(Path(sysconfig.get_path("scripts")) / "my-project"), "__main__")


def warned_at(places: Sequence[tuple[str, str]]) -> str:
    """Return the file that a warning points at, raised below code of these files and modules, outermost first."""
    step: Any = warn
    for path, name in reversed(places):
        scope: dict[str, Any] = {"__name__": name, "step": step}
        exec(compile("def run(text):\n    step(text)\n", path, "exec"), scope)
        step = scope["run"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=step, args=("any",))  # otherwise the tests were the outermost code
        thread.start()
        thread.join()
    [warning] = caught
    return warning.filename


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([OWN, LIGHTNING], OWN),
        ([OWN, LIBRARY, LIGHTNING], OWN),  # a library that trains with Lightning
        ([OWN, LIGHTNING, WRAPPER], OWN),
        ([COMMAND, OWN, LIBRARY, LIGHTNING], OWN),
        ([COMMAND, INSTALLED, LIGHTNING], INSTALLED),
        ([COMMAND, LIGHTNING], COMMAND),  # such as `fabric run`
    ],
)
def test_a_warning_points_at_code_of_the_users(places: Sequence[tuple[str, str]], expected: tuple[str, str]) -> None:
    assert warned_at(places) == expected[0]
