"""The callback classes of both names under which Lightning is installed, ``lightning`` and ``pytorch_lightning``.

``pytorch_lightning.Trainer`` accepts a bare callback, and its command line any callback, only if it is an instance of
its own ``Callback``. Importing either package sets globals of ``lightning_utilities``: the logger that Lightning's
messages go to, and the category of its deprecation warnings. This module restores both to those of the package that
the user imported first.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class OtherCallback:
        """Stands for the other class, whose methods are those of ``lightning.pytorch.Callback``."""

else:
    _is_other_first = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    _globals = dict(vars(sys.modules["lightning_utilities.core.rank_zero"])) if _is_other_first else None
    importlib.import_module("lightning.pytorch")
    from lightning.fabric.utilities.rank_zero import rank_zero_module

    _globals = _globals or dict(vars(rank_zero_module))
    try:
        from pytorch_lightning import Callback as OtherCallback
    except ImportError:
        OtherCallback = object
    finally:
        vars(rank_zero_module).update(_globals)
