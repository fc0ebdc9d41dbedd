"""The callback classes of both names under which Lightning is installed, ``lightning`` and ``pytorch_lightning``.

``pytorch_lightning.Trainer`` accepts a bare callback, and its command line any callback, only if it is an instance of
its own ``Callback``. Importing either package sets globals of ``lightning_utilities``: the logger that Lightning's
messages go to, and the category of its deprecation warnings. Both stay those of the package that the user imported
first.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from lightning_utilities.core import rank_zero

if TYPE_CHECKING:

    class OtherCallback:
        """Stands for the other class, of whose methods only those of Lightning's own matter."""

else:
    _is_other_first = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    _globals = dict(vars(rank_zero))
    importlib.import_module("lightning.pytorch")
    if not _is_other_first:
        _globals = dict(vars(rank_zero))
    try:
        from pytorch_lightning import Callback as OtherCallback
    except ImportError:
        OtherCallback = object
    finally:
        vars(rank_zero).update(_globals)
