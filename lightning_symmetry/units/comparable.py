"""Sets of rows that are compared with one another: the units of a layer, or whole modules with a row each."""

from __future__ import annotations

from lightning_symmetry.units.copies import Copies
from lightning_symmetry.units.layers import Layer

Comparable = Layer | Copies
