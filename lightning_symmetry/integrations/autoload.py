"""A monitor in every Trainer without a line of code, if an environment variable is set.

Lightning loads this module whenever it makes a Trainer, so its top-level imports are fast.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_symmetry.callback import SymmetryMonitor

VARIABLE = "LIGHTNING_SYMMETRY_AUTOLOAD"


def callbacks() -> list[SymmetryMonitor]:
    """Return the callbacks to add to a new Trainer: a monitor if the variable is ``1``, else none."""
    if os.environ.get(VARIABLE) != "1":
        return []
    try:
        from lightning_symmetry.integrations.autoloaded import AutoloadedMonitor

        return [AutoloadedMonitor()]
    except Exception as error:  # such as a failing import, which must not prevent the Trainer
        warnings.warn(f"{VARIABLE}=1 adds no monitor: {type(error).__name__}: {error}", stacklevel=2)
        return []
