"""Numbers: how the rows of a matrix are read, and which of them agree.

``rows`` is the interface of a matrix, ``dense`` implements it for local tensors, ``numerics`` and ``projections`` are
the arithmetic beneath. ``sketching`` reads many matrices at once; by their sketches ``sieve`` and ``candidates`` choose
what ``grouping`` compares in full. Knows no modules, no ranks and no verdicts. Of this package, may import only
``arguments`` and ``brief``.
"""
