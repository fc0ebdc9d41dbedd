"""Modules: which of them have units, and the rows of each. Layers, adapters, and whole modules that are copies.

May import matrices and ranks. The adapters of PyTorch's layers are registered here, so that they are known whichever
module of this folder is imported first, and a user's own can take their place.
"""

from lightning_symmetry.units import adapters as adapters
