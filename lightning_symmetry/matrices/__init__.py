"""Numbers: how the rows of a matrix are read, and which of them agree.

``rows`` is what can be asked of a matrix, ``dense`` reads one that is here, ``numerics`` and ``projections`` are the
arithmetic beneath. ``sketching`` reads many matrices at once; by their sketches ``sieve`` and ``candidates`` choose
what ``grouping`` compares in full. Knows no modules, no ranks and no verdicts. May import nothing else of this package
but the checks of arguments.
"""
