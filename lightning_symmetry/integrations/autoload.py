"""A monitor in every Trainer, without a line of code, where an environment variable asks for it.

Lightning loads this module whenever it makes a Trainer, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_symmetry.callback import SymmetryMonitor

VARIABLE = "LIGHTNING_SYMMETRY_AUTOLOAD"


def callbacks() -> list[SymmetryMonitor]:
    """Return what is added to the callbacks of a new Trainer: a monitor if the variable is ``1``, else nothing."""
    if os.environ.get(VARIABLE) != "1":
        return []
    try:
        from lightning_symmetry.integrations.autoloaded import AutoloadedMonitor

        return [AutoloadedMonitor()]
    except Exception as error:  # such as a dependency that cannot be imported; the Trainer could not be made else
        warnings.warn(f"{VARIABLE}=1 adds no monitor: {type(error).__name__}: {error}", stacklevel=2)
        return []
