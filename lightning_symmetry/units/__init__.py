"""From modules to units: the registry of layer types, the layers of a model, and whole modules that are copies.

Modules of this folder may import from ``matrices`` and ``ranks``. Importing any of them registers the adapters of
PyTorch's layers first, so that an adapter which a user registers for the same layer type comes later and is used.
"""

from lightning_symmetry.units import adapters as adapters
from lightning_symmetry.units import experts as experts
