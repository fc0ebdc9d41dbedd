"""The release as a stranger gets it: the built distributions, an index that has them, and an empty environment.

It needs what ``make dist`` builds, and none of the project's own environments; ``make test-release`` runs it.
"""
