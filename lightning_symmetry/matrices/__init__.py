"""Numbers: how the rows of a matrix are read, and which of them agree.

Knows no modules, no ranks and no verdicts. May import nothing else of this package but the checks of arguments.
"""
